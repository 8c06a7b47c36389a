"""W3: find room in a fragmented file."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from benchmarks.calibrators import PAGE
from benchmarks.harness import Case, check
from benchmarks.memories import OWNERS, Stopwatch, allocate_many, count_segments, open_memory
from memplat import FileRange
from memplat.ranges import GIB, HUGE_PAGE_SIZE

TITLE: Final = "W3: find room among holes that do not fit"
NOTE: Final = (
    "Two pages among one-page holes; and 2 MiB, which have to be aligned to 2 MiB, among gaps of 2 to 4 MiB none of "
    "which holds an aligned 2 MiB. Reclaim is manual: nothing but the search is measured."
)

_HOLES: Final[Mapping[str, Sequence[int]]] = {
    "full": (1_000, 100_000, 1_000_000),
    "quick": (1_000, 100_000),
    "tiny": (50,),
}
_SEARCHES: Final[Mapping[str, int]] = {"full": 2_000, "quick": 500, "tiny": 10}

#: A gap and the used pages around it take so much: two aligned 2 MiB, both of them cut by used pages.
_SPACING: Final = 2 * HUGE_PAGE_SIZE


class Search(Case):
    """Allocations that fit nowhere but behind all holes."""

    unit = "search"

    def __init__(self, length: int, holes: int, searches: int) -> None:
        self.least_segments = 2 * holes  # each hole, and the used pages before it
        self._length = length
        self._holes = holes
        self._searches = searches

    def holes(self) -> tuple[int, Iterator[FileRange]]:
        """How many bytes are full of holes, and where these are."""
        raise NotImplementedError

    def set_up(self, stack: ExitStack) -> None:
        self._behind, holes = self.holes()
        memory = self._memory = open_memory(stack, reclaim="manual", max_size=self._behind + 64 * GIB)
        memory.allocate(self._behind)
        for hole in holes:
            memory.decref(hole)
        memory.reclaim()
        # Once ahead of all runs, so that none has to wait for the file to grow.
        self._taken = allocate_many(memory, [self._length] * self._searches)
        self.finish()

    def measure(self) -> Mapping[str, float]:
        allocate, length, taken = self._memory.allocate, self._length, self._taken
        watch = Stopwatch()
        for number in range(self._searches):
            taken.append(allocate(length, owner=number % OWNERS))
        return {"": watch.seconds() / self._searches}

    def finish(self) -> None:
        check(len(set(self._taken)) == self._searches, f"{self.name}: the same pages were handed out twice")
        check(min(self._taken).start >= self._behind, f"{self.name}: a hole that should not fit was taken")
        for pages in self._taken:
            self._memory.decref(pages)
        self._taken.clear()
        self._memory.reclaim()

    def segments(self) -> int:
        return count_segments(self._memory)


class SmallSearch(Search):
    """Two pages among holes of one page."""

    def __init__(self, holes: int, searches: int) -> None:
        super().__init__(2 * PAGE, holes, searches)
        self.name = f"2 pages among {holes:,} holes"

    def holes(self) -> tuple[int, Iterator[FileRange]]:
        end = (2 * self._holes + 1) * PAGE  # behind the last hole, a page in use
        return end, (FileRange(start, start + PAGE) for start in range(PAGE, end, 2 * PAGE))


class AlignedSearch(Search):
    """An aligned 2 MiB among gaps of 2 MiB to 4 MiB less two pages, none of which holds an aligned 2 MiB."""

    def __init__(self, holes: int, searches: int) -> None:
        super().__init__(HUGE_PAGE_SIZE, holes, searches)
        self.name = f"2 MiB aligned among {holes:,} gaps"

    def holes(self) -> tuple[int, Iterator[FileRange]]:
        end = self._holes * _SPACING
        return end, map(self._gap, range(0, end, _SPACING))

    @staticmethod
    def _gap(base: int) -> FileRange:
        chosen = random.Random(base)
        before = chosen.randrange(PAGE, HUGE_PAGE_SIZE, PAGE)
        after = chosen.randrange(PAGE, HUGE_PAGE_SIZE - before + PAGE, PAGE)
        return FileRange(base + before, base + _SPACING - after)


def cases(size: str) -> list[Case]:
    """All of W3."""
    kinds: tuple[Callable[[int, int], Search], ...] = (SmallSearch, AlignedSearch)
    return [kind(holes, _SEARCHES[size]) for kind in kinds for holes in _HOLES[size]]
