"""Huge pages that are reserved still are handed out again without asking the backend, and no others are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

import memplat
from memplat.backends import hugetlb
from memplat.linux import punching
from memplat.memory import Memory
from memplat.ranges import FileRange
from memplat.types import AllocationMode
from tests.hostparts import hugetlb_pool
from tests.unit.engine.helpers import HUGE, check

POOL = 4
Opener = Callable[..., Memory]


@pytest.fixture
def open_huge() -> Iterator[Opener]:
    """Opens memories of huge pages, reclaimed by hand."""
    opened: list[Memory] = []

    def opener(**options: Any) -> Memory:
        opened.append(memplat.open("hugetlb", config={}, page_size=HUGE, reclaim="manual", **options))
        return opened[-1]

    with hugetlb_pool(POOL):
        yield opener
        for memory in opened:
            check(memory)
            memory.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[FileRange]:
    """What the kernel was asked to reserve."""
    found: list[FileRange] = []
    reserve = hugetlb._reserve

    def count(fd: int, pages: FileRange) -> None:
        found.append(pages)
        reserve(fd, pages)

    monkeypatch.setattr(hugetlb, "_reserve", count)
    return found


def take_the_rest(memory: Memory) -> list[FileRange]:
    """Allocate all that the pool has."""
    taken = []
    while True:
        try:
            taken.append(memory.allocate(HUGE))
        except memplat.OutOfMemory:
            return taken


def give_all_back(memory: Memory, taken: list[FileRange]) -> None:
    for pages in taken:
        memory.decref(pages)
    memory.reclaim()


def fill(memory: Memory, pages: FileRange) -> None:
    view = memory.view(pages)
    assert not any(view[::4096]), "pages that were handed out were not zero"
    view[::4096] = b"x" * (pages.length // 4096)


@pytest.mark.parametrize("mode", [None, "reserved", AllocationMode.RESERVED, "committed", "uncommitted", "will_commit"])
@pytest.mark.parametrize("is_touched", [True, False])
def test_pages_that_are_kept_are_not_reserved_again(
    open_huge: Opener, asked: list[FileRange], mode: Any, is_touched: bool
) -> None:
    memory, stranger = open_huge(keep=2 * HUGE), open_huge()
    pages = memory.allocate(2 * HUGE)
    if is_touched:
        fill(memory, pages)
    memory.decref(pages)
    memory.reclaim()
    rest = take_the_rest(stranger)
    assert len(rest) == POOL - 2, "what is kept was not kept, or more was"
    asked.clear()
    again = memory.allocate(2 * HUGE, mode=mode)
    assert again == pages
    assert asked == []
    fill(memory, again)
    assert memory.update_usage().total == 2 * HUGE
    memory.decref(again)
    give_all_back(stranger, rest)


def test_waste_that_is_used_again_is_not_reserved_again(open_huge: Opener, asked: list[FileRange]) -> None:
    memory, stranger = open_huge(), open_huge()
    pages = memory.allocate(2 * HUGE, huge=True)
    fill(memory, FileRange(pages.start, pages.start + HUGE))
    memory.decref(pages)
    rest = take_the_rest(stranger)
    asked.clear()
    again = memory.allocate(2 * HUGE, huge=True)
    assert again == pages
    assert asked == []
    fill(memory, again)
    memory.decref(again)
    give_all_back(stranger, rest)


def test_a_page_more_than_is_kept_is_asked_for(open_huge: Opener, asked: list[FileRange]) -> None:
    memory = open_huge(keep=HUGE)
    pages = memory.allocate(2 * HUGE)
    fill(memory, pages)
    memory.decref(pages)
    memory.reclaim()
    asked.clear()
    again = memory.allocate(2 * HUGE)
    assert asked == [again]
    fill(memory, again)
    memory.decref(again)


def by_the_reclaimer(memory: Memory, pages: FileRange) -> None:
    memory.decref(pages)
    memory.reclaim()


def by_decommit(memory: Memory, pages: FileRange) -> None:
    memory.decommit(pages, release=True)
    memory.decref(pages)


def by_half_a_reclaim(memory: Memory, pages: FileRange) -> None:
    """Cut off when it has just been done."""
    memory.decref(pages)
    with pytest.MonkeyPatch.context() as patch:
        cut_off_after(patch)
        with pytest.raises(KeyboardInterrupt):
            memory.reclaim()


def by_half_a_decommit(memory: Memory, pages: FileRange) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cut_off_after(patch)
        with pytest.raises(KeyboardInterrupt):
            memory.decommit(pages, release=True)
    memory.decref(pages)


def cut_off_after(patch: pytest.MonkeyPatch) -> None:
    punch = punching.punch_batch

    def punch_and_stop(*arguments: Any) -> NoReturn:
        punch(*arguments)
        raise KeyboardInterrupt

    patch.setattr(punching, "punch_batch", punch_and_stop)


@pytest.mark.parametrize("give_back", [by_the_reclaimer, by_decommit, by_half_a_reclaim, by_half_a_decommit])
@pytest.mark.parametrize("huge", [True, False])
@pytest.mark.parametrize("is_touched", [True, False])
def test_what_was_given_back_is_refused_when_others_have_it(
    open_huge: Opener, give_back: Callable[[Memory, FileRange], None], huge: bool, is_touched: bool
) -> None:
    """Touching it would be SIGBUS."""
    memory, stranger = open_huge(), open_huge()
    pages = memory.allocate(HUGE, huge=huge)
    if is_touched:
        fill(memory, pages)
    give_back(memory, pages)
    rest = take_the_rest(stranger)
    assert len(rest) == POOL
    with pytest.raises(memplat.OutOfMemory):
        memory.allocate(HUGE, huge=huge)
    give_all_back(stranger, rest)
    again = memory.allocate(HUGE, huge=huge)
    fill(memory, again)
    memory.decref(again)


def test_once_somebody_else_has_the_descriptor_all_pages_are_asked_for(
    open_huge: Opener, asked: list[FileRange]
) -> None:
    memory = open_huge(keep=2 * HUGE)
    pages = memory.allocate(HUGE)
    fill(memory, pages)
    memory.decref(pages)
    memory.reclaim()
    memory.fileno()
    asked.clear()
    again = memory.allocate(HUGE)
    assert asked == [again]
    memory.decref(again)


@pytest.mark.parametrize("mode", ["uncommitted", AllocationMode.UNCOMMITTED, AllocationMode.RESERVED, None])
def test_no_way_to_say_a_mode_gives_pages_that_are_not_there(open_huge: Opener, mode: Any) -> None:
    memory = open_huge()
    memory.decref(memory.allocate(HUGE))
    held = [memory.allocate(HUGE) for _ in range(POOL)]
    with pytest.raises(memplat.OutOfMemory):
        memory.allocate(HUGE, mode=mode)
    give_all_back(memory, held)


def test_what_is_kept_is_given_back_before_an_allocation_is_refused(open_huge: Opener) -> None:
    memory = open_huge(keep=POOL * HUGE)
    pieces = [memory.allocate(HUGE) for _ in range(POOL)]
    fill(memory, pieces[0])
    for pages in pieces[::2]:
        memory.decref(pages)
    memory.reclaim()
    assert memory.update_usage().reserved + memory.update_usage().total == POOL * HUGE, "the pool is used up"
    both = memory.allocate(2 * HUGE)  # neither of those that are kept is long enough
    assert both.start > pieces[-1].start
    fill(memory, both)
    with pytest.raises(memplat.OutOfMemory):
        memory.allocate(HUGE)
    give_all_back(memory, [*pieces[1::2], both])
