"""Giving waste back: by hand, in the background, before memory is called out; what a stale touch leads to."""

from __future__ import annotations

import gc
import importlib
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

import memplat
from memplat.engine import reclaim as engine_reclaim
from memplat.engine.pages import MAX_RANGES
from memplat.hookspecs import hookimpl
from memplat.linux import punching
from memplat.memory import Memory
from memplat.ranges import FileRange
from tests.needs import needs
from tests.oracle import PAGE, Observer, tasks
from tests.unit.engine.helpers import MIB, check, committed, idle, is_zero, part, threads_ended, within, write_all

Opener = Callable[..., Memory]


class Batches:
    """An extension that writes down what is decommitted."""

    def __init__(self) -> None:
        self.batches: list[list[FileRange]] = []
        self.events: list[tuple[int, float]] = []

    @hookimpl(wrapper=True)
    def memplat_decommit(self, ranges: Any) -> Any:
        self.batches.append(list(ranges))
        return (yield)

    @hookimpl
    def memplat_reclaimed(self, nbytes: int, seconds: float) -> None:
        self.events.append((nbytes, seconds))


def every_other_page_freed(memory: Memory, count: int = 200) -> FileRange:
    pages = memory.allocate(2 * count * PAGE)
    write_all(memory, pages)
    for page in range(0, 2 * count, 2):
        memory.decref(part(pages, page))
    return pages


def test_in_manual_mode_waste_stays_until_it_is_asked_for(memory: Memory) -> None:
    pages = memory.allocate(16 * PAGE)
    write_all(memory, pages)
    memory.decref(pages)
    assert memory.wait_reclaimed(timeout=0.2) is False
    assert memory.wait_reclaimed() is False, "at once: nobody is there to reclaim it"
    usage = memory.update_usage()
    assert (usage.waste, usage.total, usage.committed["system"]) == (16 * PAGE, 16 * PAGE, 16 * PAGE)
    assert memory.reclaim() == 16 * PAGE
    assert memory.wait_reclaimed() is True
    assert memory.total_usage() == 0
    assert memory.reclaim() == 0


def test_reclaiming_everything_finds_what_the_host_has_put_beside_used_pages(memory: Memory) -> None:
    """As a huge page does that the kernel has made of small ones, or took for a pwrite: its used part is given back."""
    pages = memory.allocate(4 * PAGE)
    write_all(memory, pages)
    with Observer(memory.fileno()) as peer:
        for page in (100, 101, 2000):
            peer.write(page * PAGE, b"not ours")
    memory.decref(pages)
    assert memory.reclaim(1 << 30) == 4 * PAGE
    assert memory.total_usage() == 3 * PAGE, "with a limit it is asked for waste alone"
    assert memory.reclaim() == 3 * PAGE
    assert memory.total_usage() == 0
    assert is_zero(memory, memory.allocate(128 * PAGE))


def test_waste_is_charged_to_nobody(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE, owner=6, kind="tmpfs")
    write_all(memory, pages)
    memory.decref(part(pages, 0, 3))
    usage = memory.update_usage()
    assert usage.committed_by_owner[6] == {"tmpfs": PAGE}
    assert usage.committed_by_owner[0]["system"] == 3 * PAGE


def test_a_part_of_the_waste_can_be_given_back(memory: Memory) -> None:
    pages = memory.allocate(32 * MIB)
    write_all(memory, pages)
    memory.decref(pages)
    back = memory.reclaim(4 * MIB)
    assert 0 < back <= 8 * MIB, "about 4 MiB"
    assert memory.total_usage() == 32 * MIB - back
    assert memory.update_usage().waste == 32 * MIB - back
    while memory.reclaim(8 * MIB):
        pass
    assert memory.total_usage() == 0


def test_waste_that_was_never_touched_goes_back_to_free_as_well(memory: Memory) -> None:
    pages = memory.allocate(16 * PAGE)
    memory.decref(pages)
    assert memory.reclaim() == 16 * PAGE
    assert memory.inspect(pages.start).state == "free"


