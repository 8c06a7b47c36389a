"""W6: look at pages."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from benchmarks.calibrators import BLOCK
from benchmarks.harness import Case
from benchmarks.memories import OWNERS, Stopwatch, allocate_many, count_segments, open_memory

TITLE: Final = "W6: a view of 64 KiB"
NOTE: Final = (
    "Made and dropped. A pinned view is a reference to its pages. (The Go allocators' MapInternal gives an address "
    "without any such guarantee.)"
)

_VIEWS: Final[Mapping[str, int]] = {"full": 20_000, "quick": 5_000, "tiny": 50}
_SEGMENTS: Final = OWNERS


class View(Case):
    """Views of one block after the other."""

    unit = "view"
    calibrator = "memoryview slice"
    least_segments = _SEGMENTS

    def __init__(self, views: int, *, pin: bool) -> None:
        self.name = "pinned" if pin else "unpinned"
        self._pin = pin
        self._views = views

    def set_up(self, stack: ExitStack) -> None:
        self._memory = open_memory(stack)
        blocks = allocate_many(self._memory, [BLOCK] * _SEGMENTS)
        self._order = [blocks[index % _SEGMENTS] for index in range(self._views)]

    def measure(self) -> Mapping[str, float]:
        view, pin = self._memory.view, self._pin
        watch = Stopwatch()
        for pages in self._order:
            view(pages, pin=pin)
        return {"": watch.seconds() / len(self._order)}

    def segments(self) -> int:
        return count_segments(self._memory)


def cases(size: str) -> list[Case]:
    """All of W6."""
    return [View(_VIEWS[size], pin=pin) for pin in (False, True)]
