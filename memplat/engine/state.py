"""What the parts of one open memory share: the file, the mapping, the page table and the lock.

Locks, in the order in which they may be taken:

1. ``Scanner._turn`` (one scan at a time), ``Allocator._growing`` (one growth at a time)
2. :attr:`EngineState.gate` (nothing is being decommitted): held while a hook decommits, re-entrant
   (whoever has the lock already may try it, if he does not wait)
3. :attr:`EngineState.lock`: guards everything that is not marked immutable. Held for moments only: no hook and no
   system call that can take long runs under it. Methods that need it held end in ``_locked``.

Views die at any moment, even while their thread holds the lock. So a dying view only appends to :attr:`dropped` and
tries the lock; if it is taken, whoever holds it settles the account after letting go (:meth:`EngineState.catch_up`), or
the next caller does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
import weakref
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from memplat.engine import pages
from memplat.engine.hot import HotState, make_lock, make_table
from memplat.engine.limits import Limits
from memplat.engine.mapping import Mapping
from memplat.engine.pages import PageTable
from memplat.engine.refusals import closed, forked, interrupted, reentrant
from memplat.engine.sparse import SPARSE_BYTES, free_sparse_locked
from memplat.engine.stacks import threads_inside
from memplat.errors import HostError, MemplatError, PluginError
from memplat.hookspecs import DEFAULTS, BackendHooks, answerer
from memplat.linux import extents as flat
from memplat.linux.files import storage_held
from memplat.ranges import FileRange, align_up
from memplat.types import BackingFile, EngineOptions, SelectedBackend, Storage

if TYPE_CHECKING:
    from memplat.memory import Memory

log = logging.getLogger("memplat")
_COUNTERS: Final = (
    "allocations",
    "frees",
    "recycled_bytes",
    "reclaimed_bytes",
    "decommit_calls",
    "scans",
    "scan_ns",
)
_BLOCK: Final = 512
#: How often a close that waits for calls of other threads looks whether they are still there, in seconds.
_GHOSTS_EVERY: Final = 0.05
#: Beyond so many entries the log of decommits costs more than the scan that it could save.
_MAX_LOGGED: Final = 1 << 16


class EngineState(HotState):
    """The shared state of one memory; the memory itself is held weakly, so that dropping it closes it.

    :ivar file: the backing file; its ``size`` is guarded by the growth lock, the rest immutable
    :ivar hooks: immutable
    :ivar mapping: immutable
    :ivar table: guarded by ``lock``
    :ivar changed: notified whenever pages become free, the reclaimer gives up, or an operation ends
    :ivar refuse: makes the error that every call gets; ``None`` while the memory is open
    :ivar dropped: ranges of views that died and are still to be unpinned; with True, of references to be dropped
    :ivar exposed: somebody may write to free pages: an unpinned view, an address or the descriptor was handed out
    :ivar limits: what owners may have; guarded by ``lock``
    :ivar counters: events
    :ivar is_plain: what the host spends is ``st_blocks``, the default of ``memplat_storage``, and nobody looks on
    :ivar wake: tells the reclaimer that there is waste; replaced by it
    :ivar collect: drops the references that peers have let go; whether there were any; replaced by the shares
    """

    def __init__(
        self, file: BackingFile, hooks: BackendHooks, backend: SelectedBackend, options: EngineOptions, mapping: Mapping
    ) -> None:
        self.file = file
        self.hooks = hooks
        self.backend = backend
        self.options = options
        self.mapping = mapping
        self.max_size = mapping.limit
        self.table = make_table(file.page_size)
        self._make_locks()
        self.refuse: Callable[[], MemplatError] | None = None
        self.dropped: deque[tuple[int, int, bool]] = deque()
        self.exposed = False
        self.peers = False
        self.decommitted: list[FileRange] | None = None
        self.limits: Limits = {}
        self.counters = Counter(dict.fromkeys(_COUNTERS, 0))
        self.wake: Callable[[], None] = lambda: None
        self.collect: Callable[[], bool] = lambda: False
        self.memory: weakref.ref[Memory] | None = None
        self.is_plain = answerer(hooks, "memplat_storage") == DEFAULTS
        prober = answerer(hooks, "memplat_probe_committed")
        self.may_prove = (
            self.is_plain and file.is_shmem and prober in (answerer(hooks, "memplat_create_file"), DEFAULTS)
        )
        self.keep = options.keep
        # What was reserved, or is committed, stays so until the backend is told to give it back: no need to ask again.
        self.reserves_always = not backend.info.decommit_releases
        reserver = answerer(hooks, "memplat_reserve")
        is_own = bool(reserver) and reserver == answerer(hooks, "memplat_create_file")
        self.table.kept_is_reserved = self.stays_reserved = self.reserves_always and is_own
        self._in_flight: dict[int, int] = {}  # by thread; a Counter takes three times as long
        self._finished = threading.Lock()
        self._pid = os.getpid()
        _states[id(self)] = weakref.ref(self)

    def _make_locks(self) -> None:
        # Never taken twice. It is re-entrant because such a lock knows its owner: a finalizer or a signal handler that
        # interrupts a call gets an error instead of waiting for itself.
        self.lock = make_lock()
        self.is_interrupted: Callable[[], bool] = self.lock._is_owned  # noqa: SLF001 -- it is there for this
        self.changed = threading.Condition(self.lock)
        self.gate = make_lock()
        self.is_decommitting: Callable[[], bool] = self.gate._is_owned  # noqa: SLF001 -- as above

    # -- calls and their end ------------------------------------------------------------------------------------------

    def check_locked(self) -> None:
        """Refuse the call if the memory is closed or the parent's, and settle what views left behind."""
        if not self.is_usable_locked():
            assert self.refuse is not None
            raise self.refuse()

    def is_usable_locked(self) -> bool:
        """Whether calls may go on; if so, settle what views left behind."""
        if self.refuse is None and self.table.torn:
            self.refuse = interrupted
        if self.refuse is not None:
            return False
        if self.dropped:
            self.settle_locked()
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[PageTable]:
        """The lock, with all that belongs to it; for calls that are not hot."""
        if self.is_interrupted():
            raise reentrant()
        with self.lock:
            self.check_locked()
            yield self.table
        if self.dropped:
            self.catch_up()

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """A call that lets go of the lock: ``close`` waits for it. To be entered without the lock."""
        if self.is_interrupted():
            raise reentrant()
        with self.lock:
            self.check_locked()
            self.enter_locked()
        try:
            yield
        finally:
            self.leave()

    def enter_locked(self) -> None:
        """Begin a call that lets go of the lock; to be ended with :meth:`leave`."""
        me = threading.get_ident()
        self._in_flight[me] = self._in_flight.get(me, 0) + 1

    def in_hook(self) -> bool:
        """Whether this thread is inside of another call on this memory: in a hook, then."""
        return threading.get_ident() in self._in_flight

    def _forget_ghosts_locked(self) -> None:
        """An exception from outside may keep a call from saying that it ended: ask the stacks of those threads."""
        alive = threads_inside()
        for thread in [*self._in_flight]:
            if thread not in alive:
                self._in_flight.pop(thread, None)

    def leave(self) -> None:
        """End what :meth:`enter_locked` began. The last one out of a closed memory turns off the light."""
        me = threading.get_ident()
        with self.lock:
            left = self._in_flight.pop(me, 0) - 1
            if left > 0:  # below zero: the call began before a fork, or was taken for a ghost
                self._in_flight[me] = left
            last = False
            if self.refuse is not None:  # nobody but close waits for the end of a call
                self.changed.notify_all()
                last = self.refuse is closed and not self._in_flight
        if last:
            self.finish()
        elif self.dropped:
            self.catch_up()

    def close(self) -> bool:
        """Refuse new calls and wait for those in flight in other threads. False if that was begun before."""
        if self.is_interrupted():
            raise reentrant()
        with self.lock:
            self.is_usable_locked()
            first, self.refuse = self.refuse is not closed, closed
            if self.in_hook():
                self._forget_ghosts_locked()
            if self.in_hook():
                return first  # others may wait for the very call that we were called from: the last one out finishes
            while self._in_flight:
                if not self.changed.wait(_GHOSTS_EVERY):
                    self._forget_ghosts_locked()
        self.finish()
        return first

    def is_stuck(self) -> bool:
        """At the interpreter's end: whether another thread, which will never go on, is in the middle of a call."""
        if idle := not self._in_flight and self.lock.acquire(blocking=False):
            self.lock.release()
        return not idle

    @property
    def is_forked(self) -> bool:
        """Whether this is a child's copy of its parent's memory."""
        return self.refuse is forked

    def finish_if_idle(self) -> None:
        """Finish what nobody works on any more, if it was closed or dropped."""
        with self.lock:
            idle = self.refuse is not None and not self._in_flight
        if idle:
            self.finish()

    def abandon(self) -> None:
        """The memory was dropped without close. Runs in the garbage collector: takes no lock."""
        if self.refuse is None:
            self.refuse = closed
            what = f"unclosed memory ({self.file.backend}, {self.table.size} bytes)"
            warnings.warn(what, ResourceWarning, stacklevel=2)

    def finish(self) -> None:
        """Give the file and the mapping back, once."""
        if not self._finished.acquire(blocking=False):
            return
        _states.pop(id(self), None)
        try:
            if os.getpid() == self._pid:
                self.hooks.memplat_close_file(file=self.file)
            else:
                os.close(self.file.fd)  # the parent's hook would give back what is the parent's
        except Exception:
            log.exception("closing the backing file of %s failed", self.file.backend)
        finally:
            self.mapping.close()

    def after_fork_in_child(self) -> None:
        """This process has only the thread that forked: no lock can be trusted, and nothing here is ours."""
        self._make_locks()
        self.wake = lambda: None
        self._in_flight.clear()
        if self.refuse is None:
            self.refuse = forked

    # -- views --------------------------------------------------------------------------------------------------------

    def view_dropped(self, start: int, end: int) -> None:
        """The last view of the pages has died: in any thread, at any moment, even under the lock."""
        self.dropped.append((start, end, False))
        self.catch_up()

    def catch_up(self) -> None:
        """Unpin the pages of dead views, unless somebody holds the lock: he will."""
        if self.is_interrupted():
            return
        try:
            while self.dropped and self.lock.acquire(blocking=False):
                self.settle_locked()
                self.lock.release()
        finally:
            if self.is_interrupted():  # not: if acquire returned True, because an exception may come in between
                self.lock.release()

    def settle_locked(self) -> None:
        """Unpin the pages of dead views, and drop the references that finalizers could not."""
        if self.table.torn:
            self.dropped.clear()
            return
        before = self.table.waste
        while self.dropped:
            start, end, is_reference = self.dropped.popleft()
            try:
                (self.table.decref if is_reference else self.table.unpin)(start, end)
            except MemplatError:
                log.exception("memplat: a finalizer dropped a reference that is not there")
                continue
            if end - start >= SPARSE_BYTES:
                free_sparse_locked(self, start, end)
        if self.table.waste != before:
            self.wake()

    # -- what the host says -------------------------------------------------------------------------------------------

    def storage(self) -> Storage:
        """What the host spends on the file."""
        if self.is_plain:
            return Storage(self.plain_total())
        storage = self.hooks.memplat_storage(file=self.file)
        if not isinstance(storage, Storage):
            raise self.broken("memplat_storage", f"returned {storage!r}; allowed is a Storage")
        return storage

    def plain_total(self) -> int:
        """What the host spends on the file, where that is plain."""
        return storage_held(self.file.fd) if self.may_prove else os.fstat(self.file.fd).st_blocks * _BLOCK

    def committed(self, start: int, end: int) -> array[int]:
        """The committed extents of ``[start, end)``, reserved pages included. Probes the host: not under the lock."""
        return self.probe(start, end)[0]

    def probe(self, start: int, end: int, *, reserved: bool = True) -> tuple[array[int], int]:
        """As :meth:`committed`, and the bytes in all; without *reserved* what was never touched may be missing."""
        found = self.hooks.memplat_probe_committed(file=self.file, start=start, end=end)
        extents, total = self._checked("memplat_probe_committed", found, start, end)
        if not reserved or not self.table.has_flags:  # read without the lock: what is reserved meanwhile is left out
            return extents, total
        with self.lock:
            flagged = self.table.flagged(pages.RESERVED, start, end)
        unseen = flat.subtract(flagged, extents)
        if unseen:
            extents = flat.union(extents, self.probe_reserved(flat.ranges(unseen)))
            total = flat.total(extents)
        return extents, total

    def probe_reserved(self, ranges: list[FileRange]) -> array[int]:
        """Which pages of *ranges* cost storage, although nobody may have touched them."""
        found = self.hooks.memplat_probe_reserved(file=self.file, ranges=ranges)
        return self._checked("memplat_probe_reserved", found, ranges[0].start, ranges[-1].end)[0]

    def _checked(self, hook: str, found: Sequence[int] | None, start: int, end: int) -> tuple[array[int], int]:
        try:
            extents = found if isinstance(found, array) and found.typecode == "q" else array("q", found or ())
        except (TypeError, OverflowError) as error:
            raise self.broken(hook, f"returned {found!r}, which is no flat array of offsets") from error
        if extents and extents[-1] % self.file.page_size and extents[-1] == os.fstat(self.file.fd).st_size <= end:
            extents[-1] = align_up(extents[-1], self.file.page_size)  # a peer has left the file with a ragged end
        total = flat.measure(extents, start, end, self.file.page_size)
        if isinstance(total, str):
            raise self.broken(hook, f"returned extents of [{start}, {end}) that are wrong: {total}")
        return extents, total

    def decommit_on_host(self, ranges: Sequence[FileRange]) -> None:
        """Have the backend decommit. Any exception means that nothing is known about the whole batch."""
        with self.lock:
            self.counters["decommit_calls"] += 1
        if not self.hooks.memplat_decommit(file=self.file, ranges=ranges):
            raise self.broken("memplat_decommit", "did not say True: no implementation has decommitted the pages")

    def zero_by_hand(self, ranges: Sequence[FileRange]) -> list[FileRange]:
        """Zero those pages that are committed, and return them. The others are zero; touching would commit them."""
        zeroed: list[FileRange] = []
        for pages_ in ranges:
            extents = self.committed(pages_.start, pages_.end)
            self.mapping.zero_all(extents)
            zeroed += flat.ranges(extents)
        return zeroed

    def note_decommitted_locked(self, ranges: Sequence[FileRange]) -> None:
        """Remember what was decommitted, for the scanner."""
        if self.decommitted is not None:
            self.decommitted.extend(ranges)
            if len(self.decommitted) > _MAX_LOGGED:
                self.decommitted = None

    def broken(self, hook: str, what: str) -> PluginError:
        """The error of a hook that breaks the contract."""
        return PluginError(f"backend {self.file.backend!r}: {hook} {what}", plugin=self.file.backend, hook=hook)


def host_error(error: OSError, what: str) -> HostError:
    """The host's refusal, in the words of this package."""
    return HostError(error.errno, f"{what}: {error.strerror or error}")


_states: dict[int, weakref.ref[EngineState]] = {}


def living() -> list[EngineState]:
    """Of all memories that are not finished."""
    return [state for reference in [*_states.values()] if (state := reference()) is not None]


def _after_fork() -> None:
    for state in living():
        state.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork)
