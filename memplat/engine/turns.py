"""Who gets which figures: the last ones, those of a scan that is shared with others, or of one's own.

Callers at the same time share a scan, but only one that started after their call; those who say how old figures may be
also take one that started before, if it is young enough when it ends.

Where several threads ask, a scan takes a *breath* before it begins: four times as long as the last one kept the
processor busy, counted from its end. So such scans take a fifth of one processor at most, and whoever asks meanwhile
shares the one that follows. A thread that nobody else gets in the way of never waits.
"""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from memplat.engine.accounting import Attribution
from memplat.engine.figures import Figures, renewed
from memplat.engine.hot import HotScanner, make_lock
from memplat.engine.owners import Owners
from memplat.engine.refusals import reentrant
from memplat.engine.state import EngineState, host_error
from memplat.ranges import FileRange
from memplat.types import Usage

#: How much longer than a scan the breath after it is, and the longest breath in seconds: nobody waits for long.
_BREATHS: Final = 4
_LONGEST_BREATH: Final = 0.1

#: The counters of each method of scanning: how many, and their time.
_COUNTERS: Final[dict[str, tuple[str, str]]] = {}


class Turns(HotScanner, abc.ABC):
    """Lets one scan at a time run, and keeps the last figures.

    ``_turn`` guards the counting of scans, and who asks; ``_known`` and ``_known_total`` belong to whoever scans, or
    holds the gate while nobody does; ``_seen_changes`` and the figures are guarded by the memory's lock. ``last`` is
    replaced as a whole.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._lock = make_lock()  # never taken twice: it knows its owner, as that of the memory
        self._turn = threading.Condition(self._lock)
        self._runner = 0  # the thread that scans, 0 if none does
        self._started = 0
        self._finished = 0
        self._askers: set[int] = set()  # the threads that wait for a scan, or run one
        self._last_runner = 0
        self._rested_at = 0.0  # when the breath after the last scan is over
        self._rest: Callable[[float], None] = time.sleep
        self._known = None
        self._known_total = 0
        self._seen_changes = -1
        self._whole_ns = 0  # what the last scan of the whole file took
        self.figures = Figures(state)
        self._owners = Owners(state, self.figures)
        self.last = None

    def parts(self) -> tuple[HotScanner, Figures, dict[int, Usage]]:
        """What the compiled core has to know of."""
        return self, self.figures, self._owners.figures_of

    @abc.abstractmethod
    def _scan(self) -> Usage:
        """Scan the whole file, and make what is found the last figures."""

    @abc.abstractmethod
    def _prove_locked(self, began: int, total: int) -> Usage | None:
        """Figures of a file of shmem that costs *total* bytes, if finding them out takes microseconds."""

    # -- figures ------------------------------------------------------------------------------------------------------

    def usage(self, owner: int | None = None) -> Usage:
        """The last figures, with what is known without the host brought up to date."""
        with self._state.locked():
            if owner is not None:
                return self._owners.last_locked(self._last_locked(), owner)
            return renewed(self._last_locked(), self.figures.ours_locked())

    def _last_locked(self) -> Usage:
        if self.last is None:
            self.last = self.figures.whole_locked(Attribution(), "none", 0.0, False)
        return self.last

    def update(self, max_age: float, owner: int | None = None) -> Usage:
        """Figures that are at most *max_age* seconds old: the last ones, a scan shared with others, or one's own."""
        state = self._state
        if state.is_interrupted():
            raise reentrant()
        if self._runner == threading.get_ident():
            return self.usage(owner)  # a hook that the scan calls asks: the scan cannot wait for itself
        try:
            with state.lock:
                if state.refuse is not None or state.table.torn or state.dropped:
                    state.check_locked()
                usage = self._recent_locked(max_age, owner) if max_age else None
                if usage is None and owner is None and state.is_plain:
                    usage = self._at_once_locked()
                if usage is None:
                    state.enter_locked()
            if usage is not None:
                if state.dropped:
                    state.catch_up()
                return usage
            return self._in_flight(max_age, owner)
        except OSError as error:
            raise host_error(error, "the host could not be probed") from error

    def _in_flight(self, max_age: float, owner: int | None) -> Usage:
        """As :meth:`update`, of figures that the host has to be asked for. The call was entered, and is left here."""
        state = self._state
        try:
            usage = None if owner is None and state.is_plain else self._unchanged()
            if usage is None:
                return self._in_turn(max_age, owner)
            return usage if owner is None else self._part(usage, owner)
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
                self.last = renewed(self.last, self.figures.ours_locked())

    # -- taking turns -------------------------------------------------------------------------------------------------

    def _in_turn(self, max_age: float, owner: int | None) -> Usage:
        """A scan that starts from now on, or is young enough: one that somebody else runs, or one's own."""
        me = threading.get_ident()
        shared: Usage | None = None
        holds_up = False
        if self._lock._is_owned():  # noqa: SLF001 -- it is there for this
            raise reentrant()
        try:
            with self._lock:  # not the Condition: an exception from outside may strike within its __enter__
                self._askers.add(me)
                mine = self._started + 1
                while self._runner and self._finished < mine:
                    holds_up = self._state.is_decommitting()  # a hook, or who interrupted a decommit
                    if holds_up:
                        break
                    self._turn.wait(1.0)  # bounded: such an exception may also keep the runner from notifying
                    shared = self.last
                    if max_age and shared is not None and _is_recent(shared, max_age):
                        break
                    shared = None
                else:
                    shared = self.last if self._finished >= mine else None
                if shared is None and not holds_up:
                    self._runner = me
            if holds_up:  # the scan that is on may wait for the gate, which this thread has
                return self.usage(owner)
            if shared is None:
                alone = None if owner is None else self._owners.worth_alone(owner, self._whole_ns)
                if owner is not None and alone is not None:
                    return self._run_alone(owner, alone)
                shared = self._run(mine)
        finally:
            ran = self._runner == me
            if ran:
                self._runner = 0  # first: a call may be interrupted
            self._askers.discard(me)
            if ran:
                with self._lock:
                    self._turn.notify_all()
        return shared if owner is None else self._part(shared, owner)

    def _run(self, number: int) -> Usage:
        """Scan the whole file, also for those who wait."""
        self._breathe()
        with self._lock:
            self._started = number
        began = time.thread_time()
        usage = self._scan()
        self._finished = number
        self._rested_at = time.monotonic() + _BREATHS * (time.thread_time() - began)
        self._last_runner = self._runner
        return usage

    def _breathe(self) -> None:
        """Leave the processor to others for a while, unless nobody else asks. Who comes meanwhile shares the scan."""
        if self._last_runner == self._runner and len(self._askers) == 1:
            return
        left = self._rested_at - time.monotonic()
        if left > 0:
            self._rest(min(left, _LONGEST_BREATH))

    def _run_alone(self, owner: int, ranges: list[FileRange]) -> Usage:
        """Scan what *owner* uses; those who wait for all of it go on waiting for their turn."""
        with self._state.lock:
            last = self._last_locked()
        return self._owners.scan(last, owner, ranges)

    # -- nothing new --------------------------------------------------------------------------------------------------

    def _at_once_locked(self) -> Usage | None:
        """Figures for which an fstat is enough, or little more. The gate is held, too: so nothing can get in between
        but touches, and these change the host's total.
        """
        state = self._state
        # Whoever scans sets the last figures before he says that he is done.
        if self._runner or state.peers or state.is_decommitting():
            return None
        last = self.last
        is_as_seen = self._is_as_seen() and last is not None
        if not is_as_seen and not state.may_prove:
            return None
        held = False
        try:
            held = state.gate.acquire(blocking=False)
            if not held:
                return None
            began = time.monotonic_ns()
            total = state.plain_total()
            if is_as_seen and total == self._known_total:
                assert last is not None
                return self._renewed_locked(last, began, 0)
            return self._prove_locked(began, total) if state.may_prove else None
        finally:
            if held or state.is_decommitting():  # an exception may come between acquire and what it says
                state.gate.release()

    def _unchanged(self) -> Usage | None:
        """The last figures, if neither we nor the host have anything new: two numbers are compared, and that is all."""
        state = self._state
        if not self._is_as_seen() or state.is_decommitting():
            return None
        last = self.last  # after that look: whoever scanned has set it by then
        held = False
        try:
            held = state.gate.acquire(blocking=False)
            if not held:
                return None
            started = time.monotonic_ns()
            storage = state.storage()
            if last is None or storage.total - storage.overhead != self._known_total:
                return None
            with state.lock:
                # Whatever began since the first look may have changed what was compared here.
                if self.last is not last or not self._is_as_seen():
                    return None
                return self._renewed_locked(last, started, storage.reserved)
        finally:
            if held or state.is_decommitting():  # as above
                state.gate.release()

    def _renewed_locked(self, last: Usage, started: int, reserved: int) -> Usage:
        self._count_locked("unchanged", time.monotonic_ns() - started)
        changes: dict[str, Any] = {
            "as_of": started / 1e9,
            "method": "unchanged",
            "reserved": reserved,
            "counters": self.figures.counters_locked(),
        }
        self.last = usage = renewed(last, changes)
        return usage

    def _is_as_seen(self) -> bool:
        """Whether the last scan found out everything, no other is on, and nothing has happened to the pages since."""
        state = self._state
        return (
            state.table.changes == self._seen_changes
            and not self._runner
            and self._known is not None
            and state.decommitted == []
            and not state.peers
        )

    def _count_locked(self, method: str, nanoseconds: int) -> None:
        names = _COUNTERS.get(method)
        if names is None:
            names = _COUNTERS[method] = f"scans_{method}", f"scan_ns_{method}"
        how_many, how_long = names
        counters = self._state.counters
        counters["scans"] += 1
        counters["scan_ns"] += nanoseconds
        counters[how_many] += 1
        counters[how_long] += nanoseconds


def _is_recent(usage: Usage, max_age: float) -> bool:
    return time.monotonic() - usage.as_of <= max_age and usage.method != "none"
