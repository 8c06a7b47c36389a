"""What the host or a plugin does wrong, injected through hook wrappers: state unchanged or retained, figures exact."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import random
import threading
from array import array
from collections.abc import Callable
from typing import Any

import pytest

import memplat
from memplat.hookspecs import hookimpl
from memplat.memory import Memory
from memplat.ranges import FileRange
from tests.oracle import PAGE, Observer
from tests.unit.engine.helpers import (
    MIB,
    allocated,
    check,
    committed,
    idle,
    is_zero,
    part,
    unchanged,
    within,
    write_all,
)

Opener = Callable[..., Memory]


class Faults:
    """An extension that wraps every hook of the engine. ``before[hook]`` runs instead of, or before, the real one and
    may raise; ``after[hook]`` gets its result and returns another one."""

    def __init__(self) -> None:
        self.before: dict[str, Callable[..., Any]] = {}
        self.after: dict[str, Callable[[Any], Any]] = {}
        self.calls: list[str] = []

    def _wrap(self, hook: str, *arguments: Any) -> Any:
        self.calls.append(hook)
        if hook in self.before:
            self.before[hook](*arguments)
        result = yield
        return self.after[hook](result) if hook in self.after else result

    @hookimpl(wrapper=True)
    def memplat_grow(self, file: Any, size: int) -> Any:
        return (yield from self._wrap("grow", file, size))

    @hookimpl(wrapper=True)
    def memplat_mapped(self, file: Any, start: int, end: int) -> Any:
        return (yield from self._wrap("mapped", file, start, end))

    @hookimpl(wrapper=True)
    def memplat_reserve(self, file: Any, ranges: Any) -> Any:
        return (yield from self._wrap("reserve", file, ranges))

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self, file: Any, start: int, end: int) -> Any:
        return (yield from self._wrap("probe", file, start, end))

    @hookimpl(wrapper=True)
    def memplat_probe_reserved(self, file: Any, ranges: Any) -> Any:
        return (yield from self._wrap("probe_reserved", file, ranges))

    @hookimpl(wrapper=True)
    def memplat_storage(self, file: Any) -> Any:
        return (yield from self._wrap("storage", file))

    @hookimpl(wrapper=True)
    def memplat_decommit(self, file: Any, ranges: Any) -> Any:
        return (yield from self._wrap("decommit", file, ranges))

    def clear(self) -> None:
        """The host behaves from now on."""
        self.before.clear()
        self.after.clear()


def raising(error: BaseException, times: int | None = None) -> Callable[..., None]:
    """Raises *error* at each call, or so many times."""
    left = [times]

    def fault(*_: Any) -> None:
        if left[0] is None:
            raise error
        if left[0] > 0:
            left[0] -= 1
            raise error

    return fault


@pytest.fixture
def faults() -> Faults:
    """A wrapper of all hooks that does nothing yet."""
    return Faults()


@pytest.fixture
def faulty(open_memory: Opener, faults: Faults) -> Memory:
    """A manual memory whose hooks can be made to fail."""
    memory = open_memory(extensions=[faults])
    memory.fileno()
    return memory


def host_error(code: int) -> OSError:
    """The error of a system call."""
    return OSError(code, os.strerror(code))


# -- decommit ------------------------------------------------------------------------------------------------------


def half_done(file: Any, ranges: Any) -> None:
    """Punches the first half of the batch and then fails."""
    with Observer(file.fd) as observer:
        for pages in list(ranges)[: -(-len(ranges) // 2)]:
            observer.punch(pages.start, (pages.end - pages.start) // PAGE // 2 * PAGE or PAGE)
    raise host_error(errno.EIO)


REFUSALS: dict[str, Callable[..., Any]] = {
    "refused": raising(host_error(errno.EPERM)),
    "not supported": raising(host_error(errno.EOPNOTSUPP)),
    "half done": half_done,
    "interrupted": raising(host_error(errno.EINTR)),
    "a bug": raising(RuntimeError("a bug in the plugin")),
    "memory": raising(MemoryError()),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_pages_whose_decommit_was_refused_are_counted_zero_and_given_back_later(
    faulty: Memory, faults: Faults, refusal: str
) -> None:
    kept = faulty.allocate(4 * PAGE, kind="tmpfs", fill=b"keep" * PAGE)
    pages = faulty.allocate(16 * PAGE)
    untouched = faulty.allocate(16 * PAGE)
    write_all(faulty, pages)
    faulty.decref(FileRange(pages.start, untouched.end))
    faults.before["decommit"] = REFUSALS[refusal]
    faulty.reclaim()
    with Observer(faulty.fileno()) as observer:
        assert observer.blocks == faulty.total_usage()
        usage = faulty.update_usage()
        assert usage.exact
        assert usage.total == observer.blocks
        assert usage.committed.get("tmpfs") == 4 * PAGE
        assert idle(usage) == usage.committed["system"] == observer.blocks - 4 * PAGE
        assert observer.blocks <= 20 * PAGE, "zeroing a page that is not committed would commit it"
        for mode in ("uncommitted", "will_commit", "committed"):
            again = faulty.allocate(8 * PAGE, mode=mode)
            assert observer.is_zero(again.start, again.length)
            faulty.decref(again)
        check(faulty)
        faults.clear()
        faulty.reclaim()
        assert observer.blocks == 4 * PAGE
        assert committed(faulty) == {"tmpfs": 4 * PAGE}
    assert faulty.read(kept) == b"keep" * PAGE


def test_what_was_refused_is_called_retained(faulty: Memory, faults: Faults) -> None:
    pages = faulty.allocate(16 * PAGE)
    write_all(faulty, part(pages, 0, 8))
    faulty.decref(pages)
    faults.before["decommit"] = raising(host_error(errno.EPERM))
    faulty.reclaim()
    usage = faulty.update_usage()
    assert (usage.retained, usage.waste, usage.committed["system"]) == (8 * PAGE, 0, 8 * PAGE)
    assert faulty.inspect(pages.start).state == "free"
    assert is_zero(faulty, pages), "zeroed by hand"
    assert faulty.wait_reclaimed() is True
    again = faulty.allocate(16 * PAGE, kind="tmpfs")
    usage = faulty.update_usage()
    assert (usage.retained, usage.committed["tmpfs"]) == (0, 8 * PAGE)
    assert again == pages


def test_the_host_is_complained_about_once(faulty: Memory, faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    faults.before["decommit"] = raising(host_error(errno.EPERM))
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            faulty.decref(faulty.allocate(PAGE, fill=b"x"))
            faulty.reclaim()
    assert len([record for record in caplog.records if record.name.startswith("memplat")]) == 1


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_users_decommit_that_is_refused_reads_zero_and_goes_on_being_counted(
    faulty: Memory, faults: Faults, refusal: str
) -> None:
    pages = faulty.allocate(16 * PAGE, kind="tmpfs", owner=2)
    write_all(faulty, part(pages, 0, 8))
    faults.before["decommit"] = REFUSALS[refusal]
    given_back = faulty.decommit(pages)
    with Observer(faulty.fileno()) as observer:
        assert observer.is_zero(pages.start, pages.length)
        assert observer.blocks == 8 * PAGE - given_back
        assert committed(faulty) == ({"tmpfs": observer.blocks} if observer.blocks else {})
    assert allocated(faulty) == 16 * PAGE
    check(faulty)
    faults.clear()
    faulty.decommit(pages)
    assert committed(faulty) == {}


def test_with_decommit_and_probe_both_failing_no_page_is_handed_out_dirty(faulty: Memory, faults: Faults) -> None:
    pages = faulty.allocate(16 * PAGE)
    write_all(faulty, pages)
    faulty.decref(pages)
    for hook in ("decommit", "probe", "probe_reserved", "storage"):
        faults.before[hook] = raising(host_error(errno.EIO))
    with contextlib.suppress(OSError):
        faulty.reclaim()
    for mode in ("uncommitted", "will_commit", "committed"):
        try:
            again = faulty.allocate(8 * PAGE, mode=mode)
        except memplat.MemplatError:
            continue
        assert is_zero(faulty, again)
        faulty.decref(again)
    check(faulty)
    faults.clear()
    faulty.reclaim()
    assert faulty.total_usage() == 0
    assert committed(faulty) == {}


def test_retained_pages_whose_next_attempt_fails_altogether_are_not_lost(faulty: Memory, faults: Faults) -> None:
    pages = faulty.allocate(4 * PAGE)
    write_all(faulty, pages)
    faulty.decref(pages)
    faults.before["decommit"] = raising(host_error(errno.EPERM))
    faulty.reclaim()
    assert faulty.update_usage().retained == 4 * PAGE
    for hook in ("probe", "probe_reserved", "storage"):
        faults.before[hook] = raising(host_error(errno.EIO))
    with contextlib.suppress(OSError):
        faulty.reclaim()
    check(faulty)
    faults.clear()
    assert committed(faulty) == {"system": 4 * PAGE}
    faulty.reclaim()
    assert committed(faulty) == {}


def test_a_decommit_that_lies_is_found_out_by_the_next_scan(faulty: Memory, faults: Faults) -> None:
    """A backend that says True and punches nothing: the pages must not be handed out dirty once a scan has looked."""

    pages = faulty.allocate(4 * PAGE)
    write_all(faulty, pages)
    faulty.decref(pages)
    saved: list[Any] = []
    faults.before["decommit"] = lambda file, ranges: saved.extend((file, pages) for pages in ranges)

    def undo(result: Any) -> Any:
        for file, gone in saved:
            with Observer(file.fd) as observer:
                observer.write(gone.start, b"\xa5" * (gone.end - gone.start))
        return result

    faults.after["decommit"] = undo
    faulty.reclaim()
    faults.clear()
    usage = faulty.update_usage()
    assert usage.committed["system"] == 4 * PAGE
    assert is_zero(faulty, faulty.allocate(4 * PAGE))
    faulty.reclaim()
    assert faulty.total_usage() == 0


# -- the reclaimer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [host_error(errno.EIO), RuntimeError("bug"), MemoryError(), ZeroDivisionError()])
def test_the_reclaimer_survives_exceptions(open_memory: Opener, faults: Faults, error: BaseException) -> None:
    memory = open_memory(extensions=[faults], reclaim="background", reclaim_delay=0)
    memory.fileno()
    faults.before["decommit"] = raising(error)
    memory.decref(memory.allocate(4 * PAGE, fill=b"x" * PAGE))
    assert within(lambda: memory.wait_reclaimed(timeout=60)) is True
    assert idle(memory.update_usage()) == PAGE
    faults.clear()
    memory.decref(memory.allocate(4 * PAGE, fill=b"y", direction="down"))
    assert within(lambda: memory.wait_reclaimed(timeout=60)) is True
    memory.reclaim()
    assert memory.total_usage() == 0


def test_the_reclaimer_survives_an_event_handler_that_raises(open_memory: Opener) -> None:
    class Handler:
        @hookimpl
        def memplat_reclaimed(self) -> None:
            raise RuntimeError("a bug in the handler")

    memory = open_memory(extensions=[Handler()], reclaim="background", reclaim_delay=0)
    for _ in range(3):
        memory.decref(memory.allocate(4 * PAGE, fill=b"x"))
        assert within(lambda: memory.wait_reclaimed(timeout=60)) is True
    assert memory.total_usage() == 0


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_killed_reclaimer_never_hangs_wait_reclaimed(
    open_memory: Opener, faults: Faults, death: type[BaseException]
) -> None:
    def ignore(_: threading.ExceptHookArgs) -> None:
        return

    hook, threading.excepthook = threading.excepthook, ignore
    try:
        memory = open_memory(extensions=[faults], reclaim="background", reclaim_delay=0)
        faults.before["decommit"] = raising(death())
        memory.decref(memory.allocate(4 * PAGE, fill=b"x" * PAGE))
        within(memory.wait_reclaimed)
        faults.clear()
        memory.decref(memory.allocate(4 * PAGE, fill=b"y"))
        within(memory.wait_reclaimed)
        memory.reclaim()
        assert memory.total_usage() == 0
        check(memory)
    finally:
        threading.excepthook = hook


def test_a_keyboard_interrupt_while_reclaiming_by_hand_propagates_and_loses_nothing(
    faulty: Memory, faults: Faults
) -> None:
    pages = faulty.allocate(4 * PAGE)
    write_all(faulty, pages)
    faulty.decref(pages)
    faults.before["decommit"] = raising(KeyboardInterrupt())
    with contextlib.suppress(KeyboardInterrupt):
        faulty.reclaim()
    faults.clear()
    check(faulty)
    assert is_zero(faulty, faulty.allocate(4 * PAGE))
    faulty.reclaim()
    assert committed(faulty) == {}


# -- probe and storage ---------------------------------------------------------------------------------------------

GARBAGE: dict[str, Any] = {
    "unsorted": array("q", [2 * PAGE, 3 * PAGE, 0, PAGE]),
    "overlapping": array("q", [0, 3 * PAGE, 2 * PAGE, 4 * PAGE]),
    "reversed": array("q", [3 * PAGE, PAGE]),
    "empty extent": array("q", [PAGE, PAGE]),
    "odd": array("q", [0, PAGE, 2 * PAGE]),
    "out of range": array("q", [0, 1 << 50]),
    "negative": array("q", [-PAGE, PAGE]),
    "misaligned": array("q", [0, 100]),
    "misaligned start": array("q", [1, PAGE]),
    "text": "garbage",
    "a number": 5,
    "a dictionary": {"system": 4096},
    "pairs": [(0, PAGE)],
    "floats": [0.0, float(PAGE)],
    "words": ["0", "4096"],
    "nothings": [None, None],
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_probe_that_answers_garbage_is_a_plugin_error_and_changes_nothing(
    faulty: Memory, faults: Faults, garbage: str
) -> None:
    pages = faulty.allocate(8 * PAGE)
    write_all(faulty, part(pages, 1, 3))
    faulty.update_usage()
    write_all(faulty, part(pages, 6))
    faults.after["probe"] = lambda _: GARBAGE[garbage]
    before = faulty.usage()
    with pytest.raises(memplat.PluginError) as caught:
        faulty.update_usage()
    assert caught.value.hook == "memplat_probe_committed"
    assert "memplat_probe_committed" in str(caught.value)
    assert faulty.usage().committed == before.committed
    check(faulty)
    faults.clear()
    usage = faulty.update_usage()
    assert usage.exact
    assert committed(faulty) == {"anonymous": 4 * PAGE}


@pytest.mark.parametrize("hook", ["probe", "storage"])
@pytest.mark.parametrize("error", [host_error(errno.EIO), host_error(errno.EINTR), PermissionError(1, "no")], ids=repr)
def test_a_probe_that_fails_is_an_os_error_and_changes_nothing(
    faulty: Memory, faults: Faults, hook: str, error: OSError
) -> None:
    pages = faulty.allocate(8 * PAGE)
    write_all(faulty, part(pages, 0, 3))
    faulty.update_usage()
    write_all(faulty, part(pages, 5))
    faults.before[hook] = raising(error)
    before = faulty.usage()
    with pytest.raises(OSError):
        faulty.update_usage()
    assert faulty.usage().committed == before.committed
    check(faulty)
    faults.clear()
    assert committed(faulty) == {"anonymous": 4 * PAGE}


def test_storage_that_fails_makes_total_usage_an_os_error(faulty: Memory, faults: Faults) -> None:
    faults.before["storage"] = raising(host_error(errno.EIO))
    with pytest.raises(OSError):
        faulty.total_usage()
    faults.clear()
    assert faulty.total_usage() == 0


@pytest.mark.parametrize("garbage", [5, "text", (1, 2)])
def test_storage_that_answers_garbage_is_a_plugin_error(faulty: Memory, faults: Faults, garbage: Any) -> None:
    faulty.allocate(PAGE, fill=b"x")
    faults.after["storage"] = lambda _: garbage
    for call in (faulty.update_usage, faulty.total_usage):
        with pytest.raises(memplat.PluginError):
            call()
    faults.clear()
    assert committed(faulty) == {"anonymous": PAGE}


def test_a_probe_that_keeps_quiet_about_pages_is_not_called_exact(faulty: Memory, faults: Faults) -> None:
    faulty.allocate(8 * PAGE, fill=b"x" * 8 * PAGE)
    faults.after["probe"] = lambda _: array("q")
    faults.after["probe_reserved"] = lambda _: array("q")
    usage = faulty.update_usage()
    assert not usage.exact
    assert usage.total == 8 * PAGE
    assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total
    faults.clear()
    assert faulty.update_usage().exact


def test_a_scan_survives_a_probe_that_fails_in_another_callers_turn(faulty: Memory, faults: Faults) -> None:
    faulty.allocate(PAGE, fill=b"x")
    faults.before["probe"] = raising(host_error(errno.EIO), times=1)
    results: list[object] = []

    def call() -> None:
        try:
            results.append(faulty.update_usage().total)
        except OSError as error:
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 6
    assert results.count(PAGE) >= 1
    assert committed(faulty) == {"anonymous": PAGE}


# -- growing and reserving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT])
def test_a_file_that_cannot_grow_is_out_of_memory_and_nothing_has_changed(
    faulty: Memory, faults: Faults, code: int
) -> None:
    faulty.allocate(PAGE)
    faults.before["grow"] = raising(host_error(code))
    with unchanged(faulty), pytest.raises(memplat.OutOfMemory) as caught:
        faulty.allocate(40 * MIB)
    assert caught.value.requested == 40 * MIB
    small = faulty.allocate(PAGE)
    faults.clear()
    assert faulty.allocate(40 * MIB).start >= small.end


@pytest.mark.parametrize("error", [host_error(errno.EIO), host_error(errno.EPERM), RuntimeError("bug")], ids=repr)
def test_another_failure_to_grow_is_an_error_of_the_host_or_plugin(
    faulty: Memory, faults: Faults, error: Exception
) -> None:
    faulty.allocate(PAGE)
    faults.before["grow"] = raising(error)
    with unchanged(faulty), pytest.raises((OSError, RuntimeError, memplat.OutOfMemory)):
        faulty.allocate(40 * MIB)
    faults.clear()
    faulty.allocate(40 * MIB)


def test_growing_that_is_interrupted_once_changes_nothing_or_goes_through(faulty: Memory, faults: Faults) -> None:
    faulty.allocate(PAGE)
    faults.before["grow"] = raising(host_error(errno.EINTR), times=1)
    try:
        faulty.allocate(40 * MIB)
    except OSError:
        assert allocated(faulty) == PAGE
        faulty.allocate(40 * MIB)
    assert allocated(faulty) == 40 * MIB + PAGE


def test_a_file_that_was_not_grown_although_the_hook_says_so_is_never_mapped_for_use(open_memory: Opener) -> None:
    """Touching a page beyond the end of the file is SIGBUS: the engine believes fstat, not the hook."""

    class Lazy:
        lazy = False

        @hookimpl(tryfirst=True)
        def memplat_grow(self) -> bool | None:
            return True if self.lazy else None

    lazy = Lazy()
    memory = open_memory(extensions=[lazy])
    memory.allocate(PAGE)
    lazy.lazy = True
    with pytest.raises((memplat.PluginError, memplat.OutOfMemory, OSError)):
        memory.allocate(40 * MIB)
    lazy.lazy = False
    memory.write(memory.allocate(40 * MIB), b"x")


def test_the_advice_hook_failing_does_no_harm_or_refuses_the_allocation(faulty: Memory, faults: Faults) -> None:
    faults.before["mapped"] = raising(host_error(errno.EINVAL))
    try:
        pages = faulty.allocate(40 * MIB)
    except (OSError, memplat.MemplatError):
        assert allocated(faulty) == 0
    else:
        faulty.write(pages, b"x")
    faults.clear()
    check(faulty)
    faulty.write(faulty.allocate(PAGE), b"x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
@pytest.mark.parametrize("mode", ["reserved", "committed"])
def test_a_reservation_that_fails_is_out_of_memory_and_costs_nothing(
    faulty: Memory, faults: Faults, mode: str, code: int
) -> None:
    faulty.allocate(PAGE, fill=b"x")
    faulty.update_usage()
    faults.before["reserve"] = raising(host_error(code))
    used = allocated(faulty)
    if mode == "reserved":
        with pytest.raises(memplat.OutOfMemory) as caught:
            faulty.allocate(8 * PAGE, mode=mode)
        assert caught.value.requested == 8 * PAGE
        assert allocated(faulty) == used
    else:  # populating may go another way than reserving
        try:
            faulty.decref(faulty.allocate(8 * PAGE, mode=mode))
        except memplat.OutOfMemory:
            assert allocated(faulty) == used
    faulty.reclaim()
    assert faulty.total_usage() == PAGE
    assert committed(faulty) == {"anonymous": PAGE}
    faults.clear()
    faulty.allocate(8 * PAGE, mode=mode)
    assert committed(faulty) == {"anonymous": 9 * PAGE}


def test_a_reservation_that_failed_is_tried_again_if_another_thread_has_given_something_back_meanwhile(
    faulty: Memory, faults: Faults
) -> None:
    waste = faulty.allocate(2 * MIB, fill=b"x" * (2 * MIB))
    refused: list[Any] = []

    def refuse_once(file: Any, ranges: Any) -> None:
        if not refused:
            refused.append(ranges)
            faulty.decref(waste)
            thread = threading.Thread(target=faulty.reclaim)
            thread.start()
            thread.join()
            raise host_error(errno.ENOMEM)

    faults.before["reserve"] = refuse_once
    pages = faulty.allocate(8 * PAGE, mode="reserved")
    assert refused
    faulty.decref(pages)


def test_what_can_never_be_reserved_is_refused_whatever_is_kept(open_memory: Opener) -> None:
    faults = Faults()
    memory = open_memory(extensions=[faults], keep=8 * MIB)
    memory.decref(memory.allocate(MIB, fill=b"x" * MIB))
    memory.reclaim()
    faults.before["reserve"] = raising(host_error(errno.ENOMEM))
    with pytest.raises(memplat.OutOfMemory):
        memory.allocate(8 * PAGE, mode="reserved")
    assert memory.update_usage().total <= 8 * PAGE, "what is kept was given back first"


def test_a_reservation_that_was_half_done_before_it_failed_is_not_forgotten(faulty: Memory, faults: Faults) -> None:
    """The contract says that nothing stays reserved; a plugin that breaks it must not make figures wrong."""

    def half(file: Any, ranges: Any) -> None:
        with Observer(file.fd) as observer:
            observer.reserve(ranges[0].start, 2 * PAGE)
            observer.write(ranges[0].start, b"dirt")
        raise host_error(errno.ENOSPC)

    faults.before["reserve"] = half
    with pytest.raises(memplat.OutOfMemory):
        faulty.allocate(8 * PAGE, mode="reserved")
    faults.clear()
    with Observer(faulty.fileno()) as observer:
        usage = faulty.update_usage()
        assert usage.total == usage.committed["system"] == observer.blocks
        assert idle(usage) == observer.blocks or not usage.exact
        faulty.reclaim()
        assert is_zero(faulty, faulty.allocate(8 * PAGE))
        faulty.reclaim()
        assert committed(faulty) == {}


# -- out of memory -------------------------------------------------------------------------------------------------


class Hook:
    """An out-of-memory callback that does what the test says."""

    def __init__(self, action: Callable[[Memory, Any], Any]) -> None:
        self.action = action
        self.requests: list[Any] = []

    @hookimpl
    def memplat_out_of_memory(self, memory: Memory, request: Any) -> Any:
        self.requests.append(request)
        return self.action(memory, request)


def full(open_memory: Opener, hook: Hook) -> tuple[Memory, FileRange]:
    """A memory of 4 MiB that is all in use."""
    memory = open_memory(max_size=4 * MIB, extensions=[hook])
    return memory, memory.allocate(4 * MIB)


def test_the_hook_is_asked_with_the_request_and_the_allocation_tried_again(open_memory: Opener) -> None:
    cache: list[FileRange] = []

    def evict(memory: Memory, request: Any) -> bool:
        memory.decref(cache.pop())
        return True

    hook = Hook(evict)
    memory, pages = full(open_memory, hook)
    cache.append(part(pages, 10, 4))
    got = memory.allocate(4 * PAGE, kind="tmpfs", owner=9, direction="down", mode="committed")
    assert got == part(pages, 10, 4)
    assert is_zero(memory, got)
    (request,) = hook.requests
    assert isinstance(request, memplat.types.AllocationRequest)
    assert (request.length, request.kind, request.owner) == (4 * PAGE, "tmpfs", 9)
    assert (request.direction, request.mode, request.huge) == ("down", "committed", False)


def test_the_hook_is_asked_again_for_as_long_as_it_makes_progress(open_memory: Opener) -> None:
    left = list(range(16))

    def evict(memory: Memory, request: Any) -> bool:
        memory.decref(part(pages, 100 + left.pop()))
        return True

    hook = Hook(evict)
    memory, pages = full(open_memory, hook)
    assert memory.allocate(8 * PAGE) == part(pages, 108, 8)
    assert len(hook.requests) == 8


def test_a_hook_that_has_nothing_to_free_is_asked_once(open_memory: Opener) -> None:
    hook = Hook(lambda memory, request: False)
    memory, _ = full(open_memory, hook)
    with unchanged(memory), pytest.raises(memplat.OutOfMemory):
        memory.allocate(PAGE)
    assert len(hook.requests) == 1


def test_a_hook_that_only_says_that_it_freed_something_is_not_believed_for_ever(open_memory: Opener) -> None:
    hook = Hook(lambda memory, request: True)
    memory, _ = full(open_memory, hook)
    with pytest.raises(memplat.OutOfMemory):
        within(lambda: memory.allocate(PAGE))
    assert len(hook.requests) <= 2


def test_a_hook_that_frees_and_takes_again_comes_to_an_end(open_memory: Opener) -> None:
    def busy(memory: Memory, request: Any) -> bool:
        memory.decref(part(pages, 5))
        assert memory.allocate(PAGE) == part(pages, 5)
        return True

    hook = Hook(busy)
    memory, pages = full(open_memory, hook)
    with pytest.raises(memplat.OutOfMemory):
        within(lambda: memory.allocate(PAGE))


def test_a_hook_that_raises_fails_the_allocation_and_changes_nothing(open_memory: Opener) -> None:
    def fail(memory: Memory, request: Any) -> bool:
        raise RuntimeError("a bug in the callback")

    memory, _ = full(open_memory, Hook(fail))
    with unchanged(memory), pytest.raises((RuntimeError, memplat.OutOfMemory)) as caught:
        memory.allocate(PAGE)
    chain: BaseException | None = caught.value
    texts = []
    while chain is not None:
        texts.append(str(chain))
        chain = chain.__cause__ or chain.__context__
    assert any("a bug in the callback" in text for text in texts), "the cause is told"


def test_a_hook_that_runs_out_of_memory_itself_is_not_asked_by_itself(open_memory: Opener) -> None:
    inner: list[BaseException] = []

    def recurse(memory: Memory, request: Any) -> bool:
        try:
            memory.allocate(PAGE)
        except memplat.OutOfMemory as error:
            inner.append(error)
        return False

    hook = Hook(recurse)
    memory, _ = full(open_memory, hook)
    with pytest.raises(memplat.OutOfMemory):
        within(lambda: memory.allocate(PAGE))
    assert len(hook.requests) == 1
    assert len(inner) == 1


def test_the_hook_is_asked_too_when_the_host_refuses_to_grow(open_memory: Opener, faults: Faults) -> None:
    freed: list[FileRange] = []

    def evict(memory: Memory, request: Any) -> bool:
        memory.decref(freed.pop())
        return True

    hook = Hook(evict)
    memory = open_memory(extensions=[faults, hook])
    memory.allocate(PAGE)
    faults.before["grow"] = raising(host_error(errno.ENOSPC))
    pages = memory.allocate(memory.total_size() - 2 * MIB)
    assert pages.start % (2 * MIB) == 0
    freed.append(pages)
    again = memory.allocate(pages.length)
    assert again == pages
    assert len(hook.requests) == 1


def test_the_hook_is_not_asked_while_waste_will_do(open_memory: Opener) -> None:
    hook = Hook(lambda memory, request: False)
    memory, pages = full(open_memory, hook)
    memory.decref(part(pages, 7))
    assert memory.allocate(PAGE) == part(pages, 7)
    assert hook.requests == []


# -- hooks and locks -----------------------------------------------------------------------------------------------


def test_no_hook_is_called_with_a_lock_held(open_memory: Opener, faults: Faults) -> None:
    opened: list[Memory] = []
    seen: set[str] = set()

    def use(memory: Memory) -> None:
        memory.usage()
        memory.dump()
        memory.inspect(0)
        memory.decref(memory.allocate(PAGE))

    def look(hook: str) -> Callable[..., None]:
        def call(*_: Any) -> None:
            if opened:
                memory = opened.pop()  # the calls made here have hooks of their own
                within(lambda: use(memory))
                opened.append(memory)
                seen.add(hook)

        return call

    hooks = ("mapped", "reserve", "probe", "probe_reserved", "storage", "decommit")
    memory = open_memory(extensions=[faults])
    memory.fileno()
    memory.allocate(PAGE)
    opened.append(memory)
    faults.before.update({hook: look(hook) for hook in hooks})
    memory.allocate(30 * MIB)
    pages = memory.allocate(8 * PAGE, mode="reserved")
    memory.allocate(8 * PAGE, mode="committed")
    memory.update_usage()
    memory.total_usage()
    memory.decommit(part(pages, 1))
    memory.decref(pages)
    memory.reclaim()
    within(lambda: memory.decref(memory.allocate(4 * PAGE, mode="will_commit")))
    assert seen >= {"reserve", "probe", "storage", "decommit"}


def test_other_calls_go_on_while_the_file_grows(open_memory: Opener, faults: Faults) -> None:
    memory = open_memory(extensions=[faults])
    pages = memory.allocate(PAGE)
    done: list[object] = []

    def look(*_: Any) -> None:
        done.append(within(lambda: (memory.usage(), memory.inspect(0), memory.allocate(PAGE), memory.incref(pages))))

    faults.before["grow"] = look
    memory.allocate(40 * MIB)
    assert done


def test_an_allocation_inside_the_grow_hook_does_not_deadlock_or_hand_a_page_out_twice(
    open_memory: Opener, faults: Faults
) -> None:
    memory = open_memory(extensions=[faults])
    memory.allocate(PAGE)
    got: list[FileRange] = []
    faults.before["grow"] = lambda *_: got.append(memory.allocate(PAGE))
    large = within(lambda: memory.allocate(40 * MIB))
    assert got
    assert not any(pages.overlaps(large) for pages in got)
    check(memory)


def test_faults_leave_nothing_behind(open_memory: Opener, faults: Faults) -> None:
    """All of it at once, at random: whatever fails, nothing is lost, dirty or counted twice in the end."""
    memory = open_memory(extensions=[faults], max_size=16 * MIB)
    memory.fileno()
    chance = random.Random(3)
    live: list[FileRange] = []

    def sometimes(*_: Any) -> None:
        if chance.random() < 0.3:
            raise chance.choice([host_error(errno.EIO), host_error(errno.ENOMEM), host_error(errno.EINTR)])

    for hook in ("grow", "reserve", "decommit", "probe", "storage", "probe_reserved"):
        faults.before[hook] = sometimes
    for _ in range(1_500):
        try:
            step = chance.randrange(6)
            if step <= 1:
                pages = memory.allocate(
                    chance.randint(1, 40) * PAGE,
                    mode=chance.choice(("uncommitted", "will_commit", "reserved", "committed")),
                )
                live.append(pages)
                assert is_zero(memory, pages)
                write_all(memory, part(pages, 0))
            elif step == 2 and live:
                memory.decref(live.pop(chance.randrange(len(live))))
            elif step == 3:
                memory.reclaim()
            elif step == 4:
                memory.update_usage()
            elif live:
                memory.decommit(chance.choice(live))
        except (memplat.MemplatError, OSError):
            continue
        finally:
            check(memory)
    assert allocated_without_probe(memory) == sum(pages.length for pages in live)
    faults.clear()
    for pages in live:
        memory.decref(pages)
    memory.reclaim()
    gc.collect()
    assert memory.total_usage() == 0
    assert committed(memory) == {}


def allocated_without_probe(memory: Memory) -> int:
    """Used bytes, walked with ``inspect``."""
    total, offset = 0, 0
    while offset < memory.total_size():
        info = memory.inspect(offset)
        total += info.pages.length if info.state == "used" else 0
        offset = info.pages.end
    return total
