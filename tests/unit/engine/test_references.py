"""References: taken and dropped by any page-aligned part, across allocations; sharing, inspection, owners."""

from __future__ import annotations

import pytest

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.oracle import PAGE
from tests.unit.engine.helpers import (
    check,
    committed,
    idle,
    pages_at,
    part,
    stateful_layout,
    unchanged,
    write_all,
)


def refs(memory: Memory, pages: FileRange) -> list[int]:
    """The references of each page."""
    return [memory.inspect(offset).refs for offset in range(pages.start, pages.end, PAGE)]


def test_a_part_of_an_allocation_can_be_referenced_and_dropped(memory: Memory) -> None:
    pages = memory.allocate(6 * PAGE)
    memory.incref(part(pages, 1, 4))
    memory.incref(part(pages, 2, 2))
    assert refs(memory, pages) == [1, 2, 3, 3, 2, 1]
    memory.decref(part(pages, 0, 4))
    assert refs(memory, pages) == [0, 1, 2, 2, 2, 1]
    check(memory)


def test_references_reach_across_allocations_of_different_kinds_and_owners(memory: Memory) -> None:
    first = memory.allocate(2 * PAGE, kind="tmpfs", owner=1)
    second = memory.allocate(2 * PAGE, kind="system", owner=2)
    third = memory.allocate(2 * PAGE, kind="anonymous", owner=3)
    middle = FileRange(first.start + PAGE, third.start + PAGE)
    memory.incref(middle)
    whole = FileRange(first.start, third.end)
    assert refs(memory, whole) == [1, 2, 2, 2, 2, 1]
    memory.decref(whole)
    assert refs(memory, whole) == [0, 1, 1, 1, 1, 0]
    assert memory.inspect(second.start).kind == "system"
    memory.decref(middle)
    assert refs(memory, whole) == [0] * 6


def test_the_last_reference_makes_a_page_waste_and_reclaim_makes_it_free(memory: Memory) -> None:
    pages = memory.allocate(3 * PAGE)
    write_all(memory, pages)
    memory.decref(part(pages, 1))
    assert [memory.inspect(part(pages, n).start).state for n in range(3)] == ["used", "waste", "used"]
    assert memory.inspect(part(pages, 1).start).kind is None
    memory.reclaim()
    assert [memory.inspect(part(pages, n).start).state for n in range(3)] == ["used", "free", "used"]


