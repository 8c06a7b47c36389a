"""Making :class:`~memplat.types.Usage` of what scans find and of what the engine knows without the host.

Guarded by the memory's lock, like the page table: every method ending in ``_locked`` needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from memplat.engine.accounting import NOTHING, Attribution
from memplat.engine.limits import note_scan_locked
from memplat.engine.state import EngineState
from memplat.types import MemoryKind, Usage

_MAPPED: Final = str(MemoryKind.MAPPED)
_MAX_OWNERS: Final = 1 << 16
_new, _set = object.__new__, object.__setattr__


def made_of(fields: dict[str, Any]) -> Usage:
    """Figures that consist of *fields*, all of them, and keep that dictionary: calling the class takes ten times as
    long.
    """
    usage: Usage = _new(Usage)
    _set(usage, "__dict__", fields)
    return usage


def renewed(usage: Usage, changes: Mapping[str, Any]) -> Usage:
    """A copy with some fields changed: ``attrs.evolve`` in a tenth of its time."""
    return made_of({**usage.__dict__, **changes})


class Figures:
    """What is known of one memory's cost, beside the last scan itself.

    :ivar external: what owners have outside of the file
    :ivar max_owners: of more owners than that, peaks are kept only for those that have something
    :ivar peak_committed: by owner, the most that a scan has found; of the whole memory for ``None``
    :ivar peak_allocated: likewise, of allocated bytes
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self.external: dict[int, int] = {}
        self.max_owners = _MAX_OWNERS
        self.peak_committed: dict[int | None, int] = {None: 0}  # None: of the whole memory
        self.peak_allocated: dict[int | None, int] = {None: 0}

    # -- of the whole memory ------------------------------------------------------------------------------------------

    def whole_locked(
        self,
        attribution: Attribution,
        method: str,
        as_of: float,
        exact: bool,
        reserved: int = 0,
        overhead: int = 0,
        foreign: int = 0,
    ) -> Usage:
        """The figures of a scan of the whole file."""
        for owner, nbytes in self.external.items():
            attribution.charge(owner, _MAPPED, nbytes)
        committed, found = attribution.sums()
        total = sum(committed.values()) + overhead + foreign
        if self._state.limits:
            note_scan_locked(self._state.limits, {**found, 0: found.get(0, 0) - attribution.idle()})
        found[None] = total
        self._raise(self.peak_committed, found)
        fields = self.ours_locked()
        fields |= {
            "as_of": as_of,
            "method": method,
            "exact": exact,
            "committed": committed,
            "committed_by_owner": attribution.by_owner,
            "waste": attribution.waste,
            "retained": attribution.retained,
            "free_committed": attribution.free_committed,
            "reserved": reserved,
            "overhead": overhead,
            "foreign": foreign,
            "total": total,
        }
        return made_of(fields)

    def ours_locked(self) -> dict[str, Any]:
        """The figures that need no host."""
        table = self._state.table
        allocated = NOTHING.copy()
        by_owner: dict[int | None, int] = {}
        for (kind, owner), nbytes in table.allocated.items():
            allocated[kind] += nbytes
            by_owner[owner] = by_owner.get(owner, 0) + nbytes
        by_owner[None] = sum(allocated.values())
        self._raise(self.peak_allocated, by_owner)
        free, largest = table.free_bytes(), table.largest_free()
        return {
            "allocated": allocated,
            "file_size": table.size,
            "free": free,
            "largest_free": largest,
            "fragmentation": 1 - largest / free if free else 0.0,
            "peak_committed": self.peak_committed[None],
            "peak_allocated": self.peak_allocated[None],
            "counters": self.counters_locked(),
        }

    def counters_locked(self) -> dict[str, int]:
        """The events since the memory was opened."""
        table = self._state.table
        counters = dict.copy(self._state.counters)  # a Counter's own copy would be another Counter
        counters["allocations"], counters["frees"] = table.allocations, table.frees
        return counters

    # -- of one owner -------------------------------------------------------------------------------------------------

    def part_locked(self, usage: Usage, owner: int) -> Usage:
        """*owner*'s part of the figures of the whole memory; the allocated bytes as they are now."""
        kinds = usage.committed_by_owner.get(owner, {})
        nobodys = {} if owner == 0 else dict.fromkeys(("waste", "retained", "free_committed"), 0)
        return self._owned_locked(usage, owner, kinds, **nobodys)

    def owner_locked(self, usage: Usage, owner: int, attribution: Attribution, **changes: Any) -> Usage:
        """The figures of a scan of nothing but *owner*'s pages, who is not 0.

        :param usage: the last figures of the whole memory
        """
        if owner in self.external:
            attribution.charge(owner, _MAPPED, self.external[owner])
        kinds = attribution.by_owner.get(owner, {})
        found = sum(kinds.values())
        limit = self._state.limits.get(owner)
        if limit is not None:
            limit.found = found
        self._raise(self.peak_committed, {owner: found})
        nobodys = dict.fromkeys(("waste", "retained", "free_committed"), 0)
        return self._owned_locked(usage, owner, kinds, **nobodys, **changes)

    def _owned_locked(self, usage: Usage, owner: int, kinds: Mapping[str, int], **changes: Any) -> Usage:
        table = self._state.table
        allocated = {kind: table.allocated.get((kind, owner), 0) for kind in NOTHING}
        self._raise(self.peak_allocated, {owner: sum(allocated.values())})
        committed = {**NOTHING, **kinds}
        changes.update(
            committed=committed,
            committed_by_owner={owner: dict(kinds)} if kinds else {},
            allocated=allocated,
            reserved=0,
            overhead=0,
            foreign=0,
            total=sum(committed.values()),
            peak_committed=self.peak_committed.get(owner, 0),
            peak_allocated=self.peak_allocated.get(owner, 0),
        )
        return renewed(usage, changes)

    def in_use_locked(self, usage: Usage | None, owner: int) -> int:
        """What *owner* had committed at the scan that found *usage*, without what nobody uses."""
        return 0 if usage is None else sum(usage.committed_by_owner.get(owner, {}).values()) - _idle(usage, owner)

    # -- what users tell ----------------------------------------------------------------------------------------------

    def account_external_locked(self, owner: int, nbytes: int) -> bool:
        """Add to what *owner* has outside of the file; False, and no change, if that would be less than nothing."""
        held = self.external.get(owner, 0) + nbytes
        if held < 0:
            return False
        if held:
            self.external[owner] = held
        else:
            self.external.pop(owner, None)
        self._state.table.changes += 1
        return True

    def reset_peaks_locked(self, last: Usage | None) -> None:
        """Let the peaks be what is now, as far as that is known."""
        for peaks in (self.peak_committed, self.peak_allocated):  # in place: the compiled core has them, too
            peaks.clear()
            peaks[None] = 0
        if last is not None:
            self._raise(self.peak_committed, {None: last.total})
            self._raise(self.peak_committed, {owner: sum(k.values()) for owner, k in last.committed_by_owner.items()})
        self.ours_locked()

    def _raise(self, peaks: dict[int | None, int], values: Mapping[int | None, int]) -> None:
        if (
            len(peaks) > self.max_owners and None in values
        ):  # new owners for ever: those that have nothing are forgotten
            for gone in peaks.keys() - values.keys():
                del peaks[gone]
        for key, value in values.items():
            if value > peaks.get(key, 0):
                peaks[key] = value


def _idle(usage: Usage, owner: int) -> int:
    return 0 if owner else usage.waste + usage.retained + usage.free_committed
