"""Decommit: the pages are zero, the host has them back, and nothing else has changed."""

from __future__ import annotations

from memplat.conformance.case import Case
from memplat.conformance.observer import BASE_PAGE
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.memory import Memory
from memplat.ranges import HUGE_PAGE_SIZE, MIB, FileRange
from memplat.types import AllocationMode, Capability


@check("DECOM-01", rule="6.1", smoke=True, after="LIFE-04 VIEW-01", forms="memplat_decommit")
def decommitted_pages_read_as_zero(case: Case) -> None:
    """memplat_decommit has to leave zeros behind, in the file and in every mapping of it, when it returns."""
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, case.pages(memory, 4, 1))
    case.fill(memory, pages)
    with memory.view(pages) as view:
        memory.decommit(pages, release=True)
        expect(observer.is_zero(pages.start, pages.length), "decommitted pages do not read as zero with pread")
        expect(not any(view), "decommitted pages do not read as zero through a view")


@check("DECOM-02", rule="6.2", smoke=True, after="LIFE-04 VIEW-01 DECOM-01")
def decommitted_pages_cost_nothing(case: Case) -> None:
    """memplat_decommit has to give the storage back (fallocate(2), FALLOC_FL_PUNCH_HOLE), not only to write zeros, and
    before it returns.
    """
    memory = case.open()
    observer = case.observer(memory)
    count = max(1, HUGE_PAGE_SIZE // memory.page_size)
    case.pages(memory, count + 1)
    guard, pages = case.allocate(memory, 1), case.allocate(memory, count)
    case.fill(memory, guard)
    case.fill(memory, pages)
    before = observer.data_bytes()
    memory.decommit(pages, release=True)
    given = before - observer.data_bytes()
    expect(given == pages.length, f"{pages.length} bytes were decommitted, and the host has got {given} of them back")
    expect(case.filled(memory, guard), "decommitting pages changed the page before them")


@check("DECOM-03", rule="6.3", after="DECOM-02 DECOM-09 PROBE-01 PROBE-02 DECOM-04")
def decommit_says_how_much_it_gave_back(case: Case) -> None:
    """The engine asks memplat_probe_committed about the very range, before and after: it has to be right about any part
    of the file.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, case.pages(memory, 12, 4))
    page = memory.page_size
    case.fill(memory, pages)
    for first, count in ((1, 2), (0, 1), (pages.length // page - 1, 1), (0, pages.length // page)):
        part = pages.part(first * page, count * page)
        before = observer.data_bytes()
        told = memory.decommit(part, release=True)
        given = before - observer.data_bytes()
        expect(told == given, f"decommit of {part} says {told} bytes, the host has got {given} back")


@check("DECOM-04", rule="6.4", after="DECOM-01 ALLOC-03 DECOM-07")
def decommit_leaves_its_neighbours_alone(case: Case) -> None:
    """memplat_decommit must not round its ranges outwards."""
    memory = case.open()
    page = memory.page_size
    pages = case.allocate(memory, case.pages(memory, 33, 3))
    count = pages.length // page
    for number in sorted({1, count // 2, count - 2}):
        case.fill(memory, pages, number)
        memory.decommit(pages.part(number * page, page), release=True)
        for rest in (pages.part(0, number * page), pages.part((number + 1) * page, (count - number - 1) * page)):
            expect(case.filled(memory, rest, number), f"decommitting page {number} of {count} changed pages of {rest}")


@check("DECOM-05", rule="6.5", after="DECOM-02")
def every_range_of_a_batch_is_decommitted(case: Case) -> None:
    """memplat_decommit gets many ranges at once, of different lengths: it has to go through all of them."""
    memory = case.open()
    observer = case.observer(memory)
    page = memory.page_size
    count = case.pages(memory, 24, 8)
    used = case.allocate(memory, count)
    case.fill(memory, used)
    before = observer.data_bytes()
    freed = [used.part(first * page, page * (1 + first % 3)) for first in range(0, count - 4, 4)]
    for part in freed:
        memory.decref(part)
    case.reclaim(memory)
    given = before - observer.data_bytes()
    wanted = sum(part.length for part in freed)
    expect(given >= wanted, f"{wanted} bytes in {len(freed)} pieces were freed, and the host has got {given} back")
    zero = [observer.is_zero(part.start, part.length) for part in freed]
    expect(all(zero), f"of {len(freed)} pieces that were given back at once only {sum(zero)} read as zero")


@check("DECOM-06", rule="6.6", after="DECOM-02")
def a_large_range_is_decommitted_as_a_whole(case: Case) -> None:
    """memplat_decommit has to give back all of a range, whatever its length."""
    memory = case.open()
    observer = case.observer(memory)
    count = case.pages(memory, max(1, 12 * MIB // memory.page_size), 1)
    pages = memory.allocate(count * memory.page_size, mode=AllocationMode.COMMITTED)
    before = observer.data_bytes()
    memory.decommit(pages, release=True)
    given = before - observer.data_bytes()
    expect(given == pages.length, f"{pages.length} bytes were decommitted, and the host has got {given} of them back")


@check("DECOM-07", rule="6.7", after="DECOM-01")
def decommitted_pages_can_be_used_again(case: Case) -> None:
    """memplat_decommit must not put another mapping in the place of the pages, or protect them: they are still used."""
    memory = case.open()
    pages = case.allocate(memory, case.pages(memory, 4, 1))
    for salt in (1, 2):
        case.fill(memory, pages, salt)
        expect(case.filled(memory, pages, salt), "what was written to decommitted pages is not in the file")
        memory.decommit(pages, release=True)


@check("DECOM-08", rule="6.8", needs=Capability.SUB_PAGE_DECOMMIT, after="DECOM-02 VIEW-02")
def a_base_page_inside_a_huge_page_can_be_decommitted(case: Case) -> None:
    """The capability ``sub_page_decommit`` says that the processor's base page is given back also from within memory
    that is committed in pieces of 2 MiB.
    """
    memory = case.open()
    expect(memory.page_size == BASE_PAGE, f"pages have {memory.page_size} bytes: no part of one can be decommitted")
    observer = case.observer(memory)
    case.pages(memory, HUGE_PAGE_SIZE // BASE_PAGE)
    region = memory.allocate(HUGE_PAGE_SIZE, mode=AllocationMode.COMMITTED)
    case.fill(memory, region)
    before = observer.data_bytes()
    part = region.part(HUGE_PAGE_SIZE // 2, BASE_PAGE)
    memory.decommit(part)
    given = before - observer.data_bytes()
    expect(given == BASE_PAGE, f"{BASE_PAGE} bytes in a full 2 MiB were decommitted, the host got {given} back")
    expect(observer.is_zero(part.start, part.length), "a page that was decommitted within 2 MiB does not read as zero")
    _expect_rest(case, memory, region, part)


def _expect_rest(case: Case, memory: Memory, region: FileRange, part: FileRange) -> None:
    for rest in (FileRange(region.start, part.start), FileRange(part.end, region.end)):
        expect(case.filled(memory, rest), f"decommitting {part} changed {rest}")


@check("DECOM-09", rule="6.9", after="DECOM-02")
def decommitting_untouched_pages_commits_nothing(case: Case) -> None:
    """memplat_decommit must not write to pages, not even for a moment: on a full host that is a signal."""
    memory = case.open()
    page = memory.page_size
    pages = case.allocate(memory, case.pages(memory, 8, 4))
    touched = pages.part(page, page)
    case.fill(memory, touched)
    for part in (pages, pages.part(2 * page, 2 * page)):
        memory.decommit(part, release=True)
        spent = case.spent(memory, pages)
        expect(spent == 0, f"decommitting {part}, of which {touched} had been touched, left {spent} bytes committed")
