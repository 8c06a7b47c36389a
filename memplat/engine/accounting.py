"""Who pays for which committed page: committed extents laid over the page table.

Pure: :func:`lay_out` takes what it needs of the page table, which must hold still meanwhile; :func:`attribute` does the
rest, which takes longer, without it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, repeat
from operator import sub
from typing import Final, NamedTuple

import attrs

from memplat.engine import pages
from memplat.engine.hot import Charged, charge
from memplat.engine.pages import PageTable, Value
from memplat.linux import extents as flat
from memplat.ranges import FileRange
from memplat.types import MemoryKind

SYSTEM: Final = str(MemoryKind.SYSTEM)
#: Every kind with 0, to be copied: going through an enumeration takes longer than the rest of a small scan.
NOTHING: Final[dict[str, int]] = dict.fromkeys(map(str, MemoryKind), 0)

#: Up to so many runs are summed one by one; more, all at once.
_FEW_RUNS: Final = 32
#: Of so few extents, as starts and ends, the runs are looked up, however many there are.
_FEW_EDGES: Final = 2
#: With so many times more runs than extents, the extents are looked up one by one.
_MANY_RUNS: Final = 4


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

    def sums(self) -> tuple[dict[str, int], dict[int | None, int]]:
        """The sums by kind, with every kind in them, and by owner."""
        of_kinds = NOTHING.copy()
        of_owners: dict[int | None, int] = {}
        for owner, kinds in self.by_owner.items():
            of_owners[owner] = sum(kinds.values())
            for kind, nbytes in kinds.items():
                of_kinds[kind] += nbytes
        return of_kinds, of_owners

    def idle(self) -> int:
        """What is charged to owner 0 although he does not use it."""
        return self.waste + self.retained + self.free_committed + self.unknown


class Layout(NamedTuple):
    """The page table as far as it matters to some extents: taken in a moment, to be worked on without the lock."""

    extents: array[int]
    total: int
    page_size: int
    size: int
    runs: Sequence[tuple[int, int, Value, int]] | None
    """Start, end, value and committed bytes of what is committed, if that is little."""
    keys: Sequence[int]
    """Else the first pages of all runs, upwards …"""
    values: Sequence[Value]
    """… and their values."""
    retained: array[int]
    kept: array[int]
    charged: Charged | None = None
    """With the compiled core, what comes of all that."""


def lay_out(extents: array[int], total: int, table: PageTable) -> Layout:
    """What :func:`attribute` needs to know for *extents* of *total* bytes, all of them within the table's size."""
    runs: list[tuple[int, int, Value, int]] | None = None
    keys: Sequence[int] = ()
    values: Sequence[Value] = ()
    count = len(table.segments)
    charged = charge(table, extents)
    if charged is not None:
        pass
    elif len(extents) <= _FEW_EDGES or _MANY_RUNS * len(extents) < count:
        runs = _one_by_one(extents, table)
    elif count <= _FEW_RUNS:
        runs = list(_by_few_runs(extents, total, table))
    else:
        keys, values = table.segments.columns()
    retained = kept = flat.empty()
    if table.has_flags:
        retained, kept = table.flagged(pages.RETAINED), table.flagged(pages.KEPT)
    return Layout(extents, total, table.page_size, table.size, runs, keys, values, retained, kept, charged)


def attribute(layout: Layout) -> Attribution:
    """Charge the committed extents to whoever uses the pages."""
    if layout.charged is not None:
        return _as_charged(layout, layout.charged)
    result = Attribution()
    sums: dict[Value, int] = {}
    free: list[tuple[int, int]] = []
    if layout.runs is not None:
        for start, end, value, nbytes in layout.runs:
            sums[value] = sums.get(value, 0) + nbytes
            if value[0] == pages.FREE:
                free.append((start, end))
    else:
        edges, inside = _by_run(layout)
        for value, nbytes in zip(layout.values, inside, strict=True):
            if nbytes:
                sums[value] = sums.get(value, 0) + nbytes
        if any(value[0] == pages.FREE for value in sums):
            both = zip(edges, islice(edges, 1, None), layout.values, inside, strict=False)
            free = [(start, end) for start, end, value, nbytes in both if nbytes and value[0] == pages.FREE]
    for (state, _, _, kind, owner, _), nbytes in sums.items():
        if state == pages.USED:
            result.charge(owner, kind, nbytes)
            continue
        result.charge(0, SYSTEM, nbytes)
        if state != pages.FREE:
            result.waste += nbytes
    if free:
        runs = flat.from_starts_and_ends(*(array("q", edges) for edges in zip(*sorted(free), strict=True)))
        _charge_free(result, layout, flat.intersection(runs, layout.extents))
    return result


