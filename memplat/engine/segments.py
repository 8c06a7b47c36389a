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
from typing import Final, Generic, TypeVar

from sortedcontainers import SortedList

from memplat.engine.indexes import Fits, Starts

V = TypeVar("V", bound=Hashable)

#: So many keys can be looked at in the time of one search.
_NEARBY: Final = 16


class SegmentSet(Generic[V]):
    """Runs of equal values that tile ``[0, size)``."""

    __slots__ = (
        "_alignment",
        "_fresh",
        "_gone",
        "_index",
        "_is_sorted",
        "_last",
        "_nearby",
        "_run",
        "_size",
        "_sorted",
    )

    def __init__(self, *, indexed: Iterable[V] = (), alignment: int = 1, nearby: int = _NEARBY) -> None:
        # start -> end, value, and where the left neighbour starts (-1: there is none). Among a million runs the time
        # goes into fetching what was not used for long: so all that belongs to a run is in one place.
        self._run: dict[int, tuple[int, V, int]] = {}
        self._last = -1  # where the last run starts
        # The starts in order: needed only for keys inside of runs. What changed since it was last needed waits in two
        # sets; much of it cancels out.
        self._sorted: SortedList[int] = SortedList()
        self._is_sorted = True
        self._fresh: set[int] = set()
        self._gone: set[int] = set()
        self._index: dict[V, Starts | Fits] = {value: Starts() for value in indexed}
        self._alignment = alignment
        self._nearby = nearby
        self._size = 0

    # -- looking ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._run)

    @property
    def size(self) -> int:
        """The end of the domain."""
        return self._size

    def find(self, key: int) -> tuple[int, int, V]:
        """The run around *key*: start, end, value. Precondition: ``0 <= key < size``."""
        start = key if key in self._run else self._start_of(key)
        end, value, _ = self._run[start]
        return start, end, value

    def exact(self, start: int, end: int) -> V | None:
        """The value of the run that is exactly ``[start, end)``, or ``None`` if there is no such run. O(1)."""
        run = self._run.get(start)
        return run[1] if run is not None and run[0] == end else None

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, V]]:
        """The runs that overlap ``[start, end)``, clipped to it, upwards."""
        end = self._size if end is None else end
        if start >= end:
            return
        first = start if start in self._run else self._start_of(start)
        while True:
            run_end, value, _ = self._run[first]
            if run_end >= end:
                yield max(first, start), end, value
                return
            yield max(first, start), run_end, value
            first = run_end

    def columns(self) -> tuple[list[int], list[V]]:
        """All runs at once: their starts, upwards, and their values. For those who would go through all of them."""
        if self._fresh or self._gone or not self._is_sorted:
            self._sort()
        starts = list(self._sorted)
        run = self._run
        return starts, [run[start][1] for start in starts]

    def indexed_runs(self, value: V, length: int = 1) -> Iterator[tuple[int, int]]:
        """The runs of an indexed value of at least *length*, upwards."""
        index = self._index[value]
        run = self._run
        for start in sorted(index) if isinstance(index, Starts) else index.plain.positions(length):
            end = run[start][0]
            if end - start >= length:
                yield start, end

    def has(self, value: V) -> bool:
        """Whether any key has this indexed value."""
        index = self._index[value]
        return bool(index) if isinstance(index, Starts) else index.plain.first(1) >= 0

    def find_fit(self, value: V, length: int, *, aligned: bool, last: bool) -> int:
        """Where *length* keys of an indexed value begin: the lowest place, or the highest. -1 if there is none."""
        index = self._searchable(value)
        tree, unit = (index.aligned, self._alignment) if aligned else (index.plain, 1)
        position = tree.last(length) if last else tree.first(length)
        if position < 0:
            return -1
        start = position * unit
        return (start + tree.get(position) - length) // unit * unit if last else start

    def longest(self, value: V) -> int:
        """The length of the longest run of an indexed value."""
        return self._searchable(value).plain.maximum()

    def _searchable(self, value: V) -> Fits:
        """The index of *value*, which becomes a searchable one with the first search. O(n) then, else O(1)."""
        index = self._index[value]
        if isinstance(index, Fits):
            return index
        fits = Fits(self._alignment)
        for start in index:
            fits.place(start, self._run[start][0])
        self._index[value] = fits
        return fits

    # -- changing -----------------------------------------------------------------------------------------------------

    def extend(self, size: int, value: V) -> None:
        """Make the domain larger; the new keys get *value*."""
        start, self._size = self._size, size
        last = self._last
        if last >= 0 and self._run[last][1] == value:
            self._place(last, size, value, self._run[last][2])
            return
        self._add_start(start)
        self._place(start, size, value, last)
        self._last = start

    def take(self, source: V, length: int, value: V, *, aligned: bool, last: bool) -> int:
        """Give *value* to the *length* keys that :meth:`find_fit` finds; returns where they begin, or -1."""
        index = self._index[source]
        run = self._run
        if aligned or last or not isinstance(index, Fits):
            start = self.find_fit(source, length, aligned=aligned, last=last)
            if start >= 0 and (last or start not in run):
                self.assign(start, start + length, value)
                return start
            index = self._searchable(source)
        else:
            start = index.plain.first(length)
        if start < 0:
            return -1
        end = start + length  # by far the most frequent case: the front of the lowest run that fits
        run_end, _, left = run[start]
        if end == run_end:
            self.assign_run(start, end, source, value)
            return start
        index.cut(start, end, run_end)
        self._add_start(end)
        first = start
        if left >= 0:
            first, beside, further = run[left]  # the same number as start, but the object that is in the map already
            if beside == value:
                del run[start]
                self._drop_start(start)
                first, left = left, further
        self._place(first, end, value, left)
        run[end] = run_end, source, first
        self._link(end, run_end)
        return start

    def assign(self, start: int, end: int, value: V) -> None:
        """Give every key of ``[start, end)`` the value. Precondition: ``0 <= start < end <= size``."""
        first = start if start in self._run else self._start_of(start)
        run_end, old, _ = self._run[first]
        if run_end >= end and old == value:
            return
        if first < start:
            self._split(first, start)
        if run_end > end:
            self._split(start, end)
            run_end = end
        joined = run_end < end
        while run_end < end:  # swallow what lies within, whatever its value
            if self._run[run_end][0] > end:
                self._split(run_end, end)
            run_end = self._absorb(run_end)
        self.assign_run(start, end, old, value, joined=joined)

    def assign_run(self, start: int, end: int, old: V, value: V, *, joined: bool = False) -> None:
        """As :meth:`assign`, of exactly one run, which has the value *old*. (A *joined* run still has its old end.)"""
        if old == value and not joined:
            return
        run = self._run
        index = self._index.get(old)
        if index is not None:
            index.drop(start, end)
        here, _, left = run[start]
        if not joined:
            end = here  # the same number, but the object that is in the map already
        if left >= 0:
            start, beside, further = run[left]  # so is this start
            if beside == value:
                del run[start]
                self._drop_start(start)
                start, left = left, further
                joined = True
        right = run.get(end)
        if right is not None and right[1] == value:
            end = self._absorb(end)
            joined = True
        run[start] = end, value, left
        if joined:
            self._link(start, end)
        index = self._index.get(value)
        if index is not None:
            index.place(start, end)

    def sweep(
        self,
        source: V,
        value: V,
        *,
        limit: int,
        max_runs: int,
        between: V,
        may_join: Callable[[int, int], bool],
    ) -> tuple[list[tuple[int, int]], int]:
        """Give *value*, which no key may have, to runs of the indexed value *source*, upwards, until these are at least
        *limit* keys or *max_runs* runs are made; the last run is cut. What lies between two of them is swallowed if it
        is one run of *between* that *may_join*. Returns the runs that were made, and how many keys were *source*'s.
        """
        index = self._index[source]
        run = self._run
        made: list[tuple[int, int]] = []
        keys = 0
        first = last = -1
        for start in index.pops() if isinstance(index, Starts) else index.plain.positions(1):
            end, _, left = run[start]
            if keys + end - start > limit:
                end = start + limit - keys
                self._split(start, end)
            keys += end - start
            index.drop(start, end)
            if left == last >= 0 and run[left][1] == between and may_join(last, start):
                del run[start]
                self._drop_start(start)
                self._absorb(last)
                run[first] = end, value, run[first][2]
                self._link(first, end)
            else:
                if first >= 0:
                    made.append((first, last))
                first = start
                run[first] = end, value, left
            last = end
            if keys >= limit or len(made) >= max_runs - 1:
                break
        if first >= 0:
            made.append((first, last))
        return made, keys

    def update(self, start: int, end: int, change: Callable[[V], V]) -> None:
        """Put every value of ``[start, end)`` through *change*. If *change* raises, nothing has changed."""
        for run_start, run_end, value in [(s, e, change(v)) for s, e, v in self.runs(start, end)]:
            self.assign(run_start, run_end, value)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _place(self, start: int, end: int, value: V, left: int) -> None:
        """Set down a run. The caller has seen to the starts, and to the links."""
        self._run[start] = end, value, left
        index = self._index.get(value)
        if index is not None:
            index.place(start, end)

    def _link(self, start: int, end: int) -> None:
        """Tell the right neighbour where the run that ends at *end* starts now."""
        right = self._run.get(end)
        if right is None:
            self._last = start
        else:
            self._run[end] = right[0], right[1], start

    def _split(self, start: int, key: int) -> None:
        """Make *key*, inside of the run at *start*, begin a run. Both are equal until the caller has changed one."""
        end, value, left = self._run[start]
        index = self._index.get(value)
        if index is not None:
            index.drop(start, end)
        self._place(start, key, value, left)
        self._add_start(key)
        self._place(key, end, value, start)
        self._link(key, end)

    def _absorb(self, start: int) -> int:
        """Forget the run at *start*, which joins the one before it; returns its end. The caller sees to the links."""
        end, value, _ = self._run.pop(start)
        index = self._index.get(value)
        if index is not None:
            index.drop(start, end)
        self._drop_start(start)
        return end

    def _add_start(self, start: int) -> None:
        if start in self._gone:
            self._gone.remove(start)
        else:
            self._fresh.add(start)

    def _drop_start(self, start: int) -> None:
        if start in self._fresh:
            self._fresh.remove(start)
        else:
            self._gone.add(start)

    def _start_of(self, key: int) -> int:
        """The start of the run around *key*, where none begins. A search wants them in order: so look nearby first."""
        run = self._run
        if len(run) <= self._nearby:
            return max([start for start in run if start <= key])
        for start in range(key - 1, max(key - self._nearby, 0) - 1, -1):
            if start in run:
                return start
        if self._fresh or self._gone or not self._is_sorted:
            self._sort()
        return next(self._sorted.irange(maximum=key, reverse=True))

    def _sort(self) -> None:
        """Bring the sorted starts up to date: one by one, or all at once if most have changed, or if an exception from
        outside ended that halfway the last time: those who only look are no change that leaves the table torn.
        """
        all_at_once = not self._is_sorted or len(self._fresh) + len(self._gone) > len(self._run) // 4
        self._is_sorted = False
        if all_at_once:
            self._sorted = SortedList(self._run)
        else:
            for start in self._gone:
                self._sorted.remove(start)
            self._sorted.update(self._fresh)
        self._fresh.clear()
        self._gone.clear()
        self._is_sorted = True

    def _check(self) -> None:
        """Assert every invariant. O(n)."""
        self.columns()
        assert not self._fresh, "starts are left out"
        assert not self._gone, "starts are left over"
        starts = list(self._sorted)
        assert starts == sorted(self._run), "the sorted starts are not those of the runs"
        edge, before = 0, -1
        for start in starts:
            end, value, left = self._run[start]
            assert start == edge, f"the runs leave a gap or overlap at {edge}: next is {start}"
            assert end > start, f"an empty run at {start}"
            assert left == before, f"the left neighbour of {start} starts at {before}, not {left}"
            assert left < 0 or self._run[left][1] != value, f"not merged at {start}"
            edge, before = end, start
        assert self._last == before, f"the last run starts at {before}, not {self._last}"
        assert edge == self._size, f"the runs end at {edge}, the domain at {self._size}"
        for value in self._index:
            self._check_index(value, {s: e - s for s, (e, v, _) in self._run.items() if v == value})

    def _check_index(self, value: V, expected: dict[int, int]) -> None:
        index = self._index[value]
        if isinstance(index, Starts):
            assert index == set(expected), f"the starts of {value!r} are off"
            return
        index.plain._check()
        index.aligned._check()
        found = {start: index.plain.get(start) for start in index.plain.positions(1)}
        assert found == expected, f"the index of {value!r} is off"
        unit = self._alignment
        if unit > 1:
            rooms = [(-(-s // unit), s + length - -(-s // unit) * unit) for s, length in expected.items()]
            found = {first: index.aligned.get(first) for first in index.aligned.positions(1)}
            assert found == {f: room for f, room in rooms if room >= unit}, f"the aligned index of {value!r} is off"
