"""The backing file drawn as text: one cell for some pages, its letter telling what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from memplat.memory import Memory
from memplat.types import MemoryKind, PageInfo, PageState

COLUMNS: Final = 64
MOST_ROWS: Final = 8

LETTERS: Final[Mapping[str, str]] = {
    PageState.FREE: ".",
    PageState.WASTE: "w",
    PageState.RELEASING: "r",
    MemoryKind.SYSTEM: "S",
    MemoryKind.ANONYMOUS: "A",
    MemoryKind.PAGE_CACHE: "P",
    MemoryKind.TMPFS: "T",
    MemoryKind.RAMDISKFS: "R",
}
#: A cell whose pages are of several kinds.
MIXED: Final = "+"


@attrs.frozen
class PageMap:
    """The map: a word for each cell (a kind, a state, ``mixed``), in the order of the file."""

    cells: tuple[str, ...]
    cell_bytes: int

    @property
    def rows(self) -> list[str]:
        """The letters, a row each 64 cells."""
        letters = [LETTERS.get(cell, MIXED) for cell in self.cells]
        return ["".join(letters[at : at + COLUMNS]) for at in range(0, len(letters), COLUMNS)]


def runs(memory: Memory) -> Iterator[PageInfo]:
    """All runs of like pages, from the beginning of the file to its end."""
    offset, end = 0, memory.total_size()
    while offset < end:
        info = memory.inspect(offset)
        yield info
        offset = info.pages.end


def draw(memory: Memory) -> PageMap:
    """Draw the file up to its last page that is not free, in at most 512 cells.

    A cell that has free pages and pages of one kind shows the kind.
    """
    found = [(info.pages, _word(info)) for info in runs(memory)]
    while found and found[-1][1] == PageState.FREE:
        found.pop()
    if not found:
        return PageMap((), memory.page_size)
    pages = found[-1][0].end // memory.page_size
    cell_bytes = -(-pages // (COLUMNS * MOST_ROWS)) * memory.page_size
    cells: list[set[str]] = [set() for _ in range(-(-found[-1][0].end // cell_bytes))]
    for (start, end), word in found:
        for cell in cells[start // cell_bytes : -(-end // cell_bytes)]:
            cell.add(word)
    return PageMap(tuple(map(_summary, cells)), cell_bytes)


def _word(info: PageInfo) -> str:
    return info.state if info.kind is None else info.kind


def _summary(words: set[str]) -> str:
    kinds = sorted(words - {PageState.FREE})
    if len(kinds) > 1:
        return "mixed"
    return str(kinds[0]) if kinds else str(PageState.FREE)
