"""Owners' limits: of what they have allocated, enforced at once; of what they have committed, judged by the scans."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

import memplat
from memplat.hookspecs import hookimpl
from memplat.memory import Memory
from memplat.ranges import FileRange
from tests.oracle import PAGE, Observer
from tests.unit.engine.helpers import check, together, unchanged, write_all

Opener = Callable[..., Memory]

MODES = ("uncommitted", "will_commit", "reserved", "committed")


def refused(memory: Memory, length: int = PAGE, owner: int = 7, **how: Any) -> memplat.OutOfMemory:
    """The error of an allocation that has to be refused and must change nothing."""
    with unchanged(memory), pytest.raises(memplat.OutOfMemory) as caught:
        memory.allocate(length, owner=owner, **how)
    assert caught.value.owner == owner
    assert caught.value.requested == length
    return caught.value


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_owner_gets_what_the_limit_allows_to_the_byte_and_not_a_page_more(
    memory: Memory, mode: str, direction: str
) -> None:
    memory.set_limit(7, allocated=4 * PAGE)
    first = memory.allocate(3 * PAGE, owner=7, mode=mode, direction=direction)
    refused(memory, 2 * PAGE, mode=mode, direction=direction)
    memory.allocate(PAGE, owner=7, kind="tmpfs", mode=mode, direction=direction)
    error = refused(memory, mode=mode, direction=direction)
    assert (error.limit, error.used) == (4 * PAGE, 4 * PAGE)
    assert "owner 7" in str(error)
    assert str(4 * PAGE) in str(error)
    memory.decref(first)
    memory.allocate(3 * PAGE, owner=7, mode=mode)


@pytest.mark.parametrize("how", [{"fill": b"x"}, {"huge": True}, {"kind": "page_cache"}, {"mode": "committed"}])
def test_no_way_to_allocate_goes_around_the_limit(memory: Memory, how: dict[str, Any]) -> None:
    memory.set_limit(7, allocated=PAGE)
    refused(memory, 2 * PAGE, **how)
    with pytest.raises(memplat.OutOfMemory):
        memory.block(2 * PAGE, owner=7, **how)
    with memory.block(PAGE, owner=7, **how):
        refused(memory, PAGE, **how)


def test_other_owners_are_none_of_a_limits_business(memory: Memory) -> None:
    memory.set_limit(7, allocated=0, committed=0)
    refused(memory)
    for owner in (0, 6, 8):
        memory.allocate(PAGE, owner=owner, fill=b"x")
    memory.update_usage()
    memory.allocate(PAGE)
    refused(memory)


def test_none_takes_a_limit_away_and_an_unnamed_one_stays(memory: Memory) -> None:
    memory.set_limit(7, allocated=PAGE, committed=PAGE)
    memory.set_limit(7, committed=None)
    refused(memory, 2 * PAGE)
    memory.set_limit(7, allocated=None)
    memory.allocate(2 * PAGE, owner=7)
    assert memory._state.limits == {}  # type: ignore[attr-defined]


def test_a_limit_below_present_use_takes_nothing_and_blocks_what_is_new(memory: Memory) -> None:
    pages = memory.allocate(8 * PAGE, owner=7)
    write_all(memory, pages)
    memory.set_limit(7, allocated=2 * PAGE)
    error = refused(memory)
    assert (error.limit, error.used) == (2 * PAGE, 8 * PAGE)
    write_all(memory, pages, 0x5A)
    memory.incref(pages)
    memory.decref(pages)
    memory.decommit(pages)
    memory.decref(FileRange(pages.start, pages.start + 6 * PAGE))
    refused(memory)
    memory.decref(FileRange(pages.start + 6 * PAGE, pages.start + 7 * PAGE))
    memory.allocate(PAGE, owner=7)


def test_a_transfer_charges_the_new_owner_for_what_is_not_his_yet(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE, owner=1)
    memory.set_limit(7, allocated=2 * PAGE)
    with unchanged(memory), pytest.raises(memplat.OutOfMemory) as caught:
        memory.transfer(pages, 7)
    assert (caught.value.owner, caught.value.limit, caught.value.used) == (7, 2 * PAGE, 0)
    front = FileRange(pages.start, pages.start + 2 * PAGE)
    memory.transfer(front, 7)
    memory.transfer(front, 7)  # his already
    with pytest.raises(memplat.OutOfMemory):
        memory.transfer(pages, 7)
    memory.transfer(pages, 1)
    memory.set_limit(1, allocated=0)
    memory.transfer(pages, 1)
    memory.transfer(front, 7)
    check(memory)


def test_a_transfer_of_what_nobody_uses_is_that_error_whatever_the_limit(memory: Memory) -> None:
    memory.allocate(PAGE)
    memory.set_limit(7, allocated=0)
    with pytest.raises(memplat.NotAllocatedError):
        memory.transfer(FileRange(0, 2 * PAGE), 7)


@pytest.mark.parametrize("kept_by", ["view", "reference"])
def test_pages_that_are_still_held_are_charged_until_the_last_one_lets_go(memory: Memory, kept_by: str) -> None:
    memory.set_limit(7, allocated=PAGE)
    pages = memory.allocate(PAGE, owner=7)
    view: memoryview | None = memory.view(pages) if kept_by == "view" else None
    if view is None:
        memory.incref(pages)
    memory.decref(pages)
    refused(memory)
    if view is None:
        memory.decref(pages)
    del view
    gc.collect()
    memory.allocate(PAGE, owner=7)


def test_waste_retained_and_kept_pages_are_charged_to_no_limit(open_memory: Opener) -> None:
    memory = open_memory(prealloc=16 * PAGE, keep=16 * PAGE)
    memory.set_limit(0, allocated=2 * PAGE, committed=2 * PAGE)
    for _ in range(8):  # waste of all of this is still there: nothing is reclaimed
        memory.decref(memory.allocate(2 * PAGE, fill=b"x" * 2 * PAGE))
    usage = memory.update_usage()
    assert usage.waste + usage.free_committed > 2 * PAGE
    memory.allocate(2 * PAGE, fill=b"x" * 2 * PAGE)
    memory.update_usage()
    memory.set_limit(0, allocated=None)
    memory.allocate(PAGE)


def test_recycled_waste_is_charged_to_whom_it_is_for(memory: Memory) -> None:
    memory.decref(memory.allocate(8 * PAGE, owner=1, fill=b"x" * 8 * PAGE))
    memory.set_limit(7, allocated=4 * PAGE)
    refused(memory, 5 * PAGE, mode="will_commit")
    memory.allocate(4 * PAGE, owner=7, mode="will_commit")
    refused(memory, mode="will_commit")


# -- committed ---------------------------------------------------------------------------------------------------------


def test_a_scan_that_finds_too_much_blocks_the_owner_until_another_finds_less(memory: Memory) -> None:
    pages = memory.allocate(8 * PAGE, owner=7)
    memory.set_limit(7, committed=2 * PAGE)
    write_all(memory, pages)
    memory.allocate(PAGE, owner=7)  # no scan has found anything yet
    memory.update_usage()
    error = refused(memory)
    assert (error.limit, error.used) == (2 * PAGE, 8 * PAGE)
    assert "last scan" in str(error)
    with pytest.raises(memplat.OutOfMemory):
        memory.transfer(memory.allocate(PAGE, owner=1), 7)
    memory.decommit(FileRange(pages.start, pages.start + 6 * PAGE))
    refused(memory)  # it takes a scan to know
    memory.usage()
    refused(memory)
    memory.update_usage()
    memory.allocate(PAGE, owner=7)


def test_exactly_the_limit_is_not_above_it(memory: Memory) -> None:
    memory.set_limit(7, committed=2 * PAGE)
    write_all(memory, memory.allocate(2 * PAGE, owner=7))
    memory.update_usage()
    memory.allocate(PAGE, owner=7)


def test_a_scan_of_the_owner_alone_judges_him_too(memory: Memory) -> None:
    for owner in range(1, 40):
        memory.allocate(PAGE, owner=owner, fill=b"x")
    memory.update_usage()
    memory.set_limit(7, committed=0)
    refused(memory)  # the last scan has found his page
    memory.decommit(FileRange(6 * PAGE, 7 * PAGE))
    assert memory.update_usage(owner=7).total == 0
    pages = memory.allocate(PAGE, owner=7)
    write_all(memory, pages)
    assert memory.update_usage(owner=7).total == PAGE
    refused(memory)


def test_memory_outside_of_the_file_counts_as_committed(memory: Memory) -> None:
    memory.set_limit(7, committed=PAGE)
    memory.account_external(2 * PAGE, owner=7)
    memory.update_usage()
    refused(memory)
    memory.account_external(-PAGE, owner=7)
    memory.update_usage()
    memory.allocate(PAGE, owner=7)


# -- the hook, threads, arguments --------------------------------------------------------------------------------------


class Giver:
    """An out-of-memory hook that frees what it has, one piece at a time."""

    def __init__(self) -> None:
        self.pieces: list[FileRange] = []
        self.asked: list[tuple[int, int]] = []

    @hookimpl
    def memplat_out_of_memory(self, memory: Memory, request: memplat.AllocationRequest) -> bool:
        self.asked.append((request.owner, request.length))
        if not self.pieces:
            return False
        memory.decref(self.pieces.pop())
        return True


def test_the_out_of_memory_hook_may_free_the_owners_pages(open_memory: Opener) -> None:
    giver = Giver()
    memory = open_memory(extensions=[giver])
    memory.set_limit(7, allocated=4 * PAGE)
    giver.pieces = [memory.allocate(PAGE, owner=7) for _ in range(4)]
    memory.allocate(3 * PAGE, owner=7)
    assert giver.asked == [(7, 3 * PAGE)] * 3
    giver.pieces.clear()
    error = refused(memory, 3 * PAGE)
    assert (error.limit, error.used) == (4 * PAGE, 4 * PAGE)


def test_a_hook_that_frees_somebody_elses_pages_does_not_keep_it_going(open_memory: Opener) -> None:
    giver = Giver()
    memory = open_memory(extensions=[giver])
    memory.set_limit(7, allocated=0)
    giver.pieces = [memory.allocate(PAGE, owner=1) for _ in range(4)]
    with pytest.raises(memplat.OutOfMemory):
        memory.allocate(PAGE, owner=7)
    assert len(giver.asked) == 1


def test_threads_together_never_get_more_than_the_limit(memory: Memory) -> None:
    memory.set_limit(7, allocated=100 * PAGE)
    got: list[FileRange] = []
    lock = threading.Lock()

    def work() -> None:
        for _ in range(60):
            try:
                pages = memory.allocate(PAGE, owner=7)
            except memplat.OutOfMemory:
                continue
            with lock:
                got.append(pages)

    together(*[work] * 4)
    assert len(got) == 100
    assert memory.usage(owner=7).allocated["anonymous"] == 100 * PAGE
    check(memory)


@pytest.mark.parametrize("value", [-1, 1.5, "4096", True, 1 << 63])
@pytest.mark.parametrize("which", ["allocated", "committed"])
def test_what_is_no_limit_is_refused(memory: Memory, which: str, value: Any) -> None:
    with unchanged(memory), pytest.raises(memplat.InvalidArgumentError, match=which):
        memory.set_limit(7, **{which: value})
    memory.allocate(PAGE, owner=7)


@pytest.mark.parametrize("owner", [-1, 1 << 32, True, "7", 7.0])
def test_what_is_no_owner_is_refused_everywhere(memory: Memory, owner: Any) -> None:
    for call in (
        lambda: memory.set_limit(owner, allocated=1),
        lambda: memory.usage(owner=owner),
        lambda: memory.update_usage(owner=owner),
    ):
        with pytest.raises(memplat.InvalidOwnerError):
            call()


def test_a_limit_has_to_be_named(memory: Memory) -> None:
    with pytest.raises(memplat.InvalidArgumentError, match="allocated="):
        memory.set_limit(7)


def test_limits_of_a_closed_memory_are_refused(open_memory: Opener) -> None:
    memory = open_memory()
    memory.close()
    for call in (lambda: memory.set_limit(7, allocated=1), memory.reset_peaks, lambda: memory.usage(owner=7)):
        with pytest.raises(memplat.ClosedError):
            call()


def test_an_allocation_that_fails_later_is_not_charged(memory: Memory) -> None:
    class Broken:
        def read(self, count: int) -> bytes:
            raise OSError("broken")

    memory.set_limit(7, allocated=PAGE)
    with pytest.raises(OSError, match="broken"):
        memory.allocate(PAGE, owner=7, fill=Broken())  # type: ignore[arg-type]
    with Observer(memory.fileno()):
        memory.allocate(PAGE, owner=7)
