"""Accounting: every byte that the host spends, for what and for whom."""

from __future__ import annotations

from typing import Final

from memplat.conformance.case import Case, by_owner
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.ranges import KIB, FileRange
from memplat.types import AllocationMode

#: Metadata of a file system that nobody can foresee: 17 blocks of 4 KiB.
_METADATA: Final = 17 * 4 * KIB
_KINDS: Final = ("anonymous", "page_cache", "tmpfs")


@check("ACCT-01", rule="9.1", smoke=True, after="LIFE-04", forms="memplat_storage")
def total_usage_is_what_fstat_says(case: Case) -> None:
    """memplat_storage has to return what the host spends on the file: st_blocks of fstat(2), and the truth where that
    is not all.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, case.pages(memory, 8, 2))
    for number in range(0, pages.length // memory.page_size, 2):
        case.fill(memory, pages.part(number * memory.page_size, memory.page_size))
        told, spent = memory.total_usage(), observer.total()
        expect(told == spent, f"total_usage() is {told}, fstat says {spent}")


@check("ACCT-02", rule="9.2", after="ACCT-01 PROBE-01 PROBE-02")
def the_parts_add_up_to_the_whole(case: Case) -> None:
    """Storage.overhead is the file system's metadata and nothing else: worked out, not the rest that is left over when
    the probe's extents are subtracted.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.spread(memory, case.pages(memory, 12, 4))
    for one in pages[::2]:
        case.fill(memory, one)
    usage = memory.update_usage()
    parts = sum(usage.committed.values()) + usage.overhead + usage.foreign
    expect(parts == usage.total, f"committed, overhead and foreign are {parts} bytes, total is {usage.total}")
    expect(usage.total == observer.total(), f"Usage.total is {usage.total}, fstat says {observer.total()}")
    if not observer.is_exact:
        return
    truth = observer.total() - observer.data_bytes()
    allowed = _METADATA if truth else 0
    expect(
        abs(usage.overhead - truth) <= allowed,
        f"Usage.overhead is {usage.overhead}, the metadata have {truth} bytes",
    )


@check("ACCT-03", rule="9.3", after="ACCT-01 ACCT-02 PROBE-01 PROBE-02 PROBE-10")
def the_figures_of_a_quiet_file_are_exact(case: Case) -> None:
    """What memplat_probe_committed and memplat_storage say has to agree: the extents, and Storage.overhead, are
    Storage.total. Nobody touches the file meanwhile.
    """
    memory = case.open()
    pages = case.spread(memory, case.pages(memory, 12, 4))
    for one in pages[::2]:
        case.fill(memory, one)
    for turn in ("the first", "the second"):
        usage = memory.update_usage()
        expect(usage.exact, f"{turn} scan of a quiet file is not exact (method {usage.method!r})")
        memory.fileno()  # from now on the engine takes nothing for granted


@check("ACCT-04", rule="9.4", after="PROBE-01 PROBE-02 PROBE-05 ACCT-02")
def committed_bytes_are_charged_to_kind_and_owner(case: Case) -> None:
    """Page by page: what memplat_probe_committed reports has to be exact to the page, in any mixture."""
    memory = case.open()
    observer = case.observer(memory)
    pages = {}
    for number in range(case.pages(memory, 180, 9)):
        kind, owner = _KINDS[number * 7 % 3], number * 5 % 9 // 3 + 1
        pages[case.allocate(memory, 1, kind=kind, owner=owner)] = kind, owner
    touched = [one for number, one in enumerate(pages) if number * 11 % 7 < 4]
    for one in touched:
        case.fill(memory, one)
    wanted: dict[int, dict[str, int]] = {}
    for one, (kind, owner) in pages.items():
        cost = observer.cost(*one)
        if cost is None:
            cost = one.length if one in touched else 0
        mine = wanted.setdefault(owner, {})
        mine[kind] = mine.get(kind, 0) + cost
    usage = memory.update_usage()
    got = {
        owner: {kind: usage.committed_by_owner.get(owner, {}).get(kind, 0) for kind in kinds}
        for owner, kinds in wanted.items()
    }
    expect(got == wanted, f"committed bytes by owner and kind are {got}, counted page by page they are {wanted}")


@check("ACCT-05", rule="9.5", after="DECOM-02 DECOM-05 DECOM-06 DECOM-09 ACCT-01")
def nothing_is_left_when_everything_was_freed(case: Case) -> None:
    """Every page has to be given back, the first and the last of the file, too."""
    memory = case.open()
    observer = case.observer(memory)
    count = case.pages(memory, 32, 4)
    low = case.allocate(memory, count // 2)
    high = case.allocate(memory, count // 2, direction="down")
    for pages in (low, high):
        case.fill(memory, pages)
    reserved = case.allocate(memory, 1, mode=AllocationMode.COMMITTED)
    for pages in (reserved, FileRange(low.start, low.start + memory.page_size), high):
        memory.decref(pages)
    memory.decref(FileRange(low.start + memory.page_size, low.end))
    case.give_back(memory)
    left = observer.data_bytes()
    expect(left == 0, f"everything was freed and given back, and the file still costs {left} bytes")
    usage = memory.update_usage()
    told = by_owner(usage)
    expect(not told, f"everything was freed and given back, and usage says {told}")
