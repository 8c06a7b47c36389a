"""W2: allocate, touch each page, free; and what a Python user would do instead."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory
from typing import Final

from benchmarks.calibrators import BLOCK, PAGE, STAMP
from benchmarks.harness import Case, check
from benchmarks.memories import Stopwatch, open_memory, wait_reclaimed
from memplat.ranges import HUGE_PAGE_SIZE

TITLE: Final = "W2: allocate, touch each page, free"
NOTE: Final = (
    "Pages are touched through a pinned view, made and dropped each time. Recycled means mode `will_commit`: the waste "
    "of the last round is zeroed and handed out again before the reclaimer gets it. The last lines do the same with "
    "what Python's library has."
)

_CYCLES: Final[Mapping[str, tuple[int, int]]] = {"full": (3_000, 100), "quick": (1_000, 30), "tiny": (20, 2)}


class Touch(Case):
    """Allocate, touch, free."""

    unit = "cycle"

    def __init__(self, name: str, length: int, mode: str, cycles: int) -> None:
        self.name = name
        self.calibrator = "memset 64 KiB" if mode == "will_commit" else "first-touch fault"
        self._length = length
        self._mode = mode
        self._cycles = cycles

    def set_up(self, stack: ExitStack) -> None:
        self._memory = open_memory(stack)

    def measure(self) -> Mapping[str, float]:
        memory, length, mode = self._memory, self._length, self._mode
        stamp = b"\1" * (length // PAGE)
        recycled = memory.usage().counters.get("recycled_bytes", 0)
        watch = Stopwatch()
        for _ in range(self._cycles):
            pages = memory.allocate(length, mode=mode)
            memory.view(pages)[::PAGE] = stamp
            memory.decref(pages)
        looped = watch.seconds()
        wait_reclaimed(memory)
        reclaimed = watch.seconds()
        if mode == "will_commit":
            recycled = memory.usage().counters["recycled_bytes"] - recycled
            check(recycled * 2 >= self._cycles * length, f"{self.name}: only {recycled} bytes were recycled")
            return {"": looped / self._cycles}
        return {"": looped / self._cycles, "and reclaimed": reclaimed / self._cycles}


class Alternative(Case):
    """The same 64 KiB without memplat."""

    unit = "cycle"
    calibrator = "first-touch fault"

    def __init__(self, cycles: int) -> None:
        self._cycles = cycles

    def measure(self) -> Mapping[str, float]:
        watch = Stopwatch()
        for _ in range(self._cycles):
            self.cycle()
        return {"": watch.seconds() / self._cycles}

    def cycle(self) -> None:
        """Make, touch and drop 64 KiB."""
        raise NotImplementedError


class AnonymousMap(Alternative):
    name = "64 KiB, mmap.mmap(-1) and close instead"

    def cycle(self) -> None:
        mapped = mmap.mmap(-1, BLOCK)
        memoryview(mapped)[::PAGE] = STAMP
        mapped.close()


class MemfdMap(Alternative):
    name = "64 KiB, memfd, mmap and close instead"

    def cycle(self) -> None:
        fd = os.memfd_create("alternative")
        os.ftruncate(fd, BLOCK)
        mapped = mmap.mmap(fd, BLOCK)
        os.close(fd)
        memoryview(mapped)[::PAGE] = STAMP
        mapped.close()


class Shared(Alternative):
    name = "64 KiB, multiprocessing.shared_memory instead"

    def cycle(self) -> None:
        shared = SharedMemory(create=True, size=BLOCK)
        memoryview(shared.buf)[::PAGE] = STAMP  # type: ignore[arg-type]  # None only after close
        shared.close()
        shared.unlink()


def cases(size: str) -> list[Case]:
    """All of W2."""
    many, few = _CYCLES[size]
    return [
        Touch("64 KiB uncommitted", BLOCK, "uncommitted", many),
        Touch("64 KiB recycled", BLOCK, "will_commit", many),
        Touch("2 MiB uncommitted", HUGE_PAGE_SIZE, "uncommitted", few),
        Touch("2 MiB recycled", HUGE_PAGE_SIZE, "will_commit", few),
        *(alternative(max(1, many // 4)) for alternative in (AnonymousMap, MemfdMap, Shared)),
    ]
