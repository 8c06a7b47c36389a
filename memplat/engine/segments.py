"""A map from ranges of keys to values, without gaps and maximally merged.

Knows nothing of memory: keys are integers, values are hashable and immutable. The domain ``[0, size)`` is tiled by
*runs*; neighbours never have equal values (so merging is equality, and a split copies the value). Runs of the values
named as *indexed* can be found by least length, also by the length that is left when the start is rounded up to
*alignment*, first fit by key in both directions, in O(log n) however fragmented the map is.

Iterators die with the next change. Not thread-safe: the owner brings the lock.

This is the reference implementation and the specification; a compiled twin has to give the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from sortedcontainers import SortedList

from memplat.engine.fittree import FitTree

V = TypeVar("V", bound=Hashable)


class SegmentSet(Generic[V]):
    """Runs of equal values that tile ``[0, size)``."""

    __slots__ = ("_aligned", "_alignment", "_begin", "_end", "_plain", "_size", "_starts", "_value")

    def __init__(self, *, indexed: Iterable[V] = (), alignment: int = 1) -> None:
        self._end: dict[int, int] = {}  # start -> end
        self._begin: dict[int, int] = {}  # end -> start: finds the left neighbour without a search
        self._value: dict[int, V] = {}  # start -> value
        self._starts: SortedList[int] = SortedList()  # only for keys inside of runs, and for order
        self._plain: dict[V, FitTree] = {value: FitTree() for value in indexed}
        self._aligned: dict[V, FitTree] = {value: FitTree() for value in self._plain}
        self._alignment = alignment
        self._size = 0

    # -- looking ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._end)

    @property
    def size(self) -> int:
        """The end of the domain."""
        return self._size

    def find(self, key: int) -> tuple[int, int, V]:
        """The run around *key*: start, end, value. Precondition: ``0 <= key < size``."""
        start = key if key in self._end else self._start_of(key)
        return start, self._end[start], self._value[start]

    def exact(self, start: int, end: int) -> V | None:
        """The value of the run that is exactly ``[start, end)``, or ``None`` if there is no such run. O(1)."""
        return self._value[start] if self._end.get(start) == end else None

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, V]]:
        """The runs that overlap ``[start, end)``, clipped to it, upwards."""
        end = self._size if end is None else end
        if start >= end:
            return
        run = start if start in self._end else self._start_of(start)
        while True:
            run_end = self._end[run]
            yield max(run, start), min(run_end, end), self._value[run]
            if run_end >= end:
                return
            run = run_end

    def indexed_runs(self, value: V, length: int = 1) -> Iterator[tuple[int, int]]:
        """The runs of an indexed value of at least *length*, upwards."""
        for start in self._plain[value].positions(length):
            yield start, self._end[start]

    def find_fit(self, value: V, length: int, *, aligned: bool, last: bool) -> int:
        """Where *length* keys of an indexed value begin: the lowest place, or the highest. -1 if there is none."""
        tree = (self._aligned if aligned else self._plain)[value]
        start = tree.last(length) if last else tree.first(length)
        if start < 0:
            return -1
        unit = self._alignment if aligned else 1
        if last:
            return (self._end[start] - length) // unit * unit
        return -(-start // unit) * unit

    def longest(self, value: V) -> int:
        """The length of the longest run of an indexed value."""
        return self._plain[value].maximum()

    # -- changing -----------------------------------------------------------------------------------------------------

    def extend(self, size: int, value: V) -> None:
        """Make the domain larger; the new keys get *value*."""
        start, self._size = self._size, size
        if start:
            last = self._begin[start]
            if self._value[last] == value:
                del self._begin[start]
                self._place(last, size, value)
                return
        self._starts.add(start)
        self._value[start] = value
        self._place(start, size, value)

    def assign(self, start: int, end: int, value: V) -> None:
        """Give every key of ``[start, end)`` the value. Precondition: ``0 <= start < end <= size``."""
        ends, values, begins = self._end, self._value, self._begin
        run = start if start in ends else self._start_of(start)
        run_end, old = ends[run], values[run]
        if old == value and run_end >= end:
            return
        new_start, new_end = start, end
        if run < start:
            if old == value:
                new_start = run
        elif start and values[left := begins[start]] == value:
            new_start = left
            del begins[start]
        # Walk over the old runs; the first may stick out to the left, the last to the right.
        while True:
            if run < start and old != value:
                self._place(run, start, old)
                if run_end > end:  # strictly inside one run: its right part becomes a run of its own
                    begins.pop(run_end)
                    self._insert(end, run_end, old)
                    break
                begins.pop(run_end, None)
            elif run_end > end:
                begins.pop(run_end)
                if old == value:
                    new_end = run_end
                    self._drop(run, old, keep=run == new_start)
                else:
                    self._drop(run, old, keep=run == new_start)
                    self._insert(end, run_end, old)
                break
            else:
                begins.pop(run_end, None)
                self._drop(run, old, keep=run == new_start)
            if run_end >= end:
                if end < self._size and values[end] == value:
                    new_end = ends[end]
                    begins.pop(new_end)
                    self._drop(end, value, keep=False)
                break
            run = run_end
            run_end, old = ends[run], values[run]
        if new_start not in values:
            self._starts.add(new_start)
        values[new_start] = value
        self._place(new_start, new_end, value)

    def update(self, start: int, end: int, change: Callable[[V], V]) -> None:
        """Put every value of ``[start, end)`` through *change*. If *change* raises, nothing has changed."""
        for run_start, run_end, value in [(s, e, change(v)) for s, e, v in self.runs(start, end)]:
            self.assign(run_start, run_end, value)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _start_of(self, key: int) -> int:
        return next(self._starts.irange(maximum=key, reverse=True))

    def _place(self, start: int, end: int, value: V) -> None:
        """Set the bounds of the run at *start*, and its weights. The caller has seen to the value and to _starts."""
        self._end[start] = end
        self._begin[end] = start
        tree = self._plain.get(value)
        if tree is not None:
            tree.set(start, end - start)
            if self._alignment > 1:
                room = end - -(-start // self._alignment) * self._alignment
                self._aligned[value].set(start, room if room >= self._alignment else 0)

    def _insert(self, start: int, end: int, value: V) -> None:
        self._starts.add(start)
        self._value[start] = value
        self._place(start, end, value)

    def _drop(self, start: int, value: V, *, keep: bool) -> None:
        """Forget the run at *start*; with *keep* its start goes on to begin a run."""
        tree = self._plain.get(value)
        if tree is not None:
            tree.set(start, 0)
            if self._alignment > 1:
                self._aligned[value].set(start, 0)
        if not keep:
            del self._end[start], self._value[start]
            self._starts.remove(start)

    def _check(self) -> None:
        """Assert every invariant. O(n)."""
        starts = list(self._starts)
        assert starts == sorted(self._end) == sorted(self._value), "the three indexes of starts differ"
        assert {end: start for start, end in self._end.items()} == self._begin, "_begin is not the inverse of _end"
        edge = 0
        for start in starts:
            assert start == edge, f"the runs leave a gap or overlap at {edge}: next is {start}"
            assert self._end[start] > start, f"an empty run at {start}"
            assert start == 0 or self._value[self._begin[start]] != self._value[start], f"not merged at {start}"
            edge = self._end[start]
        assert edge == self._size, f"the runs end at {edge}, the domain at {self._size}"
        for value, tree in self._plain.items():
            tree._check()
            expected = {s: self._end[s] - s for s in starts if self._value[s] == value}
            assert {s: tree.get(s) for s in tree.positions(1)} == expected, f"the index of {value!r} is off"
            self._aligned[value]._check()
            if self._alignment > 1:
                unit = self._alignment
                rooms = {s: self._end[s] - -(-s // unit) * unit for s in expected}
                found = {s: self._aligned[value].get(s) for s in self._aligned[value].positions(1)}
                assert found == {s: r for s, r in rooms.items() if r >= unit}, f"the aligned index of {value!r} is off"