def test_content_lives_until_the_last_reference_is_dropped(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    write_all(memory, pages)
    memory.incref(pages)
    memory.decref(pages)
    memory.reclaim()
    assert memory.read(pages) == b"\xa5" * (2 * PAGE)


def test_dropping_a_reference_that_nobody_holds_is_a_double_free(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    memory.decref(pages)
    with unchanged(memory), pytest.raises(memplat.DoubleFreeError):
        memory.decref(pages)
    memory.reclaim()
    with unchanged(memory), pytest.raises(memplat.DoubleFreeError):
        memory.decref(pages)


def test_a_half_valid_range_is_refused_as_a_whole(memory: Memory) -> None:
    pages = memory.allocate(8 * PAGE)
    memory.decref(part(pages, 5))
    for half in (part(pages, 3, 3), part(pages, 5, 2), part(pages, 0, 8), pages_at(pages.end // PAGE - 1, 2)):
        with unchanged(memory), pytest.raises(memplat.DoubleFreeError):
            memory.decref(half)
        with unchanged(memory), pytest.raises(memplat.NotAllocatedError):
            memory.incref(half)


def test_unique_means_exactly_one_reference_to_each_page(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    assert memory.has_unique_ref(pages)
    memory.incref(part(pages, 2))
    assert not memory.has_unique_ref(pages)
    assert memory.has_unique_ref(part(pages, 0, 2))
    assert not memory.has_unique_ref(part(pages, 2))
    memory.decref(part(pages, 2))
    assert memory.has_unique_ref(pages)


def test_a_live_view_is_a_reference_when_it_comes_to_copy_on_write(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    view = memory.view(part(pages, 1))
    assert not memory.has_unique_ref(pages)
    assert memory.has_unique_ref(part(pages, 2, 2))
    view.release()
    assert memory.has_unique_ref(pages)


def test_the_first_shared_range_is_the_first_run_with_more_than_one_reference(memory: Memory) -> None:
    pages = memory.allocate(10 * PAGE)
    assert memory.first_shared_range(pages) is None
    memory.incref(part(pages, 3, 4))
    memory.incref(part(pages, 4))
    memory.incref(part(pages, 9))
    assert memory.first_shared_range(pages) == part(pages, 3, 4), "how often a page is shared does not split the run"
    assert memory.first_shared_range(part(pages, 5, 5)) == part(pages, 5, 2), "clipped to what was asked about"
    assert memory.first_shared_range(part(pages, 7, 3)) == part(pages, 9)
    assert memory.first_shared_range(part(pages, 0, 3)) is None


def test_questions_about_pages_that_nobody_holds_are_errors(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    memory.decref(part(pages, 2))
    for question in (memory.has_unique_ref, memory.first_shared_range):
        with unchanged(memory), pytest.raises(memplat.NotAllocatedError):
            question(pages)


def test_inspect_tells_of_the_longest_run_of_pages_that_are_alike(memory: Memory) -> None:
    first = memory.allocate(4 * PAGE, kind="tmpfs", owner=1)
    second = memory.allocate(4 * PAGE, kind="tmpfs", owner=1)
    both = FileRange(first.start, second.end)
    assert memory.inspect(second.start).pages == both, "two allocations that are alike are one run"
    memory.incref(FileRange(first.start + 2 * PAGE, second.start + PAGE))
    assert memory.inspect(first.start).pages == FileRange(first.start, first.start + 2 * PAGE)
    assert memory.inspect(second.start).pages == FileRange(first.start + 2 * PAGE, second.start + PAGE)
    assert memory.inspect(second.end - 1).pages == FileRange(second.start + PAGE, second.end)
    memory.decref(FileRange(first.start + 2 * PAGE, second.start + PAGE))
    assert memory.inspect(first.start).pages == both, "and one run again"


def test_inspect_takes_any_offset_within_a_page(memory: Memory) -> None:
    pages = memory.allocate(PAGE, owner=5)
    for offset in (pages.start, pages.start + 1, pages.end - 1):
        assert memory.inspect(offset).owner == 5


def test_inspect_of_free_pages_covers_the_rest_of_the_file(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    info = memory.inspect(pages.end)
    assert (info.state, info.kind, info.owner, info.refs, info.views) == ("free", None, 0, 0, 0)
    assert info.pages == FileRange(pages.end, memory.total_size())


def test_a_transfer_changes_who_pays_and_nothing_else(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE, kind="page_cache", owner=1)
    write_all(memory, pages)
    memory.incref(part(pages, 1))
    memory.transfer(part(pages, 1, 2), 2)
    usage = memory.update_usage()
    assert {owner: dict(kinds) for owner, kinds in usage.committed_by_owner.items() if any(kinds.values())} == {
        1: {"page_cache": 2 * PAGE},
        2: {"page_cache": 2 * PAGE},
    }
    assert [memory.inspect(part(pages, n).start).owner for n in range(4)] == [1, 2, 2, 1]
    assert refs(memory, pages) == [1, 2, 1, 1]
    assert memory.read(pages) == b"\xa5" * (4 * PAGE)


def test_a_transfer_of_half_free_pages_is_refused_as_a_whole(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE, owner=1)
    memory.decref(part(pages, 3))
    with unchanged(memory), pytest.raises(memplat.NotAllocatedError):
        memory.transfer(pages, 2)


@pytest.mark.parametrize("owner", [0, 1, 2**32 - 1])
def test_the_least_and_the_greatest_owner_are_taken(memory: Memory, owner: int) -> None:
    pages = memory.allocate(PAGE, owner=owner, mode="committed")
    assert memory.update_usage().committed_by_owner[owner]["anonymous"] == PAGE
    memory.transfer(pages, owner)
    assert memory.inspect(pages.start).owner == owner


def test_allocated_bytes_are_counted_by_kind_committed_or_not(memory: Memory) -> None:
    memory.allocate(3 * PAGE, kind="tmpfs")
    pages = memory.allocate(5 * PAGE, kind="system")
    memory.incref(pages)
    usage = memory.update_usage()
    assert {kind: value for kind, value in usage.allocated.items() if value} == {
        "tmpfs": 3 * PAGE,
        "system": 5 * PAGE,
    }
    assert committed(memory) == {}


def test_free_bytes_and_the_longest_free_run_are_told(memory: Memory) -> None:
    pages = memory.allocate(100 * PAGE)
    rest = memory.total_size() - pages.end
    usage = memory.update_usage()
    assert (usage.free, usage.largest_free, usage.file_size) == (rest, rest, memory.total_size())
    memory.decref(part(pages, 10, 20))
    memory.reclaim()
    for _ in range(rest // PAGE):  # page by page: large ones are aligned, and leave gaps
        memory.allocate(PAGE, direction="down")
    assert {state for _, _, state in stateful_layout(memory)} == {"free", "used"}
    usage = memory.update_usage()
    assert (usage.free, usage.largest_free) == (20 * PAGE, 20 * PAGE)


def test_memory_outside_of_the_file_is_reported_as_mapped(memory: Memory) -> None:
    memory.allocate(PAGE, mode="committed", owner=4)
    memory.account_external(10_000, owner=4)
    memory.account_external(500)
    memory.account_external(-1_000, owner=4)
    usage = memory.update_usage()
    assert usage.committed["mapped"] == 9_500
    assert usage.committed_by_owner[4] == {"mapped": 9_000, "anonymous": PAGE}
    assert usage.committed_by_owner[0]["mapped"] == 500
    assert usage.total == PAGE + 9_500
    assert memory.total_usage() == PAGE, "total_usage is about the file alone"
    with unchanged(memory), pytest.raises(memplat.InvalidArgumentError):
        memory.account_external(-9_001, owner=4)


def test_the_peak_is_the_greatest_total_that_a_probe_has_seen(memory: Memory) -> None:
    pages = memory.allocate(10 * PAGE, mode="committed")
    assert memory.update_usage().peak_committed == 10 * PAGE
    memory.decref(pages)
    memory.reclaim()
    usage = memory.update_usage()
    assert (usage.total, usage.peak_committed) == (0, 10 * PAGE)
    assert idle(usage) == 0


def test_events_are_counted(memory: Memory) -> None:
    pages = memory.allocate(10 * PAGE, mode="committed")
    memory.decref(pages)
    memory.reclaim()
    memory.fileno()  # a peer could have it: no short cut past the scan
    counters = memory.update_usage().counters
    assert counters["allocations"] == 1
    assert counters["frees"] == 1
    assert counters["reclaimed_bytes"] == 10 * PAGE
    assert counters["decommit_calls"] == 1
    assert counters["scans"] >= 1
    assert counters["recycled_bytes"] == 0
