"""The commit scan: what the host has committed, proven where it can be, and whose it is.

The host is probed without the lock. Three things keep that honest:

- The file's own total is read before and after the probe. Extents that add up to it, while it did not change, are all
  there is.
- Engine decommits that happen meanwhile are logged; pages named there are not taken as committed.
- If that does not come to rest in a few attempts, decommits are held up (:attr:`EngineState.gate`) for one more.

What was known before is all there is now if it adds up to the file's total: then nothing is probed at all. That holds
while nobody but the engine can take pages away (a peer could punch one and touch another), and while the engine does
not: the gate is held meanwhile.

Who asks, and who gets the figures of which scan, is the business of :mod:`memplat.engine.turns`.
"""

from __future__ import annotations

import os
import time
from array import array
from typing import Final, NamedTuple

import attrs

from memplat.engine.accounting import SYSTEM, Attribution, Layout, attribute, attribute_at_once, lay_out
from memplat.engine.arguments import MAX_OFFSET
from memplat.engine.state import EngineState
from memplat.engine.turns import Turns
from memplat.linux import extents as flat
from memplat.linux.files import seek_extents, seek_in_place, storage_held
from memplat.linux.pagemap import pagemap_proof
from memplat.ranges import KIB, MIB, FileRange, align_up
from memplat.types import Storage, Usage

#: Scans that a busy file may spoil before decommits are held up.
_ATTEMPTS: Final = 3
#: So little is found by seeking in some microseconds. PAGEMAP_SCAN goes through all page tables that were ever needed:
#: 20 us where no page of 16 GiB was touched before, 250 us after 100 pages were touched and punched.
_SOUGHT_BYTES: Final = 64 * KIB
#: The page tables of so much are gone through in less time than threads that want the GIL wait for it anyway.
_HELD_BYTES: Final = 256 * MIB
#: Up to so many decommits are taken out of what is known one by one.
_FEW: Final = 64


class _Finding(NamedTuple):
    """What one probe of the host found."""

    method: str
    extents: array[int]
    total: int
    """The bytes in all extents."""
    storage: Storage
    proven: bool
    moved: bool = False
    """The total was another one after the probe than before: somebody touched or punched meanwhile."""