def attribute_at_once(extents: array[int], total: int, table: PageTable) -> Attribution:
    """As :func:`attribute` of what :func:`lay_out` tells, for little: the page table holds still for all of it."""
    if len(extents) == 2 and type(table) is PageTable:  # most often it is one piece that somebody uses
        low, high = extents
        _, end, (state, _, _, kind, owner, _) = table.segments.find(low // table.page_size)
        if state == pages.USED and end * table.page_size >= high:
            return Attribution({owner: {kind: total}})
    return attribute(lay_out(extents, total, table))


def _as_charged(layout: Layout, charged: Charged) -> Attribution:
    used, waste, free = charged
    result = Attribution(waste=waste)
    for owner, kind, nbytes in used:
        result.charge(owner, kind, nbytes)
    idle = waste + flat.total(free)
    if idle:
        result.charge(0, SYSTEM, idle)
    if free:
        _charge_free(result, layout, free)
    return result


def attribute_owner(extents: array[int], table: PageTable, owner: int) -> Attribution:
    """Charge *owner* with those pages of *extents* that he uses; nobody else with anything."""
    result = Attribution()
    for start, end in zip(extents[0::2], extents[1::2], strict=True):
        for first, last, (state, _, _, kind, payer, _) in table.runs(start, min(end, table.size)):
            if state == pages.USED and payer == owner:
                result.charge(owner, kind, last - first)
    return result


def _one_by_one(extents: array[int], table: PageTable) -> list[tuple[int, int, Value, int]]:
    find, page_size = table.segments.find, table.page_size
    found: list[tuple[int, int, Value, int]] = []
    for low, high in zip(extents[0::2], extents[1::2], strict=True):
        _, end, value = find(low // page_size)
        if end * page_size >= high:  # by far the most frequent case
            found.append((low, high, value, high - low))
        else:
            found += [(start, end, value, end - start) for start, end, value in table.runs(low, high)]
    return found


def _by_few_runs(extents: array[int], total: int, table: PageTable) -> Iterator[tuple[int, int, Value, int]]:
    """The run with most extents gets what the others leave: with one run nothing has to be added up."""
    runs = [(bisect_left(extents, end) - bisect_right(extents, start), start, end, v) for start, end, v in table.runs()]
    _, most, most_end, most_value = max(runs, key=lambda run: run[:2])
    rest = total
    for _, start, end, value in runs:
        nbytes = 0 if start == most else flat.total(flat.intersect(extents, start, end))
        rest -= nbytes
        if nbytes:
            yield start, end, value, nbytes
    if rest:
        yield most, most_end, most_value, rest


def _by_run(layout: Layout) -> tuple[list[int], list[int]]:
    """Where each run begins, and the end of the last one; and what of each is committed. 65,536 are common, so no step
    is a loop here.
    """
    extents, shift = layout.extents, layout.page_size.bit_length() - 1
    edges = [key << shift for key in layout.keys]
    # Of the extents that begin at or below an edge only the last one can reach beyond it.
    indices = list(map(bisect_right, repeat(extents[0::2].tolist()), edges))
    sums = list(accumulate(flat.lengths(extents), initial=0))
    ends = [0, *extents[1::2]]
    beyond = map(max, map(sub, map(ends.__getitem__, indices), edges), repeat(0))
    below = list(map(sub, map(sums.__getitem__, indices), beyond))
    below.append(layout.total)
    edges.append(layout.size)
    return edges, list(map(sub, islice(below, 1, None), below))


def _charge_free(result: Attribution, layout: Layout, committed: array[int]) -> None:
    """Of the committed parts of free runs, tell what was retained and kept from what nobody wanted committed."""
    retained = flat.total(flat.intersection(committed, layout.retained))
    result.retained += retained
    result.free_committed += flat.total(committed) - retained
    strays = flat.subtract(flat.subtract(committed, layout.retained), layout.kept)
    result.strays = flat.ranges(strays)
