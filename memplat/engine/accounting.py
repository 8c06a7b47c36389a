"""Who pays for which committed page: committed extents laid over the page table.

Pure: works on what the commit scan found and on the page table, which must hold still meanwhile.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice, repeat
from operator import itemgetter, sub
from typing import Final

import attrs

from memplat.engine import pages
from memplat.engine.pages import PageTable
from memplat.linux import extents as flat
from memplat.ranges import FileRange
from memplat.types import MemoryKind

SYSTEM: Final = str(MemoryKind.SYSTEM)
#: Every kind with 0, to be copied: going through an enumeration takes longer than the rest of a small scan.
NOTHING: Final[dict[str, int]] = dict.fromkeys(map(str, MemoryKind), 0)

#: Up to so many runs are summed one by one; more, all at once.
_FEW_RUNS: Final = 32
_LAST: Final = itemgetter(3)


@attrs.define
class Attribution:
    """Committed bytes by purpose. ``by_owner`` includes the system's share, under owner 0."""

    by_owner: dict[int, dict[str, int]] = attrs.field(factory=dict)
    waste: int = 0
    retained: int = 0
    free_committed: int = 0
    unknown: int = 0
    """Committed bytes, charged to the system, of which nobody knows where they are."""
    strays: list[FileRange] = attrs.field(factory=list)
    """Committed free pages that nobody wanted committed."""

    def charge(self, owner: int, kind: str, nbytes: int) -> None:
        """Add to one owner and kind."""
        kinds = self.by_owner.setdefault(owner, {})
        kinds[kind] = kinds.get(kind, 0) + nbytes

    def by_kind(self) -> dict[str, int]:
        """The sums by kind, with every kind in them."""
        sums = NOTHING.copy()
        for kinds in self.by_owner.values():
            for kind, nbytes in kinds.items():
                sums[kind] += nbytes
        return sums

    def idle(self) -> int:
        """What is charged to owner 0 although he does not use it."""
        return self.waste + self.retained + self.free_committed + self.unknown


def attribute(extents: array[int], total: int, table: PageTable) -> Attribution:
    """Charge the committed *extents* within the table's size, of *total* bytes, to whoever uses the pages."""
    result = Attribution()
    sums: dict[tuple[int, str, int], int] = {}
    for start, end, (state, _, _, kind, owner, _), nbytes in _committed_runs(extents, total, table):
        if state == pages.FREE:
            _charge_free(result, flat.intersect(extents, start, end), table)
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


def attribute_owner(extents: array[int], table: PageTable, owner: int) -> Attribution:
    """Charge *owner* with those pages of *extents* that he uses; nobody else with anything."""
    result = Attribution()
    for start, end in zip(extents[0::2], extents[1::2], strict=True):
        for first, last, (state, _, _, kind, payer, _) in table.runs(start, min(end, table.size)):
            if state == pages.USED and payer == owner:
                result.charge(owner, kind, last - first)
    return result


def _committed_runs(extents: array[int], total: int, table: PageTable) -> Iterable[tuple[int, int, pages.Value, int]]:
    """The runs that have committed pages, each with its committed bytes: by walking over the extents or over the runs,
    whichever are fewer.
    """
    if not extents:
        return ()
    if len(extents) < len(table.segments):
        return _by_extent(extents, table)
    if len(table.segments) <= _FEW_RUNS:
        return _by_few_runs(extents, total, table)
    return _by_run(extents, total, table)


def _by_extent(extents: array[int], table: PageTable) -> Iterator[tuple[int, int, pages.Value, int]]:
    for extent_start, extent_end in zip(extents[0::2], extents[1::2], strict=True):
        for start, end, value in table.runs(extent_start, extent_end):
            yield start, end, value, end - start


def _by_few_runs(extents: array[int], total: int, table: PageTable) -> Iterator[tuple[int, int, pages.Value, int]]:
    """The run with most extents gets what the others leave: with one run nothing has to be added up."""
    runs = [(bisect_left(extents, end) - bisect_right(extents, start), start, end, v) for start, end, v in table.runs()]
    _, most, most_end, most_value = max(runs, key=lambda run: run[:2])
    rest = total
    for _, start, end, value in runs:
        nbytes = 0 if start == most else flat.total(flat.intersect(extents, start, end))
        rest -= nbytes
        if nbytes:
            yield start, end, value, nbytes
    yield most, most_end, most_value, rest


def _by_run(extents: array[int], total: int, table: PageTable) -> Iterator[tuple[int, int, pages.Value, int]]:
    """All runs at once: for each, what is committed below its start. 65,536 are common, so no step is a loop here."""
    keys, values = table.segments.columns()
    shift = table.page_size.bit_length() - 1
    edges = [key << shift for key in keys]
    # Of the extents that begin at or below an edge only the last one can reach beyond it.
    indices = list(map(bisect_right, repeat(extents[0::2].tolist()), edges))
    sums = list(accumulate(flat.lengths(extents), initial=0))
    ends = [0, *extents[1::2]]
    beyond = map(max, map(sub, map(ends.__getitem__, indices), edges), repeat(0))
    below = list(map(sub, map(sums.__getitem__, indices), beyond))
    below.append(total)
    edges.append(table.size)
    inside = map(sub, islice(below, 1, None), below)
    return filter(_LAST, zip(edges, islice(edges, 1, None), values, inside, strict=False))


def _charge_free(result: Attribution, extents: array[int], table: PageTable) -> None:
    for first, last in zip(extents[0::2], extents[1::2], strict=True):
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
