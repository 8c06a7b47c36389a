"""The segment set against the plainest model: a list with one value for each key."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memplat.engine.segments import SegmentSet

INDEXED = ("free", "waste")
VALUES = (*INDEXED, "used", "other")
TAKING = "taking"  # the value that sweep gives; no key has it before


class Tiled(RuleBasedStateMachine):
    """Every operation on both; every observable compared."""

    @initialize(
        alignment=st.sampled_from((1, 4, 8)),
        nearby=st.sampled_from((0, 3, 16)),
        size=st.integers(1, 64),
        value=st.sampled_from(VALUES),
    )
    def begin(self, alignment: int, nearby: int, size: int, value: str) -> None:
        self.alignment = alignment
        self.segments: SegmentSet[str] = SegmentSet(indexed=INDEXED, alignment=alignment, nearby=nearby)
        self.keys: list[str] = []
        self.extend(size, value)

    def extend(self, more: int, value: str) -> None:
        self.segments.extend(len(self.keys) + more, value)
        self.keys += [value] * more

    @precondition(lambda self: len(self.keys) < 500)
    @rule(more=st.integers(1, 40), value=st.sampled_from(VALUES))
    def grow(self, more: int, value: str) -> None:
        self.extend(more, value)

    def span(self, data: st.DataObject) -> tuple[int, int]:
        start = data.draw(st.integers(0, len(self.keys) - 1))
        return start, data.draw(st.integers(start + 1, min(len(self.keys), start + 30)))

    @rule(data=st.data(), value=st.sampled_from(VALUES))
    def assign(self, data: st.DataObject, value: str) -> None:
        start, end = self.span(data)
        self.segments.assign(start, end, value)
        self.keys[start:end] = [value] * (end - start)

    @rule(data=st.data(), value=st.sampled_from(VALUES))
    def assign_a_run(self, data: st.DataObject, value: str) -> None:
        start, end, old = data.draw(st.sampled_from(self.runs()))
        self.segments.assign_run(start, end, old, value)
        self.keys[start:end] = [value] * (end - start)

    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        start, end = self.span(data)
        turned = {"free": "waste", "waste": "free", "used": "other", "other": "used"}
        self.segments.update(start, end, turned.__getitem__)
        self.keys[start:end] = [turned[value] for value in self.keys[start:end]]

    @rule(data=st.data())
    def update_that_raises_changes_nothing(self, data: st.DataObject) -> None:
        start, end = self.span(data)
        last = self.keys[end - 1]

        def change(value: str) -> str:
            if value == last:
                raise LookupError
            return "other"

        with pytest.raises(LookupError):
            self.segments.update(start, end, change)

    @rule(
        length=st.integers(1, 20),
        source=st.sampled_from(INDEXED),
        value=st.sampled_from(("used", "other")),
        aligned=st.booleans(),
        last=st.booleans(),
    )
    def take(self, length: int, source: str, value: str, *, aligned: bool, last: bool) -> None:
        aligned = aligned and length >= self.alignment > 1
        expected = self.fit(source, length, aligned=aligned, last=last)
        assert self.segments.find_fit(source, length, aligned=aligned, last=last) == expected
        assert self.segments.take(source, length, value, aligned=aligned, last=last) == expected
        if expected >= 0:
            self.keys[expected : expected + length] = [value] * length

    def fit(self, source: str, length: int, *, aligned: bool, last: bool) -> int:
        unit = self.alignment if aligned else 1
        runs = [(start, end) for start, end, value in self.runs() if value == source]
        if not last:
            starts = [-(-start // unit) * unit for start, end in runs if -(-start // unit) * unit + length <= end]
            return min(starts, default=-1)
        tops = [(end - length) // unit * unit for start, end in runs if (end - length) // unit * unit >= start]
        return max(tops, default=-1)

    @rule(limit=st.integers(1, 60), max_runs=st.integers(1, 6), longest=st.integers(0, 12))
    def sweep(self, limit: int, max_runs: int, longest: int) -> None:
        def may_join(start: int, end: int) -> bool:
            return end - start <= longest

        made, keys = self.segments.sweep(
            "waste", TAKING, limit=limit, max_runs=max_runs, between="free", may_join=may_join
        )
        expected, count = self.swept(limit, max_runs, may_join)
        assert (made, keys) == (expected, count)
        for start, end in made:
            self.keys[start:end] = [TAKING] * (end - start)
        self.compare()
        for start, end in made:
            self.segments.assign(start, end, "free")
            self.keys[start:end] = ["free"] * (end - start)

    def swept(
        self, limit: int, max_runs: int, may_join: Callable[[int, int], bool]
    ) -> tuple[list[tuple[int, int]], int]:
        made: list[tuple[int, int]] = []
        count = 0
        runs = self.runs()
        for number, (start, run_end, value) in enumerate(runs):
            if value != "waste" or count >= limit:
                continue
            before = runs[number - 1] if number else None
            joins = made and before and before[2] == "free" and made[-1][1] == before[0] and may_join(before[0], start)
            if not joins and len(made) >= max_runs:
                break
            end = min(run_end, start + limit - count)
            count += end - start
            if joins:
                made[-1] = made[-1][0], end
            else:
                made.append((start, end))
            if len(made) >= max_runs:
                break
        return made, count

    def runs(self) -> list[tuple[int, int, str]]:
        found, start = [], 0
        for value, keys in groupby(self.keys):
            end = start + len(list(keys))
            found.append((start, end, value))
            start = end
        return found

    @invariant()
    def compare(self) -> None:
        if not hasattr(self, "segments"):
            return
        self.segments._check()
        runs = self.runs()
        assert list(self.segments.runs()) == runs
        assert len(self.segments) == len(runs)
        assert self.segments.size == len(self.keys)
        for value in INDEXED:
            mine = [(start, end) for start, end, here in runs if here == value]
            assert list(self.segments.indexed_runs(value)) == mine
            assert list(self.segments.indexed_runs(value, 3)) == [one for one in mine if one[1] - one[0] >= 3]
            assert self.segments.has(value) == bool(mine)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, len(self.keys) - 1))
        (around,) = [run for run in self.runs() if run[0] <= key < run[1]]
        assert self.segments.find(key) == around
        assert self.segments.exact(around[0], around[1]) == around[2]
        assert self.segments.exact(around[0], around[1] + 1) is None
        start, end = self.span(data)
        clipped = [(max(a, start), min(b, end), value) for a, b, value in self.runs() if a < end and b > start]
        assert list(self.segments.runs(start, end)) == clipped
        longest = max((b - a for a, b, value in self.runs() if value == "free"), default=0)
        assert self.segments.longest("free") == longest


TestTheSegmentSetIsAListOfValues = Tiled.TestCase
TestTheSegmentSetIsAListOfValues.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_sweep_goes_on_where_it_stopped_and_comes_to_what_was_freed_below_meanwhile() -> None:
    segments: SegmentSet[str] = SegmentSet(indexed=INDEXED)
    segments.extend(100, "used")
    for start in range(50, 100, 2):
        segments.assign(start, start + 1, "waste")

    def sweep() -> list[int]:
        made, _ = segments.sweep(
            "waste", TAKING, limit=3, max_runs=9, between="free", may_join=lambda start, end: False
        )
        for start, end in made:
            segments.assign(start, end, "free")
        return [start for start, _ in made]

    assert sweep() == [50, 52, 54]
    segments.assign(10, 11, "waste")
    segments.assign(51, 52, "waste")
    segments.assign(57, 58, "waste")  # joins two that the sweep has still before it
    assert sweep() == [10, 51, 56]
    assert sweep() == [57, 60]
    segments._check()
    while sweep():
        segments._check()
    assert not segments.has("waste")
