"""Figures of one owner alone, without a scan of the whole file where that is cheaper.

What is probed is what the owner uses. There is no total of the host's to prove it against; so it is called exact if the
file's total did not move meanwhile and the last scan of the whole file was exact.
"""

from __future__ import annotations

import time
from array import array
from typing import Final

from memplat.engine.accounting import attribute_owner
from memplat.engine.figures import Figures
from memplat.engine.state import EngineState
from memplat.linux import extents as flat
from memplat.ranges import FileRange
from memplat.types import Usage

#: What it takes to probe a range, until it is known, and to look at a segment, about; in nanoseconds.
_RANGE_NS: Final = 20_000
_SEGMENT_NS: Final = 300
#: Scans of so many ranges tell what one takes.
_MANY: Final = 16


class Owners:
    """Scans of one owner's pages, and the last figures of each. Guarded by the memory's lock.

    :ivar figures_of: the last figures of each owner that was scanned alone since the last scan of all
    """

    def __init__(self, state: EngineState, figures: Figures) -> None:
        self._state = state
        self._figures = figures
        self.figures_of: dict[int, Usage] = {}
        self._range_ns: float = _RANGE_NS

    def last_locked(self, whole: Usage, owner: int) -> Usage:
        """The newest figures of *owner*: of a scan of his own, or his part of the last one of all."""
        mine = self.figures_of.get(owner)
        newer = mine if mine is not None and mine.as_of > whole.as_of else whole
        return self._figures.part_locked(newer, owner)

    def forget_locked(self) -> None:
        """All pages were scanned: whatever is known of one owner is older."""
        self.figures_of.clear()

    def worth_alone(self, owner: int, whole_ns: int) -> list[FileRange] | None:
        """The ranges that *owner* uses, if probing these costs less than the last scan of all did.

        Owner 0 has everything that nobody uses, too: that takes a scan of all.
        """
        with self._state.lock:
            table = self._state.table
            walk = 0 if owner in table.watched else len(table.segments) * _SEGMENT_NS
            if owner == 0 or walk > whole_ns > 0:
                return None
            used = table.ranges_of(owner)
            ranges = flat.ranges(used)
            if whole_ns:
                return ranges if len(ranges) * self._range_ns < whole_ns else None
            return ranges if 2 * flat.total(used) < sum(table.allocated.values()) else None

    def scan(self, whole: Usage, owner: int, ranges: list[FileRange]) -> Usage:
        """Find out what of *ranges* is committed. Only one scan at a time, of this kind or of all."""
        usage = self._attempt(whole, owner, ranges, final=False)
        if usage is None:
            with self._state.gate:  # nothing is decommitted meanwhile
                usage = self._attempt(whole, owner, ranges, final=True)
        assert usage is not None, "the final attempt always answers"
        return usage

    def _attempt(self, whole: Usage, owner: int, ranges: list[FileRange], *, final: bool) -> Usage | None:
        state = self._state
        as_of, started = time.monotonic(), time.perf_counter_ns()
        with state.lock:
            earlier, state.decommitted = state.decommitted, []
        try:
            state.file.probe_method = ""
            before = state.storage()
            extents = self._committed(ranges)
            still = before.total == state.storage().total
        finally:
            with state.lock:  # the log belongs to scans of the whole file: they get all of it
                meanwhile = state.decommitted
                state.decommitted = None if earlier is None or meanwhile is None else earlier + meanwhile
        with state.lock:
            if not final and (meanwhile or not still):
                return None
            attribution = attribute_owner(extents, state.table, owner)
            state.counters["owner_scans"] += 1
            spent = time.perf_counter_ns() - started
            state.counters["owner_scan_ns"] += spent
            if len(ranges) >= _MANY:
                self._range_ns = spent / len(ranges)
            usage = self.figures_of[owner] = self._figures.owner_locked(
                whole,
                owner,
                attribution,
                as_of=as_of,
                method=state.file.probe_method or "probe",
                exact=still and meanwhile == [] and (whole.method == "none" or whole.exact),
                counters=self._figures.counters_locked(),
            )
            return usage

    def _committed(self, ranges: list[FileRange]) -> array[int]:
        state = self._state
        found = flat.empty()
        for part in ranges:
            extents = state.committed(*part)
            gaps = flat.complement(extents, *part) if state.peers else None
            if gaps:  # a peer may have reserved pages there, which probes by touch do not see
                holes = [FileRange(low, high) for low, high in zip(gaps[0::2], gaps[1::2], strict=True)]
                extents = flat.union(extents, state.probe_reserved(holes))
            found.extend(extents)
        return found