def test_ranges_are_joined_across_free_gaps_and_given_back_in_one_call(open_memory: Opener) -> None:
    watcher = Batches()
    memory = open_memory(extensions=[watcher])
    pages = every_other_page_freed(memory, 100)
    memory.reclaim()
    watcher.batches.clear()
    for page in range(1, 200, 2):  # what is left lies between free pages
        memory.decref(part(pages, page))
    assert memory.reclaim() == 100 * PAGE
    assert len(watcher.batches) == 1
    assert len(watcher.batches[0]) == 1, "one range, over the free pages between"
    assert memory.total_usage() == 0


def test_a_thread_that_another_one_starts_while_the_memory_closes_ends(open_memory: Opener) -> None:
    """The thread that answers peers may drop a reference while the memory closes, and start it without the lock."""
    memory: Any = open_memory(reclaim="background")
    reclaimer = memory._reclaimer
    memory.close()
    reclaimer.ensure_thread()
    reclaimer._thread.join(20)
    assert not reclaimer._thread.is_alive()


def test_a_batch_that_somebody_makes_is_empty() -> None:
    try:
        made = importlib.import_module("memplat._native.core").Batch()
    except ImportError as error:
        needs("compiler", str(error))
    assert list(made) == []
    assert len(made) == memoryview(made).nbytes == 0
    assert made == []


def test_scattered_waste_goes_to_the_hook_as_one_batch_that_spares_used_pages(open_memory: Opener) -> None:
    watcher = Batches()
    memory = open_memory(extensions=[watcher])
    pages = every_other_page_freed(memory, 200)
    memory.reclaim()
    assert len(watcher.batches) == 1
    freed = {offset for pages in watcher.batches[0] for offset in range(pages.start, pages.end, PAGE)}
    assert freed == {part(pages, page).start for page in range(0, 400, 2)}
    for page in range(1, 400, 2):
        assert memory.read(part(pages, page)) == b"\xa5" * PAGE


def test_a_batch_touches_at_most_64_mebibytes(open_memory: Opener) -> None:
    watcher = Batches()
    memory = open_memory(max_size=256 * MIB, extensions=[watcher])
    pages = memory.allocate(160 * MIB, mode="reserved")
    memory.decref(pages)
    assert memory.reclaim() == 160 * MIB
    assert len(watcher.batches) >= 3
    for batch in watcher.batches:
        assert sum(pages.length for pages in batch) <= 64 * MIB


def test_each_batch_is_an_event_with_bytes_and_seconds(open_memory: Opener) -> None:
    watcher = Batches()
    memory = open_memory(extensions=[watcher])
    pages = memory.allocate(16 * PAGE, fill=b"x")
    memory.decref(pages)
    memory.reclaim()
    assert [nbytes for nbytes, _ in watcher.events] == [16 * PAGE]
    assert all(seconds >= 0 for _, seconds in watcher.events)


