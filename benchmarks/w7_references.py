"""W7: share pages and stop sharing them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from benchmarks.calibrators import BLOCK
from benchmarks.harness import Case
from benchmarks.memories import Stopwatch, allocate_many, count_segments, open_memory
from memplat.ranges import KIB

TITLE: Final = "W7: incref and decref"
NOTE: Final = (
    "Of a random one of the live 64 KiB segments: of all of it, or of its middle 32 KiB (it is split and merged)."
)

_LIVE: Final[Mapping[str, Sequence[int]]] = {"full": (1_000, 100_000), "quick": (1_000, 100_000), "tiny": (100,)}
_PAIRS: Final[Mapping[str, int]] = {"full": 20_000, "quick": 5_000, "tiny": 50}


class Share(Case):
    """Pairs of incref and decref."""

    unit = "pair"

    def __init__(self, live: int, pairs: int, *, middle: bool) -> None:
        self.name = f"{'middle of one of' if middle else 'one of'} {live:,} segments"
        self.least_segments = live
        self._pairs = pairs
        self._middle = middle

    def set_up(self, stack: ExitStack) -> None:
        self._memory = open_memory(stack)
        blocks = allocate_many(self._memory, [BLOCK] * self.least_segments)
        chosen = random.Random(0).choices(blocks, k=self._pairs)
        self._order = [pages.part(16 * KIB, 32 * KIB) for pages in chosen] if self._middle else chosen

    def measure(self) -> Mapping[str, float]:
        incref, decref = self._memory.incref, self._memory.decref
        watch = Stopwatch()
        for pages in self._order:
            incref(pages)
            decref(pages)
        return {"": watch.seconds() / len(self._order)}

    def segments(self) -> int:
        return count_segments(self._memory)


def cases(size: str) -> list[Case]:
    """All of W7."""
    return [Share(live, _PAIRS[size], middle=middle) for middle in (False, True) for live in _LIVE[size]]
