"""W1: free one of many allocations, allocate another."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from benchmarks.calibrators import PAGE
from benchmarks.harness import Case
from benchmarks.memories import OWNERS, Stopwatch, allocate_many, count_segments, open_memory, wait_reclaimed

TITLE: Final = "W1: free one, allocate one"
NOTE: Final = (
    "A random one of the live allocations is freed and one of 1 to 16 pages allocated, with the background reclaimer "
    "at work on what was freed; its cost is in the first figure as far as it falls into the loop, and wholly in the "
    "second."
)

_LIVE: Final[Mapping[str, Sequence[int]]] = {
    "full": (1_000, 100_000, 1_000_000),
    "quick": (1_000, 100_000),
    "tiny": (100,),
}
_PAIRS: Final[Mapping[str, int]] = {"full": 20_000, "quick": 5_000, "tiny": 200}


class Churn(Case):
    """Pairs of decref and allocate."""

    unit = "pair"

    def __init__(self, live: int, pairs: int) -> None:
        self.name = f"{live:,} live"
        # Each live allocation is a segment, but for the few whose neighbour happens to have the same owner.
        self.least_segments = live
        self._random = random.Random(live)
        self._pairs = pairs
        self._plan: list[tuple[int, int, int]] = []

    def set_up(self, stack: ExitStack) -> None:
        self._memory = open_memory(stack)
        self._live = allocate_many(self._memory, [self._length() for _ in range(self.least_segments)])

    def _length(self) -> int:
        return self._random.randint(1, 16) * PAGE

    def prepare(self) -> None:
        count = len(self._live)
        self._plan = [
            (self._random.randrange(count), self._length(), self._random.randrange(OWNERS)) for _ in range(self._pairs)
        ]

    def measure(self) -> Mapping[str, float]:
        live, allocate, decref = self._live, self._memory.allocate, self._memory.decref
        watch = Stopwatch()
        for index, length, owner in self._plan:
            decref(live[index])
            live[index] = allocate(length, owner=owner)
        churned = watch.seconds()
        wait_reclaimed(self._memory)
        return {"": churned / self._pairs, "and reclaimed": watch.seconds() / self._pairs}

    def segments(self) -> int:
        return count_segments(self._memory)


def cases(size: str) -> list[Case]:
    """All of W1."""
    return [Churn(live, _PAIRS[size]) for live in _LIVE[size]]
