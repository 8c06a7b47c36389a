"""Exceptions from outside, between any two steps of a call: Ctrl-C, and signal handlers that raise.

CPython runs signal handlers when a Python function begins and when a C function has returned. A profile function sees
just these moments, so each of them is tried, one after the other.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

import memplat
from memplat.engine import refusals
from memplat.memory import Memory
from tests.oracle import PAGE
from tests.unit.engine.helpers import MIB, close_with_leftovers, within

ENGINE = os.path.dirname(sys.modules["memplat"].__file__ or "") + "/engine/"


class Interrupt(BaseException):
    """What a signal handler raises."""


#: The functions that were interrupted.
struck: list[str] = []


def interrupted_at(moment: int, call: Callable[[], object]) -> bool:
    """Run *call* with an exception at the given moment; False if it was over before that."""
    seen = 0

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal seen
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(ENGINE):
            seen += 1
            if seen == moment:
                struck.append(frame.f_code.co_name)
                raise Interrupt

    sys.setprofile(profile)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.setprofile(None)
    return seen >= moment  # then it was swallowed: by a finalizer, say


def prepared() -> tuple[Memory, memplat.FileRange]:
    """A memory with something to do for every operation: used pages, holes, and waste."""
    memory = memplat.open("memfd", max_size=64 * MIB, reclaim="manual")
    first = memory.allocate(8 * PAGE, owner=1, fill=b"first")
    between = [memory.allocate(4 * PAGE, owner=2, fill=b"x") for _ in range(4)]
    memory.incref(first)
    for pages in between[::2]:
        memory.decref(pages)
    return memory, first


OPERATIONS: dict[str, Callable[[Memory, memplat.FileRange], object]] = {
    "allocate": lambda memory, pages: memory.allocate(2 * PAGE),
    "allocate from above": lambda memory, pages: memory.allocate(2 * PAGE, direction="down"),
    "allocate and grow": lambda memory, pages: memory.allocate(32 * MIB),
    "allocate and recycle": lambda memory, pages: memory.allocate(4 * PAGE, mode="will_commit"),
    "allocate committed": lambda memory, pages: memory.allocate(4 * PAGE, mode="committed"),
    "allocate reserved": lambda memory, pages: memory.allocate(4 * PAGE, mode="reserved", fill=b"data"),
    "allocate a huge page": lambda memory, pages: memory.allocate(2 * MIB, huge=True),
    "incref": lambda memory, pages: memory.incref(pages),
    "incref the middle": lambda memory, pages: memory.incref(memplat.FileRange(pages.start + PAGE, pages.end - PAGE)),
    "decref": lambda memory, pages: memory.decref(pages),
    "transfer": lambda memory, pages: memory.transfer(pages, 9),
    "decommit": lambda memory, pages: memory.decommit(pages),
    "view": lambda memory, pages: memory.view(pages),
    "read": lambda memory, pages: memory.read(pages),
    "write": lambda memory, pages: memory.write(pages, b"other"),
    "reclaim": lambda memory, pages: memory.reclaim(),
    "wait_reclaimed": lambda memory, pages: memory.wait_reclaimed(),
    "update_usage": lambda memory, pages: memory.update_usage(),
    "usage": lambda memory, pages: memory.usage(),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one in a dying view is swallowed
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_an_exception_from_outside_leaves_a_memory_that_is_right_or_refuses_and_that_can_be_closed(
    operation: Callable[[Memory, memplat.FileRange], object],
) -> None:
    moment, refused, went_on = 0, 0, 0
    goes_on = True
    while goes_on:
        moment += 1
        memory, pages = prepared()
        backing = os.readlink(f"/proc/self/fd/{memory.fileno()}"), memory.fileno()
        goes_on = interrupted_at(moment, partial(operation, memory, pages))
        try:
            within(partial(quiesced, memory))
            went_on += 1
        except memplat.InterruptedMemoryError:
            refused += 1
        within(partial(close_with_leftovers, memory))
        assert (_link(backing[1]), backing[1]) != backing, f"still open after moment {moment}"
    if memplat.core == "native":
        return  # a fast way may be over before anything can interrupt it
    assert moment > 5, "nothing was interrupted"
    assert went_on > 1, "every interrupt makes it refuse: the flag is set too early, or not taken back"


def quiesced(memory: Memory) -> None:
    """Whatever the interrupt left is used, given back and measured: none of it may hang."""
    memory.total_size()
    memory._check()  # type: ignore[attr-defined]
    memory.allocate(PAGE)
    memory.reclaim()
    memory.wait_reclaimed()
    usage = memory.update_usage()
    assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total


def _link(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_an_interrupted_memory_tells_what_to_do_and_its_views_go_on() -> None:
    memory, pages = prepared()
    view = memory.view(pages)
    for moment in range(1, 100):
        interrupted_at(moment, partial(memory.transfer, pages, moment))
        if memory._state.table.torn:  # type: ignore[attr-defined]
            break
    if memplat.core == "native":  # nothing tears the compiled table: say that something has
        memory._state.refuse = refusals.interrupted  # type: ignore[attr-defined]
    with pytest.raises(memplat.InterruptedMemoryError, match="close"):
        memory.total_size()
    for call in (lambda: memory.allocate(PAGE), lambda: memory.decref(pages), memory.update_usage, memory.reclaim):
        with pytest.raises(memplat.InterruptedMemoryError):
            call()
    assert bytes(view[:5]) == b"first"
    close_with_leftovers(memory)
    view[:5] = b"still"
    view.release()
    with pytest.raises(memplat.ClosedError):
        memory.total_size()


def test_a_close_that_is_interrupted_can_be_repeated() -> None:
    goes_on, moment = True, 0
    while goes_on:
        moment += 1
        memory, _ = prepared()
        fd = memory.fileno()
        goes_on = interrupted_at(moment, partial(close_with_leftovers, memory))
        within(partial(close_with_leftovers, memory))
        del memory
        # Within the very step that gives it back it may be lost: trying again might close somebody else's descriptor.
        if goes_on and struck[-1] != "finish":
            assert not _link(fd).startswith("/memfd:"), f"still open after moment {moment}, in {struck[-1]}"


@pytest.mark.parametrize("count", [2, 64], ids=["sought", "scanned"])
@pytest.mark.parametrize("gone", [0, 1], ids=["touched", "moved"])
def test_a_scan_that_is_interrupted_leaves_no_old_figures_that_pass_for_new(count: int, gone: int) -> None:
    """A page of the second owner is touched; one of the first one's goes, or stays: the sum alone would not tell."""
    goes_on, moment, told = True, 0, 0
    while goes_on:
        moment += 1
        memory = memplat.open("memfd", max_size=64 * MIB, reclaim="manual")
        mine, others = memory.allocate(count * PAGE, owner=1, fill=b"x" * count * PAGE), memory.allocate(PAGE, owner=2)
        memory.update_usage()
        memory.write(others, b"x")
        if gone:
            memory.decommit(mine.part(0, PAGE))
        goes_on = interrupted_at(moment, memory.update_usage)
        with contextlib.suppress(memplat.InterruptedMemoryError):
            usage = memory.update_usage()
            found = {owner: sum(kinds.values()) // PAGE for owner, kinds in usage.committed_by_owner.items()}
            assert usage.exact
            assert found == {1: count - gone, 2: 1}, f"after moment {moment}, in {struck[-1:]}: {usage.method}"
            told += 1
        close_with_leftovers(memory)
    assert told > 1 or memplat.core == "native", "nothing was interrupted"  # a fast way cannot be
