"""Whatever happens at whatever step of a scan: nothing is marked that is gone, and the next scan is exact.

A scan consists of hook calls; what it does between two of them it does under the memory's lock, where nobody can get in
between. So an extension that runs something right before and right after each hook call reaches every step there is.
The oracle is ``tests/oracle.py``.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import memplat
from memplat.hookspecs import hookimpl
from memplat.memory import Memory
from memplat.ranges import FileRange
from tests.oracle import PAGE, NaiveModel, Observer, backing_descriptor, descriptors, has_cachestat, usage_errors
from tests.unit.engine.helpers import in_thread, pages_at, until, waiters, within, write_all

Opener = Callable[..., Memory]

pytestmark = pytest.mark.skipif(not has_cachestat(), reason="the oracle needs cachestat(2), Linux 6.5")

COUNT = 12


class Steps:
    """An extension that counts the steps of scans, and runs :attr:`action` once at step number :attr:`at`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.at = -1
        self.action: Callable[[], object] | None = None
        self.at_decommit: dict[str, Callable[[], object]] = {}

    def _step(self, name: str) -> None:
        self.names.append(name)
        if self.action is not None and len(self.names) - 1 == self.at:
            action, self.action = self.action, None
            action()

    def _wrap(self, hook: str) -> Any:
        self._step(f"before {hook}")
        result = yield
        self._step(f"after {hook}")
        return result

    @hookimpl(wrapper=True)
    def memplat_storage(self) -> Any:
        return (yield from self._wrap("storage"))

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self) -> Any:
        return (yield from self._wrap("probe"))

    @hookimpl(wrapper=True)
    def memplat_probe_reserved(self) -> Any:
        return (yield from self._wrap("probe_reserved"))

    @hookimpl(wrapper=True)
    def memplat_decommit(self) -> Any:
        self.at_decommit.pop("before", lambda: None)()
        result = yield
        self.at_decommit.pop("after", lambda: None)()
        return result

    def run_at(self, step: int, action: Callable[[], object]) -> None:
        """Arrange for *action* at that step of the next scan."""
        self.names, self.at, self.action = [], step, action


