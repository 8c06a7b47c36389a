"""Committing pages before anybody asks for them: the option ``prealloc``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

from memplat.engine import pages
from memplat.engine.allocation import Allocator
from memplat.engine.state import EngineState
from memplat.linux import shmem
from memplat.linux.headroom import require_headroom
from memplat.ranges import MIB, FileRange, align_down, align_up
from memplat.types import AllocationMode, AllocationRequest, Direction, MemoryKind

#: Called with the bytes that are committed by now, and with those that shall be.
Progress = Callable[[int, int], object]

#: What is populated by one call: 20 ms of work, so that progress is seen and an interrupt is heard.
_STEP: Final = 32 * MIB


def preallocate(allocator: Allocator, state: EngineState, progress: Progress | None = None) -> None:
    """Commit ``prealloc`` bytes of free pages with ``prealloc_threads`` threads, and flag them as kept.

    *progress* is called in the calling thread; an exception from it ends the work and propagates.

    :raises OutOfMemory: if the host cannot commit so much
    """
    length = align_down(state.options.prealloc, state.file.page_size)
    if not length:
        return
    reserves = state.backend.info.default_mode is AllocationMode.RESERVED
    request = AllocationRequest(
        length=length,
        kind=MemoryKind.SYSTEM,
        owner=0,
        mode=AllocationMode.RESERVED if reserves else AllocationMode.UNCOMMITTED,
        direction=Direction.UP,
        huge=False,
    )
    taken = allocator.allocate(request, None)
    try:
        if not reserves and shmem.is_shmem(state.file.fd):
            require_headroom(length)
        _populate(state, taken, progress)
    except BaseException as error:
        with state.lock:
            state.table.decref(*taken)
        if isinstance(error, OSError):
            raise allocator.out_of_memory(request, error) from error
        raise
    with state.gate, state.lock:
        state.table.decref(*taken)
        state.table.release(state.table.take_waste(length))
        state.table.flag(*taken, pages.KEPT)


def _populate(state: EngineState, taken: FileRange, progress: Progress | None) -> None:
    """Make all pages present. When this returns or raises, no thread is at work any more.

    :raises OSError: the host cannot supply a page
    """
    step = align_up(_STEP, state.file.page_size)
    parts = [FileRange(start, min(start + step, taken.end)) for start in range(*taken, step)]
    done = 0

    def finished(part: FileRange) -> None:
        nonlocal done
        done += part.length
        if progress is not None:
            progress(done, taken.length)

    threads = min(state.options.prealloc_threads, len(parts))
    if threads == 1:
        for part in parts:
            state.mapping.populate(*part)
            finished(part)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="memplat-prealloc") as executor:
        _run(executor, threads, state, parts, finished)


def _run(
    executor: ThreadPoolExecutor,
    threads: int,
    state: EngineState,
    parts: list[FileRange],
    finished: Callable[[FileRange], None],
) -> None:
    """As many parts at a time as there are threads, so that an error leaves little to wait for."""
    waiting = iter(parts)

    def submit(part: FileRange) -> tuple[Future[None], FileRange]:
        return executor.submit(state.mapping.populate, *part), part

    running = dict(map(submit, itertools.islice(waiting, threads)))
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            part = running.pop(future)
            future.result()
            running |= map(submit, itertools.islice(waiting, 1))
            finished(part)


__all__ = ["Progress", "preallocate"]
