"""Commit probing: exactly the pages that the host spends storage on, whoever caused it."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import Final

from memplat.conformance.case import Case, by_owner
from memplat.conformance.observer import SHMEM
from memplat.conformance.registry import check
from memplat.conformance.swapping import write_and_swap_out
from memplat.conformance.verdict import expect
from memplat.memory import Memory
from memplat.ranges import GIB, FileRange, align_up
from memplat.types import AllocationMode, Capability

_FAR: Final = 5 * GIB
_MANY: Final = 3000


def _truth(case: Case, memory: Memory, pages: Sequence[FileRange], touched: Iterable[FileRange]) -> dict[int, int]:
    """What each owner of :meth:`Case.spread` has committed: what the host says, or, where it does not say, what was
    touched.
    """
    observer = case.observer(memory)
    if observer.extents() is None:
        costs = {pages.index(one) + 1: one.length for one in touched}
    else:
        costs = {owner: observer.cost(*one) or 0 for owner, one in enumerate(pages, 1)}
    return {owner: nbytes for owner, nbytes in costs.items() if nbytes}


def _expect_exact(
    case: Case, memory: Memory, pages: Sequence[FileRange], touched: Sequence[FileRange], how: str
) -> None:
    truth = _truth(case, memory, pages, touched)
    unseen = [one for one in touched if pages.index(one) + 1 not in truth]
    expect(not unseen, f"the suite itself is wrong: the host shows no storage for {unseen[:3]}, which was {how}")
    told = {owner: nbytes for owner, nbytes in by_owner(memory.update_usage()).items() if owner}
    missing = [pages[owner - 1] for owner, nbytes in truth.items() if told.get(owner, 0) < nbytes]
    expect(
        not missing,
        f"{len(missing)} of {len(truth)} committed pages are not reported, which were {how}: {_few(missing)}",
    )
    extra = [pages[owner - 1] for owner in told if told[owner] > truth.get(owner, 0)]
    expect(not extra, f"{len(extra)} pages are reported as committed that cost nothing ({how}): {_few(extra)}")


def _few(pages: Sequence[FileRange]) -> str:
    shown = ", ".join(map(str, pages[:4]))
    return f"{shown} …" if len(pages) > 4 else shown


@check("PROBE-01", rule="7.1", smoke=True, after="LIFE-04 VIEW-01")
def every_committed_page_is_reported(case: Case) -> None:
    """memplat_probe_committed leaves out pages that were written through the mapping."""
    memory = case.open()
    pages = case.spread(memory, case.pages(memory, 16, 4))
    touched = pages[1:-1:2]
    for one in touched:
        case.fill(memory, one)
    truth = _truth(case, memory, pages, touched)
    told = by_owner(memory.update_usage())
    missing = [pages[owner - 1] for owner, nbytes in truth.items() if told.get(owner, 0) < nbytes]
    expect(len(truth) >= len(touched), "the suite itself is wrong: the host shows no storage for written pages")
    expect(not missing, f"{len(missing)} of {len(truth)} committed pages are not reported: {_few(missing)}")


@check("PROBE-02", rule="7.2", after="LIFE-04 VIEW-01 GROW-02")
def no_other_page_is_reported(case: Case) -> None:
    """memplat_probe_committed reports pages that cost nothing: where SEEK_DATA calls the whole file data (hugetlbfs),
    another way has to be found.
    """
    memory = case.open()
    pages = case.spread(memory, case.pages(memory, 16, 4))
    touched = pages[2:-2:3]
    for one in touched:
        case.fill(memory, one)
    truth = _truth(case, memory, pages, touched)
    told = {owner: nbytes for owner, nbytes in by_owner(memory.update_usage()).items() if owner}
    extra = [pages[owner - 1] for owner in told if told[owner] > truth.get(owner, 0)]
    expect(not extra, f"{len(extra)} of {len(pages) - len(truth)} pages that cost nothing are reported: {_few(extra)}")


@check("PROBE-03", rule="7.3", needs=Capability.SHARE, after="PROBE-01 PROBE-02 SHARE-01")
def pages_that_another_process_touched_are_reported(case: Case) -> None:
    """One's own page tables (mincore(2), /proc/self/pagemap, PAGEMAP_SCAN) do not show what others have touched."""
    memory = case.open()
    pages = case.spread(memory, case.pages(memory, 16, 6))
    case.fill(memory, pages[0])
    theirs = case.share(memory)
    touched = [pages[0], *pages[2:-1:3]]
    for one in touched[1:]:
        theirs.poke(*_at(one), "theirs")
    _expect_exact(case, memory, pages, touched, "touched by another process")
    theirs.drop()