class Stage:
    """A memory of some pages of two owners, every other one written, a model of it, and all that can happen to it."""

    def __init__(self, opener: Opener) -> None:
        self.steps = Steps()
        before = descriptors()
        self.memory = opener(extensions=[self.steps])
        self.observer = Observer(backing_descriptor(before))
        self.model = NaiveModel()
        for number in range(COUNT):
            self.allocate(number % 2 + 1, ("anonymous", "tmpfs", "page_cache")[number % 3])
        for page in range(0, COUNT, 2):
            self.write(page)

    def allocate(self, owner: int, kind: str) -> int:
        """One more page; its number."""
        pages = self.memory.allocate(PAGE, owner=owner, kind=kind)
        self.model.allocate(*pages, kind, owner, committed=False)
        return pages.start // PAGE

    def write(self, page: int) -> None:
        """Store through the memory."""
        write_all(self.memory, pages_at(page))
        self.model.write(page * PAGE, b"w")

    def expected(self) -> Any:
        """What has to be told now."""
        return self.model.expected(self.observer.committed_pages(), self.memory.total_size())

    # -- what can happen

    def nothing(self) -> None:
        """So that the steps can be counted."""

    def touched(self) -> None:
        self.write(1)

    def decommitted(self) -> None:
        self.memory.decommit(pages_at(2))
        self.model.clear(*pages_at(2))

    def decommitted_and_another_touched(self) -> None:
        """The sum stays what it was."""
        self.decommitted()
        self.write(1)

    def freed(self) -> None:
        self.memory.decref(pages_at(4))
        self.model.decref(*pages_at(4))

    def freed_and_reclaimed(self) -> None:
        self.freed()
        self.memory.reclaim()

    def freed_reclaimed_and_another_touched(self) -> None:
        self.freed_and_reclaimed()
        self.write(3)

    def freed_and_used_by_somebody_else(self) -> None:
        """The same page, of another owner and kind, first uncommitted, then written."""
        self.freed_and_reclaimed()
        assert self.allocate(9, "ramdiskfs") == 4
        self.write(4)

    def freed_and_left_uncommitted_to_somebody_else(self) -> None:
        self.freed_and_reclaimed()
        assert self.allocate(9, "ramdiskfs") == 4

    def allocated(self) -> None:
        self.write(self.allocate(9, "system"))

    def handed_over(self) -> None:
        self.memory.transfer(pages_at(6), 9)
        self.model.pages[6].owner = 9

    def grown(self) -> None:
        pages = self.memory.allocate(20 << 20, owner=9)
        self.model.allocate(*pages, "anonymous", 9, committed=False)
        self.write(pages.end // PAGE - 1)

    def punched_by_a_peer(self) -> None:
        self.memory.fileno()
        self.observer.punch(8 * PAGE, PAGE)
        self.model.clear(*pages_at(8))

    def punched_and_another_touched_by_a_peer(self) -> None:
        """The sum stays what it was."""
        self.punched_by_a_peer()
        self.observer.write(5 * PAGE, b"w")
        self.model.write(5 * PAGE, b"w")

    def reserved_by_a_peer(self) -> None:
        self.memory.fileno()
        self.observer.reserve(7 * PAGE, PAGE)
        self.model.touch(*pages_at(7))


ACTIONS = [name for name, value in vars(Stage).items() if value.__class__.__name__ == "function" and name[0] != "_"]
ACTIONS = [name for name in ACTIONS if name not in ("allocate", "write", "expected", "nothing")]
#: Those that change more than one thing: a scan may see one part and not the other.
COMPOUND = [name for name in ACTIONS if "_and_" in name or name in ("allocated", "grown")]


@pytest.fixture
def stage(open_memory: Opener) -> Iterator[Callable[[], Stage]]:
    """Sets stages."""
    stages: list[Stage] = []

    def build() -> Stage:
        stages.append(Stage(open_memory))
        return stages[-1]

    yield build
    for one in stages:
        one.observer.close()


def prepared(stage: Callable[[], Stage], scanned_before: str) -> Stage:
    """A stage where the last scan is so long ago."""
    one = stage()
    if scanned_before != "never":
        one.memory.update_usage()
    if scanned_before == "a peer came since":
        one.memory.fileno()
    if scanned_before == "a page was touched since":
        one.write(9)
    if scanned_before == "a page was decommitted since":
        one.memory.decommit(pages_at(10))
        one.model.clear(*pages_at(10))
    return one


SCANNED = ("never", "nothing since", "a page was touched since", "a page was decommitted since", "a peer came since")


@pytest.mark.parametrize("scanned", SCANNED)
@pytest.mark.parametrize("action", ACTIONS)
def test_whatever_happens_at_each_step_of_a_scan(stage: Callable[[], Stage], action: str, scanned: str) -> None:
    counted = prepared(stage, scanned)
    counted.steps.run_at(-1, counted.nothing)
    counted.memory.update_usage()
    steps = counted.steps.names
    assert len(steps) >= (2 if scanned in ("nothing since", "a page was decommitted since") else 6), steps
    for step in range(len(steps)):
        one = prepared(stage, scanned)
        before = one.expected()
        one.steps.run_at(step, getattr(one, action))
        usage = one.memory.update_usage()
        where = f"{action} at step {step}, {steps[step]}"
        assert one.steps.action is None, f"{where} did not happen: {one.steps.names}"
        after = one.expected()
        assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total, where
        if usage.exact:
            wrong = [usage_errors(usage, moment) for moment in (before, after, _between(before, after))]
            assert [] in wrong or (action in COMPOUND and _is_mixed(usage, before, after)), (where, wrong)
        again = one.memory.update_usage()
        assert usage_errors(again, after) == [], where
        assert again.exact, where
        assert one.model.prediction_errors(one.observer.committed_pages()) == []
        one.memory._check()  # type: ignore[attr-defined]


def _between(before: Any, after: Any) -> Any:
    """The host as it was before, the page table as it is after: a touch is seen by the next scan."""
    return after if before.total != after.total else before


def _is_mixed(usage: memplat.Usage, before: Any, after: Any) -> bool:
    """Figures of a moment in the middle of what happened: each part of one kind and owner is that of before, of after
    or of what is between them.
    """
    for owner in {*before.by_owner, *after.by_owner, *usage.committed_by_owner}:
        for kind in memplat.MemoryKind:
            told = usage.committed_by_owner.get(owner, {}).get(kind, 0)
            sides = [moment.by_owner.get(owner, {}).get(kind, 0) for moment in (before, after)]
            if kind == "system" and owner == 0:
                sides.append(max(sides) + PAGE)  # a page that is waste for a moment
            if not min(sides) <= told <= max(sides):
                return False
    return True


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("touched", [True, False])
@pytest.mark.parametrize("how", ["decommit", "reclaim"])
def test_a_scan_in_the_middle_of_a_decommit_is_right_by_kind(
    stage: Callable[[], Stage], how: str, where: str, touched: bool
) -> None:
    """The hole is punched and the engine has not noted it yet, or is about to be; another page is touched in the very
    moment, so that the sum is what the scan before had found. (With the descriptor nowhere else, the sum alone would
    be taken as proof.)
    """
    one = stage()
    one.memory.update_usage()
    figures: list[Any] = []

    def in_the_middle() -> None:
        if touched:
            one.write(1)
        usage = within(one.memory.update_usage)  # in another thread: this one holds the gate
        committed = one.observer.committed_pages()
        figures.append((usage, one.model.expected(committed, one.memory.total_size())))

    one.steps.at_decommit[where] = in_the_middle
    if how == "decommit":
        one.memory.decommit(pages_at(2))
        one.model.clear(*pages_at(2))
    else:
        one.memory.decref(pages_at(2))
        one.model.decref(*pages_at(2))
        one.memory.reclaim()
    ((usage, expected),) = figures
    assert usage_errors(usage, expected) == []
    usage = one.memory.update_usage()
    assert usage_errors(usage, one.expected()) == []
    assert usage.exact


@pytest.mark.parametrize("action", ACTIONS)
def test_whatever_happens_at_each_attempt_of_a_busy_scan(stage: Callable[[], Stage], action: str) -> None:
    """Something is touched at each attempt but the last, which holds up decommits; and there something else happens."""
    one = stage()
    tail = [one.allocate(3, "tmpfs") for _ in range(8)]
    spoilt: list[int] = []
    step = one.steps._step

    def busy(name: str) -> None:
        if name == "after probe" and len(spoilt) < 3:
            spoilt.append(tail[len(spoilt)])
            one.write(spoilt[-1])
        elif name == "after probe" and len(spoilt) == 3:
            spoilt.append(-1)
            getattr(one, action)()
        step(name)

    one.steps._step = busy  # type: ignore[method-assign]
    usage = one.memory.update_usage()
    assert len(spoilt) == 4, "the last attempt was made"
    assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total
    usage = one.memory.update_usage()
    assert usage_errors(usage, one.expected()) == []
    assert usage.exact


# -- sharing -----------------------------------------------------------------------------------------------------------


class Halt:
    """An extension whose first probe waits, after it has looked, until it is let go."""

    def __init__(self) -> None:
        self.looked, self.go = threading.Event(), threading.Event()
        self.probes = 0

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self) -> Any:
        result = yield
        self.probes += 1
        if self.probes == 1:
            self.looked.set()
            assert self.go.wait(30)
        return result


