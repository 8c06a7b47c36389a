"""Long ranges that nobody has touched, or hardly anybody, are free with their last reference."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

import memplat
from memplat.engine import sparse
from memplat.linux import memory as host
from memplat.memory import Memory
from memplat.ranges import FileRange
from memplat.types import PageState
from tests.hostparts import swap_file
from tests.oracle import PAGE
from tests.unit.engine.helpers import MIB, check

Opener = Callable[..., Memory]
LONG = 4 * MIB


def decref_last(memory: Memory, pages: FileRange) -> None:
    memory.decref(pages)


def let_the_last_view_die(memory: Memory, pages: FileRange) -> None:
    view = memory.view(pages)
    memory.decref(pages)
    del view


def let_a_peer_have_it_last(memory: Memory, pages: FileRange) -> None:
    handle = memory.share(pages)
    view = memplat.attach(handle)
    memory.decref(pages)
    del view
    assert handle.wait(20)


ENDS = pytest.mark.parametrize("end", [decref_last, let_the_last_view_die, let_a_peer_have_it_last])


def touch(memory: Memory, pages: FileRange, *numbers: int) -> None:
    view = memory.view(pages)
    for number in numbers:
        assert view[number * PAGE] == 0
        view[number * PAGE] = 7


def state(memory: Memory, pages: FileRange) -> list[PageState]:
    """The states of all runs of the pages."""
    found, at = [], pages.start
    while at < pages.end:
        info = memory.inspect(at)
        found.append(info.state)
        at = info.pages.end
    return found


@ENDS
def test_what_nobody_has_touched_is_free_at_once(open_memory: Opener, end: Callable[[Memory, FileRange], None]) -> None:
    memory = open_memory()
    end(memory, memory.allocate(LONG))  # the first one starts what is needed for the next
    pages = memory.allocate(LONG, kind="tmpfs", owner=3)
    end(memory, pages)
    assert state(memory, pages) == [PageState.FREE]
    usage = memory.update_usage()
    assert (usage.waste, usage.total, usage.allocated["tmpfs"]) == (0, 0, 0)
    assert usage.counters["frees"] == 2
    check(memory)


@ENDS
def test_the_few_pages_that_were_touched_are_zeroed_and_kept(
    open_memory: Opener, end: Callable[[Memory, FileRange], None]
) -> None:
    memory = open_memory(keep=MIB)
    for _ in range(3):
        pages = memory.allocate(LONG)
        touch(memory, pages, 0, 1, 700, 1023)
        end(memory, pages)
        assert state(memory, pages) == [PageState.FREE]
        usage = memory.update_usage()
        assert (usage.total, usage.free_committed, usage.waste, usage.exact) == (4 * PAGE, 4 * PAGE, 0, True)
        check(memory)
    assert memory.usage().counters["reclaimed_bytes"] == 0


@pytest.mark.parametrize("keep", [0, 3 * PAGE])
def test_what_may_not_be_kept_is_waste(open_memory: Opener, keep: int) -> None:
    memory = open_memory(keep=keep)
    pages = memory.allocate(LONG)
    touch(memory, pages, 0, 1, 700, 1023)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.WASTE]
    assert memory.update_usage().waste == 4 * PAGE


@pytest.mark.parametrize("numbers", [range(17), range(0, 1024, 60), range(1024), (0, 512)])
def test_what_was_touched_all_over_is_waste(open_memory: Opener, numbers: range) -> None:
    memory = open_memory(keep=MIB)
    pages = memory.allocate(LONG)
    touch(memory, pages, *numbers)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.WASTE]
    assert memory.update_usage().waste == len(numbers) * PAGE


def test_short_ranges_are_not_asked_about(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(sparse.SPARSE_BYTES - PAGE)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.WASTE]


def test_a_part_of_what_is_used_is_free_and_the_rest_keeps_its_content(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(3 * LONG)
    touch(memory, pages, 0, 3071)
    middle = FileRange(pages.start + LONG, pages.end - LONG)
    memory.decref(middle)
    assert state(memory, pages) == [PageState.USED, PageState.FREE, PageState.USED]
    view = memory.view(FileRange(pages.start, middle.start))
    assert view[0] == 7
    check(memory)


def test_one_reference_of_two_frees_nothing(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(LONG)
    memory.incref(pages)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.USED]
    memory.decref(pages)
    assert state(memory, pages) == [PageState.FREE]


@pytest.mark.parametrize("which", ["the same", "others"])
def test_nothing_is_concluded_where_pages_are_reserved(open_memory: Opener, which: str) -> None:
    """They cost storage, and have no data before they are touched."""
    memory = open_memory(keep=64 * MIB)
    reserved = memory.allocate(LONG, mode="reserved")
    pages = reserved if which == "the same" else memory.allocate(LONG)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.WASTE]
    assert memory.update_usage().waste == (LONG if which == "the same" else 0)


def test_nothing_is_concluded_once_somebody_else_has_the_descriptor(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(LONG)
    fd = memory.fileno()
    os.lseek(fd, 5, os.SEEK_SET)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.WASTE]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 5


def test_the_offset_of_the_descriptor_is_put_back(open_memory: Opener) -> None:
    memory = open_memory(keep=MIB)
    pages = memory.allocate(LONG)
    touch(memory, pages, 9)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.FREE]
    assert os.lseek(memory.fileno(), 0, os.SEEK_CUR) == 0


def test_pages_that_another_process_has_looked_at_are_known(open_memory: Opener) -> None:
    """Reading commits, and shows in no page table of this process."""
    memory = open_memory(keep=MIB)
    pages = memory.allocate(LONG)
    handle = memory.share(pages)
    code = "import sys, memplat; view = memplat.attach(bytes.fromhex(sys.argv[1])); sys.exit(view[5 * 4096])"
    subprocess.run([sys.executable, "-c", code, bytes(handle).hex()], check=True)
    assert handle.wait(20)
    memory.decref(pages)
    assert state(memory, pages) == [PageState.FREE]
    usage = memory.update_usage()
    assert (usage.total, usage.free_committed) == (PAGE, PAGE)


def test_swapped_pages_are_not_taken_for_untouched(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(LONG)
    touch(memory, pages, *range(0, 32, 2))
    with swap_file(64 * MIB):
        host.madvise(memory._mapping.base + pages.start, LONG, host.MADV_PAGEOUT)  # type: ignore[attr-defined]
        memory.decref(pages)
        assert state(memory, pages) == [PageState.WASTE]
        assert memory.update_usage().waste == 16 * PAGE


def test_while_others_decommit_it_is_left_to_the_reclaimer(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(LONG)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with memory._state.gate:  # type: ignore[attr-defined]
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    memory.decref(pages)
    done.set()
    thread.join()
    assert state(memory, pages) == [PageState.WASTE]
