"""Who pays for which committed page: committed extents laid over the page table.

Pure: works on what the commit scan found and on the page table, which must hold still meanwhile.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import sub

import attrs

from memplat.engine import pages
from memplat.engine.pages import PageTable
from memplat.ranges import FileRange
from memplat.types import Extents, MemoryKind

SYSTEM = str(MemoryKind.SYSTEM)


class Coverage:
    """Answers how many bytes of a range are committed, in O(log extents)."""

    def __init__(self, extents: Extents) -> None:
        self.starts = array("q", extents[0::2])
        self.ends = array("q", extents[1::2])
        self._before = array("q", accumulate(map(sub, self.ends, self.starts), initial=0))

    def below(self, offset: int) -> int:
        """Committed bytes below *offset*."""
        index = bisect_right(self.starts, offset)
        before: int = self._before[index]
        return before - max(0, self.ends[index - 1] - offset) if index else 0

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The extents within ``[start, end)``, clipped."""
        index = bisect_right(self.ends, start)
        while index < len(self.starts) and self.starts[index] < end:
            yield max(start, self.starts[index]), min(end, self.ends[index])
            index += 1


@attrs.define
class Attribution:
    """Committed bytes by purpose. ``by_owner`` includes the system's share, under owner 0."""

    by_owner: dict[int, dict[str, int]] = attrs.field(factory=dict)
    waste: int = 0
    retained: int = 0
    free_committed: int = 0
    strays: list[FileRange] = attrs.field(factory=list)
    """Committed free pages that nobody wanted committed."""

    def charge(self, owner: int, kind: str, nbytes: int) -> None:
        """Add to one owner and kind."""
        kinds = self.by_owner.setdefault(owner, {})
        kinds[kind] = kinds.get(kind, 0) + nbytes

    def by_kind(self) -> dict[str, int]:
        """The sums by kind, with every kind in them."""
        sums = {str(kind): 0 for kind in MemoryKind}
        for kinds in self.by_owner.values():
            for kind, nbytes in kinds.items():
                sums[kind] += nbytes
        return sums


def attribute(extents: Extents, table: PageTable) -> Attribution:
    """Charge the committed *extents* within the table's size to whoever uses the pages."""
    result = Attribution()
    coverage = Coverage(extents)
    sums: dict[tuple[int, str, int], int] = {}
    for start, end, (state, _, _, kind, owner, _) in _committed_runs(coverage, table):
        nbytes = coverage.below(end) - coverage.below(start)
        if not nbytes:
            continue
        if state == pages.FREE:
            _charge_free(result, coverage, table, start, end)
        key = state, kind, owner
        sums[key] = sums.get(key, 0) + nbytes
    for (state, kind, owner), nbytes in sums.items():
        if state == pages.USED:
            result.charge(owner, kind, nbytes)
            continue
        result.charge(0, SYSTEM, nbytes)
        if state != pages.FREE:
            result.waste += nbytes
    return result


def _committed_runs(coverage: Coverage, table: PageTable) -> Iterable[tuple[int, int, pages.Value]]:
    """The runs that may have committed pages: by walking over the runs, or over the extents if these are fewer."""
    if 2 * len(coverage.starts) >= len(table.segments):
        return table.runs()
    return _runs_by_extent(coverage, table)


def _runs_by_extent(coverage: Coverage, table: PageTable) -> Iterator[tuple[int, int, pages.Value]]:
    for start, end in zip(coverage.starts, coverage.ends, strict=True):
        if start >= table.size:
            return
        yield from table.runs(start, min(end, table.size))


def _charge_free(result: Attribution, coverage: Coverage, table: PageTable, start: int, end: int) -> None:
    for first, last in coverage.within(start, end):
        for flag_start, flag_end, flag in _flags(table, first, last):
            if flag == pages.RETAINED:
                result.retained += flag_end - flag_start
            else:
                result.free_committed += flag_end - flag_start
                if flag != pages.KEPT:
                    result.strays.append(FileRange(flag_start, flag_end))


def _flags(table: PageTable, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    shift = table.page_size.bit_length() - 1
    for first, last, flag in table.flags.runs(start >> shift, end >> shift):
        yield first << shift, last << shift, flag
