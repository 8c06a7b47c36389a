"""Figures of one owner, peaks, fragmentation and counters, and the registry of all memories."""

from __future__ import annotations

import errno
import gc
import os
import random
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import memplat
from memplat.hookspecs import hookimpl
from memplat.memory import Memory
from memplat.ranges import FileRange
from tests.oracle import PAGE, Observer, backing_descriptor, descriptors, has_cachestat, positive
from tests.unit.engine.helpers import MIB, close_with_leftovers, part, write_all

Opener = Callable[..., Memory]

KINDS = ("anonymous", "page_cache", "tmpfs")


class Probes:
    """An extension that notes which parts were probed, and may do something in between."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int]] = []
        self.then: list[Callable[[], object]] = []

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self, file: Any, start: int, end: int) -> Any:
        result = yield
        self.parts.append((start, end))
        if self.then:
            self.then.pop(0)()
        return result


@pytest.fixture
def probes() -> Probes:
    """Notes of all probes."""
    return Probes()


@pytest.fixture
def noted(open_memory: Opener, probes: Probes) -> Memory:
    """A memory whose probes are noted."""
    return open_memory(extensions=[probes])


def scatter(memory: Memory, count: int = 300, seed: int = 1) -> dict[int, dict[str, int]]:
    """Pages of three kinds and owners at random, two of three written; what is committed, by owner and kind."""
    chance = random.Random(seed)
    wanted: dict[int, dict[str, int]] = {}
    for number in range(count):
        owner, kind = chance.choice((1, 7, 9)), chance.choice(KINDS)
        pages = memory.allocate(PAGE, owner=owner, kind=kind)
        if number % 3:
            memory.write(pages, b"x")
            kinds = wanted.setdefault(owner, {})
            kinds[kind] = kinds.get(kind, 0) + PAGE
    return wanted


@pytest.mark.parametrize("shared", [True, False])
def test_the_figures_of_one_owner_are_those_of_all_restricted_to_him(memory: Memory, shared: bool) -> None:
    if shared:
        memory.fileno()
    wanted = scatter(memory)
    memory.account_external(5 * PAGE, owner=7)
    for owner in (1, 7, 9, 11):
        usage = memory.update_usage(owner=owner)
        kinds = {**wanted.get(owner, {}), **({"mapped": 5 * PAGE} if owner == 7 else {})}
        assert positive(usage.committed) == kinds
        assert {payer: positive(theirs) for payer, theirs in usage.committed_by_owner.items()} == (
            {owner: kinds} if kinds else {}
        )
        assert usage.total == sum(usage.committed.values()) == sum(kinds.values())
        assert usage.overhead == usage.foreign == usage.waste == usage.retained == usage.free_committed == 0
        assert sum(usage.allocated.values()) >= usage.total - (5 * PAGE if owner == 7 else 0)
        assert usage.exact
        assert memory.usage(owner=owner).committed == usage.committed
    whole = memory.update_usage()
    for owner in (1, 7, 9):
        assert whole.committed_by_owner[owner] == positive(memory.usage(owner=owner).committed)


def test_owner_zero_includes_what_nobody_uses(memory: Memory) -> None:
    memory.allocate(2 * PAGE, fill=b"x" * 2 * PAGE)
    memory.decref(memory.allocate(3 * PAGE, owner=7, fill=b"x" * 3 * PAGE))
    usage = memory.update_usage(owner=0)
    assert usage.waste == 3 * PAGE
    assert positive(usage.committed) == {"anonymous": 2 * PAGE, "system": 3 * PAGE}


def test_only_what_the_owner_uses_is_probed(noted: Memory, probes: Probes) -> None:
    noted.allocate(8 * MIB, owner=1)
    mine = noted.allocate(4 * PAGE, owner=7)
    noted.allocate(PAGE, owner=1)
    also = noted.allocate(2 * PAGE, owner=7, kind="tmpfs")
    noted.write(mine, b"x" * 2 * PAGE)
    noted.write(also, b"x" * PAGE)
    probes.parts.clear()
    usage = noted.update_usage(owner=7)
    assert probes.parts == [tuple(mine), tuple(also)]
    assert positive(usage.committed) == {"anonymous": 2 * PAGE, "tmpfs": PAGE}
    assert usage.counters["owner_scans"] == 1
    assert usage.counters["scans"] == 0


def test_where_all_is_cheaper_than_many_ranges_all_is_scanned(noted: Memory, probes: Probes) -> None:
    for number in range(1000):
        noted.allocate(PAGE, owner=7 if number % 2 else 1)
    noted.update_usage()
    noted.write(FileRange(PAGE, 2 * PAGE), b"x")
    probes.parts.clear()
    assert noted.update_usage(owner=7).total == PAGE
    assert probes.parts == [(0, noted.total_size())]


def test_an_owner_without_pages_costs_no_probe(noted: Memory, probes: Probes) -> None:
    write_all(noted, noted.allocate(4 * PAGE, owner=1))
    probes.parts.clear()
    assert noted.update_usage(owner=7).total == 0
    assert probes.parts == []


def test_nothing_new_is_told_of_an_owner_without_a_probe(noted: Memory, probes: Probes) -> None:
    wanted = scatter(noted)
    noted.update_usage()
    probes.parts.clear()
    usage = noted.update_usage(owner=7)
    assert (usage.method, probes.parts) == ("unchanged", [])
    assert positive(usage.committed) == wanted[7]


@pytest.mark.parametrize("what", ["freed", "decommitted", "allocated"])
def test_what_happens_while_an_owner_is_scanned_is_not_marked_wrongly(noted: Memory, probes: Probes, what: str) -> None:
    noted.allocate(4 * MIB, owner=1)
    mine = noted.allocate(8 * PAGE, owner=7)
    write_all(noted, mine)
    front = part(mine, 0, 3)
    does: dict[str, Callable[[], object]] = {
        "freed": lambda: (noted.decref(front), noted.reclaim()),
        "decommitted": lambda: noted.decommit(front),
        "allocated": lambda: write_all(noted, noted.allocate(3 * PAGE, owner=7)),
    }
    probes.then = [does[what]]
    usage = noted.update_usage(owner=7)
    assert usage.total in ((8 * PAGE, 11 * PAGE) if what == "allocated" else (5 * PAGE,))
    usage = noted.update_usage(owner=7)
    assert usage.total == (11 * PAGE if what == "allocated" else 5 * PAGE)
    assert noted.update_usage().committed_by_owner[7]["anonymous"] == usage.total


@pytest.mark.skipif(not has_cachestat(), reason="what a peer reserved is found by cachestat(2), Linux 6.5")
def test_pages_that_a_peer_reserved_are_found_in_an_owners_ranges(memory: Memory) -> None:
    memory.allocate(20 * MIB, owner=1)
    mine = memory.allocate(10 * MIB, owner=7)
    with Observer(memory.fileno()) as peer:
        peer.reserve(mine.start + 9 * MIB, 4 * PAGE)
    assert memory.update_usage(owner=7).total == 4 * PAGE


def test_recent_figures_of_an_owner_are_enough_if_age_is_allowed(noted: Memory, probes: Probes) -> None:
    noted.allocate(PAGE, owner=1)
    mine = noted.allocate(4 * PAGE, owner=7)
    first = noted.update_usage(owner=7)
    write_all(noted, mine)
    assert noted.update_usage(owner=7, max_age=3600) == first
    assert noted.update_usage(owner=7).total == 4 * PAGE
    assert noted.usage(owner=7).as_of > first.as_of


# -- peaks, fragmentation, counters ------------------------------------------------------------------------------------


def test_peaks_are_the_greatest_that_was_seen_until_they_are_reset(memory: Memory) -> None:
    pages = memory.allocate(8 * PAGE, owner=7)
    write_all(memory, pages)
    memory.update_usage()
    memory.decref(part(pages, 0, 6))
    memory.reclaim()
    usage = memory.update_usage()
    assert (usage.peak_committed, usage.peak_allocated) == (8 * PAGE, 8 * PAGE)
    mine = memory.usage(owner=7)
    assert (mine.peak_committed, mine.peak_allocated) == (8 * PAGE, 8 * PAGE)
    memory.reset_peaks()
    for usage in (memory.usage(), memory.update_usage(), memory.usage(owner=7), memory.update_usage(owner=7)):
        assert (usage.peak_committed, usage.peak_allocated) == (2 * PAGE, 2 * PAGE)
    memory.allocate(PAGE, owner=1, fill=b"x")
    assert memory.update_usage().peak_committed == 3 * PAGE
    assert memory.usage(owner=7).peak_committed == 2 * PAGE


def test_peaks_of_a_memory_that_was_never_scanned_can_be_reset(memory: Memory) -> None:
    memory.reset_peaks()
    memory.allocate(PAGE)
    usage = memory.usage()
    assert (usage.peak_committed, usage.peak_allocated) == (0, PAGE)


def test_peaks_of_owners_that_are_gone_are_forgotten_when_there_are_too_many(memory: Memory) -> None:
    figures = memory._scanner.figures  # type: ignore[attr-defined]  # no part of the contract
    figures.max_owners = 8
    memory.allocate(PAGE, owner=1000, fill=b"x")
    for owner in range(1, 30):
        pages = memory.allocate(PAGE, owner=owner, fill=b"x")
        memory.update_usage()
        memory.decref(pages)
        memory.reclaim()
        memory.update_usage()
    assert len(figures.peak_committed) <= 10
    assert len(figures.peak_allocated) <= 10
    assert memory.usage(owner=1000).peak_committed == PAGE
    assert memory.usage(owner=1).peak_committed == 0
    assert memory.usage().peak_committed == 2 * PAGE


def test_fragmentation_is_the_share_of_free_bytes_outside_of_the_longest_run(memory: Memory) -> None:
    assert memory.usage().fragmentation == 0.0
    pages = memory.allocate(16 * MIB)
    assert memory.usage().free == 0
    assert memory.usage().fragmentation == 0.0
    memory.decref(part(pages, 0, 1))
    memory.decref(part(pages, 2, 3))
    memory.reclaim()
    usage = memory.update_usage()
    assert (usage.free, usage.largest_free) == (4 * PAGE, 3 * PAGE)
    assert usage.fragmentation == 0.25


def test_scans_and_their_time_are_counted_by_method(memory: Memory) -> None:
    memory.allocate(PAGE, fill=b"x")
    for _ in range(3):
        memory.update_usage()
    counters = memory.usage().counters
    assert counters["scans"] == 3
    assert counters["scans_unchanged"] == 2
    by_method = {name: value for name, value in counters.items() if name.startswith("scans_")}
    times = {name: value for name, value in counters.items() if name.startswith("scan_ns_")}
    assert sum(by_method.values()) == 3
    assert sum(times.values()) == counters["scan_ns"] > 0
    assert {name.removeprefix("scans_") for name in by_method} == {name.removeprefix("scan_ns_") for name in times}


def test_events_are_counted(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE, fill=b"x" * 4 * PAGE)
    memory.decref(pages)
    again = memory.allocate(4 * PAGE, mode="will_commit")
    memory.decref(again)
    memory.reclaim()
    counters = memory.usage().counters
    assert counters["allocations"] == counters["frees"] == 2
    assert counters["recycled_bytes"] == counters["reclaimed_bytes"] == 4 * PAGE
    assert counters["decommit_calls"] == 1


# -- the registry ------------------------------------------------------------------------------------------------------


def test_open_memories_are_listed_in_order_and_closed_ones_are_not(open_memory: Opener) -> None:
    before = memplat.memories()
    one, two = open_memory(), open_memory()
    assert memplat.memories() == [*before, one, two]
    one.close()
    assert memplat.memories() == [*before, two]


def test_being_listed_keeps_no_memory_alive() -> None:
    before = len(memplat.memories())
    memory = memplat.open("memfd", max_size=16 * MIB)
    assert len(memplat.memories()) == before + 1
    gone = weakref.ref(memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del memory
        gc.collect()
    assert gone() is None
    assert len(memplat.memories()) == before


def test_a_memory_that_cannot_be_made_is_not_listed() -> None:
    class Full:
        @hookimpl
        def memplat_grow(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    before = memplat.memories()
    with pytest.raises(memplat.BackendUnavailableError, match="full"):
        memplat.open("memfd", prealloc=MIB, extensions=[Full()])
    assert memplat.memories() == before


@pytest.mark.parametrize("call", [memplat.memories, memplat.accounting, "close"])
def test_memories_may_come_while_they_are_listed(open_memory: Opener, call: Any) -> None:
    """In another thread, or in what the garbage collector sets off: it runs as often as it can here."""
    mine = [open_memory() for _ in range(3)]
    came: list[Memory] = []

    def come(phase: str, info: object) -> None:
        if len(came) < 30:
            gc.set_threshold(0)
            came.append(open_memory())
            gc.set_threshold(1)

    before = gc.get_threshold()
    gc.callbacks.append(come)
    gc.set_threshold(1)
    try:
        (mine[0].close if call == "close" else call)()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(come)
    assert memplat.memories()[-len(came) :] == came
    assert (mine[0] in memplat.memories()) == (call != "close")


def test_a_forked_child_begins_with_no_memories(memory: Memory) -> None:
    assert memory in memplat.memories()
    read, write = os.pipe()
    child = os.fork()
    if not child:  # no exception may leave here
        own = memplat.open("memfd", max_size=16 * MIB)
        os.write(write, b"%d" % (memplat.memories() == [own]))
        own.close()
        os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 9) == b"1"
    os.close(read)


def blocks(fds: Sequence[int]) -> int:
    """What the host spends on the files, in bytes."""
    return sum(os.fstat(fd).st_blocks * 512 for fd in fds)


def test_the_accounting_of_no_memory_is_nothing() -> None:
    code = """
