"""Concurrency: hooks are called from any thread, two at a time for the same file."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

from memplat.conformance.case import Case, by_owner
from memplat.conformance.registry import check
from memplat.conformance.verdict import CheckFailedError, expect
from memplat.memory import Memory
from memplat.ranges import FileRange
from memplat.types import Usage

_ROUNDS: Final = 60
_SCANS: Final = 25
#: A thread that wants the interpreter gets it at once, so that the threads really interleave.
_SWITCH_SECONDS: Final = 0.0002


@check("CONC-01", rule="14.1", after="REF-01 ZERO-02 DECOM-01 DECOM-04")
def pages_can_be_written_while_their_neighbours_are_given_back(case: Case) -> None:
    """memplat_decommit must not touch what is beside its ranges, not even for a moment: copying a block, punching it
    and writing the rest back loses what others write meanwhile.
    """
    memory = case.open()
    page = memory.page_size
    pages = case.allocate(memory, case.pages(memory, 3, 3))
    memory.decref(pages.part(page, page))
    case.reclaim(memory)
    done = threading.Event()

    def write(own: FileRange) -> None:
        with memory.view(own) as view:
            number = view[0] = view[-1] = 0
            while not done.is_set():
                seen = view[0], view[-1]
                if seen != (number, number):
                    raise CheckFailedError(f"wrote {number} to {own} and read {seen}, while pages beside it were freed")
                number = (number + 1) % 251
                view[0] = view[-1] = number

    def churn() -> None:
        try:
            for _ in range(_ROUNDS):
                between = memory.allocate(page, mode="uncommitted")
                with memory.view(between) as view:
                    if any(view):
                        raise CheckFailedError("a page is not zero that was handed out while others write")
                    view[:] = b"\xff" * page
                memory.decref(between)
                case.reclaim(memory)
        finally:
            done.set()

    _together(lambda: write(pages.part(0, page)), lambda: write(pages.part(2 * page, page)), churn)


@check("CONC-02", rule="14.2", after="PROBE-01 PROBE-02 PROBE-08 DECOM-03 ACCT-02")
def probes_and_decommits_run_at_the_same_time(case: Case) -> None:
    """Hooks must not share buffers or positions between calls: two of them may run at once."""
    memory = case.open()
    memory.fileno()  # so that every scan really asks the host
    page = memory.page_size
    count = case.pages(memory, 32, 8)
    steady = [case.allocate(memory, 1, owner=1) for _ in range(count // 2)]
    for one in steady[::2]:
        case.fill(memory, one)
    moving = [case.allocate(memory, 1, owner=2) for _ in range(count // 2)]
    wanted = by_owner(memory.update_usage())[1]

    def scan() -> None:
        for _ in range(_SCANS):
            _check_sum(memory.update_usage())

    def decommit() -> None:
        for number in range(2 * _SCANS):
            one = moving[number % len(moving)]
            with memory.view(one) as view:
                view[:] = b"\x01" * page
            memory.decommit(one, release=True)

    _together(scan, scan, decommit, lambda: _churn(memory))
    usage = memory.update_usage()
    got = by_owner(usage).get(1, 0)
    expect(got == wanted, f"{wanted} bytes of owner 1 were committed before others ran at once, {got} are reported now")
    lost = [one for one in steady[::2] if not case.filled(memory, one)]
    expect(not lost, f"pages changed while others were decommitted: {lost[:4]}")


def _check_sum(usage: Usage) -> None:
    parts = sum(usage.committed.values()) + usage.overhead + usage.foreign
    if parts != usage.total or any(nbytes < 0 for nbytes in usage.committed.values()):
        raise CheckFailedError(f"committed, overhead and foreign are {parts} bytes, total is {usage.total}: {usage}")


def _churn(memory: Memory) -> None:
    for _ in range(_SCANS):
        pages = memory.allocate(2 * memory.page_size, owner=3, mode="uncommitted")
        with memory.view(pages) as view:
            view[0] = 1
        memory.decref(pages)
        memory.reclaim()


def _together(*calls: Callable[[], None]) -> None:
    """Run *calls* at the same time, a thread each.

    :raises BaseException: the first error of any of them
    """
    sys.setswitchinterval(_SWITCH_SECONDS)  # a check has a process of its own
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], None]) -> None:
        try:
            barrier.wait()
            call()
        except BaseException as error:  # noqa: BLE001 -- raised again by the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
