"""Giving waste back to the host: in batches, in the background or on demand.

A batch: under the lock waste becomes *releasing*; without it, one hook call decommits; under the lock it becomes free.
At most :data:`BATCH_BYTES` a batch: a punch blocks every other fallocate of the file as long as it lasts. And at most
``MAX_RANGES`` ranges, because of the lock.

Where the host refuses, the pages that are still committed are zeroed by hand and flagged *retained*; the next round
tries them again. If not even that can be found out, the batch is waste again and the reclaimer gives up until
there is more.

The background thread starts with the first waste, holds the memory only weakly, and sleeps in a queue without cost.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Final

from memplat.engine import pages
from memplat.engine.hot import HotReclaimer
from memplat.engine.state import EngineState
from memplat.errors import MemplatError
from memplat.ranges import MIB, FileRange
from memplat.types import ReclaimMode

log = logging.getLogger("memplat")

BATCH_BYTES: Final = 64 * MIB

_WAKE: Final = "wake"  # there is waste; recycling may still want it
_NOW: Final = "now"
_STOP: Final = "stop"

_NEVER: Final = 1 << 63


class Reclaimer(HotReclaimer):
    """Reclaims the waste of one memory.

    :ivar needs_thread: whether :meth:`ensure_thread` has something to do
    :ivar wake_at: how much waste calls for :meth:`wake_locked`: any; once the thread knows of it, a whole batch; then
        none. Guarded by the memory's lock, as ``_gave_up`` is
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._background = state.options.reclaim is ReclaimMode.BACKGROUND
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()  # put is re-entrant: safe in a dying view
        self._thread: threading.Thread | None = None
        self.needs_thread = self._background
        self._first_wake = 1 if self._background else _NEVER
        self.wake_at = self._first_wake
        self._gave_up = False
        self._warned = False
        self._failing = False
        state.wake = self.wake_locked

    # -- the thread ---------------------------------------------------------------------------------------------------

    def wake_locked(self) -> None:
        """There is new waste."""
        if self._state.table.waste < self.wake_at:
            return
        self._gave_up = False
        self._messages.put(_WAKE if self.wake_at < BATCH_BYTES else _NOW)
        self.wake_at = BATCH_BYTES if self.wake_at < BATCH_BYTES else _NEVER

    def ensure_thread(self) -> None:
        """Start the thread if there should be one and is none. Not from a dying view: starting takes locks."""
        if not self.needs_thread:
            return
        self.needs_thread = False
        thread = threading.Thread(target=_run, args=(self,), name="memplat-reclaimer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # "can't start new thread": the next call tries again
            log.warning("memplat: no thread for the reclaimer: %s", error)
            self.needs_thread = True
        else:
            self._thread = thread

    def stop(self, *, join: bool) -> bool:
        """Have the thread end; whether there was one. It cannot be joined from itself."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return False
        self._messages.put(_STOP)
        if join and thread is not threading.current_thread():
            thread.join()
        return True

    def serve(self) -> None:
        """Reclaim whenever there is waste, until told to stop."""
        while (message := self._messages.get()) != _STOP:
            if message == _WAKE and not self._rest(self._state.options.reclaim_delay):
                return
            with self._state.lock:
                self.wake_at = self._first_wake
            try:
                self.reclaim_all(retry=True)
            except Exception:
                # Nobody is there to be told; the waste stays, and is counted.
                if not self._failing:
                    log.exception("memplat: the reclaimer failed, and goes on trying without a further word")
                self._failing = True
                self._give_up()
            else:
                self._failing = False

    def _rest(self, delay: float) -> bool:
        """Let recycling win, unless there is a hurry. False: told to stop."""
        deadline = time.monotonic() + delay
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._messages.get(timeout=left)
            except queue.Empty:
                return True
            if message == _STOP:
                return False
            if message == _NOW:
                return True
        return True

    def ended(self) -> None:
        """The thread ends. If the memory was dropped, its end is up to us."""
        with self._state.lock:
            self.needs_thread = self._background
            self.wake_at = self._first_wake
            self._state.changed.notify_all()
        self._state.finish_if_idle()

    def _give_up(self) -> None:
        with self._state.lock:
            self._gave_up = True
            self._state.changed.notify_all()

    # -- reclaiming ---------------------------------------------------------------------------------------------------

    def reclaim_all(self, max_bytes: int | None = None, *, retry: bool = False) -> int:
        """Reclaim batch by batch, at most about *max_bytes*; the bytes that became free. *retry*: the retained, too."""
        if retry:
            self._retry_retained()
        done = 0
        while max_bytes is None or done < max_bytes:
            limit = BATCH_BYTES if max_bytes is None else min(BATCH_BYTES, max_bytes - done)
            nbytes, nranges = self.reclaim_batch(limit)
            done += nbytes
            if nbytes < limit and nranges < pages.MAX_RANGES:
                break  # that was all there was; what is freed meanwhile will be more, and cheaper, later
        return done

    def reclaim_batch(self, limit: int) -> tuple[int, int]:
        """Reclaim one batch; the bytes of waste that became free, and in how many ranges: none if there was no waste,
        or it could not be done.
        """
        state = self._state
        started = time.perf_counter()
        with state.gate:
            try:
                with state.lock:
                    if not state.is_usable_locked():
                        return 0, 0
                    before = state.table.waste
                    ranges = state.table.take_waste(limit)
                    nbytes = before - state.table.waste
                    if not ranges:
                        return 0, 0
                    state.enter_locked()
                try:
                    self._release(ranges)
                finally:
                    state.leave()
            except BaseException:
                self._undo()
                raise
        self._tell(nbytes, time.perf_counter() - started)
        return nbytes, len(ranges)

    def _undo(self) -> None:
        """What was being released is waste again: nothing is known about it. All that is releasing is ours, by the
        gate; an exception from outside may have kept us from learning what that is.
        """
        state = self._state
        with state.lock:
            if not state.table.torn and state.table.releasing:
                state.decommitted = None
                state.table.take_back([FileRange(0, state.table.size)])
            state.changed.notify_all()
        self._give_up()

    def _tell(self, nbytes: int, seconds: float) -> None:
        memory = self._state.memory() if self._state.memory is not None else None
        if memory is None:
            return
        try:
            self._state.hooks.memplat_reclaimed(memory=memory, nbytes=nbytes, seconds=seconds)
        except Exception:  # whoever watches must not keep the pages from being free
            log.exception("memplat: memplat_reclaimed failed")

    def _release(self, ranges: list[FileRange]) -> None:
        """Make releasing pages free, by whatever way is left. They go on releasing if this raises."""
        state = self._state
        give, keep = self._divide(ranges)
        kept = state.zero_by_hand(keep) if keep else []
        retained = self._decommit(give) if give else []
        with state.lock:
            table = state.table
            state.note_decommitted_locked([*give])
            table.release(ranges)
            if table.has_flags:
                for start, end in ranges:
                    table.flag(start, end, pages.NONE)
            for start, end in kept:
                table.flag(start, end, pages.KEPT)
            for start, end in retained:
                table.flag(start, end, pages.RETAINED)
            state.counters["reclaimed_bytes"] += sum(end - start for start, end in give)
            state.changed.notify_all()

    def _decommit(self, ranges: list[FileRange]) -> list[FileRange]:
        """Decommit; what the host refused to take back is zeroed by hand and returned."""
        try:
            self._state.decommit_on_host(ranges)
        except Exception as error:  # noqa: BLE001 -- whatever it was: nothing is known about the batch
            retained = self._state.zero_by_hand(ranges)
            if retained and not self._warned:
                self._warned = True
                log.warning("memplat: the host refused to take pages back (%s); zeroed by hand, and retained", error)
            return retained
        return []

    def _divide(self, ranges: list[FileRange]) -> tuple[list[FileRange], list[FileRange]]:
        """What to give back, and what to keep committed for the next allocations."""
        want = self._state.options.keep
        if want:
            with self._state.lock:
                want -= sum(part.length for part in self._state.table.flagged(pages.KEPT))
        if want <= 0:
            return ranges, []
        give: list[FileRange] = []
        keep: list[FileRange] = []
        for start, end in ranges:
            middle = min(end, start + max(0, want) // self._state.file.page_size * self._state.file.page_size)
            if middle > start:
                keep.append(FileRange(start, middle))
                want -= middle - start
            if end > middle:
                give.append(FileRange(middle, end))
        return give, keep

    def _retry_retained(self) -> None:
        """Offer the host again what it refused before."""
        state = self._state
        with state.gate:
            try:
                with state.lock:
                    if not state.is_usable_locked():
                        return
                    ranges = state.table.take_free(state.table.flagged(pages.RETAINED))
                    if not ranges:
                        return
                    state.enter_locked()
                try:
                    self._release(ranges)
                finally:
                    state.leave()
            except BaseException:
                self._undo()
                raise

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        """Wait until no waste is left that can be given back; False on time-out, or if nobody is there to do it."""
        state = self._state
        deadline = None if timeout is None else time.monotonic() + timeout
        self.ensure_thread()
        with state.locked() as table:
            self._gave_up = False
            while table.has_releasable_waste() or table.releasing:
                if not state.is_usable_locked():
                    return False
                if not table.releasing and (not self._background or self._gave_up or self.needs_thread):
                    return False
                if not table.releasing and self.wake_at != _NEVER:
                    self.wake_at = _NEVER
                    self._messages.put(_NOW)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                # Bounded, so that a thread that dies without a word is noticed.
                state.changed.wait(1.0 if left is None else min(left, 1.0))
        return True

    def make_room(self) -> bool:
        """For an allocation that found no room: reclaim, or wait for what is being released. Whether that helped."""
        try:
            if self.reclaim_all():
                return True
        except (OSError, MemplatError):
            log.exception("memplat: waste could not be reclaimed")  # the allocation's own error says the rest
        state = self._state
        with state.lock:
            releasing = state.table.releasing
            if state.in_hook():
                return False  # it may be this very thread that releases them
            while state.table.releasing >= releasing > 0 and state.is_usable_locked():
                state.changed.wait(1.0)  # bounded, as in wait()
            return state.table.releasing < releasing


def _run(reclaimer: Reclaimer) -> None:
    try:
        reclaimer.serve()
    finally:
        reclaimer.ended()