def test_callers_share_a_scan_but_only_one_that_started_after_their_call(open_memory: Opener) -> None:
    halt = Halt()
    memory = open_memory(extensions=[halt])
    pages = memory.allocate(8 * PAGE, owner=7)
    write_all(memory, FileRange(pages.start, pages.start + PAGE))
    first, told_first = in_thread(memory.update_usage)
    assert halt.looked.wait(30)
    write_all(memory, FileRange(pages.start + PAGE, pages.start + 2 * PAGE))  # the first scan has looked already
    late = [in_thread(memory.update_usage) for _ in range(5)]
    late.append(in_thread(lambda: memory.update_usage(owner=7)))
    until(lambda: waiters(memory) == 6)
    halt.go.set()
    for thread, _ in (first_pair := [(first, told_first)]) + late:
        thread.join(30)
        assert not thread.is_alive()
    assert first_pair[0][1][0].total in (PAGE, 2 * PAGE)  # the second attempt sees the page that was touched
    results = [told[0] for _, told in late]
    assert all(usage.total == 2 * PAGE for usage in results)
    scans = memory.usage().counters["scans"]
    assert 2 <= scans <= 3, "six late callers took one scan, or a comparison after it"
    assert halt.probes <= 3


def test_recent_figures_do_not_wait_for_the_scan_that_is_on(open_memory: Opener) -> None:
    halt = Halt()
    halt.go.set()
    memory = open_memory(extensions=[halt])
    memory.allocate(PAGE, fill=b"x")
    known = memory.update_usage()
    memory.allocate(PAGE, fill=b"x")
    halt.probes = 0
    halt.looked.clear()
    halt.go.clear()
    thread, told = in_thread(memory.update_usage)
    assert halt.looked.wait(30)
    assert within(lambda: memory.update_usage(max_age=3600)) is known
    assert within(memory.usage).total == known.total
    halt.go.set()
    thread.join(30)
    assert told[0].total == 2 * PAGE


