"""The commit scan: what the host has committed, proven where it can be, and whose it is.

The host is probed without the lock. Three things keep that honest:

- The file's own total is read before and after the probe. Extents that add up to it, while it did not change, are all
  there is.
- Engine decommits that happen meanwhile are logged; pages named there are not taken as committed.
- If that does not come to rest in a few attempts, decommits are held up (:attr:`EngineState.gate`) for one more.

Callers at the same time share a scan, but only one that started after their call.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from typing import Any, Final

import attrs

from memplat.engine.accounting import SYSTEM, Attribution, attribute
from memplat.engine.state import EngineState, host_error
from memplat.linux import extents as flat
from memplat.ranges import FileRange, align_up
from memplat.types import MemoryKind, Storage, Usage

#: Scans that a busy file may spoil before decommits are held up.
_ATTEMPTS: Final = 3


@attrs.frozen
class _Finding:
    """What one probe of the host found."""

    method: str
    extents: array[int]
    storage: Storage
    proven: bool
    moved: bool
    """The total was another one after the probe than before: somebody touched or punched meanwhile."""


class Scanner:
    """Runs scans, one at a time, and keeps the last figures.

    ``_turn`` guards the counting of scans; ``_known`` and ``_seen_changes`` belong to whoever scans; ``_external`` and
    ``_peak`` are guarded by the memory's lock. ``last`` is replaced as a whole.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._turn = threading.Condition()
        self._runner = 0  # the thread that scans, 0 if none does
        self._started = 0
        self._finished = 0
        self._known: array[int] | None = None
        self._known_total = 0
        self._seen_changes = -1
        self._external: dict[int, int] = {}
        self._peak = 0
        self.last: Usage | None = None

    # -- figures ------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """The last figures, with what is known without the host brought up to date."""
        with self._state.locked():
            if self.last is None:
                self.last = self._usage_locked(Attribution(), "none", 0, Storage(0), exact=False)
            return attrs.evolve(self.last, **self._ours_locked())

    def update(self, max_age: float) -> Usage:
        """Figures that are at most *max_age* seconds old: the last ones, a scan shared with others, or one's own."""
        if self._runner == threading.get_ident():
            return self.usage()  # a hook that the scan calls asks: the scan cannot wait for itself
        with self._state.in_flight():
            with self._turn:
                last = self.last
                if max_age and last and last.method != "none" and time.monotonic() - last.as_of <= max_age:
                    return last
                mine = self._started + 1
                while self._runner and self._finished < mine:
                    self._turn.wait()
                if self._finished >= mine and self.last is not None:
                    return self.last
                self._runner = threading.get_ident()
                self._started += 1
                number = self._started
            return self._run(number)

    def _run(self, number: int) -> Usage:
        finished = self._finished
        try:
            self.last = self._scan()
            finished = number
            return self.last
        except OSError as error:
            raise host_error(error, "the host could not be probed") from error
        finally:
            with self._turn:
                self._runner = 0
                self._finished = finished
                self._turn.notify_all()

    def account_external(self, owner: int, nbytes: int) -> bool:
        """Add to what *owner* has outside of the file; False, and no change, if that would be less than nothing."""
        with self._state.locked():
            held = self._external.get(owner, 0) + nbytes
            if held < 0:
                return False
            if held:
                self._external[owner] = held
            else:
                self._external.pop(owner, None)
            self._state.table.changes += 1
            return True

    # -- scanning -----------------------------------------------------------------------------------------------------

    def _scan(self) -> Usage:
        state = self._state
        started = time.perf_counter_ns()
        usage: Usage | None = None
        for _ in range(_ATTEMPTS):
            usage = usage or self._attempt(final=False)
        if usage is None:
            with state.gate:
                usage = self._attempt(final=True)
        assert usage is not None, "the final attempt always answers"
        with state.lock:
            state.counters["scans"] += 1
            state.counters[f"scans_{usage.method}"] += 1
            state.counters["scan_ns"] += time.perf_counter_ns() - started
            return attrs.evolve(usage, counters=self._counters_locked())

    def _attempt(self, *, final: bool) -> Usage | None:
        """One probe, charged to the users of the pages. ``None`` if the file was too busy to tell."""
        state = self._state
        with state.lock:
            before, state.decommitted = state.decommitted, []
        known = self._without(before)
        as_of = time.monotonic()
        finding = self._look(known)
        with state.lock:
            meanwhile, state.decommitted = state.decommitted, []
            quiet = meanwhile == []
            # Worth another attempt only if something moved: a probe that is not exact does not become so.
            if not final and (finding.moved or not quiet):
                self._known = None
                return None
            extents = finding.extents
            if meanwhile:
                extents = flat.subtract(extents, _extents_of(meanwhile))
            if extents is not self._known:
                self._known_total = flat.total(extents)
            self._known = extents if quiet and finding.proven else None
            if finding.method == "known" and self.last is not None and state.table.changes == self._seen_changes:
                return attrs.evolve(self.last, as_of=as_of, method="unchanged", **self._ours_locked())
            return self._charge_locked(finding, extents, as_of)

    def _without(self, decommitted: list[FileRange] | None) -> array[int] | None:
        """What was known to be committed, less what was decommitted since."""
        if self._known is None or decommitted is None:
            return None
        return flat.subtract(self._known, _extents_of(decommitted)) if decommitted else self._known

    def _look(self, known: array[int] | None) -> _Finding:
        """Find out what is committed, the cheapest way that is proven right."""
        state = self._state
        before = state.storage()
        # Nobody but the engine takes pages away, so what was known is still there: if it is all there is, it is known.
        # A peer could have punched one page and touched another.
        known_total = self._known_total if known is self._known else flat.total(known or ())
        if known is not None and not state.peers and known_total + before.overhead == before.total:
            return _Finding("known", known, before, proven=True, moved=False)
        state.file.probe_method = ""
        end = align_up(os.fstat(state.file.fd).st_size, state.file.page_size)
        extents = state.committed(0, end)
        after = state.storage()
        if before.total == after.total and after.total - after.overhead - flat.total(extents) > after.overhead_slack:
            # Something is there that probes by touch do not see: reserved by a peer, or by a hook that failed halfway.
            more = flat.union(extents, state.probe_reserved([FileRange(0, end)]))
            after = state.storage()
            if flat.total(more) + after.overhead <= after.total:  # else the backend could not tell, and named all
                extents = more
        moved = before.total != after.total
        rest = after.total - after.overhead - flat.total(extents)
        proven = not moved and 0 <= rest <= after.overhead_slack
        if proven and rest:
            after = attrs.evolve(after, overhead=after.overhead + rest)
        return _Finding(state.file.probe_method or "probe", extents, after, proven, moved)

    # -- charging -----------------------------------------------------------------------------------------------------

    def _charge_locked(self, finding: _Finding, extents: array[int], as_of: float) -> Usage:
        state = self._state
        table = state.table
        inside = flat.intersect(extents, 0, table.size)
        foreign = flat.total(extents) - flat.total(inside)
        attribution = attribute(inside, table)
        missing = finding.storage.total - finding.storage.overhead - flat.total(extents)
        if missing > 0 and not finding.proven:
            attribution.charge(0, SYSTEM, missing)  # the total is certain, only the purpose is not
        if attribution.strays:
            table.take_free(attribution.strays, to_waste=True)
            state.wake()
        method, storage = finding.method, finding.storage
        usage = self._usage_locked(attribution, method, foreign, storage, exact=finding.proven, as_of=as_of)
        self._seen_changes = table.changes
        return usage

    def _usage_locked(
        self, attribution: Attribution, method: str, foreign: int, storage: Storage, *, exact: bool, as_of: float = 0.0
    ) -> Usage:
        for owner, nbytes in self._external.items():
            attribution.charge(owner, str(MemoryKind.MAPPED), nbytes)
        committed = attribution.by_kind()
        total = sum(committed.values()) + storage.overhead + foreign
        self._peak = max(self._peak, total)
        return Usage(
            as_of=as_of,
            method=method,
            exact=exact,
            committed=committed,
            committed_by_owner=attribution.by_owner,
            waste=attribution.waste,
            retained=attribution.retained,
            free_committed=attribution.free_committed,
            reserved=storage.reserved,
            overhead=storage.overhead,
            foreign=foreign,
            total=total,
            **self._ours_locked(),
        )

    def _ours_locked(self) -> dict[str, Any]:
        """The figures that need no host."""
        state = self._state
        table = state.table
        allocated = {str(kind): 0 for kind in MemoryKind}
        for (kind, _), nbytes in table.allocated.items():
            allocated[kind] += nbytes
        return {
            "allocated": allocated,
            "file_size": table.size,
            "free": table.free_bytes(),
            "largest_free": table.largest_free(),
            "peak_committed": self._peak,
            "counters": self._counters_locked(),
        }

    def _counters_locked(self) -> dict[str, int]:
        state = self._state
        return {**state.counters, "allocations": state.table.allocations, "frees": state.table.frees}


def _extents_of(ranges: list[FileRange]) -> array[int]:
    starts = array("q", sorted(start for start, _ in ranges))
    ends = array("q", sorted(end for _, end in ranges))
    return flat.from_starts_and_ends(starts, ends)
