"""The four allocation modes, recycling of waste, and memory that is kept on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import memplat
from memplat.engine.sparse import SPARSE_BYTES
from memplat.memory import Memory
from tests.oracle import PAGE, Observer
from tests.unit.engine.helpers import MIB, committed, idle, is_zero, part, write_all

Opener = Callable[..., Memory]


def test_uncommitted_memory_costs_nothing_until_it_is_touched(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(8 * PAGE, mode="uncommitted")
    assert observer.blocks == 0
    with memory.view(part(pages, 3)) as view:
        view[0] = 1
    assert observer.blocks == PAGE
    assert observer.committed_pages() == {pages.start // PAGE + 3}


@pytest.mark.parametrize("mode", ["reserved", "committed"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_reserved_and_committed_memory_is_there_when_the_call_returns(
    memory: Memory, observer: Observer, mode: str, direction: str
) -> None:
    pages = memory.allocate(8 * PAGE, mode=mode, direction=direction, kind="tmpfs", owner=5)
    assert observer.blocks == 8 * PAGE
    assert observer.committed_pages() == set(range(pages.start // PAGE, pages.end // PAGE))
    assert is_zero(memory, pages)
    usage = memory.update_usage()
    assert usage.committed["tmpfs"] == 8 * PAGE
    assert usage.committed_by_owner[5]["tmpfs"] == 8 * PAGE
    assert usage.exact


def test_committed_memory_is_populated_not_only_reserved(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(8 * PAGE, mode="committed")
    assert observer.resident_pages() >= set(range(pages.start // PAGE, pages.end // PAGE))


def test_memory_about_to_be_written_is_free_of_charge_if_there_is_no_waste(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(8 * PAGE, mode="will_commit")
    assert observer.blocks in (0, 8 * PAGE)
    assert is_zero(memory, pages)


def test_the_mode_is_taken_as_a_member_too(memory: Memory, observer: Observer) -> None:
    memory.allocate(PAGE, mode=memplat.AllocationMode.COMMITTED)
    assert observer.blocks == PAGE


def test_the_default_mode_comes_from_the_options(open_memory: Opener) -> None:
    memory = open_memory(default_mode="committed")
    memory.allocate(2 * PAGE)
    assert memory.total_usage() == 2 * PAGE
    memory.allocate(2 * PAGE, mode="uncommitted")
    assert memory.total_usage() == 2 * PAGE


@pytest.mark.parametrize("mode", ["will_commit", "committed"])
def test_waste_is_recycled_zeroed_and_committed(memory: Memory, observer: Observer, mode: str) -> None:
    pages = memory.allocate(16 * PAGE, mode="will_commit", kind="page_cache", owner=1)
    write_all(memory, pages)
    memory.decref(pages)
    again = memory.allocate(16 * PAGE, mode=mode, kind="tmpfs", owner=2)
    assert again == pages
    assert observer.is_zero(again.start, again.length)
    assert observer.blocks == 16 * PAGE
    assert committed(memory) == {"tmpfs": 16 * PAGE}
    assert memory.inspect(again.start).pages == again
    assert memory.inspect(again.start).owner == 2
    assert memory.usage().counters["recycled_bytes"] == 16 * PAGE


@pytest.mark.parametrize("mode", [None, "will_commit", memplat.AllocationMode.WILL_COMMIT])
@pytest.mark.parametrize("length", [PAGE, MIB // 4, MIB // 4 + PAGE, 2 * MIB, 3 * MIB])
@pytest.mark.parametrize("is_touched", [True, False])
def test_waste_of_any_length_is_recycled_however_the_mode_is_said(
    open_memory: Opener, length: int, mode: str | None, is_touched: bool
) -> None:
    memory = open_memory(default_mode="will_commit")
    pages = memory.allocate(length, mode="uncommitted", owner=1)
    if is_touched:
        write_all(memory, pages)
    memory.decref(pages)
    before = memory.usage()
    again = memory.allocate(length, mode=mode, kind="tmpfs", owner=2)
    assert again == pages
    assert is_zero(memory, again)
    after = memory.update_usage()
    assert after.committed["tmpfs"] == after.total == length or not is_touched
    assert after.waste == 0
    assert {name: after.counters[name] - before.counters[name] for name in ("allocations", "recycled_bytes")} == {
        "allocations": 1,
        "recycled_bytes": length if is_touched or length < SPARSE_BYTES else 0,
    }


@pytest.mark.parametrize("mode", ["uncommitted", "reserved"])
def test_only_callers_that_will_write_get_recycled_waste(memory: Memory, mode: str) -> None:
    pages = memory.allocate(4 * PAGE)
    write_all(memory, pages)
    memory.decref(pages)
    again = memory.allocate(4 * PAGE, mode=mode)
    assert not again.overlaps(pages)
    assert memory.update_usage().counters["recycled_bytes"] == 0


def test_recycled_waste_that_was_only_partly_committed_is_committed_in_full_if_that_was_asked_for(
    memory: Memory, observer: Observer
) -> None:
    pages = memory.allocate(16 * PAGE, mode="will_commit")
    for page in (1, 2, 9):
        write_all(memory, part(pages, page))
    memory.decref(pages)
    again = memory.allocate(16 * PAGE, mode="committed")
    assert observer.is_zero(again.start, again.length)
    assert set(range(again.start // PAGE, again.end // PAGE)) <= observer.committed_pages()
    assert memory.update_usage().committed["anonymous"] == 16 * PAGE


def test_recycling_part_of_the_waste_leaves_the_rest_to_be_reclaimed(memory: Memory) -> None:
    pages = memory.allocate(16 * PAGE, mode="will_commit")
    write_all(memory, pages)
    memory.decref(pages)
    again = memory.allocate(4 * PAGE, mode="committed")
    assert memory.update_usage().total == 16 * PAGE
    memory.reclaim()
    assert committed(memory) == {"anonymous": 4 * PAGE}
    assert is_zero(memory, again)


def test_preallocated_memory_is_committed_free_and_counted(open_memory: Opener) -> None:
    memory = open_memory(prealloc=4 * MIB)
    assert memory.total_usage() == 4 * MIB
    usage = memory.update_usage()
    assert usage.committed["system"] == 4 * MIB
    assert usage.free_committed == 4 * MIB
    pages = memory.allocate(MIB)
    assert committed(memory) == {"system": 3 * MIB, "anonymous": MIB}
    assert is_zero(memory, pages)
    assert memory.total_usage() == 4 * MIB


def test_up_to_keep_bytes_stay_committed_zeroed_and_counted(open_memory: Opener) -> None:
    memory = open_memory(keep=MIB)
    pages = memory.allocate(2 * MIB)
    write_all(memory, pages)
    memory.decref(pages)
    memory.reclaim()
    usage = memory.update_usage()
    assert usage.total == MIB
    assert usage.free_committed == MIB
    assert usage.waste == 0
    assert usage.committed["system"] == MIB
    with Observer(memory.fileno()) as observer:
        assert observer.is_zero(0, memory.total_size())
    again = memory.allocate(2 * MIB)
    assert is_zero(memory, again)
    assert committed(memory) == {"anonymous": MIB}


def test_kept_memory_stays_kept_across_scans_and_reclaims(open_memory: Opener) -> None:
    memory = open_memory(keep=MIB)
    pages = memory.allocate(MIB)
    write_all(memory, pages)
    memory.decref(pages)
    for _ in range(3):
        memory.reclaim()
        usage = memory.update_usage()
        assert (usage.total, idle(usage)) == (MIB, MIB)
        assert memory.inspect(pages.start).state == "free"
        assert memory.wait_reclaimed() is True


def test_kept_memory_does_not_stand_in_the_way_of_an_allocation(open_memory: Opener) -> None:
    memory = open_memory(keep=4 * MIB, max_size=4 * MIB)
    pages = memory.allocate(4 * MIB)
    write_all(memory, pages)
    memory.decref(pages)
    memory.reclaim()
    assert memory.allocate(4 * MIB) == pages
    assert is_zero(memory, pages)


def test_a_reservation_is_gone_with_the_last_reference(memory: Memory) -> None:
    pages = memory.allocate(16 * PAGE, mode="reserved")
    assert memory.total_usage() == 16 * PAGE
    memory.decref(pages)
    assert memory.update_usage().waste == 16 * PAGE
    memory.reclaim()
    assert memory.total_usage() == 0
    again = memory.allocate(16 * PAGE, mode="uncommitted")
    assert memory.total_usage() == 0
    assert committed(memory) == {}
    assert again == pages


def test_huge_memory_is_zero_aligned_and_kept_apart(memory: Memory) -> None:
    small = memory.allocate(PAGE)
    huge = memory.allocate(4 * MIB, huge=True)
    assert huge.start % (2 * MIB) == 0
    assert is_zero(memory, huge)
    another = memory.allocate(PAGE)
    assert another.start // (2 * MIB) != huge.start // (2 * MIB)
    assert another.start // (2 * MIB) == small.start // (2 * MIB)


def test_freeing_a_page_of_a_huge_allocation_neither_punches_it_alone_nor_forgets_it(memory: Memory) -> None:
    huge = memory.allocate(2 * MIB, huge=True, kind="tmpfs")
    write_all(memory, huge)
    page = part(huge, 100)
    memory.decref(page)
    memory.reclaim()
    assert memory.total_usage() == 2 * MIB, "the huge page is whole"
    assert committed(memory) == {"tmpfs": 2 * MIB - PAGE, "system": PAGE}
    memory.decref(part(huge, 0, 100))
    memory.decref(part(huge, 101, 411))
    memory.reclaim()
    assert memory.total_usage() == 0
    assert committed(memory) == {}


def test_a_freed_page_of_a_huge_allocation_is_zero_when_it_is_handed_out_again(open_memory: Opener) -> None:
    memory = open_memory(max_size=16 * MIB)
    huge = memory.allocate(2 * MIB, huge=True)
    write_all(memory, huge)
    memory.decref(part(huge, 7, 9))
    memory.reclaim()
    for mode in ("uncommitted", "will_commit", "committed"):
        pages = memory.allocate(3 * PAGE, huge=True, mode=mode)
        assert is_zero(memory, pages)
    assert memory.read(part(huge, 6)) == b"\xa5" * PAGE
    assert memory.read(part(huge, 16)) == b"\xa5" * PAGE


def test_waiting_for_reclaim_does_not_hang_on_a_part_of_a_huge_page(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=0)
    huge = memory.allocate(2 * MIB, huge=True)
    write_all(memory, huge)
    memory.decref(part(huge, 0, 511))
    memory.wait_reclaimed(timeout=1)
    memory.decref(part(huge, 511))
    assert memory.wait_reclaimed(timeout=60) is True
    assert memory.total_usage() == 0


def test_a_huge_pool_does_not_hold_back_memory_from_small_allocations(open_memory: Opener) -> None:
    memory = open_memory(max_size=8 * MIB)
    huge = memory.allocate(8 * MIB, huge=True)
    write_all(memory, huge)
    memory.decref(huge)
    whole = memory.allocate(8 * MIB)
    assert whole.length == 8 * MIB
    assert is_zero(memory, whole)


def test_small_allocations_do_not_hold_back_memory_from_a_huge_one(open_memory: Opener) -> None:
    memory = open_memory(max_size=8 * MIB)
    small = memory.allocate(8 * MIB)
    write_all(memory, small)
    memory.decref(small)
    assert is_zero(memory, memory.allocate(8 * MIB, huge=True))
