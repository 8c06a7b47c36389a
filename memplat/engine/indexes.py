"""The indexes of a :class:`~memplat.engine.segments.SegmentSet`: where the runs of one value are."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from memplat.engine.bytetree import ByteTree
from memplat.engine.fittree import FitTree


class Starts(set[int]):
    """The index of a value that nobody has searched yet: the bare starts of its runs, in no order until they are wanted
    upwards. Then they are sorted once for all that were there; what comes later waits in a heap.
    """

    __slots__ = ("_fresh", "_late", "_order")

    def __init__(self) -> None:
        super().__init__()
        self._order: list[int] = []  # downwards, with starts that are gone
        self._late: list[int] = []  # a heap, with starts that are gone
        self._fresh: set[int] = set()  # in neither of them

    def place(self, start: int, end: int) -> None:  # noqa: ARG002 -- the length matters to a search only
        """Note a new run, or one that grew."""
        self.add(start)
        self._fresh.add(start)

    def drop(self, start: int, end: int) -> None:  # noqa: ARG002
        """Forget a run."""
        self.discard(start)
        self._fresh.discard(start)

    def pops(self) -> Iterator[int]:
        """The starts upwards, those that come meanwhile left out. Whoever gets one has to drop it before the next."""
        if not self._order:
            self._order = sorted(self, reverse=True)
            self._late = []
        else:
            for start in self._fresh:
                heappush(self._late, start)
        self._fresh.clear()
        order, late = self._order, self._late
        while order or late:
            start = heappop(late) if late and not (order and order[-1] <= late[0]) else order.pop()
            if start in self:
                yield start


class Fits:
    """The index of a value that is searched: its runs by length; and, at the first aligned key of each, by the length
    from there on (positions are multiples of the alignment).
    """

    __slots__ = ("aligned", "alignment", "plain")

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.plain = ByteTree()
        self.aligned = FitTree()

    def place(self, start: int, end: int) -> None:
        """Note a new run, or one that grew."""
        length = end - start
        self.plain.set(start, length)
        unit = self.alignment
        if length >= unit > 1:
            first = -(-start // unit)
            room = end - first * unit
            if room >= unit:
                self.aligned.set(first, room)

    def drop(self, start: int, end: int) -> None:
        """Forget a run. *start* and at least its own keys count: a joined run is dropped with its new end."""
        self.plain.set(start, 0)
        if end - start >= self.alignment > 1:
            self.aligned.set(-(-start // self.alignment), 0)

    def cut(self, start: int, key: int, end: int) -> None:
        """The run ``[start, end)`` has lost its front: it begins at *key*."""
        self.plain.move(start, key, end - key)
        unit = self.alignment
        if end - start >= unit > 1:
            old, new = -(-start // unit), -(-key // unit)
            if old != new:  # else the aligned part of the run is what it was
                self.aligned.set(old, 0)
                room = end - new * unit
                if room >= unit:
                    self.aligned.set(new, room)
