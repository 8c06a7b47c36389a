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
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from memplat import daemons
from memplat.engine import pages
from memplat.engine.hot import HotReclaimer
from memplat.engine.state import EngineState
from memplat.errors import MemplatError
from memplat.linux import extents as flat
from memplat.ranges import MIB, FileRange
from memplat.types import ReclaimMode

log = logging.getLogger("memplat")

BATCH_BYTES: Final = 64 * MIB

_WAKE: Final = "wake"  # there is waste; recycling may still want it
_NOW: Final = "now"  # there is a whole batch of it
_HURRY: Final = "hurry"  # somebody waits
_STOP: Final = "stop"

#: Giving ranges back interrupts all processors that run a thread of this process: the kernel makes them forget where
#: the pages were. After many ranges that disturbed others, they are left alone for so many times as long; and pages
#: that are freed meanwhile may turn many ranges into one. Waiting for the interpreter disturbs nobody.
_PEACE: Final = 3

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
        self._hurried = False
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
        try:
            self._thread = daemons.start(_run, "memplat-reclaimer", self)
        except RuntimeError as error:  # "can't start new thread": the next call tries again
            self.needs_thread = True
            if not sys.is_finalizing():
                log.warning("memplat: no thread for the reclaimer: %s", error)

    def stop(self, *, join: bool) -> bool:
        """Have the thread end; whether there was one. It cannot be joined from itself."""
        self._messages.put(_STOP)  # first: another thread may be about to start ours
        thread = self._thread
        if thread is None or not thread.is_alive():
            return False
        if join and thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join()
        return True

    def serve(self) -> None:
        """Reclaim whenever there is waste, until told to stop."""
        while (message := self._messages.get()) != _STOP:
            if message == _WAKE and not self._rest(self._state.options.reclaim_delay, (_NOW, _HURRY)):
                return
            try:
                if not self._reclaim_gently():
                    return
            except Exception:
                # Nobody is there to be told; the waste stays, and is counted.
                if not self._failing:
                    log.exception("memplat: the reclaimer failed, and goes on trying without a further word")
                self._failing = True
                self._give_up()
            else:
                self._failing = False
            finally:
                self._hurried = False

    def _reclaim_gently(self) -> bool:
        """Reclaim what there is, and disturb others as little as can be, unless somebody waits. False: told to stop."""
        self._retry_retained()
        while True:
            with self._state.lock:
                self.wake_at = self._first_wake
            used, others = time.thread_time(), _used_by_others()
            nbytes, nranges = self.reclaim_batch(BATCH_BYTES)
            if nranges >= pages.MAX_RANGES and not self._hurried:
                disturbed = min(time.thread_time() - used, _used_by_others() - others)
                if not self._rest(_PEACE * disturbed, (_HURRY,)):
                    return False
            elif nbytes < BATCH_BYTES and nranges < pages.MAX_RANGES:
                return True  # that was all there was; what is freed meanwhile will be more, and cheaper, later

    def _rest(self, seconds: float, until: tuple[str, ...]) -> bool:
        """Let recycling win, or others work, until it is said that there is no time for it. False: told to stop."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._messages.get(timeout=left)
            except queue.Empty:
                return True
            if message == _STOP:
                return False
            if message in until:
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

    def sees_strays(self) -> bool:
        """Whether the host spends more than pages can cost that are used, waste, retained or kept. khugepaged fills
        holes beside used pages, and pwrite(2) and fallocate(2) take huge pages where the host is set so: when the used
        part goes, the rest stays, and only a scan finds it.
        """
        state = self._state
        storage = state.storage()
        with state.locked() as table:
            ours = table.size - table.free_bytes()
            if table.has_flags:
                ours += flat.total(table.flagged(pages.RETAINED)) + flat.total(table.flagged(pages.KEPT))
        return storage.total - storage.overhead - storage.overhead_slack > ours

    def reclaim_batch(self, limit: int) -> tuple[int, int]:
        """Reclaim one batch; the bytes of waste that became free, and in how many ranges: none if there was no waste,
        or it could not be done.
        """
        started = time.perf_counter()
        nbytes, count = self._give_back(lambda table: table.take_waste(limit))
        if count:
            self._tell(nbytes, time.perf_counter() - started)
        return nbytes, count

    def _give_back(
        self, take: Callable[[pages.PageTable], Sequence[FileRange]], *, all_of_it: bool = False
    ) -> tuple[int, int]:
        """Release what *take* takes under the lock; the bytes of waste in it, and in how many ranges. *all_of_it*:
        nothing is kept committed.
        """
        state = self._state
        with state.gate:
            try:
                with state.lock:
                    if not state.is_usable_locked():
                        return 0, 0
                    before = state.table.waste
                    ranges = take(state.table)
                    nbytes = before - state.table.waste
                    if not ranges:
                        return 0, 0
                    state.enter_locked()
                try:
                    self._release(ranges, all_of_it=all_of_it)
                finally:
                    state.leave()
            except BaseException:
                self._undo()
                raise
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

    def _release(self, ranges: Sequence[FileRange], *, all_of_it: bool) -> None:
        """Make releasing pages free, by whatever way is left. They go on releasing if this raises."""
        state = self._state
        give, keep = (ranges, ()) if all_of_it else self._divide(ranges)
        reserved: list[FileRange] = []
        if state.stays_reserved:
            with state.lock:
                reserved = [part for run in keep for part in flat.ranges(state.table.flagged(pages.RESERVED, *run))]
                for start, end in give:  # before: whatever comes in between, they may not be reserved any more
                    state.table.flag(start, end, pages.NONE)
        kept = state.zero_by_hand(keep) if keep else []
        retained = self._decommit(give) if give else []
        with state.lock:
            table = state.table
            state.note_decommitted_locked(give)
            released = table.releasing
            table.release(ranges)
            released -= table.releasing
            if table.has_flags:
                for start, end in ranges:
                    table.flag(start, end, pages.NONE)
            for start, end in (*kept, *reserved):
                table.flag(start, end, pages.KEPT)
            for start, end in retained:
                table.flag(start, end, pages.RETAINED)
            state.counters["reclaimed_bytes"] += released - sum(part.length for part in keep)
            state.changed.notify_all()

    def _decommit(self, ranges: Sequence[FileRange]) -> list[FileRange]:
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

    def _divide(self, ranges: Sequence[FileRange]) -> tuple[Sequence[FileRange], Sequence[FileRange]]:
        """What to give back, and what to keep committed for the next allocations."""
        want = self._state.options.keep
        if want:
            with self._state.lock:
                want -= flat.total(self._state.table.flagged(pages.KEPT))
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
        self._give_back(lambda table: table.take_free(flat.ranges(table.flagged(pages.RETAINED))))

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
                if not table.releasing and not self._hurried:
                    self._hurried = True
                    self._messages.put(_HURRY)
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

    def give_up_kept(self) -> bool:
        """For an allocation that the host refuses: free pages that stay committed go back. Whether there were any."""
        try:
            return self._give_back(_take_kept, all_of_it=True)[1] > 0
        except (OSError, MemplatError):
            log.exception("memplat: pages that were kept could not be given back")  # as above
            return False


def _take_kept(table: pages.PageTable) -> Sequence[FileRange]:
    return table.take_free(flat.ranges(table.flagged(pages.KEPT))) if table.has_flags else ()


def _used_by_others() -> float:
    """The processor time of this process's other threads, in seconds, if two such figures are subtracted."""
    return time.process_time() - time.thread_time()


def _run(reclaimer: Reclaimer) -> None:
    try:
        reclaimer.serve()
    finally:
        reclaimer.ended()
