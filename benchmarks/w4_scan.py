"""W4: find out what is committed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from benchmarks.calibrators import PAGE
from benchmarks.harness import Case, check
from benchmarks.memories import Stopwatch, open_memory, touch
from memplat import FileRange, Memory, Usage
from memplat.ranges import GIB, MIB

TITLE: Final = "W4: what is committed"
NOTE: Final = (
    "`update_usage()`, exact by kind and owner. A first scan is that of a memory that was never scanned before. "
    "The page in 16 GiB is another one each time: the old one decommitted, a new one touched."
)

#: The divisor of all sizes.
_SMALLER: Final[Mapping[str, int]] = {"full": 1, "quick": 4, "tiny": 1024}
_SPACING: Final = 64 * 1024
_MOVES: Final = 10
_CALLS: Final = 200


class Scan(Case):
    """A scan that has to find so many bytes.

    :ivar committed: what has to be found
    """

    unit = "scan"
    calibrator = "fstat"

    def __init__(self, name: str) -> None:
        self.name = name
        self.committed = 0

    def scan(self, memory: Memory) -> float:
        """Seconds for one scan, the result of which is checked."""
        watch = Stopwatch()
        usage = memory.update_usage()
        seconds = watch.seconds()
        self.check(usage)
        return seconds

    def check(self, usage: Usage) -> None:
        """Refuse figures of a scan that was not right."""
        found = usage.committed["anonymous"]
        check(usage.exact and found == self.committed, f"{self.name}: found {found} bytes instead of {self.committed}")


class FirstScan(Scan):
    """A new memory each run, committed by *step*."""

    def __init__(self, name: str, length: int, step: int, *, file_size: int = 0, by_write: bool = False) -> None:
        super().__init__(name)
        self.calibrator = "SEEK_DATA walk" if step > PAGE else "fstat"
        self.committed = length // step * PAGE
        self._length = length
        self._step = step
        self._rest = file_size - length
        self._by_write = by_write
        self._stack = ExitStack()

    def prepare(self) -> None:
        memory = self.memory = open_memory(self._stack)
        pages = memory.allocate(self._length)
        if self._rest > 0:
            memory.allocate(self._rest)
        if not self._by_write:
            touch(memory, pages, self._step)
            return
        for start in range(pages.start, pages.end, self._step):
            memory.write(FileRange(start, start + PAGE), b"\1")

    def measure(self) -> Mapping[str, float]:
        return {"": self.scan(self.memory)}

    def finish(self) -> None:
        self._stack.close()


class Rescan(Scan):
    """One more page each run, in a file of scattered pages."""

    calibrator = "SEEK_DATA walk"

    def __init__(self, name: str, length: int) -> None:
        super().__init__(name)
        self._length = length

    def set_up(self, stack: ExitStack) -> None:
        self._memory = open_memory(stack)
        self._pages = self._memory.allocate(self._length)
        touch(self._memory, self._pages, _SPACING)
        self._memory.update_usage()
        count = self._length // _SPACING
        self.committed = count * PAGE
        self._order = iter(random.Random(0).sample(range(count), min(count, 1000)))

    def prepare(self) -> None:
        start = self._pages.start + next(self._order) * _SPACING + _SPACING // 2
        self._memory.view(FileRange(start, start + 1))[0] = 1
        self.committed += PAGE

    def measure(self) -> Mapping[str, float]:
        return {"": self.scan(self._memory)}


class MovingPage(Scan):
    """One page in a large file, another one for each scan."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__(name)
        self._length = length
        self.committed = PAGE

    def set_up(self, stack: ExitStack) -> None:
        self._memory = open_memory(stack)
        self._pages = self._memory.allocate(self._length)
        self._random = random.Random(0)
        self._touched = self._touch_one()

    def _touch_one(self) -> FileRange:
        page = self._pages.part(self._random.randrange(self._pages.length // PAGE) * PAGE, PAGE)
        self._memory.view(page)[0] = 1
        return page

    def measure(self) -> Mapping[str, float]:
        seconds = 0.0
        for _ in range(_MOVES):
            check(self._memory.decommit(self._touched) == PAGE, f"{self.name}: nothing was decommitted")
            self._touched = self._touch_one()
            seconds += self.scan(self._memory)
        return {"": seconds / _MOVES}


class NothingNew(Scan):
    """Scans without a change in between."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__(name)
        self._length = length
        self.committed = length // _SPACING * PAGE

    def set_up(self, stack: ExitStack) -> None:
        self._memory = open_memory(stack)
        pages = self._memory.allocate(self._length)
        touch(self._memory, pages, _SPACING)
        self._memory.update_usage()

    def measure(self) -> Mapping[str, float]:
        watch = Stopwatch()
        for _ in range(_CALLS):
            self._memory.update_usage()
        seconds = watch.seconds() / _CALLS
        self.check(self._memory.usage())
        return {"": seconds}


def cases(size: str) -> list[Case]:
    """All of W4."""
    smaller = _SMALLER[size]
    scattered = 4 * GIB // smaller
    extents = f"{scattered // _SPACING:,} one-page extents in {scattered // MIB:,} MiB"
    gib = GIB // smaller
    return [
        FirstScan(f"first scan, {extents}", scattered, _SPACING),
        FirstScan(f"first scan, {extents}, written by system call", scattered, _SPACING, by_write=True),
        Rescan(f"one more page, {extents}", scattered),
        FirstScan(f"first scan, {gib // MIB:,} MiB contiguous", gib, PAGE),
        FirstScan(f"first scan, {gib // MIB:,} MiB contiguous of {2 * gib // MIB:,} MiB", gib, PAGE, file_size=2 * gib),
        MovingPage(f"one page in {16 * gib // MIB:,} MiB", 16 * gib),
        NothingNew("nothing new", scattered),
    ]