def test_the_background_reclaimer_gives_waste_back(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background")
    pages = every_other_page_freed(memory)
    assert memory.wait_reclaimed(timeout=60) is True
    assert memory.total_usage() == pages.length // 2
    assert memory.inspect(pages.start).state == "free"


def test_the_reclaimer_starts_with_the_first_waste_and_not_before(open_memory: Opener) -> None:
    before = tasks()
    memory = open_memory(reclaim="background")
    pages = memory.allocate(PAGE)
    assert tasks() <= before
    memory.decref(pages)
    assert memory.wait_reclaimed(timeout=60)
    memory.close()
    threads_ended(before)


def test_waiting_without_waste_returns_at_once(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background")
    assert memory.wait_reclaimed() is True
    memory.allocate(PAGE)
    assert memory.wait_reclaimed() is True


def test_waiting_times_out_while_the_delay_lasts(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=3600)
    pages = memory.allocate(PAGE, fill=b"x")
    memory.decref(pages)
    assert memory.inspect(pages.start).state == "waste"
    assert memory.reclaim() == PAGE, "asking for it does not wait"
    assert memory.wait_reclaimed() is True


def test_a_close_does_not_wait_for_the_delay(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=3600)
    memory.decref(memory.allocate(PAGE, fill=b"x"))
    within(memory.close)


def test_a_great_deal_of_waste_does_not_wait_for_the_delay(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=3600, max_size=256 * MIB)
    pages = memory.allocate(65 * MIB, mode="reserved")
    memory.decref(pages)
    assert memory.wait_reclaimed(timeout=60) is True
    assert memory.total_usage() == 0


@pytest.fixture
def endless_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a batch of many ranges the reclaimer leaves others alone for good, whether they work or not."""
    monkeypatch.setattr(engine_reclaim, "_PEACE", 1e9)
    monkeypatch.setattr(engine_reclaim, "_used_by_others", itertools.count().__next__)


@pytest.mark.usefixtures("endless_rests")
def test_a_reclaimer_that_leaves_others_alone_hurries_for_those_who_wait(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=0)
    for _ in range(2):
        pages = every_other_page_freed(memory, 3 * MAX_RANGES)
        assert within(lambda: memory.wait_reclaimed(timeout=60))
        assert memory.total_usage() == 3 * MAX_RANGES * PAGE
        for page in range(1, 6 * MAX_RANGES, 2):
            memory.decref(part(pages, page))
        assert within(lambda: memory.wait_reclaimed(timeout=60))
        assert memory.total_usage() == 0


@pytest.mark.usefixtures("endless_rests")
def test_a_reclaimer_that_leaves_others_alone_keeps_neither_reclaim_nor_close_waiting(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=0)
    pages = every_other_page_freed(memory, 3 * MAX_RANGES)
    within(memory.reclaim)
    for page in range(1, 6 * MAX_RANGES, 2):
        memory.decref(part(pages, page))
    every_other_page_freed(memory, 3 * MAX_RANGES)
    with pytest.warns(ResourceWarning, match="still referenced"):
        within(memory.close)


@pytest.mark.parametrize("reclaim", ["manual", "background"])
def test_an_allocation_gets_waste_back_before_memory_is_called_out(open_memory: Opener, reclaim: str) -> None:
    memory = open_memory(max_size=8 * MIB, reclaim=reclaim)
    for _ in range(20):
        pages = memory.allocate(8 * MIB)
        assert is_zero(memory, pages)
        write_all(memory, pages)
        memory.decref(pages)


def test_an_allocation_waits_for_what_is_just_being_released(open_memory: Opener) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        @hookimpl(wrapper=True)
        def memplat_decommit(self) -> Any:
            entered.set()
            assert go_on.wait(60)
            return (yield)

    memory = open_memory(max_size=8 * MIB, extensions=[Slow()])
    pages = memory.allocate(8 * MIB, fill=b"dirt")
    memory.decref(pages)
    reclaimer = threading.Thread(target=memory.reclaim)
    reclaimer.start()
    assert entered.wait(60)
    assert memory.inspect(0).state == "releasing"
    got: list[FileRange] = []
    allocator = threading.Thread(target=lambda: got.append(memory.allocate(8 * MIB)))
    allocator.start()
    assert memory.inspect(0).state == "releasing", "other calls go on meanwhile"
    assert got == []
    go_on.set()
    reclaimer.join(60)
    allocator.join(60)
    assert got == [pages]
    assert is_zero(memory, pages)


def test_pages_being_released_and_the_gaps_between_are_not_handed_out(open_memory: Opener) -> None:
    memory: Memory
    got: list[FileRange] = []
    seen: list[FileRange] = []

    class Greedy:
        armed = False

        @hookimpl(wrapper=True)
        def memplat_decommit(self, ranges: Any) -> Any:
            if self.armed:
                self.armed = False
                seen.extend(ranges)
                got.extend(memory.allocate(PAGE, fill=b"mine") for _ in range(64))
            return (yield)

    greedy = Greedy()
    memory = open_memory(extensions=[greedy])
    pages = every_other_page_freed(memory, 100)
    memory.reclaim()
    for page in range(1, 200, 2):
        memory.decref(part(pages, page))
    greedy.armed = True
    within(memory.reclaim)
    assert got
    assert seen
    assert not [(mine, gone) for mine in got for gone in seen if mine.overlaps(gone)]
    assert all(memory.read(mine)[:5] == b"mine\0" for mine in got)
    check(memory)


def test_other_calls_go_on_while_a_hook_decommits(open_memory: Opener) -> None:
    memory: Memory
    answers: list[object] = []

    class Curious:
        @hookimpl(wrapper=True)
        def memplat_decommit(self) -> Any:
            answers.append(within(lambda: (memory.usage(), memory.inspect(0), memory.allocate(PAGE), memory.dump())))
            return (yield)

    memory = open_memory(extensions=[Curious()])
    memory.decref(memory.allocate(4 * PAGE, fill=b"x"))
    memory.reclaim()
    assert len(answers) == 1


def test_a_free_page_that_a_stale_view_dirtied_is_counted_goes_back_to_waste_and_is_zero_again(
    memory: Memory, observer: Observer
) -> None:
    pages = memory.allocate(4 * PAGE, kind="tmpfs", owner=3)
    stale = memory.view(pages, pin=False)
    memory.decref(pages)
    memory.reclaim()
    assert memory.total_usage() == 0
    stale[2 * PAGE : 2 * PAGE + 4] = b"dirt"
    usage = memory.update_usage()
    assert usage.exact
    assert usage.free_committed == PAGE
    assert usage.committed["system"] == PAGE
    assert idle(usage) == PAGE, "counted once"
    assert memory.inspect(part(pages, 2).start).state == "waste"
    assert memory.inspect(part(pages, 1).start).state == "free"
    again = memory.allocate(4 * PAGE)
    assert observer.is_zero(again.start, again.length)
    memory.reclaim()
    assert committed(memory) == {}
    assert memory.inspect(part(pages, 2).start).state == "free"


def test_a_free_page_that_was_dirtied_is_zeroed_when_it_is_recycled(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(PAGE)
    stale = memory.view(pages, pin=False)
    memory.decref(pages)
    memory.reclaim()
    stale[:4] = b"dirt"
    memory.update_usage()
    again = memory.allocate(PAGE, mode="committed")
    assert observer.is_zero(again.start, again.length)


def test_the_background_reclaimer_takes_a_free_page_back_that_a_scan_found_committed(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background")
    pages = memory.allocate(4 * PAGE)
    stale = memory.view(pages, pin=False)
    memory.decref(pages)
    assert memory.wait_reclaimed(timeout=60)
    assert stale[0] == 0, "reading is enough to commit a page"
    assert memory.update_usage().free_committed == PAGE
    assert memory.wait_reclaimed(timeout=60)
    assert committed(memory) == {}


def test_what_a_peer_commits_beyond_our_size_is_foreign(memory: Memory, observer: Observer) -> None:
    memory.allocate(PAGE, mode="committed")
    size = memory.total_size()
    observer.write(size + 5 * PAGE, b"x" * 2 * PAGE)
    usage = memory.update_usage()
    assert usage.foreign == 2 * PAGE
    assert usage.total == 3 * PAGE
    assert usage.committed["anonymous"] == PAGE
    assert usage.file_size == size == memory.total_size()
    observer.punch(size, 16 * PAGE)
    assert memory.update_usage().foreign == 0


def test_a_view_dropped_by_the_garbage_collector_lets_its_pages_go(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"x")
    cycle: list[Any] = [memory.view(pages)]
    cycle.append(cycle)
    memory.decref(pages)
    assert memory.reclaim() == 0
    del cycle
    gc.collect()
    assert memory.reclaim() == PAGE


def test_usage_as_last_known_costs_no_probe_and_an_old_answer_will_do_if_it_is_young_enough(
    open_memory: Opener,
) -> None:
    probes: list[str] = []

    class Counting:
        @hookimpl(wrapper=True)
        def memplat_probe_committed(self) -> Any:
            probes.append("probe")
            return (yield)

        @hookimpl(wrapper=True)
        def memplat_storage(self) -> Any:
            probes.append("storage")
            return (yield)

    memory = open_memory(extensions=[Counting()])
    assert memory.usage().method == "none"
    memory.fileno()  # a peer could have it from now on: no short cut
    pages = memory.allocate(PAGE, mode="committed")
    first = memory.update_usage()
    probes.clear()
    assert memory.usage().committed == first.committed
    assert memory.update_usage(max_age=3600).as_of == first.as_of
    assert probes == []
    with memory.view(pages) as view:
        view[0] = 1
    later = memory.update_usage()
    assert later.as_of > first.as_of
    assert probes


def test_callers_of_update_usage_share_only_a_scan_that_started_after_their_call(open_memory: Opener) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        armed = False

        @hookimpl(wrapper=True)
        def memplat_probe_committed(self) -> Any:
            extents = yield
            if self.armed:
                self.armed = False
                entered.set()
                assert go_on.wait(60)
            return extents

    slow = Slow()
    memory = open_memory(extensions=[slow])
    memory.fileno()
    pages = memory.allocate(8 * PAGE)
    write_all(memory, part(pages, 0))
    slow.armed = True
    early: list[memplat.Usage] = []
    late: list[memplat.Usage] = []
    first = threading.Thread(target=lambda: early.append(memory.update_usage()))
    first.start()
    assert entered.wait(60)
    write_all(memory, part(pages, 1, 3))  # after the first scan looked
    second = threading.Thread(target=lambda: late.append(memory.update_usage()))
    second.start()
    go_on.set()
    first.join(60)
    second.join(60)
    assert late[0].committed["anonymous"] == 4 * PAGE
    assert late[0].total == 4 * PAGE


def test_a_scan_does_not_mark_pages_that_were_freed_or_decommitted_meanwhile(open_memory: Opener) -> None:
    memory: Memory
    todo: list[Callable[[], object]] = []

    class Meanwhile:
        @hookimpl(wrapper=True)
        def memplat_probe_committed(self) -> Any:
            extents = yield
            while todo:
                todo.pop(0)()
            return extents

    memory = open_memory(extensions=[Meanwhile()])
    memory.fileno()
    pages = memory.allocate(16 * PAGE, kind="tmpfs")
    write_all(memory, pages)
    todo += [
        lambda: memory.decommit(part(pages, 0, 4)),
        lambda: memory.decref(part(pages, 4, 4)),
        memory.reclaim,
    ]
    within(memory.update_usage)
    assert todo == []
    assert committed(memory) == {"tmpfs": 8 * PAGE}
    new = memory.allocate(4 * PAGE, kind="system")
    assert is_zero(memory, new)
    assert committed(memory) == {"tmpfs": 8 * PAGE}
    check(memory)


def exposed_by_address(memory: Memory, pages: FileRange) -> None:
    memory.address(pages)


def exposed_by_descriptor(memory: Memory, _: FileRange) -> None:
    memory.fileno()


def exposed_by_a_writable_share(memory: Memory, pages: FileRange) -> None:
    memory.share(pages, writable=True).revoke()


@pytest.mark.parametrize("expose", [exposed_by_address, exposed_by_descriptor, exposed_by_a_writable_share])
def test_pages_between_are_left_alone_once_somebody_else_may_punch_them(
    open_memory: Opener, monkeypatch: pytest.MonkeyPatch, expose: Callable[[Memory, FileRange], None]
) -> None:
    together: list[bool] = []
    punch = punching.punch_batch

    def watched(*arguments: Any, **options: Any) -> None:
        together.append(options.get("together", False))
        punch(*arguments, **options)

    monkeypatch.setattr("memplat.backends.default.punch_batch", watched)
    memory = open_memory()
    every_other_page_freed(memory)
    memory.reclaim()
    assert together == [True]
    pages = every_other_page_freed(memory)
    expose(memory, part(pages, 1))
    memory.reclaim()
    assert together == [True, False]


def test_the_descriptor_is_given_away_between_two_batches_only(open_memory: Opener) -> None:
    asked, given = threading.Event(), threading.Event()
    was_given: list[bool] = []

    class Slow:
        @hookimpl(tryfirst=True)
        def memplat_decommit(self) -> None:
            asked.set()
            if given.wait(0.2):
                was_given.append(True)

    memory = open_memory(extensions=[Slow()])
    every_other_page_freed(memory)
    thread = threading.Thread(target=memory.reclaim)
    thread.start()
    assert asked.wait(10)
    memory.fileno()
    given.set()
    thread.join()
    assert not was_given, "while pages were being given back"
    assert memory.update_usage().waste == 0