def test_a_scan_that_fails_leaves_the_others_to_scan_themselves(open_memory: Opener) -> None:
    halt = Halt()

    class Failing:
        """The first probe fails after it was halted."""

        failed = False

        @hookimpl(wrapper=True)
        def memplat_probe_committed(self) -> Any:
            result = yield
            if not self.failed:
                self.failed = True
                raise OSError(5, "once")
            return result

    memory = open_memory(extensions=[halt, Failing()])
    memory.allocate(PAGE, fill=b"x")
    errors: list[BaseException] = []

    def failing() -> None:
        try:
            memory.update_usage()
        except memplat.HostError as error:
            errors.append(error)

    first, _ = in_thread(failing)
    assert halt.looked.wait(30)
    late = [in_thread(memory.update_usage) for _ in range(3)]
    until(lambda: waiters(memory) == 3)
    halt.go.set()
    for thread in (first, *(thread for thread, _ in late)):
        thread.join(30)
    assert len(errors) == 1
    assert [told[0].total for _, told in late] == [PAGE] * 3


def test_a_hook_that_asks_for_figures_gets_those_that_are_known(open_memory: Opener) -> None:
    class Curious:
        memory: Memory | None = None

        def __init__(self) -> None:
            self.told: list[memplat.Usage] = []

        @hookimpl(wrapper=True)
        def memplat_storage(self) -> Any:
            if self.memory is not None:
                self.told.append(self.memory.update_usage())
            return (yield)

    curious = Curious()
    memory = open_memory(extensions=[curious])
    memory.allocate(PAGE, fill=b"x")
    curious.memory = memory
    assert within(memory.update_usage).total == PAGE
    assert within(memory.update_usage).total == PAGE
    assert curious.told
    curious.memory = None


# -- downwards ---------------------------------------------------------------------------------------------------------


def test_what_is_known_is_corrected_downwards_without_a_probe_when_the_engine_gave_it_back(
    stage: Callable[[], Stage],
) -> None:
    one = stage()
    one.memory.update_usage()
    one.decommitted()
    usage = one.memory.update_usage()
    assert usage.method == "known"
    assert usage_errors(usage, one.expected()) == []
    one.freed_and_reclaimed()
    usage = one.memory.update_usage()
    assert usage.method == "known"
    assert usage_errors(usage, one.expected()) == []
    assert one.memory.update_usage().method == "unchanged"


def test_whoever_has_an_address_is_a_peer_too(stage: Callable[[], Stage]) -> None:
    """MADV_REMOVE through the memory's own mapping gives pages back as a punch does (madvise(2))."""
    one = stage()
    one.memory.update_usage()
    address = one.memory.address(pages_at(8))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 9) == 0, os.strerror(ctypes.get_errno())
    one.model.clear(*pages_at(8))
    one.write(5)
    usage = one.memory.update_usage()
    assert usage_errors(usage, one.expected()) == []
    assert usage.exact


def test_what_is_known_is_corrected_downwards_when_a_peer_took_it(stage: Callable[[], Stage]) -> None:
    one = stage()
    one.memory.update_usage()
    one.punched_by_a_peer()
    usage = one.memory.update_usage()
    assert usage.method not in ("known", "unchanged")
    assert usage_errors(usage, one.expected()) == []
