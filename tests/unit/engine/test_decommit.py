"""Decommit by the user: the pages stay used, read as zero, and cost nothing."""

from __future__ import annotations

import random

import pytest

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.oracle import PAGE, Observer
from tests.unit.engine.helpers import MIB, check, committed, part, unchanged, write_all


def test_decommitted_pages_read_zero_cost_nothing_and_stay_used(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(8 * PAGE, kind="tmpfs", owner=3)
    write_all(memory, pages)
    memory.incref(part(pages, 2))
    before = memory.inspect(part(pages, 2).start)
    assert memory.decommit(part(pages, 2, 4)) == 4 * PAGE
    assert observer.blocks == 4 * PAGE
    assert observer.nonzero_pages(range(8)) == [0, 1, 6, 7]
    assert memory.inspect(part(pages, 2).start) == before
    assert committed(memory) == {"tmpfs": 4 * PAGE}
    check(memory)


def test_what_was_never_touched_gives_nothing_back(memory: Memory) -> None:
    pages = memory.allocate(8 * PAGE)
    assert memory.decommit(pages) == 0
    write_all(memory, part(pages, 3, 2))
    assert memory.decommit(pages) == 2 * PAGE
    assert memory.decommit(pages) == 0


def test_a_decommit_reaches_across_allocations(memory: Memory) -> None:
    first = memory.allocate(2 * PAGE, kind="tmpfs")
    second = memory.allocate(2 * PAGE, kind="system", owner=9)
    write_all(memory, FileRange(first.start, second.end))
    memory.decommit(FileRange(first.start + PAGE, second.end - PAGE))
    assert committed(memory) == {"tmpfs": PAGE, "system": PAGE}


def test_a_decommit_of_half_free_pages_is_refused_as_a_whole(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    write_all(memory, pages)
    memory.decref(part(pages, 3))
    with unchanged(memory), pytest.raises(memplat.NotAllocatedError):
        memory.decommit(pages)
    assert memory.read(part(pages, 0, 3)) == b"\xa5" * (3 * PAGE)


def test_a_reserved_range_is_uncommitted_afterwards(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(8 * PAGE, mode="reserved")
    assert memory.decommit(part(pages, 0, 4)) == 4 * PAGE
    assert observer.blocks == 4 * PAGE
    assert committed(memory) == {"anonymous": 4 * PAGE}
    memory.decommit(pages)
    assert observer.blocks == 0
    assert committed(memory) == {}


def test_decommit_of_a_recycled_and_of_a_committed_range(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(8 * PAGE, mode="committed")
    memory.decref(pages)
    again = memory.allocate(8 * PAGE, mode="will_commit")
    assert memory.decommit(again) == 8 * PAGE
    assert observer.blocks == 0


def test_a_view_sees_the_decommit_and_can_write_again(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(2 * PAGE)
    view = memory.view(pages)
    view[:3] = b"abc"
    memory.decommit(pages)
    assert bytes(view[:3]) == b"\0\0\0"
    view[0] = 7
    assert observer.read(pages.start, 1) == b"\x07"
    assert observer.blocks == PAGE
    view.release()


def test_with_release_a_memfd_does_the_same(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    write_all(memory, pages)
    assert memory.decommit(pages, release=True) == 2 * PAGE
    assert memory.total_usage() == 0


def test_swiss_cheese_is_counted_to_the_page(memory: Memory, observer: Observer) -> None:
    chance = random.Random(7)
    pages = memory.allocate(4 * MIB, kind="ramdiskfs", owner=12)
    write_all(memory, pages)
    left = set(range(1024))
    for _ in range(200):
        first = chance.randrange(1024)
        count = chance.randint(1, min(16, 1024 - first))
        gone = left & set(range(first, first + count))
        assert memory.decommit(part(pages, first, count)) == len(gone) * PAGE
        left -= gone
    assert observer.committed_pages() == {pages.start // PAGE + page for page in left}
    assert committed(memory) == {"ramdiskfs": len(left) * PAGE}


def test_decommit_of_part_of_a_huge_allocation_reads_zero_and_is_counted_truly(
    memory: Memory, observer: Observer
) -> None:
    huge = memory.allocate(2 * MIB, huge=True)
    write_all(memory, huge)
    memory.decommit(part(huge, 10))
    assert observer.is_zero(part(huge, 10).start, PAGE)
    assert not observer.is_zero(part(huge, 11).start, PAGE)
    assert committed(memory) == {"anonymous": observer.blocks}
    memory.decommit(huge)
    assert observer.is_zero(huge.start, huge.length)
    assert observer.blocks == 0
