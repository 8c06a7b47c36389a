"""W5: give touched pages back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from benchmarks.calibrators import PAGE
from benchmarks.harness import Case, check
from benchmarks.memories import Stopwatch, alternate_owners, count_segments, open_memory, touch, wait_reclaimed
from memplat import FileRange
from memplat.ranges import MIB

TITLE: Final = "W5: free touched pages until all are decommitted"
NOTE: Final = (
    "One `decref` a page, in a file of which every page is touched and a segment of its own; the background reclaimer "
    "works meanwhile. The time ends when nothing of what was freed is committed any more."
)

#: Pages of the file; half of them are freed, or all.
_PAGES: Final[Mapping[str, int]] = {"full": 400_000, "quick": 40_000, "tiny": 400}


class Reclaim(Case):
    """Free pages one by one, and wait for the reclaimer."""

    unit = "page"

    def __init__(self, count: int, *, every: int, is_random: bool) -> None:
        order = "random" if is_random else "ascending"
        share = "every other page" if every > 1 else "all pages"
        self.name = f"{share} of {count * PAGE // MIB:,} MiB, {order}"
        self.calibrator = "punch, random" if is_random else "punch"
        self.least_segments = count
        self._count = count
        self._found = 0
        self._stack = ExitStack()
        self._order = [FileRange(start, start + PAGE) for start in range(0, count * PAGE, every * PAGE)]
        if is_random:
            random.Random(count).shuffle(self._order)

    def prepare(self) -> None:
        memory = self._memory = open_memory(self._stack)
        pages = memory.allocate(self._count * PAGE)
        touch(memory, pages)
        alternate_owners(memory, pages)
        check(pages.start == 0, "the first pages are not at the beginning of the file")
        if not self._found:
            self._found = count_segments(memory)

    def measure(self) -> Mapping[str, float]:
        decref = self._memory.decref
        watch = Stopwatch()
        for page in self._order:
            decref(page)
        freed = watch.seconds()
        wait_reclaimed(self._memory)
        reclaimed = watch.seconds()
        left = self._memory.total_usage()
        kept = (self._count - len(self._order)) * PAGE
        check(left == kept, f"{self.name}: {left} bytes are committed instead of {kept}")
        return {"": reclaimed / len(self._order), "decref alone": freed / len(self._order)}

    def finish(self) -> None:
        self._stack.close()

    def segments(self) -> int:
        return self._found


def cases(size: str) -> list[Case]:
    """W5, and W5b: everything."""
    count = _PAGES[size]
    return [
        Reclaim(count, every=2, is_random=False),
        Reclaim(count, every=2, is_random=True),
        Reclaim(count, every=1, is_random=True),
    ]
