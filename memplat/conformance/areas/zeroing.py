"""Zeroing: whatever a page's history, whoever gets it sees zeros."""

from __future__ import annotations

from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.registry import check
from memplat.conformance.swapping import write_and_swap_out
from memplat.conformance.verdict import expect
from memplat.memory import Memory
from memplat.ranges import MIB
from memplat.types import AllocationMode, Capability

#: The engine zeroes recycled parts of up to so many bytes without asking what of them is committed.
_BLIND: Final = 2 * MIB


def _asked_about(memory: Memory) -> int:
    """How many pages make a part that is asked about."""
    return _BLIND // memory.page_size + 1


@check("ZERO-01", rule="5.1", smoke=True, after="LIFE-03 LIFE-04")
def the_pages_of_a_grown_file_are_zero(case: Case) -> None:
    """memplat_grow must not write to the pages that it adds."""
    memory = case.open()
    case.allocate(memory, 1)
    size = memory.total_size()
    expect(case.observer(memory).is_zero(0, size), f"the file is not zero after it grew to {size} bytes")
    pages = case.allocate(memory, 1)
    with memory.view(pages) as view:
        expect(not any(view), "a page that was never used before is not zero")


@check("ZERO-02", rule="5.2", after="DECOM-01 DECOM-05 DECOM-06")
def pages_that_were_given_back_are_zero(case: Case) -> None:
    """memplat_decommit has to leave zeros behind in all of its ranges, whatever their number and length."""
    memory = case.open()
    page = memory.page_size
    for count in (1, 2, 3, 5, 8, 13):
        used = case.allocate(memory, case.pages(memory, count, 1))
        case.fill(memory, used, count)
        apart = used.part(0, page)
        memory.decref(apart)
        case.reclaim(memory)
        if used.length > page:
            memory.decref(used.part(page, used.length - page))
        case.reclaim(memory)
        again = case.allocate(memory, used.length // page)
        expect(
            case.observer(memory).is_zero(*_at(again)),
            f"pages that were given back ({count} in one piece) are not zero when they are handed out again",
        )
        memory.decref(again)
        case.reclaim(memory)


def _at(pages: tuple[int, int]) -> tuple[int, int]:
    return pages[0], pages[1] - pages[0]


@check("ZERO-03", rule="5.3", after="PROBE-01")
def recycled_pages_are_zero(case: Case) -> None:
    """Pages that are handed out again without having been given back are zeroed by hand where memplat_probe_committed
    says that they are committed: it has to be right about any part of the file, not only about all of it.
    """
    memory = case.open()
    count = case.pages(memory, 2 * _asked_about(memory), 4)
    guard = case.allocate(memory, 1)
    used = case.allocate(memory, count)
    case.fill(memory, guard)
    case.fill(memory, used)
    memory.decref(used)
    half = count // 2
    for part in (half, count - half):
        again = memory.allocate(part * memory.page_size, mode=AllocationMode.COMMITTED)
        expect(
            case.observer(memory).is_zero(*_at(again)),
            f"{again} was handed out with the content of its last user: the probe of that part is wrong",
        )
    expect(case.filled(memory, guard), "zeroing recycled pages by hand changed the page before them")


@check("ZERO-04", rule="5.4", needs=Capability.SWAP_EXACT, after="PROBE-06 VIEW-03 ZERO-03")
def pages_that_were_swapped_out_are_zero_when_they_are_recycled(case: Case) -> None:
    """memplat_probe_committed has to report swapped-out pages: mincore(2) and one's own page tables do not."""
    memory = case.open()
    used = case.allocate(memory, case.pages(memory, _asked_about(memory), 1))
    write_and_swap_out(case, memory, used)
    memory.decref(used)
    again = memory.allocate(used.length, mode=AllocationMode.COMMITTED)
    expect(
        case.observer(memory).is_zero(*_at(again)),
        f"{again} was handed out with the content of its last user, which had been swapped out",
    )