import memplat
usage = memplat.accounting()
assert usage.exact and usage.total == sum(usage.committed.values()) == 0 and memplat.memories() == []
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_accounting_of_all_is_the_sum_of_each() -> None:
    others = len(memplat.memories())
    base = memplat.accounting(max_age=0)
    opened, fds = [], []
    for number in range(3):
        before = descriptors()
        memory = memplat.open("memfd", max_size=64 * MIB, reclaim="manual")
        opened.append(memory)
        fds.append(backing_descriptor(before))
        scatter(memory, seed=number)
        memory.decref(memory.allocate(PAGE, fill=b"x"))
        memory.account_external(number * PAGE, owner=7)
    assert memplat.accounting().method == "sum"
    usage = memplat.accounting(max_age=0)
    assert memplat.memories()[others:] == opened
    each = [memory.usage() for memory in memplat.memories()]
    assert usage.total == sum(one.total for one in each) == base.total + blocks(fds) + 3 * PAGE
    assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total
    assert usage.committed["tmpfs"] == sum(one.committed["tmpfs"] for one in each)
    assert usage.committed_by_owner[7]["mapped"] == 3 * PAGE
    assert usage.waste == base.waste + 3 * PAGE
    assert usage.allocated == {kind: sum(one.allocated[kind] for one in each) for kind in usage.allocated}
    assert usage.as_of == min(one.as_of for one in each)
    assert usage.exact is all(one.exact for one in each)
    assert usage.counters["allocations"] == sum(one.counters["allocations"] for one in each)
    assert memplat.accounting() == usage
    for memory in opened:
        close_with_leftovers(memory)
    assert memplat.accounting().total == base.total
