"""The page tables, in Python and compiled: the same answers, the same errors, the same state after every step."""

from __future__ import annotations

import importlib
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from benchmarks.compare_cores import Driver, observables
from memplat.engine import pages
from memplat.engine.segments import SegmentSet
from memplat.errors import DoubleFreeError, NotAllocatedError, ReferenceOverflowError
from memplat.ranges import FileRange
from tests.needs import needs

PAGE = 4096
HUGE = 512 * PAGE


def native_table(page_size: int) -> Any:
    """A compiled table, whichever core is chosen."""
    try:
        core: Any = importlib.import_module("memplat._native.core")
    except ImportError as error:
        needs("compiler", str(error))
    return core.PageTable(page_size)


@pytest.fixture
def native() -> Any:
    """An empty compiled table of 4 KiB pages."""
    return native_table(PAGE)


@pytest.fixture(params=["python", "native"])
def table(request: pytest.FixtureRequest) -> Any:
    """An empty table of 4 KiB pages, of either core."""
    return pages.PageTable(PAGE) if request.param == "python" else native_table(PAGE)


def states(table: Any) -> list[tuple[int, int, int]]:
    """First page, last page, state of each run."""
    return [(start // PAGE, end // PAGE, value[0]) for start, end, value in table.runs()]


def test_first_fit_takes_the_lowest_hole_that_is_long_enough(table: Any) -> None:
    table.extend(HUGE, huge=False)
    taken = [table.allocate(2 * PAGE, "anonymous", owner) for owner in range(8)]
    for pages_ in (taken[1], taken[4], taken[5]):
        table.decref(*pages_)
    table.release(table.take_waste(HUGE))
    assert table.allocate(3 * PAGE, "tmpfs", 9) == FileRange(8 * PAGE, 11 * PAGE)
    assert table.allocate(PAGE, "tmpfs", 9) == FileRange(2 * PAGE, 3 * PAGE)
    assert table.allocate(PAGE, "tmpfs", 9, down=True) == FileRange(HUGE - PAGE, HUGE)
    table._check()


@pytest.mark.parametrize("down", [False, True])
def test_large_allocations_are_aligned_in_both_directions(table: Any, down: bool) -> None:
    table.extend(4 * HUGE, huge=False)
    table.allocate(PAGE, "anonymous", 1)
    table.allocate(PAGE, "anonymous", 1, down=True)
    assert table.allocate(HUGE, "anonymous", 2, down=down) == FileRange(
        2 * HUGE if down else HUGE, 3 * HUGE if down else 2 * HUGE
    )
    table._check()


def test_the_last_reference_makes_waste_unless_a_view_holds_the_page(table: Any) -> None:
    table.extend(HUGE, huge=False)
    start, end = table.allocate(4 * PAGE, "anonymous", 1)
    table.pin(start + PAGE, start + 2 * PAGE, "view")
    table.decref(start, end)
    assert states(table)[:4] == [(0, 1, pages.WASTE), (1, 2, pages.USED), (2, 4, pages.WASTE), (4, 512, pages.FREE)]
    with pytest.raises(DoubleFreeError, match="held only by 1 view"):
        table.decref(start + PAGE, start + 2 * PAGE)
    table.unpin(start + PAGE, start + 2 * PAGE)
    assert states(table)[0] == (0, 4, pages.WASTE)
    table._check()


def test_a_refused_change_of_many_runs_changes_none(table: Any) -> None:
    table.extend(HUGE, huge=False)
    for owner in range(200):
        table.allocate(PAGE, "anonymous", owner)
    table.decref(150 * PAGE, 151 * PAGE)
    before = observables(table)
    for name, error in (("incref", NotAllocatedError), ("decref", DoubleFreeError)):
        with pytest.raises(error, match=r"\[0x96000, 0x97000\) is waste"):
            getattr(table, name)(0, 200 * PAGE)
        assert observables(table) == before


def test_references_do_not_overflow(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_REFS", 3)
    if hasattr(table, "_max_refs"):
        table._max_refs = 3
    table.extend(HUGE, huge=False)
    start, end = table.allocate(4 * PAGE, "anonymous", 1)
    table.incref(start, end)
    table.incref(start + PAGE, start + 2 * PAGE)
    before = observables(table)
    with pytest.raises(ReferenceOverflowError, match="has 3 references, the most"):
        table.incref(start, end)
    assert observables(table) == before


def test_a_segment_takes_at_most_64_bytes(native: Any) -> None:
    table = native
    count = 1 << 17
    table.extend(count * PAGE, huge=False)
    taken = [table.allocate(PAGE, "anonymous", number % 1021) for number in range(count)]
    assert len(table.segments) >= count
    assert sys.getsizeof(table) < 64 * count
    for number in range(0, count, 3):  # and where nodes are as empty as they may become
        table.decref(*taken[number])
    for number in range(1, count, 3):
        table.decref(*taken[number])
    assert sys.getsizeof(table) < 64 * len(table.segments)
    table._check()


@pytest.mark.parametrize(
    "call",
    [
        lambda table: table.incref(0, 4 * HUGE),
        lambda table: table.decref(HUGE, HUGE),
        lambda table: table.pin(2 * PAGE, PAGE, "view"),
        lambda table: table.unpin(0, PAGE),
        lambda table: table.inspect(2 * HUGE),
        lambda table: table.release([(0, 3 * HUGE)]),
        lambda table: table.flag(0, PAGE, 7),
        lambda table: table.extend(PAGE, huge=False),
        lambda table: table.allocate(PAGE + 1, "anonymous", 0),
        lambda table: table.runs(0, 5 * HUGE),
        lambda table: table.segments.find(1 << 40),
    ],
)
def test_the_compiled_table_refuses_what_no_caller_may_ask_for(native: Any, call: Callable[[Any], object]) -> None:
    table = native
    table.extend(2 * HUGE, huge=False)
    before = observables(table)
    with pytest.raises(IndexError):
        call(table)
    assert observables(table) == before


def test_an_iterator_of_a_table_that_changes_shows_what_is_there_then(native: Any) -> None:
    table = native
    table.extend(HUGE, huge=False)
    taken = [table.allocate(PAGE, "anonymous", number) for number in range(300)]
    runs = table.runs()
    assert next(runs)[:2] == (0, PAGE)
    for part in taken:
        table.decref(*part)
    assert [(start, end) for start, end, _ in runs] == [(PAGE, 300 * PAGE), (300 * PAGE, HUGE)]


@pytest.mark.parametrize("page_size", [PAGE, HUGE])
def test_both_tables_are_the_same_after_each_of_thousands_of_operations(native: Any, page_size: int) -> None:
    driver = Driver(seed=page_size, page_size=page_size, limit=1024 * page_size)
    for number in range(3_000):
        driver.step()
        driver.compare(full=True)
        if number % 50 == 0:
            driver.native._check()


class BothTables(RuleBasedStateMachine):
    """The same operations on both tables. Hypothesis makes a short story of whatever differs."""

    @initialize(page_size=st.sampled_from([PAGE, HUGE]), seed=st.integers(0, 1 << 16))
    def begin(self, page_size: int, seed: int) -> None:
        self.driver = Driver(seed, page_size, 1536 * page_size)
        self.driver.extend()

    @rule(
        name=st.sampled_from(["allocate", "decref", "incref", "pin", "unpin", "transfer", "borrow", "look", "extend"])
    )
    def use(self, name: str) -> None:
        getattr(self.driver, name)()

    @rule(
        name=st.sampled_from(["take_waste", "end_releasing", "take_free", "free_waste", "flag", "flag_free", "unflag"])
    )
    def reclaim(self, name: str) -> None:
        getattr(self.driver, name)()

    @precondition(lambda self: self.driver.live)
    @rule(count=st.integers(1, 20))
    def free_many(self, count: int) -> None:
        for _ in range(count):
            self.driver.decref()

    @invariant()
    def they_are_the_same(self) -> None:
        if hasattr(self, "driver"):
            self.driver.compare(full=True)
            self.driver.native._check()


def test_both_tables_are_the_same_whatever_hypothesis_makes_up(native: Any) -> None:
    run_state_machine_as_test(BothTables, settings=settings(max_examples=40, stateful_step_count=50, deadline=None))


@pytest.mark.parametrize("core", ["python", "native"])
def test_where_the_page_is_a_huge_page_a_pool_borrows_from_the_other_too(core: str) -> None:
    table: Any = pages.PageTable(HUGE) if core == "python" else native_table(HUGE)
    table.extend(8 * HUGE, huge=False)
    assert table.allocate(2 * HUGE, "anonymous", 1, huge=True) is None
    assert table.borrow(2 * HUGE, huge=True)
    assert table.allocate(2 * HUGE, "anonymous", 1, huge=True) == FileRange(6 * HUGE, 8 * HUGE)
    table._check()


def test_retained_pages_in_a_huge_page_that_is_released_are_tried_again_with_it(table: Any) -> None:
    table.extend(2 * HUGE, huge=True)
    one, two = table.allocate(PAGE, "anonymous", 1, huge=True), table.allocate(PAGE, "anonymous", 1, huge=True)
    table.decref(*one)
    table.decref(*two)
    table.flag(4 * PAGE, 6 * PAGE, pages.RETAINED)
    taken = table.take_waste(HUGE)
    table._check()
    assert taken == [FileRange(0, HUGE)]
    assert not table.flagged(pages.RETAINED)
    table.release(taken)
    table._check()


def test_flagged_pages_are_found_by_range_and_cut_to_it(table: Any) -> None:
    table.extend(64 * PAGE, huge=False)
    kept, reserved = pages.KEPT, pages.RESERVED
    for first, last, flag in ((0, 4, kept), (4, 8, reserved), (9, 12, reserved), (20, 21, kept)):
        table.flag(first * PAGE, last * PAGE, flag)

    def found(flag: int, *part: int) -> list[int]:
        return [edge // PAGE for edge in table.flagged(flag, *(page * PAGE for page in part))]

    assert found(reserved) == found(reserved, 0, 64) == found(reserved, 0, 100) == [4, 8, 9, 12]
    assert found(reserved, 5, 10) == [5, 8, 9, 10]
    assert found(reserved, 6) == [6, 8, 9, 12]
    assert found(kept, 3, 21) == [3, 4, 20, 21]
    assert found(kept, 4, 20) == found(pages.RETAINED) == found(kept, 64, 70) == found(kept, 9, 9) == []
    table._check()


class CountedRuns(SegmentSet[int]):
    """Counts the runs that are looked at."""

    looked = 0

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
        for run in super().runs(start, end):
            self.looked += 1
            yield run


def test_looking_for_flagged_pages_of_a_range_costs_nothing_for_those_outside() -> None:
    looked = set()
    for count in (100, 10_000):
        table = pages.PageTable(PAGE)
        table.flags = CountedRuns(indexed=(pages.RETAINED, pages.KEPT, pages.RESERVED))
        table.extend(2 * count * PAGE, huge=False)
        for number in range(count):
            table.flag(2 * number * PAGE, (2 * number + 1) * PAGE, pages.RESERVED)
        table.flag(0, PAGE, pages.RETAINED)
        table.flags.looked = 0
        middle = count * PAGE
        assert table.flagged(pages.RESERVED, middle, middle + 6 * PAGE) == array(
            "q", [middle + page * PAGE for page in range(6)]
        )
        assert table.flagged(pages.RETAINED) == array("q", [0, PAGE])  # the only one, among many others
        looked.add(table.flags.looked)
    assert looked == {6}


def test_what_is_taken_is_a_sequence_of_ranges_and_a_buffer_of_their_offsets(table: Any, native: Any) -> None:
    for one in (table, native):
        one.extend(64 * PAGE, huge=False)
        used = [one.allocate(PAGE, "anonymous", 1) for _ in range(16)]
        for pages_ in used[::4]:
            one.decref(*pages_)
    taken, other = table.take_waste(HUGE), native.take_waste(HUGE)
    wanted = [FileRange(start, start + PAGE) for start in range(0, 16 * PAGE, 4 * PAGE)]
    assert isinstance(taken, Sequence)
    assert taken == wanted == other
    assert taken == other
    assert taken != wanted[1:]
    assert (len(taken), taken[1], taken[-1], taken[1:3]) == (4, wanted[1], wanted[3], wanted[1:3])
    assert [*reversed(taken)] == wanted[::-1]
    assert wanted[2] in taken
    assert (taken.index(wanted[2]), taken.count(wanted[2])) == (2, 1)
    assert repr(taken) == repr(wanted)
    assert memoryview(other).readonly
    assert memoryview(other).tolist() == [bound for pages_ in wanted for bound in pages_]
    with pytest.raises(TypeError):
        hash(taken)
    table.release(taken)
    native.release(other)
    table._check()
    native._check()
    nothing = native.take_waste(HUGE)
    assert not nothing
    assert memoryview(nothing).nbytes == 0
