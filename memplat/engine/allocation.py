"""Allocating: finding room, growing the file, and keeping what the mode promises about touching the pages."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import IO, Final

from memplat.engine import pages
from memplat.engine.limits import over_limit_locked
from memplat.engine.reclaim import Reclaimer
from memplat.engine.state import EngineState, host_error
from memplat.errors import InvalidArgumentError, OutOfMemory
from memplat.linux import shmem
from memplat.linux.headroom import require_headroom
from memplat.memory import Fill
from memplat.ranges import GIB, MIB, FileRange, align_up, format_size
from memplat.types import AllocationMode, AllocationRequest, Direction

FIRST_GROWTH: Final = 16 * MIB
MAX_GROWTH: Final = 1 * GIB
_FILL_STEP: Final = 1 * MIB
#: Waste up to this length is made present and zeroed without asking what of it is committed.
MAX_BLIND: Final = 2 * MIB

_RECYCLING: Final = (AllocationMode.WILL_COMMIT, AllocationMode.COMMITTED)


class Allocator:
    """Everything about an allocation that is not one look into the page table."""

    def __init__(self, state: EngineState, reclaimer: Reclaimer, write: Callable[[int, memoryview], None]) -> None:
        self._state = state
        self._reclaimer = reclaimer
        self._write = write
        self._growing = threading.RLock()  # re-entrant only to know its owner
        self._asking = threading.local()
        # Where the backend's safe default is RESERVED, populating alone does not keep a touch from failing later.
        self._reserves_first = state.backend.info.default_mode is AllocationMode.RESERVED
        self._in_memory = shmem.is_shmem(state.file.fd)

    def allocate(self, request: AllocationRequest, fill: Fill | None) -> FileRange:
        """Allocate pages that are ready for use, or raise and leave everything as it was."""
        source = _source(fill, request.length)
        taken, unknown = self._take(request)
        state = self._state
        try:
            self._prepare(request, taken, unknown)
            if source is not None:
                self._fill(source, taken)
        except BaseException:
            with state.lock:
                state.table.decref(*taken)
                state.wake()
            raise
        finally:
            state.leave()
        return taken

    def recycle(self, length: int, kind: str, owner: int, *, down: bool) -> FileRange | None:
        """Waste that the caller is about to write, zeroed; ``None`` if there is none or the host is short of memory."""
        state = self._state
        with state.lock:
            table = state.table
            if state.refuse is not None or table.torn or state.dropped:
                state.check_locked()
            taken = table.allocate(length, kind, owner, down=down, source=pages.WASTE)
            if taken is None:
                return None
            state.counters["recycled_bytes"] += length
            state.enter_locked()
        try:
            state.mapping.zero(*taken)
        except BaseException as error:
            with state.lock:
                state.table.decref(*taken)
                state.wake()
            if isinstance(error, OSError):
                return None  # the long way reclaims, and tries again
            raise
        finally:
            state.leave()
        return taken

    # -- finding pages ------------------------------------------------------------------------------------------------

    def _take(self, request: AllocationRequest) -> tuple[FileRange, bool]:
        """Pages with one reference, and whether their content is unknown. Enters the call into flight."""
        state = self._state
        # The waste of a huge page stays committed until all of it is waste: using it again costs nothing.
        recycle = request.huge or request.mode in _RECYCLING
        down = request.direction is Direction.DOWN
        wanted = request.length, str(request.kind), request.owner
        lowest: int | None = None
        while True:
            with state.lock:
                state.check_locked()
                table = state.table
                over = self._over_limit_locked(request)
                taken = None
                if recycle and over is None:
                    taken = table.allocate(*wanted, down=down, huge=request.huge, source=pages.WASTE)
                unknown = taken is not None
                if taken is None and over is None:
                    taken = table.allocate(*wanted, down=down, huge=request.huge)
                if taken is not None:
                    if unknown:
                        state.counters["recycled_bytes"] += request.length
                    state.enter_locked()
                    return taken, unknown or state.exposed
                size, busy = table.size, table.size - table.free_bytes()
            if over is not None:
                if not state.collect():
                    self._ask_or_raise(request, over)
                continue
            cause = self._grow_or_borrow(request, size)
            if cause is None:
                continue
            # Rounds go on for as long as each leaves less in use than any before: other threads that allocate what we
            # free, or a hook that takes back what it gave, must not keep this from coming to an end.
            if lowest is not None and busy >= lowest:
                raise self.out_of_memory(request, cause) from (cause if isinstance(cause, OSError) else None)
            lowest = busy
            state.collect()
            if not self._reclaimer.make_room():
                self._ask(request)

    def _over_limit_locked(self, request: AllocationRequest) -> OutOfMemory | None:
        limits = self._state.limits
        if request.owner not in limits:
            return None
        what = _what(request)
        return over_limit_locked(limits, self._state.table, request.owner, request.length, what)

    def _ask_or_raise(self, request: AllocationRequest, over: OutOfMemory) -> None:
        """A limit forbids it: reclaim does not help, but the user's hook may. Once, if it did not free enough."""
        if not self._ask(request):
            raise over
        state = self._state
        with state.lock:
            still = self._over_limit_locked(request)
        if still is not None and (still.used or 0) >= (over.used or 0):
            raise still

    def _grow_or_borrow(self, request: AllocationRequest, seen_size: int) -> OSError | str | None:
        """Get pages that are not there yet: of the host, or of the other pool. Why not, or ``None``: look again."""
        state = self._state
        cause: OSError | str = "max_size"
        try:
            if self._grow(request, seen_size):
                return None
        except OSError as error:
            cause = error
        with state.lock:
            state.check_locked()
            return None if state.table.borrow(request.length, huge=request.huge) else cause

    def _ask(self, request: AllocationRequest) -> bool:
        """Ask the user's hook to free something; whether it has."""
        state = self._state
        memory = state.memory() if state.memory is not None else None
        if memory is None or getattr(self._asking, "now", False):
            return False  # never nested
        frees = state.table.frees
        self._asking.now = True
        try:
            said = state.hooks.memplat_out_of_memory(memory=memory, request=request)
        finally:
            self._asking.now = False
        if not said or state.table.frees == frees:
            return False
        self._reclaimer.make_room()
        return True

    def out_of_memory(self, request: AllocationRequest, cause: OSError | str) -> OutOfMemory:
        """The error of an allocation that could not be met, with the figures."""
        state = self._state
        with state.lock:
            table = state.table
            used = sum(table.allocated.values())
            rest = (
                f"of {format_size(table.size)} in the file {format_size(used)} are in use, "
                f"{format_size(table.free_bytes())} free (longest run {format_size(table.largest_free())}), "
                f"{format_size(table.waste)} waste"
            )
        what = _what(request)
        if isinstance(cause, OSError):
            return OutOfMemory(f"{what}: the host refused ({cause}); {rest}", requested=request.length)
        return OutOfMemory(
            f"{what} within max_size, {state.max_size} ({format_size(state.max_size)}): {rest}; raise it or free pages",
            requested=request.length,
            limit=state.max_size,
            used=used,
        )

    # -- growing ------------------------------------------------------------------------------------------------------

    def _grow(self, request: AllocationRequest, seen_size: int) -> bool:
        """Make the file larger. True: look again; False: ``max_size`` forbids it.

        :raises OSError: the host forbids it
        """
        state = self._state
        if self._growing._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 -- a hook of growth allocates
            return False
        with self._growing:
            with state.lock:
                state.check_locked()
                size = state.table.size
                if size != seen_size:
                    return True  # somebody else has grown it meanwhile
                unit = state.table.huge_unit
                tail = state.table.tail(huge=request.huge)
                needed = (align_up(tail, unit) if request.length >= unit else tail) + request.length
                if needed > state.max_size:
                    return False
                state.enter_locked()
            try:
                self._grow_to(self._target(size, needed), needed, huge=request.huge)
            finally:
                state.leave()
            return True

    def _target(self, size: int, needed: int) -> int:
        """How far to grow: 16 MiB first, doubling, at most 1 GiB at a time, and as far as is needed."""
        target = max(needed, FIRST_GROWTH, size + min(size, MAX_GROWTH))
        target = min(align_up(target, self._state.table.huge_unit), self._state.max_size)
        return self._state.mapping.placement.reach(size, needed, target)

    def _grow_to(self, target: int, needed: int, *, huge: bool) -> None:
        state, file = self._state, self._state.file
        size = file.size
        # What a peer has put beyond our end is not zero: it comes in as waste.
        dirty_end = os.fstat(file.fd).st_size
        try:
            done = state.hooks.memplat_grow(file=file, size=target)
        except OSError as error:
            if target == needed and not isinstance(error, InterruptedError):
                raise
            target = needed
            done = state.hooks.memplat_grow(file=file, size=target)
        if not done or os.fstat(file.fd).st_size < target:
            raise state.broken("memplat_grow", f"did not make the file {target} bytes long")
        state.mapping.map_part(file.fd, size, target)
        if not state.options.core_dump:
            state.mapping.exclude_from_core_dumps(size, target)
        state.hooks.memplat_mapped(file=file, start=size, end=target)
        with state.lock:
            state.table.extend(target, huge=huge, dirty_end=align_up(dirty_end, file.page_size))
            file.size = target
            if state.table.waste:
                state.wake()

    # -- making pages ready -------------------------------------------------------------------------------------------

    def _prepare(self, request: AllocationRequest, taken: FileRange, unknown: bool) -> None:
        counters = self._state.counters
        while True:
            reclaimed = counters["reclaimed_bytes"]
            try:
                self._keep_promise(request.mode, taken, unknown)
                return
            except OSError as error:
                self._state.collect()
                # What another thread has given back since then is no waste any more, and enough perhaps.
                if counters["reclaimed_bytes"] == reclaimed and not self._find_backing(request):
                    raise self.out_of_memory(request, error) from error

    def _find_backing(self, request: AllocationRequest) -> bool:
        """Have the host get something back: waste, what is kept, what the user can do without. Whether it has."""
        return self._reclaimer.make_room() or self._reclaimer.give_up_kept() or self._ask(request)

    def _keep_promise(self, mode: AllocationMode, taken: FileRange, unknown: bool) -> None:
        """Make the pages zero, and as reserved or committed as *mode* says.

        :raises OSError: the host is short of memory
        """
        state = self._state
        committed = mode is AllocationMode.COMMITTED
        reserved = mode is AllocationMode.RESERVED or state.reserves_always or (committed and self._reserves_first)
        if reserved and not self._is_reserved(taken):
            if not state.hooks.memplat_reserve(file=state.file, ranges=[taken]):
                raise state.broken("memplat_reserve", "did not say True: no implementation has reserved the pages")
            with state.lock:
                state.table.flag(*taken, pages.RESERVED)
        there = 0
        if unknown and mode in _RECYCLING and taken.length <= MAX_BLIND:
            state.mapping.zero(*taken)
            there = taken.length
        elif unknown:
            there = sum(zeroed.length for zeroed in state.zero_by_hand([taken]))
        if committed:
            if not reserved and self._in_memory:
                require_headroom(taken.length - there)
            state.mapping.populate(*taken)

    def _is_reserved(self, taken: FileRange) -> bool:
        """Whether the pages are reserved still, from when they were used before."""
        state = self._state
        if not state.stays_reserved or state.peers:
            return False
        with state.lock:
            return state.table.flagged(pages.RESERVED, *taken).tolist() == [*taken]

    def _fill(self, source: memoryview | IO[bytes], taken: FileRange) -> None:
        """Copy *source* to the front of the pages; a reader that ends early leaves zeros."""
        if isinstance(source, memoryview):
            self._store(taken.start, source)
            return
        offset = taken.start
        while offset < taken.end:
            wanted = min(_FILL_STEP, taken.end - offset)
            data = source.read(wanted)
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise InvalidArgumentError(f"fill: read({wanted}) gave {data!r}; allowed is a blocking binary reader")
            if len(data) > wanted:
                raise InvalidArgumentError(f"fill: read({wanted}) returned {len(data)} bytes")
            if not data:
                return
            self._store(offset, memoryview(data))
            offset += len(data)

    def _store(self, offset: int, data: memoryview) -> None:
        try:
            self._write(offset, data)
        except OSError as error:
            raise host_error(error, f"fill at {offset}") from error


def _what(request: AllocationRequest) -> str:
    return f"cannot allocate {request.length} bytes ({request.kind}, owner {request.owner}, {request.mode})"


def _source(fill: Fill | None, length: int) -> memoryview | IO[bytes] | None:
    """*fill* as something to copy from.

    :raises InvalidArgumentError: neither buffer nor reader, or longer than the range
    """
    if fill is None:
        return None
    if callable(getattr(fill, "read", None)):
        return fill  # type: ignore[return-value]  # whatever it reads is checked
    try:
        view = memoryview(fill).cast("B")  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(
            f"fill {type(fill).__name__} is no source; allowed are a contiguous buffer or a binary reader"
        ) from None
    if len(view) > length:
        raise InvalidArgumentError(f"fill has {len(view)} bytes, the range only {length}; allocate more or pass less")
    return view
