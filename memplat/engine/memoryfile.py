"""The memory: the façade over page table, mapping, allocator, scanner and reclaimer.

What every method promises stands in :class:`memplat.memory.Memory`; the locks and their order in
``memplat/engine/state.py``. Arguments are checked here, at the edge, and trusted inside.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from functools import partial
from types import TracebackType
from typing import Final, NoReturn, Self, SupportsIndex

import attrs

from memplat.engine import pages as states
from memplat.engine import registry
from memplat.engine.allocation import MAX_BLIND, Allocator
from memplat.engine.arguments import (
    ACCESSES,
    DIRECTIONS,
    KINDS,
    MAX_OFFSET,
    MEMBERS,
    MODES,
    check_raise,
    check_timeout,
    check_truth,
    choose,
    is_int,
    refuse_kind,
    refuse_length,
    refuse_owner,
)
from memplat.engine.blocks import MemoryBlock
from memplat.engine.commit import Scanner
from memplat.engine.hostio import HostIO
from memplat.engine.limits import check_transfer_locked
from memplat.engine.mapping import Mapping
from memplat.engine.measuring import Measuring
from memplat.engine.placement import Placement
from memplat.engine.prealloc import Progress, preallocate
from memplat.engine.reclaim import Reclaimer
from memplat.engine.refusals import reentrant
from memplat.engine.render import dump
from memplat.engine.sharing import Shares
from memplat.engine.sparse import SPARSE_BYTES, free_sparse_locked
from memplat.engine.state import EngineState, host_error
from memplat.errors import InvalidArgumentError, InvalidRangeError
from memplat.hookspecs import BackendHooks
from memplat.linux import extents as flat
from memplat.linux import shmem, system
from memplat.memory import AddressSpace, Block, Buffer, Fill
from memplat.ranges import Address, FileRange, align_up
from memplat.sharing import Handle
from memplat.types import (
    MAX_OWNER,
    Access,
    AllocationMode,
    AllocationRequest,
    BackingFile,
    Direction,
    EngineOptions,
    MemoryKind,
    PageInfo,
    SelectedBackend,
)
from memplat.wording import shown

_UNCOMMITTED: Final = AllocationMode.UNCOMMITTED
_WILL_COMMIT: Final = AllocationMode.WILL_COMMIT
_UP: Final = Direction.UP
_STRAY_ROUNDS: Final = 4


class MemoryFile(Measuring):
    """A :class:`~memplat.memory.Memory` on a backing file. Takes the file over, also if the constructor fails."""

    def __init__(
        self,
        file: BackingFile,
        hooks: BackendHooks,
        backend: SelectedBackend,
        options: EngineOptions,
        manager_owner: object | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._owner = manager_owner  # keeps the plugins alive
        # Where giving pages back would break the promise (hugetlb), what was never promised is a signal: promise it.
        self._modes = MODES if backend.info.decommit_releases else {**MODES, "uncommitted": AllocationMode.RESERVED}
        self._default_mode = self._modes[options.default_mode or backend.info.default_mode]
        try:
            mapping = Mapping(options.max_size, file.page_size, Placement(file, options), shmem.owner(file.fd))
        except BaseException:
            hooks.memplat_close_file(file=file)
            raise
        self.backend = backend = attrs.evolve(backend, notes=(*backend.notes, *mapping.notes))
        self._mapping = mapping
        state = EngineState(file, hooks, backend, options, mapping)
        super().__init__(state, Scanner(state))
        file.address, file.is_private = mapping.base, True
        self._reclaimer = Reclaimer(state)
        self._io = HostIO(state)
        self._allocator = Allocator(state, self._reclaimer, self._io.write)
        self._shares = Shares(state)
        state.memory = weakref.ref(self)
        self._finalizer = weakref.finalize(self, _abandon, state, self._reclaimer)
        self._finalizer.atexit = False  # the kernel tidies up; daemon threads may still be in the middle of calls
        try:
            # IMA measures a file when it is first mapped executable: let that be now, not at a terabyte of holes.
            self._io.settle_ima()
            preallocate(self._allocator, state, progress)
        except BaseException:
            self.close()
            raise
        registry.register(self)

    # -- allocating ---------------------------------------------------------------------------------------------------

    def round_up(self, length: int) -> int:
        """See :meth:`Memory.round_up`."""
        if self._state.refuse is not None:
            raise self._state.refuse()
        if not is_int(length) or not 0 < length <= MAX_OFFSET - self.page_size:
            refuse_length(length, self.page_size)
        return align_up(length, self.page_size)

    def raise_max_size(self, max_size: int) -> None:
        """See :meth:`Memory.raise_max_size`."""
        state = self._state
        with state.locked():
            check_raise(max_size, state.max_size, self._mapping.length, self.page_size)
            state.max_size = max_size

    def allocate(
        self,
        length: int,
        *,
        kind: MemoryKind | str = "anonymous",
        owner: int = 0,
        mode: AllocationMode | str | None = None,
        direction: Direction | str = Direction.UP,
        huge: bool = False,
        fill: Fill | None = None,
    ) -> FileRange:
        """See :meth:`Memory.allocate`."""
        if type(length) is not int or length & self._page_mask or not 0 < length <= MAX_OFFSET:
            refuse_length(length, self.page_size)
        try:
            name = KINDS[kind]
        except (KeyError, TypeError):
            refuse_kind(kind)
        if type(owner) is not int or not 0 <= owner <= MAX_OWNER:
            refuse_owner(owner)
        chosen = self._default_mode if mode is None else choose(self._modes, mode, "mode")
        way = _UP if direction is _UP else choose(DIRECTIONS, direction, "direction")
        if huge is not False:
            huge = check_truth(huge, "huge")
        state = self._state
        if state.is_interrupted():
            raise reentrant()
        if chosen is _UNCOMMITTED and fill is None and not huge and not state.exposed:
            with state.lock:
                table = state.table
                if state.refuse is not None or table.torn or state.dropped:
                    state.check_locked()
                limited = owner in state.limits
                taken = None if limited else table.allocate(length, name, owner, down=way is not _UP)
            if state.dropped:
                state.catch_up()
            if taken is not None:
                return taken
        elif chosen is _WILL_COMMIT and fill is None and not huge and length <= MAX_BLIND and owner not in state.limits:
            taken = self._allocator.recycle(length, name, owner, down=way is not _UP)
            if taken is not None:
                return taken
        if length > state.max_size and length > MAX_OFFSET - self.page_size:
            refuse_length(length, self.page_size)
        request = AllocationRequest(
            length=length,
            kind=MEMBERS[name],
            owner=owner,
            mode=chosen,
            direction=way,
            huge=huge,
        )
        return self._allocator.allocate(request, fill)

    def block(
        self,
        length: int,
        *,
        kind: MemoryKind | str = "anonymous",
        owner: int = 0,
        mode: AllocationMode | str | None = None,
        direction: Direction | str = Direction.UP,
        huge: bool = False,
        fill: Fill | None = None,
    ) -> MemoryBlock:
        """See :meth:`Memory.block`."""
        taken = self.allocate(length, kind=kind, owner=owner, mode=mode, direction=direction, huge=huge, fill=fill)
        return MemoryBlock(self, taken)

    # -- references ---------------------------------------------------------------------------------------------------

    def incref(self, pages: FileRange | Block) -> None:
        """See :meth:`Memory.incref`."""
        state = self._state
        if state.is_interrupted():
            raise reentrant()
        with state.lock:
            table = state.table
            if state.refuse is not None or table.torn or state.dropped:
                state.check_locked()
            table.incref(*self._pages(pages))
        if state.dropped:
            state.catch_up()

    def decref(self, pages: FileRange | Block) -> None:
        """See :meth:`Memory.decref`."""
        state = self._state
        reclaimer = self._reclaimer
        if state.is_interrupted():
            state.dropped.append((*self._pages(pages), True))
            return
        with state.lock:
            table = state.table
            if state.refuse is not None or table.torn or state.dropped:
                state.check_locked()
            start, end = self._pages(pages)
            table.decref(start, end)
            if end - start >= SPARSE_BYTES:
                free_sparse_locked(state, start, end)
            if table.waste >= reclaimer.wake_at:
                reclaimer.wake_locked()
        if reclaimer.needs_thread:
            reclaimer.ensure_thread()
        if state.dropped:
            state.catch_up()

    def has_unique_ref(self, pages: FileRange | Block) -> bool:
        """See :meth:`Memory.has_unique_ref`."""
        return self.first_shared_range(pages) is None

    def first_shared_range(self, pages: FileRange | Block) -> FileRange | None:
        """See :meth:`Memory.first_shared_range`."""
        with self._state.locked() as table:
            start, end = self._pages(pages)
            table.require(start, end, "looking for shared pages")
            return table.first_shared(start, end)

    def inspect(self, offset: int) -> PageInfo:
        """See :meth:`Memory.inspect`."""
        with self._state.locked() as table:
            if not is_int(offset) or not 0 <= offset < table.size:
                raise InvalidRangeError(
                    f"offset {shown(offset)} is outside of the file; allowed is 0 to {table.size - 1}"
                )
            return table.inspect(offset)

    def transfer(self, pages: FileRange | Block, owner: int) -> None:
        """See :meth:`Memory.transfer`."""
        if type(owner) is not int or not 0 <= owner <= MAX_OWNER:
            refuse_owner(owner)
        with self._state.locked() as table:
            start, end = self._pages(pages)
            if owner in self._state.limits:
                check_transfer_locked(self._state.limits, table, start, end, owner)
            table.transfer(start, end, owner)

    # -- content ------------------------------------------------------------------------------------------------------

    def decommit(self, pages: FileRange | Block, *, release: bool = False) -> int:
        """See :meth:`Memory.decommit`."""
        state = self._state
        release = check_truth(release, "release")
        with self._held(pages, "decommit", page_aligned=True) as held, state.gate:
            try:
                before = flat.total(state.committed(*held))
                if not release and not state.backend.info.decommit_releases:
                    state.zero_by_hand([held])
                    return 0
                with state.lock:  # before: whatever comes in between, they may not be reserved any more
                    state.table.flag(*held, states.NONE)
                try:
                    state.decommit_on_host([held])
                except Exception:  # noqa: BLE001 -- whatever it was: the pages have to be zero
                    state.zero_by_hand([held])
                finally:
                    with state.lock:
                        state.note_decommitted_locked([held])
                return max(0, before - flat.total(state.committed(*held)))
            except OSError as error:
                raise host_error(error, f"decommit of {held}") from error

    def view(self, range: FileRange | Block, *, writable: bool = True, pin: bool = True) -> memoryview:
        """See :meth:`Memory.view`."""
        state = self._state
        writable = check_truth(writable, "writable")
        if not check_truth(pin, "pin"):
            return self._unpinned_view(range, writable)
        if state.is_interrupted():
            raise reentrant()
        with state.lock:
            table = state.table
            if state.refuse is not None or table.torn or state.dropped:
                state.check_locked()
            start, end = self._bytes(range)
            first, last = start & ~self._page_mask, (end + self._page_mask) & ~self._page_mask
            table.pin(first, last, "view")
            try:
                release = partial(state.view_dropped, first, last)
                view = self._mapping.view(start, end, writable=writable, release=release)
            except BaseException:
                table.unpin(first, last)
                raise
        if state.dropped:
            state.catch_up()
        if self._reclaimer.needs_thread:
            self._reclaimer.ensure_thread()  # a dying view cannot start it
        return view

    def _unpinned_view(self, range: FileRange | Block, writable: bool) -> memoryview:
        state = self._state
        if state.is_forked:  # no lock is needed: the child has its own copy of everything, and only looks
            return self._mapping.view(*self._bytes(range), writable=writable)
        with state.locked() as table:
            start, end = self._bytes(range)
            table.require(*self._around(start, end), "view")
            state.exposed = state.exposed or writable
            return self._mapping.view(start, end, writable=writable)

    def read(self, range: FileRange | Block) -> bytes:
        """See :meth:`Memory.read`."""
        with self._held(range, "read", page_aligned=False) as held:
            return self._io.read(*held)

    def write(self, range: FileRange | Block, data: Buffer) -> None:
        """See :meth:`Memory.write`."""
        try:
            source = memoryview(data).cast("B")
        except TypeError:
            raise InvalidArgumentError(f"data {type(data).__name__} is no contiguous buffer of bytes") from None
        with self._held(range, "write", page_aligned=False) as held:
            if len(source) > held.length:
                raise InvalidArgumentError(f"data has {len(source)} bytes, {held} only {held.length}")
            try:
                self._io.write(held.start, source)
            except OSError as error:
                raise host_error(error, f"write to {held}") from error

    def address(self, pages: FileRange | Block) -> int:
        """See :meth:`Memory.address`."""
        # Whoever has the address may write to free pages, and have the kernel remove used ones (MADV_REMOVE).
        with self._exposing() as table:
            start, end = self._pages(pages)
            table.require(start, end, "address")
            return self._mapping.base + start

    def map_into(
        self, space: AddressSpace, addr: int, pages: FileRange | Block, access: Access | str, *, precommit: bool = False
    ) -> None:
        """See :meth:`Memory.map_into`."""
        chosen = choose(ACCESSES, access, "access")
        if not is_int(addr) or addr < 0 or addr & (system.PAGE_SIZE - 1) or addr >= 1 << 64:
            raise InvalidArgumentError(
                f"addr {shown(addr)} is no address to map at; allowed are multiples of {system.PAGE_SIZE} below 2**64"
            )
        if not callable(getattr(space, "map_file", None)):
            raise InvalidArgumentError(f"{shown(space)} is no address space: it has no map_file")
        with self._state.locked() as table:
            start, end = self._pages(pages)
            table.incref(start, end)
        try:
            where = Address(int.__index__(addr))  # of a subclass, too: no arithmetic of its own
            space.map_file(where, self, FileRange(start, end), chosen, check_truth(precommit, "precommit"))
        except BaseException:
            self.decref(FileRange(start, end))
            raise

    def share(
        self, pages: FileRange | Block, *, writable: bool = False, trusted: bool = False, expires: float = 60.0
    ) -> Handle:
        """See :meth:`Memory.share`."""
        seconds = check_timeout(expires, "expires")
        writes, trusts = check_truth(writable, "writable"), check_truth(trusted, "trusted")
        self.incref(pages)
        shared = pages if type(pages) is FileRange else self._range_of(pages)
        return self._shares.share(self, shared, writable=writes, trusted=trusts, expires=seconds)

    # -- figures ------------------------------------------------------------------------------------------------------

    def total_size(self) -> int:
        """See :meth:`Memory.total_size`."""
        with self._state.locked() as table:
            return table.size

    # -- giving back --------------------------------------------------------------------------------------------------

    def reclaim(self, max_bytes: int | None = None) -> int:
        """See :meth:`Memory.reclaim`."""
        if max_bytes is not None and (not is_int(max_bytes) or max_bytes < 0):
            raise InvalidArgumentError(f"max_bytes {shown(max_bytes)} is no number of bytes; allowed are 0 and more")
        with self._state.locked():
            pass  # refuses, and settles what views left behind
        try:
            done = self._reclaimer.reclaim_all(max_bytes, retry=True)
            if max_bytes is None and not self._state.in_hook():
                done += self._reclaim_strays()
        except OSError as error:
            raise host_error(error, "reclaim") from error
        return done

    def _reclaim_strays(self) -> int:
        """What the host has put into free pages, if it shows in the total: found by a scan, and given back."""
        done = 0
        for _ in range(_STRAY_ROUNDS):  # khugepaged may be faster
            with self._state.in_flight():
                if not self._reclaimer.sees_strays():
                    break
            self.update_usage()
            more = self._reclaimer.reclaim_all()
            if not more:
                break
            done += more
        return done

    def wait_reclaimed(self, timeout: float | None = None) -> bool:
        """See :meth:`Memory.wait_reclaimed`."""
        return self._reclaimer.wait(None if timeout is None else check_timeout(timeout, "timeout"))

    def fileno(self) -> int:
        """See :meth:`Memory.fileno`."""
        with self._exposing():  # whoever has the descriptor may write to free pages, and punch used ones
            return self._state.file.fd

    def flush(self) -> None:
        """See :meth:`Memory.flush`."""
        with self._state.in_flight():
            self._io.flush()

    def dump(self) -> str:
        """See :meth:`Memory.dump`."""
        with self._state.locked():
            return dump(self._state)

    def close(self) -> None:
        """See :meth:`Memory.close`."""
        state = self._state
        if sys.is_finalizing() and state.is_stuck():
            return
        ours = not state.is_forked
        self._shares.close()
        if not state.close():
            return
        in_hook = state.in_hook()
        self._finalizer.detach()
        registry.forget(self)
        self._reclaimer.stop(join=not in_hook)
        if not ours:
            return
        left = sum(state.table.allocated.values())
        if left:
            warnings.warn(f"{self!r} was closed with {left} bytes still referenced", ResourceWarning, stacklevel=2)
        state.hooks.memplat_memory_closed(memory=self)

    def __enter__(self) -> Self:
        if self._state.refuse is not None:
            raise self._state.refuse()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Also what :func:`copy.copy` calls: two memories would keep books of the one file."""
        raise TypeError(
            "a memory cannot be copied or pickled: pass the memory itself, or send the handle that its share() makes "
            "to another process"
        )

    def _check(self) -> None:
        """Assert the invariants of the page table. O(segments)."""
        with self._state.lock:
            self._state.table._check()

    def __repr__(self) -> str:
        refuse = self._state.refuse
        what = "open" if refuse is None else refuse.__name__
        return f"<memory {self.backend.name} {what}, {self._state.table.size} bytes>"


def _abandon(state: EngineState, reclaimer: Reclaimer) -> None:
    """The memory was dropped without close. Runs in the garbage collector: waits for nothing."""
    state.abandon()
    if not reclaimer.stop(join=False):
        state.finish()
