"""Small things that the engine's tests share. They look at a memory only through its contract."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from memplat.memory import Memory
from memplat.ranges import FileRange
from memplat.types import Usage
from tests.oracle import PAGE, Observer, positive, tasks

KIB = 1024
MIB = 1024 * KIB
HUGE = 2 * MIB

#: How long a test waits before it calls something a hang. Nothing is asserted about times below it.
HANG_SECONDS = 30.0

T = TypeVar("T")


def pages_at(page: int, count: int = 1) -> FileRange:
    """The range of *count* pages that begins with page number *page*."""
    return FileRange(page * PAGE, (page + count) * PAGE)


def part(pages: FileRange, first: int, count: int = 1) -> FileRange:
    """The range of *count* pages that begins *first* pages into *pages*."""
    start = pages.start + first * PAGE
    return FileRange(start, start + count * PAGE)


def check(memory: Memory) -> None:
    """The engine's own O(n) consistency check."""
    memory._check()  # type: ignore[attr-defined]


def snapshot(memory: Memory) -> tuple[str, Usage]:
    """Everything that a refused call must leave as it was."""
    return memory.dump(), memory.usage()


@contextlib.contextmanager
def unchanged(memory: Memory) -> Iterator[None]:
    """The state of *memory* has to be the same afterwards."""
    before = snapshot(memory)
    size = memory.total_size()
    yield
    check(memory)
    assert snapshot(memory) == before
    assert memory.total_size() == size


def close_with_leftovers(memory: Memory) -> None:
    """Close a memory that still has references or live views, which a ResourceWarning may tell of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        memory.close()


def idle(usage: Usage) -> int:
    """Committed bytes that nobody holds."""
    return usage.waste + usage.retained + usage.free_committed


def committed(memory: Memory) -> dict[str, int]:
    """Committed bytes by kind, probed now, without zeros; the sum rule is checked on the way."""
    usage = memory.update_usage()
    assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total, usage
    return positive(usage.committed)


def allocated(memory: Memory) -> int:
    """Allocated bytes of all kinds."""
    return sum(memory.update_usage().allocated.values())


def is_zero(memory: Memory, pages: FileRange) -> bool:
    """Whether the pages read as zero, looked at with a descriptor of the test's own."""
    with Observer(memory.fileno()) as observer:
        return observer.is_zero(pages.start, pages.end - pages.start)


def write_all(memory: Memory, pages: FileRange, byte: int = 0xA5) -> None:
    """Make every byte of *pages* dirty."""
    memory.write(pages, bytes([byte]) * pages.length)


def stateful_layout(memory: Memory) -> list[tuple[int, int, str]]:
    """The states of all pages of the file, as runs: walked with ``inspect``."""
    layout: list[tuple[int, int, str]] = []
    offset, size = 0, memory.total_size()
    while offset < size:
        info = memory.inspect(offset)
        assert info.pages.start == offset, f"inspect({offset}) begins elsewhere: {info}"
        assert info.pages.end > offset, info
        layout.append((info.pages.start, info.pages.end, str(info.state)))
        offset = info.pages.end
    return layout


def within(call: Callable[[], T], seconds: float = HANG_SECONDS) -> T:
    """The result of *call*, run in a thread of its own; a hang fails the test instead of the whole run."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="within")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        raise AssertionError(f"hangs for more than {seconds} s; the stacks are on stderr")
    if failure:
        raise failure[0]
    result: T = outcome[0]
    return result


def until(condition: Callable[[], bool]) -> None:
    """Yield the processor until *condition* holds: for what the kernel finishes after the call that began it."""

    def spin() -> None:
        while not condition():
            os.sched_yield()

    within(spin)


def threads_ended(count: int) -> None:
    """Wait until the kernel has no more than *count* threads of this process; a joined one may still be on its way."""
    until(lambda: tasks() <= count + 1)  # one is the thread that looks


def together(*calls: Callable[[], object], seconds: float = HANG_SECONDS) -> None:
    """Run *calls* at the same time, one thread each, and raise the first error of any of them."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        try:
            barrier.wait()
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    if any(thread.is_alive() for thread in threads):
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        raise AssertionError(f"a thread hangs for more than {seconds} s; the stacks are on stderr")
    if failures:
        raise failures[0]


def waiters(memory: Memory) -> int:
    """How many threads wait for a scan."""
    return len(memory._scanner._turn._waiters)  # type: ignore[attr-defined]


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start *call*; the list gets its result."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()
    return thread, result