class Scanner(Turns):
    """Scans the whole file, when it is somebody's turn."""

    def __init__(self, state: EngineState) -> None:
        super().__init__(state)
        self._scan_began = 0

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
            finding = (self._prove(storage) if state.may_prove else None) or self._look(storage)
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
            self._seen_changes = -1
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
                taken = self._take_known_locked()
            storage = state.storage()
            told = storage.total - storage.overhead
            if told <= self._known_total:  # else more is there than ever was known, and need not be taken apart
                self._known = self._less(*taken)
            # Somebody may have got the descriptor meanwhile, and punched before the host was asked.
            return storage, self._known is not None and self._known_total == told and not state.peers
        finally:
            if held or state.is_decommitting():
                state.gate.release()

    def _take_known_locked(self) -> tuple[array[int] | None, list[FileRange] | None]:
        """What is known, and what was decommitted since. Until that is put back, an exception from outside leaves
        nothing behind that is known, and last figures that are not those of what is.
        """
        state = self._state
        known, self._known, self._seen_changes = self._known, None, -1
        log, state.decommitted = state.decommitted, []
        return known, log

    def _less(self, known: array[int] | None, decommitted: list[FileRange] | None) -> array[int] | None:
        """What is known, less what was decommitted; nothing if that is too much to tell."""
        if known is None or decommitted is None:
            return None
        if len(decommitted) <= _FEW:
            for start, end in decommitted:
                self._known_total -= flat.remove(known, start, end)
            return known
        known = flat.subtract(known, _extents_of(decommitted))
        self._known_total = flat.total(known)
        return known

    def _prove(self, before: Storage) -> _Finding | None:
        """What is committed in a small file, or in one that is nearly empty, proven without asking the backend, and
        without letting other Python threads touch anything meanwhile. ``None`` where that does not succeed.
        """
        state = self._state
        file, address = state.file, state.file.address
        total = before.total
        if not total:
            return _Finding("st_blocks", flat.empty(), 0, before, proven=True)
        if total <= _SOUGHT_BYTES:
            # Only who got the descriptor shares its offset.
            extents = seek_extents(file.fd, 0, MAX_OFFSET, total) if state.peers else seek_in_place(file.fd, total)
            if flat.total(extents) == total == storage_held(file.fd):
                return _Finding("seek_data", extents, total, before, proven=True)
        if address is None or not total < file.size <= _HELD_BYTES:
            return None
        found = pagemap_proof(file.fd, address, file.size)
        return found and _Finding("pagemap_scan", *found, Storage(found[1]), proven=True)

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

    def _prove_locked(self, began: int, total: int) -> Usage | None:
        state, table = self._state, self._state.table
        if self._known is None:
            if total > _SOUGHT_BYTES:
                return None
        elif state.decommitted is None or len(state.decommitted) + len(self._known) > _FEW:
            return None
        elif total > _SOUGHT_BYTES and len(table.segments) > _FEW:
            return None  # charging them takes longer than others should wait for the lock
        known = self._less(*self._take_known_locked())
        found = self._find_at_once(total, known)
        if found is None:
            self._known = known
            return None
        method, extents = found
        attribution = attribute_at_once(extents, total, table)
        self._known, self._known_total = extents, total
        usage = self._tell_locked(attribution, method, began, began / 1e9)
        self._seen_changes = table.changes
        return usage

    def _find_at_once(self, total: int, known: array[int] | None) -> tuple[str, array[int]] | None:
        """How it was found out which pages are committed, and which: they are *known*, or so few that they are sought.
        ``None`` if neither is proven, or if there are some beyond our size.
        """
        if known is not None and self._known_total == total:
            found = "known", known
        elif not total:
            return "st_blocks", flat.empty()
        elif total <= _SOUGHT_BYTES:
            fd = self._state.file.fd
            found = "seek_data", seek_in_place(fd, total)
            if flat.total(found[1]) != total or storage_held(fd) != total:
                return None
        else:
            return None
        return found if not found[1] or found[1][-1] <= self._state.table.size else None

    # -- charging -----------------------------------------------------------------------------------------------------

    def _charge(self, finding: _Finding, layout: Layout, changes: int, foreign: int, as_of: float) -> Usage:
        """The figures of the moment when the pages were laid out, and the table had seen so many *changes*."""
        attribution = attribute(layout)
        missing = finding.storage.total - finding.storage.overhead - layout.total - foreign
        if missing > 0 and not finding.proven:
            attribution.charge(0, SYSTEM, missing)  # the total is certain, only the purpose is not
            attribution.unknown = missing
        storage = finding.storage
        with self._state.lock:
            table = self._state.table
            still = table.changes == changes
            usage = self._tell_locked(
                attribution,
                finding.method,
                self._scan_began,
                as_of,
                exact=finding.proven,
                reserved=storage.reserved,
                overhead=storage.overhead,
                foreign=foreign,
            )
            self._seen_changes = table.changes if still else changes
            return usage

    def _tell_locked(
        self,
        attribution: Attribution,
        method: str,
        began: int,
        as_of: float,
        *,
        exact: bool = True,
        reserved: int = 0,
        overhead: int = 0,
        foreign: int = 0,
    ) -> Usage:
        """Make what was found the last figures; the scan *began* at this time, in nanoseconds."""
        state = self._state
        if attribution.strays:
            state.table.take_free(attribution.strays, to_waste=True)
            state.wake()
        self._whole_ns = time.monotonic_ns() - began
        self._count_locked(method, self._whole_ns)
        # Before _seen_changes says that these are the figures of what is known.
        self.last = usage = self.figures.whole_locked(attribution, method, as_of, exact, reserved, overhead, foreign)
        self._owners.forget_locked()
        return usage


def _extents_of(ranges: list[FileRange]) -> array[int]:
    starts, ends = zip(*ranges, strict=True)
    return flat.from_starts_and_ends(array("q", sorted(starts)), array("q", sorted(ends)))
