"""W5: give touched pages back; and what that costs others."""

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

#: Steps that the busy thread takes to find out how fast it is alone, and what it does in one: a few microseconds.
_STEPS: Final = 2_000
_TURNS: Final = 500


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


class Beside(Case):
    """The reclaimer at work beside a thread that never rests: what each has of it.

    One call turns every other page into waste, so that nothing but the steps of the busy thread runs meanwhile.
    """

    unit = "page"
    calibrator = "punch"

    def __init__(self, count: int, *, every: int, is_slowdown: bool = False) -> None:
        share = "every other page" if every > 1 else "all pages"
        what = "a busy thread's millisecond beside the reclaimer" if is_slowdown else "beside a busy thread"
        self.name = f"{share} of {count * PAGE // MIB:,} MiB, {what}"
        self.unit = "millisecond" if is_slowdown else "page"
        self._count = count
        self._every = every
        self._is_slowdown = is_slowdown
        self._stack = ExitStack()

    def prepare(self) -> None:
        memory = self._memory = open_memory(self._stack)
        pages = self._pages = memory.allocate(self._count * PAGE)
        touch(memory, pages)
        if self._every > 1:
            for start in range(pages.start + PAGE, pages.end, self._every * PAGE):
                memory.incref(FileRange(start, start + PAGE))
        self._left = self._count * PAGE * (self._every - 1) // self._every

    def measure(self) -> Mapping[str, float]:
        alone = self._work(_STEPS, 0)[0]
        self._memory.decref(self._pages)
        watch = Stopwatch()
        beside, steps = self._work(1 << 60, self._left)
        taken = watch.seconds()
        check(steps > 0, f"{self.name}: all was reclaimed before the busy thread began")
        slower = beside / alone * 1e-3
        each = taken / (self._count * PAGE - self._left) * PAGE
        return {"": slower} if self._is_slowdown else {"": each}

    def _work(self, steps: int, until: int) -> tuple[float, int]:
        """Work, so many steps or until so much is committed; the seconds a step, and how many."""
        committed = self._memory.total_usage
        done = 0
        watch = Stopwatch()
        while done < steps and committed() != until:
            for _ in range(_TURNS):
                pass
            done += 1
        return watch.seconds() / max(1, done), done

    def finish(self) -> None:
        self._stack.close()


def cases(size: str) -> list[Case]:
    """W5, and W5b: everything."""
    count = _PAGES[size]
    return [
        Reclaim(count, every=2, is_random=False),
        Reclaim(count, every=2, is_random=True),
        Reclaim(count, every=1, is_random=True),
        Beside(count // 4, every=2),
        Beside(count // 4, every=2, is_slowdown=True),
    ]
