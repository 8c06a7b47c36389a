"""Four threads hammer one memory.

The full run, one million operations as the acceptance of the main job wants it, takes minutes::

    MEMPLAT_SOAK=1 python -m pytest tests/unit/engine/test_threads.py

Without the variable so many fewer are done that the suite stays quick; ``MEMPLAT_SOAK=250000`` does that many.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.oracle import PAGE
from tests.unit.engine.helpers import HUGE, MIB, allocated, check, committed, together

Opener = Callable[..., Memory]

THREADS = 4
ZEROS = bytes(PAGE)


def soak_count(quick: int) -> int:
    """How many operations to do, by ``MEMPLAT_SOAK``."""
    asked = os.environ.get("MEMPLAT_SOAK", "")
    if asked in ("", "0"):
        return quick
    return 1_000_000 if asked == "1" else int(asked)


@dataclass
class Held:
    """A page that this thread holds: how often, and what it wrote there."""

    refs: int
    stamp: bytes


class Worker:
    """One user of the memory with its own model of what it holds. No other thread touches its pages."""

    def __init__(self, memory: Memory, number: int, operations: int) -> None:
        self.memory = memory
        self.number = number
        self.operations = operations
        self.chance = random.Random(number)
        self.held: dict[int, Held] = {}
        self.order: list[int] = []
        self.stamps = 0
        self.allocations = 0

    def run(self) -> None:
        actions = (self.allocate, self.free, self.incref, self.look, self.decommit, self.transfer)
        for step in range(self.operations):
            weights = (48, 33, 10, 5, 2, 2) if len(self.held) < 2_000 else (18, 63, 10, 5, 2, 2)
            self.chance.choices(actions, weights)[0]()
            if step % 997 == 0:
                self.memory.update_usage()
        while self.held:
            self.free()

    def allocate(self) -> None:
        choose = self.chance.choice
        count = choose((1, 1, 1, 2, 2, 3, 4, 8, 16)) if self.chance.random() > 0.001 else HUGE // PAGE + choose((0, 5))
        pages = self.memory.allocate(
            count * PAGE,
            kind=choose(("anonymous", "tmpfs", "system")),
            owner=self.number,
            mode=choose(("uncommitted", "uncommitted", "will_commit", "reserved", "committed")),
            direction=choose(("up", "down")),
            huge=self.chance.random() < 0.02,
        )
        self.allocations += 1
        with self.memory.view(pages, pin=self.chance.random() < 0.3) as view:
            for index in range(count):
                offset = index * PAGE
                assert pages.start + offset not in self.held, f"{pages} was handed out twice to thread {self.number}"
                assert view[offset : offset + PAGE] == ZEROS, f"a new page is dirty: {pages.start + offset:#x}"
                self.stamps += 1
                stamp = b"%d/%d." % (self.number, self.stamps)
                view[offset : offset + len(stamp)] = stamp
                view[offset + PAGE - len(stamp) : offset + PAGE] = stamp
                self.held[pages.start + offset] = Held(1, stamp)
                self.order.append(pages.start + offset)

    def some(self) -> FileRange | None:
        """A run of held pages, of random size."""
        if not self.held:
            return None
        start = self.any_offset()
        end = start + PAGE
        longest = start + self.chance.choice((1, 1, 2, 5, 20, 600)) * PAGE
        while end in self.held and end < longest:
            end += PAGE
        return FileRange(start, end)

    def any_offset(self) -> int:
        """A random held page; pages that were freed meanwhile drop out of the list here."""
        while True:
            index = self.chance.randrange(len(self.order))
            if self.order[index] in self.held:
                return self.order[index]
            self.order[index] = self.order[-1]
            self.order.pop()

    def free(self) -> None:
        pages = self.some()
        if pages is None:
            return
        with self.memory.view(pages, pin=False, writable=False) as view:
            for offset in range(pages.start, pages.end, PAGE):
                self.verify(offset, view[offset - pages.start : offset - pages.start + PAGE])
        for offset in range(pages.start, pages.end, PAGE):
            self.held[offset].refs -= 1
            if not self.held[offset].refs:
                del self.held[offset]
        self.memory.decref(pages)

    def verify(self, offset: int, page: memoryview) -> None:
        stamp = self.held[offset].stamp
        assert page[: len(stamp)] == stamp, f"{offset:#x} was overwritten: {bytes(page[:40])!r}, not {stamp!r}"
        assert page[-len(stamp) :] == stamp

    def incref(self) -> None:
        pages = self.some()
        if pages is not None:
            self.memory.incref(pages)
            for offset in range(pages.start, pages.end, PAGE):
                self.held[offset].refs += 1

    def decommit(self) -> None:
        """The pages read as zero afterwards, whatever was there; they get new stamps."""
        pages = self.some()
        if pages is None:
            return
        self.memory.decommit(pages)
        with self.memory.view(pages) as view:
            assert not any(view[offset : offset + PAGE] != ZEROS for offset in range(0, pages.length, PAGE))
            for offset in range(0, pages.length, PAGE):
                stamp = self.held[pages.start + offset].stamp
                view[offset : offset + len(stamp)] = stamp
                view[offset + PAGE - len(stamp) : offset + PAGE] = stamp

    def transfer(self) -> None:
        pages = self.some()
        if pages is not None:
            self.memory.transfer(pages, self.number + THREADS)
            assert self.memory.inspect(pages.start).owner == self.number + THREADS
            self.memory.transfer(pages, self.number)

    def look(self) -> None:
        pages = self.some()
        if pages is None:
            return
        offsets = range(pages.start, pages.end, PAGE)
        assert self.memory.has_unique_ref(pages) == all(self.held[offset].refs == 1 for offset in offsets)
        info = self.memory.inspect(pages.start)
        assert (info.state, info.owner, info.refs) == ("used", self.number, self.held[pages.start].refs)
        page = memoryview(self.memory.read(FileRange(pages.start, pages.start + PAGE)))
        self.verify(pages.start, page)


@pytest.mark.parametrize("reclaim", ["background", "manual"])
def test_threads_keep_their_pages_and_get_clean_ones(open_memory: Opener, reclaim: str) -> None:
    memory = open_memory(max_size=1024 * MIB, reclaim=reclaim, reclaim_delay=0.001)
    workers = [Worker(memory, number + 1, soak_count(8_000) // THREADS) for number in range(THREADS)]
    together(*[worker.run for worker in workers], seconds=7_200)
    check(memory)
    assert allocated(memory) == 0
    if reclaim == "manual":
        memory.reclaim()
    assert memory.wait_reclaimed(timeout=600) is True
    check(memory)
    assert memory.total_usage() == 0
    assert committed(memory) == {}
    assert memory.usage().counters["allocations"] == sum(worker.allocations for worker in workers)


def test_threads_share_pages_by_reference_and_the_last_one_frees(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=0)
    pages = memory.allocate(64 * PAGE, fill=b"shared" * 1000)

    def user() -> None:
        chance = random.Random(threading.get_ident())
        for _ in range(500):
            first = chance.randrange(64)
            count = chance.randint(1, 64 - first)
            mine = FileRange(pages.start + first * PAGE, pages.start + (first + count) * PAGE)
            memory.incref(mine)
            with memory.view(mine) as view:
                assert len(view) == mine.length
            memory.decref(mine)

    together(user, user, user, user)
    assert memory.has_unique_ref(pages)
    assert memory.read(FileRange(pages.start, pages.start + 6)) == b"shared"
    memory.decref(pages)
    assert memory.wait_reclaimed(timeout=60)
    assert memory.total_usage() == 0
    check(memory)


def test_figures_are_exact_at_every_moment_when_only_the_scanner_and_reclaimer_run(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=0)
    kept = memory.allocate(16 * PAGE, mode="committed", kind="tmpfs")
    stop = threading.Event()

    def waste() -> None:
        try:
            for _ in range(120):
                memory.decref(memory.allocate(8 * PAGE, mode="committed"))
        finally:
            stop.set()

    def scan() -> None:
        while not stop.is_set():
            usage = memory.update_usage()
            assert usage.committed["tmpfs"] == 16 * PAGE
            assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total

    together(waste, scan, scan)
    assert memory.wait_reclaimed(timeout=60)
    assert committed(memory) == {"tmpfs": 16 * PAGE}
    memory.decref(kept)


def test_a_tight_memory_is_shared_without_a_false_out_of_memory(open_memory: Opener) -> None:
    """Each thread needs 1 MiB at a time of 4 MiB, so there is always room once waste has been given back."""
    memory = open_memory(max_size=4 * MIB, reclaim="background", reclaim_delay=0.01)

    def user() -> None:
        for _ in range(25):
            parts = [memory.allocate(PAGE, mode="will_commit") for _ in range(MIB // PAGE)]
            for pages in parts:
                memory.decref(pages)

    together(user, user, user, user)
    assert memory.wait_reclaimed(timeout=60)
    assert memory.total_usage() == 0
    check(memory)


def test_each_race_for_the_last_page_has_one_winner(open_memory: Opener) -> None:
    memory = open_memory(max_size=MIB)
    memory.allocate(MIB - PAGE)
    for _ in range(30):
        got: list[FileRange] = []
        refused: list[memplat.OutOfMemory] = []

        def race(got: list[FileRange] = got, refused: list[memplat.OutOfMemory] = refused) -> None:
            try:
                got.append(memory.allocate(PAGE))
            except memplat.OutOfMemory as error:
                refused.append(error)

        together(race, race, race, race)
        assert (len(got), len(refused)) == (1, 3)
        memory.decref(got[0])