def _at(pages: FileRange) -> tuple[int, int]:
    return pages.start, pages.length


@check("PROBE-04", rule="7.4", after="PROBE-01 PROBE-02 VIEW-03")
def pages_that_were_touched_by_other_ways_are_reported(case: Case) -> None:
    """Written by system call, or through a second mapping in the same process: as invisible in the page tables of the
    engine's mapping as another process is.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.spread(memory, case.pages(memory, 16, 6))
    by_call, by_mapping = pages[1:-1:4], pages[3:-1:4]
    for one in by_call:
        memory.write(one, b"w" * one.length)
    with observer.opened() as own:
        for one in by_mapping:
            with mmap.mmap(own, one.length, offset=one.start) as window:
                window[:] = b"m" * one.length
    _expect_exact(case, memory, pages, [*by_call, *by_mapping], "written by system call or through another mapping")


@check("PROBE-05", rule="7.5", after="PROBE-01 PROBE-02")
def a_page_counts_by_its_storage_and_not_by_its_content(case: Case) -> None:
    """A page of zeros costs as much as any other once it was touched: memplat_probe_committed must not look at the
    content, nor at what is dirty.
    """
    memory = case.open()
    pages = case.spread(memory, case.pages(memory, 12, 4))
    touched = pages[1:-1:3]
    for one in touched:
        with memory.view(one) as view:
            view[:] = bytes(one.length)
    _expect_exact(case, memory, pages, touched, "written with zeros")


@check("PROBE-06", rule="7.6", needs=Capability.SWAP_EXACT, after="PROBE-01 PROBE-02 PROBE-04 VIEW-03")
def pages_that_were_swapped_out_are_reported(case: Case) -> None:
    """Swapped-out pages still cost storage. mincore(2) and page tables do not show them; SEEK_DATA does."""
    memory = case.open()
    case.allocate(memory, 1)
    count = case.pages(memory, 128, 2) // 2
    mine, others = case.allocate(memory, count, owner=1), case.allocate(memory, count, owner=2)
    write_and_swap_out(case, memory, mine)
    told = by_owner(memory.update_usage())
    got = told.get(1, 0), told.get(2, 0)
    expect(got[0] == mine.length, f"{mine.length} bytes are committed and swapped out; {got[0]} of them are reported")
    expect(got[1] == 0, f"{others} was never touched; {got[1]} bytes of it are reported")


@check("PROBE-07", rule="7.7", needs=Capability.SHARE, after="PROBE-01 PROBE-02 PROBE-03 SHARE-01")
def pages_that_a_peer_has_punched_are_no_longer_reported(case: Case) -> None:
    """memplat_probe_committed has to ask the host each time: a peer may give pages back, too."""
    memory = case.open()
    pages = case.spread(memory, case.pages(memory, 12, 4))
    for one in pages:
        case.fill(memory, one)
    _expect_exact(case, memory, pages, pages, "written")
    theirs = case.share(memory)
    gone = pages[1:-1:2]
    for one in gone:
        theirs.punch(*_at(one))
    _expect_exact(case, memory, pages, [one for one in pages if one not in gone], "left when a peer punched others")
    theirs.drop()


@check("PROBE-08", rule="7.8", smoke=True, after="LIFE-04", forms="memplat_probe_committed")
def what_the_probe_returns_is_well_formed(case: Case) -> None:
    """memplat_probe_committed has to return a flat sequence of offsets, start and end in turn, page-aligned, sorted,
    disjoint, not touching each other, and all within the part that was asked about.
    """
    memory = case.open()
    page = memory.page_size
    count = case.pages(memory, 48, 8)
    used = case.allocate(memory, count)
    pattern = [number for number in range(count) if number % 5 in (0, 2, 3)]
    for number in pattern:
        case.fill(memory, used.part(number * page, page))
    memory.update_usage()
    memory.decommit(used.part(2 * page, page), release=True)
    memory.decommit(used.part(0, 4 * page), release=True)
    memory.update_usage()
    memory.decommit(used, release=True)
    memory.update_usage()


@check("PROBE-09", rule="7.9", after="PROBE-01 PROBE-02 GROW-01 DECOM-03")
def pages_far_into_the_file_are_reported(case: Case) -> None:
    """Offsets beyond 4 GiB do not fit into 32 bits."""
    limit = align_up(_FAR, case.page_size or 1) + case.max_size()
    memory = case.open(max_size=limit)
    far = case.allocate(memory, _FAR // memory.page_size, owner=1)
    page = memory.page_size
    touched = [far.part(0, page), far.part(far.length - 2 * page, page)]
    for one in touched:
        case.fill(memory, one)
    cost = case.observer(memory).cost(*far)
    told = by_owner(memory.update_usage()).get(1, 0)
    wanted = 2 * page if cost is None else cost
    expect(told == wanted, f"{wanted} bytes are committed at both ends of {far.length} bytes; {told} are reported")
    given = memory.decommit(touched[1], release=True)
    expect(given == page, f"decommitting the last page of {far.length} bytes gave {given} bytes back")


@check("PROBE-10", rule="7.10", after="PROBE-01 PROBE-02 PROBE-05 VIEW-02 VIEW-04 GROW-04")
def thousands_of_extents_are_reported(case: Case) -> None:
    """The probe must not give up, or begin to guess, when its buffer is full."""
    memory = case.open(max_size=case.max_size(2 * _MANY + 8))
    count = case.pages(memory, 2 * _MANY, 8) // 2
    touched, idle = [], []
    for _ in range(count):
        touched.append(case.allocate(memory, 1, owner=1))
        idle.append(case.allocate(memory, 1, owner=2))
    view = memory.view(FileRange(touched[0].start, idle[-1].end))
    step = memory.page_size
    for start in range(0, len(view), 2 * step):
        view[start : start + step] = bytes(step)
    observer = case.observer(memory)
    told = by_owner(memory.update_usage())
    if observer.extents() is None:
        wanted = count * step, 0
    else:
        wanted = _split(observer.extents() or [], touched[0].start, idle[-1].end, step)
    got = told.get(1, 0), told.get(2, 0)
    expect(
        got == wanted,
        f"of every other of {2 * count} pages {wanted} bytes are committed, {got} are reported",
    )


def _split(extents: Sequence[tuple[int, int]], base: int, limit: int, page: int) -> tuple[int, int]:
    """The bytes of extents between *base* and *limit*, in pages of even and of odd number."""
    sums = [0, 0]
    for start, end in extents:
        for offset in range(max(base, start), min(limit, end), page):
            sums[(offset - base) // page % 2] += min(page, end - offset)
    return sums[0], sums[1]


@check(
    "PROBE-11",
    rule="7.11",
    needs=Capability.RESERVE,
    after="EXH-01 PROBE-02 ACCT-02",
    forms="memplat_probe_reserved",
)
def reserved_pages_that_cost_storage_are_reported(case: Case) -> None:
    """Pages that were reserved and never touched may be left out by memplat_probe_committed, but then
    memplat_probe_reserved has to report those that cost storage.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, case.pages(memory, 8, 2), mode=AllocationMode.RESERVED, owner=1)
    spent = observer.data_bytes()
    told = by_owner(memory.update_usage())
    expect(told.get(1, 0) == spent, f"{pages.length} reserved bytes cost {spent} bytes; {told.get(1, 0)} are reported")
    case.fill(memory, pages.part(0, memory.page_size))
    spent = observer.data_bytes()
    told = by_owner(memory.update_usage())
    expect(
        told.get(1, 0) == spent,
        f"reserved and touched pages cost {spent} bytes; {told.get(1, 0)} are reported",
    )


@check(
    "PROBE-12",
    rule="7.12",
    needs=Capability.SHARE,
    after="PROBE-01 PROBE-02 PROBE-03 PROBE-04 GROW-03 SHARE-01",
)
def pages_beyond_our_end_are_reported_as_foreign(case: Case) -> None:
    """Where a peer has grown the file, memplat_probe_committed is asked about all of it: it must not stop at
    BackingFile.size.
    """
    memory = case.open()
    observer = case.observer(memory)
    case.allocate(memory, 1)
    if observer.kind != SHMEM:
        case.pages(memory, 4)
    size = memory.total_size()
    theirs = case.share(memory)
    theirs.truncate(size + 4 * memory.page_size)
    theirs.poke(size + memory.page_size, memory.page_size, "foreign")
    usage = memory.update_usage()
    wanted = observer.cost(size, size + 4 * memory.page_size)
    wanted = memory.page_size if wanted is None else wanted
    expect(usage.foreign == wanted, f"a peer has committed {wanted} bytes beyond our end; usage says {usage.foreign}")
    theirs.drop()
