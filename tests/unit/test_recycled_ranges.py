"""FileRanges, which the compiled core makes of dead ones: nobody may notice. True of both cores."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

import memplat
from memplat import FileRange, Memory
from memplat.ranges import GIB, MIB

PAGE = 4096
FAR = 1 << 30  # where an offset takes another digit of an int


@pytest.fixture
def memory() -> Iterator[Memory]:
    with memplat.open("memfd", max_size=64 * MIB, reclaim="manual") as made:
        yield made


def test_what_was_taken_from_a_range_stays_when_it_has_died(memory: Memory) -> None:
    taken = []
    for _ in range(200):
        pages = memory.allocate(PAGE)
        taken.append((pages.start, pages.end, repr(pages)))
        del pages
    assert len({start for start, _, _ in taken}) == 200
    assert [repr(FileRange(start, end)) for start, end, _ in taken] == [told for _, _, told in taken]
    memory.decref(FileRange(min(taken)[0], max(taken)[1]))


def test_ranges_of_all_sizes_come_and_go(memory: Memory) -> None:
    around = [0, 256, 257, FAR - 1, FAR, (1 << 60) - 1, 1 << 60, 1 << 62, 1 << 70]
    values = around + [-value for value in around]
    for start in values:
        for end in values:
            made = FileRange(start, end)
            pages = memory.allocate(PAGE)  # of one that died before
            assert made == (start, end)
            assert (pages.end - pages.start, type(pages)) == (PAGE, FileRange)
            memory.decref(pages)
            del made, pages
    assert [int(str(value)) for value in values] == values


def test_ranges_of_anything_are_freed_as_ever() -> None:
    class Told:
        gone = 0

        def __del__(self) -> None:
            Told.gone += 1

    for _ in range(100):
        FileRange(Told(), Told())  # type: ignore[arg-type]
    assert Told.gone == 200
    nested: object = None
    for _ in range(200_000):
        nested = FileRange(nested, 0)  # type: ignore[arg-type]
    del nested
    assert len(tuple.__new__(FileRange, (1, 2, 3))) == 3


def test_subclasses_are_freed_as_ever() -> None:
    class Named(FileRange):
        pass

    before = sys.getrefcount(FileRange), sys.getrefcount(Named)
    for number in range(1000):
        made = Named(number, number + 1)
        made.name = "some"  # type: ignore[attr-defined]
        del made
        FileRange(number, number + 1)
    gc.collect()
    after = sys.getrefcount(FileRange), sys.getrefcount(Named)
    assert abs(after[0] - before[0]) < 10
    assert abs(after[1] - before[1]) < 10


def test_many_ranges_at_a_time_keep_their_values() -> None:
    for round_ in range(3):
        held = [FileRange(number * PAGE, FAR * 4 + number + round_) for number in range(10_000)]
        assert all(made == (number * PAGE, FAR * 4 + number + round_) for number, made in enumerate(held))
        del held


def test_the_collector_sees_ranges_as_it_sees_any_object(memory: Memory) -> None:
    held = [memory.allocate(PAGE) for _ in range(500)]
    ends = [tuple(pages) for pages in held]
    ring: list[object] = [*held]
    ring.append(ring)
    gc.collect()
    assert not any(map(gc.is_finalized, held))
    for pages in held:
        memory.incref(pages)
    del ring
    gc.collect()
    assert [tuple(pages) for pages in held] == ends
    for pages in held * 2:
        memory.decref(pages)
    assert sum(memory.usage().allocated.values()) == 0


@pytest.mark.parametrize("length", [PAGE, 2 * MIB, 16 * GIB - 2 * MIB, 16 * GIB, 40 * GIB])
def test_a_range_stands_for_the_same_pages_whoever_made_it(length: int) -> None:
    with memplat.open("memfd", max_size=128 * GIB, reclaim="manual") as memory:
        first = memory.allocate(length)
        pages = memory.allocate(length)
        assert pages.length == length
        for same in (pages, FileRange(*pages), pages._replace(), pages.part(0, length)):
            memory.incref(same)
            assert memory.inspect(pages.end - 1).refs == 2
            memory.decref(pages)
            memory.incref(pages)
            memory.decref(same)
        assert [memory.inspect(offset).refs for offset in (pages.start, pages.end - 1)] == [1, 1]
        memory.decref(first)
        memory.decref(pages)
        assert sum(memory.usage().allocated.values()) == 0
