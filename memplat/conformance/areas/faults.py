"""Faults: a call of the host that fails, or is interrupted, leaves everything as it was."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.observer import descriptors
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.errors import MemplatError, OutOfMemory
from memplat.ranges import MIB, FileRange
from memplat.types import AllocationMode, Capability

_TICK_SECONDS: Final = 0.001
_SIGNALS: Final = 50
_INTERRUPTED_ROUNDS: Final = 4
_INTERRUPTED_BYTES: Final = 64 * MIB
#: How many further descriptors an opening is allowed, in turn.
_ALLOWED_DESCRIPTORS: Final = range(4)


@check("FAULT-01", rule="16.1", after="GROW-01 GROW-04 VIEW-02")
def growth_that_the_host_refuses_changes_nothing(case: Case) -> None:
    """memplat_grow has to raise the OSError of the host, and to leave the file as long as it was."""
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, 1)
    case.fill(memory, pages)
    size, told = observer.stat().st_size, memory.total_size()
    wanted = told // memory.page_size + 1
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + MIB, hard))  # setrlimit(2); Python ignores SIGXFSZ
    try:
        case.allocate(memory, wanted)
    except OutOfMemory:
        pass
    else:
        case.skip("the limit on the size of files (RLIMIT_FSIZE) does not hold for this file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    now = observer.stat().st_size, memory.total_size()
    expect(now == (size, told), f"growing failed; the file had {size} bytes and has {now[0]}, the memory says {now[1]}")
    expect(case.filled(memory, pages), "growing failed, and the content of the file has changed")
    later = case.allocate(memory, wanted)
    last = FileRange(later.end - memory.page_size, later.end)
    case.fill(memory, last)
    expect(case.filled(memory, last), "after growing has failed once, pages do not hold what was written")


@check(
    "FAULT-02",
    rule="16.2",
    after="EXH-01 DECOM-02 DECOM-06 DECOM-07 ACCT-05 PROBE-01 VIEW-02 ALLOC-03 EXH-04",
)
def signals_do_not_disturb(case: Case) -> None:
    """System calls that take long are interrupted by signals (EINTR) and have to be repeated. Calls through ctypes do
    not do that by themselves.
    """
    memory = case.open()
    observer = case.observer(memory)
    count = case.pages(memory, _INTERRUPTED_BYTES // memory.page_size or 1, 1)
    mode = AllocationMode.RESERVED if case.declares(Capability.RESERVE) else AllocationMode.COMMITTED
    while count > 1:  # as much as there is room for when nothing disturbs
        try:
            memory.decref(memory.allocate(count * memory.page_size, mode=mode))
            break
        except OutOfMemory:
            count //= 2
    case.reclaim(memory)
    for _ in range(_INTERRUPTED_ROUNDS):
        _send_signals()
        pages = memory.allocate(count * memory.page_size, mode=mode)
        with memory.view(pages) as view:
            for start in range(0, pages.length, memory.page_size):
                view[start] = 1
        _send_signals()
        told = memory.update_usage()
        memory.decref(pages)
        _send_signals()
        case.give_back(memory)
        left = observer.data_bytes()
        expect(left == 0, f"{left} bytes were not given back while signals came")
        kinds = sum(told.committed.values())
        expect(kinds >= pages.length, f"{pages.length} bytes were committed among signals, {kinds} are reported")


@check("FAULT-03", rule="16.3", after="LIFE-06")
def opening_without_enough_descriptors_leaves_nothing_behind(case: Case) -> None:
    """Where memplat_create_file fails halfway, it has to close what it has opened."""
    _open_and_use(case)  # what is imported and opened once for all is no leak
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 8, hard))
    fillers: list[int] = []
    try:
        for allowed in _ALLOWED_DESCRIPTORS:
            _use_up(fillers)
            for _ in range(allowed):
                os.close(fillers.pop())
            with contextlib.suppress(MemplatError):  # to be refused is right
                _open_and_use(case)
            more: list[int] = []
            _use_up(more)
            for fd in more:
                os.close(fd)
            expect(
                len(more) == allowed,
                f"with {allowed} descriptors left, opening a memory failed and left {allowed - len(more)} open",
            )
    finally:
        for fd in fillers:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _send_signals() -> None:
    """A few, from now on. So many that a long call meets some, and so few that one that is repeated comes to an end."""
    left = _SIGNALS

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            signal.setitimer(signal.ITIMER_REAL, 0)

    signal.signal(signal.SIGALRM, count)  # a check has a process of its own
    signal.setitimer(signal.ITIMER_REAL, _TICK_SECONDS, _TICK_SECONDS)


def _use_up(fillers: list[int]) -> None:
    while True:
        try:
            fillers.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return


def _open_and_use(case: Case) -> None:
    with case.subject.open(max_size=case.max_size(), reclaim="manual") as memory:
        memory.decref(memory.allocate(memory.page_size))
