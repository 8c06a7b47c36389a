"""The commit scan: what the host has committed, proven where it can be, and whose it is.

The host is probed without the lock. Three things keep that honest:

- The file's own total is read before and after the probe. Extents that add up to it, while it did not change, are all
  there is.
- Engine decommits that happen meanwhile are logged; pages named there are not taken as committed.
- If that does not come to rest in a few attempts, decommits are held up (:attr:`EngineState.gate`) for one more.

What was known before is all there is now if it adds up to the file's total: then nothing is probed at all. That holds
while nobody but the engine can take pages away (a peer could punch one and touch another), and while the engine does
not: the gate is held meanwhile.

Callers at the same time share a scan, but only one that started after their call.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from typing import Final

import attrs

from memplat.engine.accounting import SYSTEM, Attribution, Layout, attribute, lay_out
from memplat.engine.figures import Figures, renewed
from memplat.engine.owners import Owners
from memplat.engine.refusals import reentrant
from memplat.engine.state import EngineState, host_error
from memplat.linux import extents as flat
from memplat.ranges import FileRange, align_up
from memplat.types import Storage, Usage

#: Scans that a busy file may spoil before decommits are held up.
_ATTEMPTS: Final = 3
#: Up to so many decommits are taken out of what is known one by one.
_FEW: Final = 64


@attrs.frozen
class _Finding:
    """What one probe of the host found."""

    method: str
    extents: array[int]
    total: int
    """The bytes in all extents."""
    storage: Storage
    proven: bool
    moved: bool = False
    """The total was another one after the probe than before: somebody touched or punched meanwhile."""


class Scanner:
    """Runs scans, one at a time, and keeps the last figures.

    ``_turn`` guards the counting of scans; ``_known`` and ``_known_total`` belong to whoever scans, or holds the gate
    while nobody does; ``_seen_changes`` and the figures are guarded by the memory's lock. ``last`` is replaced as a
    whole.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._runner = 0  # the thread that scans, 0 if none does
        self._started = 0
        self._finished = 0
        self._known: array[int] | None = None
        self._known_total = 0
        self._seen_changes = -1
        self._scan_began = 0
        self._whole_ns = 0  # what the last scan of the whole file took
        self.figures = Figures(state)
        self._owners = Owners(state, self.figures)
        self.last: Usage | None = None

    # -- figures ------------------------------------------------------------------------------------------------------

    def usage(self, owner: int | None = None) -> Usage:
        """The last figures, with what is known without the host brought up to date."""
        with self._state.locked():
            if owner is not None:
                return self._owners.last_locked(self._last_locked(), owner)
            return renewed(self._last_locked(), **self.figures.ours_locked())

    def _last_locked(self) -> Usage:
        if self.last is None:
            self.last = self.figures.whole_locked(Attribution(), "none", 0, Storage(0), exact=False, as_of=0.0)
        return self.last

    def update(self, max_age: float, owner: int | None = None) -> Usage:
        """Figures that are at most *max_age* seconds old: the last ones, a scan shared with others, or one's own."""
        state = self._state
        if state.is_interrupted():
            raise reentrant()
        last = self.last
        if max_age and owner is None and last is not None and state.refuse is None and _is_recent(last, max_age):
            return last  # without the lock: those who poll often do not get in the way of those who work
        if self._runner == threading.get_ident():
            return self.usage(owner)  # a hook that the scan calls asks: the scan cannot wait for itself
        with state.lock:
            state.check_locked()
            if max_age and (recent := self._recent_locked(max_age, owner)) is not None:
                return recent
            state.enter_locked()
        try:
            usage = self._unchanged()
            if usage is None:
                return self._in_turn(owner)
            return usage if owner is None else self._part(usage, owner)
        except OSError as error:
            raise host_error(error, "the host could not be probed") from error
        finally:
            state.leave()

    def _recent_locked(self, max_age: float, owner: int | None) -> Usage | None:
        last = self.last
        if last is not None and owner is not None:
            last = self._owners.last_locked(last, owner)
        return last if last is not None and _is_recent(last, max_age) else None

    def _part(self, usage: Usage, owner: int) -> Usage:
        with self._state.lock:
            return self.figures.part_locked(usage, owner)

    def reset_peaks(self) -> None:
        """Let the peaks be what is now."""
        with self._state.locked():
            self.figures.reset_peaks_locked(self.last)
            if self.last is not None:
                self.last = renewed(self.last, **self.figures.ours_locked())

    # -- taking turns -------------------------------------------------------------------------------------------------

    def _in_turn(self, owner: int | None) -> Usage:
        """A scan that starts from now on: one that somebody else runs, or one's own."""
        me = threading.get_ident()
        try:
            with self._lock:  # not the Condition: an exception from outside may strike within its __enter__
                mine = self._started + 1
                while self._runner and self._finished < mine:
                    self._turn.wait(1.0)  # bounded: such an exception may also keep the runner from notifying
                shared = self.last if self._finished >= mine else None
                if shared is None:
                    self._runner = me
            if shared is None:
                alone = None if owner is None else self._owners.worth_alone(owner, self._whole_ns)
                if owner is not None and alone is not None:
                    return self._run_alone(owner, alone)
                shared = self._run()
        finally:
            if self._runner == me:
                self._runner = 0  # first: a call may be interrupted
                with self._lock:
                    self._turn.notify_all()
        return shared if owner is None else self._part(shared, owner)

    def _run(self) -> Usage:
        """Scan the whole file, also for those who wait."""
        with self._lock:
            self._started = number = self._started + 1
        self.last = usage = self._scan()
        self._finished = number
        return usage

    def _run_alone(self, owner: int, ranges: list[FileRange]) -> Usage:
        """Scan what *owner* uses; those who wait for all of it go on waiting for their turn."""
        with self._state.lock:
            last = self._last_locked()
        return self._owners.scan(last, owner, ranges)

    # -- scanning -----------------------------------------------------------------------------------------------------

    def _unchanged(self) -> Usage | None:
        """The last figures, if neither we nor the host have anything new: two numbers are compared, and that is all."""
        state = self._state
        last = self.last
        if last is None or not self._is_as_seen() or state.is_decommitting():
            return None
        held = False
        try:
            held = state.gate.acquire(blocking=False)
            if not held:
                return None
            started = time.monotonic_ns()
            storage = state.storage()
            if storage.total - storage.overhead != self._known_total:
                return None
            with state.lock:
                # Whatever began since the first look may have changed what was compared here.
                if self.last is not last or not self._is_as_seen():
                    return None
                self._count_locked("unchanged", time.monotonic_ns() - started)
                self.last = renewed(
                    last,
                    as_of=started / 1e9,
                    method="unchanged",
                    reserved=storage.reserved,
                    counters=self.figures.counters_locked(),
                )
                return self.last
        finally:
            if held or state.is_decommitting():  # an exception may come between acquire and what it says
                state.gate.release()

    def _is_as_seen(self) -> bool:
        """Whether the last scan found out everything, no other is on, and nothing has happened to the pages since."""
        state = self._state
        return (
            not self._runner
            and state.table.changes == self._seen_changes
            and self._known is not None
            and state.decommitted == []
            and not state.peers
        )

    def _scan(self) -> Usage:
        self._scan_began = time.monotonic_ns()
        for _ in range(_ATTEMPTS):
            usage = self._attempt(final=False)
            if usage is not None:
                return usage
        with self._state.gate:
            usage = self._attempt(final=True)
        assert usage is not None, "the final attempt always answers"
        return usage

    def _count_locked(self, method: str, nanoseconds: int) -> None:
        counters = self._state.counters
        counters["scans"] += 1
        counters["scan_ns"] += nanoseconds
        counters[f"scans_{method}"] += 1
        counters[f"scan_ns_{method}"] += nanoseconds

    def _attempt(self, *, final: bool) -> Usage | None:
        """One probe, charged to the users of the pages. ``None`` if the file was too busy to tell."""
        state = self._state
        as_of = time.monotonic()
        storage, is_known = self._compare()
        if is_known and self._known is not None:
            finding = _Finding("known", self._known, self._known_total, storage, proven=True)
        else:
            with state.lock:
                state.decommitted = []
            finding = self._look(storage)
        with state.lock:
            meanwhile, state.decommitted = state.decommitted, []
            quiet = meanwhile == []
            # Worth another attempt only if something moved: a probe that is not exact does not become so.
            if not final and (finding.moved or not quiet):
                self._known = None
                return None
            extents, total = finding.extents, finding.total
            if meanwhile:
                extents = flat.subtract(extents, _extents_of(meanwhile))
                total = flat.total(extents)
            self._known = extents if quiet and finding.proven else None
            self._known_total = total
            table = state.table
            foreign = 0
            if extents and extents[-1] > table.size:
                extents = flat.intersect(extents, 0, table.size)
                foreign = total - flat.total(extents)
            layout, changes = lay_out(extents, total - foreign, table), table.changes
        return self._charge(finding, layout, changes, foreign, as_of)

    def _compare(self) -> tuple[Storage, bool]:
        """What the host spends now, and whether that is what is known, pages included."""
        state = self._state
        if self._known is None or state.peers or state.is_decommitting():
            return state.storage(), False
        held = False
        try:
            held = state.gate.acquire(blocking=False)
            if not held:
                return state.storage(), False
            with state.lock:
                log, state.decommitted = state.decommitted, []
            self._known = self._less(log)
            storage = state.storage()
            told = storage.total - storage.overhead
            # Somebody may have got the descriptor meanwhile, and punched before the host was asked.
            return storage, self._known is not None and self._known_total == told and not state.peers
        finally:
            if held or state.is_decommitting():
                state.gate.release()

    def _less(self, decommitted: list[FileRange] | None) -> array[int] | None:
        """What is known, less what was decommitted; nothing if that is too much to tell."""
        known = self._known
        if known is None or decommitted is None:
            return None
        if len(decommitted) <= _FEW:
            for start, end in decommitted:
                self._known_total -= flat.remove(known, start, end)
            return known
        known = flat.subtract(known, _extents_of(decommitted))
        self._known_total = flat.total(known)
        return known

    def _look(self, before: Storage) -> _Finding:
        """Ask the backend which pages are committed."""
        state = self._state
        state.file.probe_method = ""
        end = align_up(os.fstat(state.file.fd).st_size, state.file.page_size)
        extents, total = state.probe(0, end)
        after = state.storage()
        if before.total == after.total < total + after.overhead:
            # The backend could not tell which of the reserved pages are there, and named all: a peer has punched some.
            extents, total = state.probe(0, end, reserved=False)
            after = state.storage()
        elif before.total == after.total and after.total - after.overhead - total > after.overhead_slack:
            # Something is there that probes by touch do not see: reserved by a peer, or by a hook that failed halfway.
            more = flat.union(extents, state.probe_reserved([FileRange(0, end)]))
            more_total = flat.total(more)
            after = state.storage()
            if more_total + after.overhead <= after.total:  # else the backend could not tell, and named all
                extents, total = more, more_total
        moved = before.total != after.total
        rest = after.total - after.overhead - total
        proven = not moved and 0 <= rest <= after.overhead_slack
        if proven and rest:
            after = attrs.evolve(after, overhead=after.overhead + rest)
        return _Finding(state.file.probe_method or "probe", extents, total, after, proven, moved)

    # -- charging -----------------------------------------------------------------------------------------------------

    def _charge(self, finding: _Finding, layout: Layout, changes: int, foreign: int, as_of: float) -> Usage:
        """The figures of the moment when the pages were laid out, and the table had seen so many *changes*."""
        attribution = attribute(layout)
        missing = finding.storage.total - finding.storage.overhead - layout.total - foreign
        if missing > 0 and not finding.proven:
            attribution.charge(0, SYSTEM, missing)  # the total is certain, only the purpose is not
            attribution.unknown = missing
        state = self._state
        with state.lock:
            table = state.table
            still = table.changes == changes
            if attribution.strays:
                table.take_free(attribution.strays, to_waste=True)
                state.wake()
            self._whole_ns = time.monotonic_ns() - self._scan_began
            self._count_locked(finding.method, self._whole_ns)
            usage = self.figures.whole_locked(
                attribution, finding.method, foreign, finding.storage, exact=finding.proven, as_of=as_of
            )
            self._owners.forget_locked()
            self._seen_changes = table.changes if still else changes
            return usage


def _is_recent(usage: Usage, max_age: float) -> bool:
    return time.monotonic() - usage.as_of <= max_age and usage.method != "none"


def _extents_of(ranges: list[FileRange]) -> array[int]:
    starts = array("q", sorted(start for start, _ in ranges))
    ends = array("q", sorted(end for _, end in ranges))
    return flat.from_starts_and_ends(starts, ends)
