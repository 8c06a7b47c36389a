"""Views: references that keep their pages, outlive the memory, and give no way to anything else."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import memplat
from memplat import FileRange
from memplat.errors import ReentrantCallError
from memplat.memory import Memory
from tests.oracle import PAGE, Observer, mappings_of
from tests.unit.engine.helpers import (
    MIB,
    allocated,
    check,
    close_with_leftovers,
    committed,
    part,
    together,
    within,
    write_all,
)

Opener = Callable[..., Memory]


@contextlib.contextmanager
def eager_collector() -> Iterator[None]:
    """The garbage collector runs at nearly every allocation of an object."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()


def test_a_view_is_one_contiguous_writable_run_of_bytes(memory: Memory) -> None:
    pages = memory.allocate(3 * PAGE)
    view = memory.view(pages)
    assert isinstance(view, memoryview)
    assert (view.nbytes, view.ndim, view.itemsize, view.contiguous, view.readonly) == (3 * PAGE, 1, 1, True, False)
    assert view.format in ("B", "<B")
    assert bytes(view) == bytes(3 * PAGE)
    view[PAGE - 2 : PAGE + 2] = b"abcd"
    assert memory.read(FileRange(pages.start + PAGE - 2, pages.start + PAGE + 2)) == b"abcd"
    view.release()


def test_a_view_may_begin_and_end_anywhere_and_reach_across_allocations(memory: Memory) -> None:
    first = memory.allocate(PAGE, kind="tmpfs")
    second = memory.allocate(PAGE, kind="system")
    memory.write(FileRange(first.end - 2, second.start + 2), b"wxyz")
    with memory.view(FileRange(first.end - 1, second.start + 1)) as view:
        assert bytes(view) == b"xy"
        assert memory.inspect(first.start).views == memory.inspect(second.start).views == 1
    assert memory.inspect(first.start).views == 0


def test_opening_a_view_commits_nothing_and_touching_it_commits_a_page(memory: Memory, observer: Observer) -> None:
    view = memory.view(memory.allocate(8 * PAGE))
    assert observer.blocks == 0
    assert view[3 * PAGE] == 0, "reading through a mapping commits, too"
    assert observer.blocks == PAGE
    view.release()


def test_pages_under_a_live_view_are_neither_reclaimed_nor_recycled(open_memory: Opener) -> None:
    memory = open_memory(max_size=2 * MIB)
    pages = memory.allocate(16 * PAGE, mode="will_commit")
    view = memory.view(pages)
    view[:] = b"k" * len(view)
    memory.decref(pages)
    assert memory.reclaim() == 0
    info = memory.inspect(pages.start)
    assert (info.state, info.refs, info.views) == ("used", 0, 1)
    for mode in ("uncommitted", "will_commit", "committed"):
        for _ in range(40):
            assert not memory.allocate(4 * PAGE, mode=mode).overlaps(pages)
    with contextlib.suppress(memplat.OutOfMemory):
        while True:
            assert not memory.allocate(PAGE, mode="committed").overlaps(pages)
    assert bytes(view) == b"k" * len(view)
    view.release()
    assert memory.inspect(pages.start).state == "waste"
    assert memory.reclaim() == 16 * PAGE


def test_pages_that_only_a_view_keeps_are_still_paid_for_by_kind_and_owner(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE, kind="tmpfs", owner=8, mode="committed")
    view = memory.view(pages)
    memory.decref(pages)
    usage = memory.update_usage()
    assert usage.committed_by_owner[8] == {"tmpfs": 4 * PAGE}
    assert usage.allocated["tmpfs"] == 4 * PAGE
    assert usage.waste == 0
    view.release()
    assert memory.update_usage().waste == 4 * PAGE


def test_a_reference_of_a_view_cannot_be_dropped_by_decref(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    view = memory.view(pages)
    memory.decref(pages)
    with pytest.raises(memplat.DoubleFreeError):
        memory.decref(pages)
    assert memory.inspect(pages.start).views == 1
    view.release()


def test_a_view_keeps_the_pages_that_it_touches_and_no_others(memory: Memory) -> None:
    pages = memory.allocate(6 * PAGE)
    write_all(memory, pages)
    view = memory.view(FileRange(pages.start + 2 * PAGE - 1, pages.start + 3 * PAGE + 1))
    memory.decref(pages)
    assert memory.reclaim() == 3 * PAGE
    states = [str(memory.inspect(part(pages, n).start).state) for n in range(6)]
    assert states == ["free", "used", "used", "used", "free", "free"]
    view.release()
    assert memory.reclaim() == 3 * PAGE


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view[10:20],
        lambda view: view[PAGE:],
        lambda view: view.cast("Q"),
        lambda view: view[::2],
        lambda view: view.toreadonly(),
        lambda view: memoryview(view),
        lambda view: np.frombuffer(view, dtype=np.uint8),
        lambda view: np.frombuffer(view, dtype=np.uint64).reshape(2, -1)[1],
        lambda view: (ctypes.c_char * 16).from_buffer(view),
        lambda view: np.frombuffer(view, dtype=np.uint8).data[5:6],
    ],
    ids=["slice", "tail", "cast", "stride", "toreadonly", "memoryview", "numpy", "reshaped", "ctypes", "through numpy"],
)
def test_whatever_is_derived_from_a_view_keeps_the_pages(memory: Memory, derive: Callable[[memoryview], Any]) -> None:
    pages = memory.allocate(2 * PAGE, fill=b"x" * 2 * PAGE)
    derived = derive(memory.view(pages))
    gc.collect()
    memory.decref(pages)
    assert memory.reclaim() == 0
    assert memory.inspect(pages.start).views == 1
    del derived
    gc.collect()
    assert memory.reclaim() == 2 * PAGE


def test_several_views_are_several_references(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    views = [memory.view(pages) for _ in range(5)]
    assert memory.inspect(pages.start).views == 5
    memory.decref(pages)
    while views:
        assert memory.reclaim() == 0
        views.pop().release()
    assert memory.reclaim() == PAGE


def test_releasing_twice_and_then_dropping_lets_go_once(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    other = memory.view(pages)
    view = memory.view(pages)
    view.release()
    view.release()
    del view
    gc.collect()
    assert memory.inspect(pages.start).views == 1
    other.release()
    assert memory.inspect(pages.start).views == 0


def test_numpy_computes_in_place_without_a_copy(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    numbers = np.frombuffer(memory.view(pages), dtype=np.uint32)
    assert numbers.flags.writeable
    numbers[:] = np.arange(2 * PAGE // 4)
    assert memory.read(FileRange(pages.start + 40, pages.start + 44)) == (10).to_bytes(4, "little")
    del numbers


def test_an_unpinned_view_is_no_reference(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    view = memory.view(pages, pin=False)
    view[:4] = b"data"
    assert memory.inspect(pages.start).views == 0
    assert memory.has_unique_ref(pages)
    memory.decref(pages)
    assert memory.reclaim() == 2 * PAGE
    assert bytes(view[:4]) == b"\0\0\0\0", "it sees whatever becomes of its pages"
    again = memory.allocate(2 * PAGE, fill=b"next")
    assert again == pages
    assert bytes(view[:4]) == b"next"


@pytest.mark.parametrize("pin", [True, False])
def test_writing_through_a_read_only_view_is_refused(memory: Memory, pin: bool) -> None:
    pages = memory.allocate(PAGE, fill=b"abc")
    view = memory.view(pages, writable=False, pin=pin)
    assert view.readonly
    assert bytes(view[:3]) == b"abc"
    with pytest.raises(TypeError):
        view[0] = 1
    array = np.frombuffer(view, dtype=np.uint8)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(TypeError):
        (ctypes.c_char * 4).from_buffer(view)
    del array
    view.release()


def exporters(view: memoryview) -> list[Any]:
    """Everything that can be reached from a view by way of ``obj``, as far as it leads."""
    found: list[Any] = []
    current: Any = view
    for _ in range(8):
        current = getattr(current, "obj", None)
        if current is None:
            break
        found.append(current)
    for exporter in list(found):
        for name in ("base", "_b_base_", "_objects", "contents", "buffer", "memory", "_view", "_obj", "_array", "_map"):
            value = getattr(exporter, name, None)
            if value is not None and not isinstance(value, (int, str)):
                found.append(value)
    return found


def buffer_of(exporter: object) -> memoryview | None:
    """The whole buffer that an object exports, if it does."""
    try:
        return memoryview(exporter)  # type: ignore[arg-type]
    except TypeError:
        return None


@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("writable", [True, False])
def test_the_exporter_behind_a_view_leads_to_the_range_and_no_further(
    memory: Memory, writable: bool, pin: bool
) -> None:
    pages = memory.allocate(8 * PAGE, fill=b"s" * (8 * PAGE))
    start, length = pages.start + 3 * PAGE + 5, 100
    view = memory.view(FileRange(start, start + length), writable=writable, pin=pin)
    for exporter in exporters(view):
        whole = buffer_of(exporter)
        if whole is not None:
            assert whole.nbytes <= length, f"{exporter!r} exports {whole.nbytes} bytes of a view of {length}"
            assert writable or whole.readonly, f"{exporter!r} can be written although the view is read-only"
            whole.release()
        with contextlib.suppress(TypeError, ValueError, AttributeError, BufferError):
            more = (ctypes.c_char * (length + 1)).from_buffer(exporter)
            raise AssertionError(f"{exporter!r} gives {len(more)} bytes")
        with contextlib.suppress(TypeError, ValueError, AttributeError, BufferError):
            ctypes.resize(exporter, PAGE)
            raise AssertionError(f"{exporter!r} can be resized")
        if not writable:
            with contextlib.suppress(TypeError, ValueError, AttributeError, BufferError, IndexError):
                exporter[0] = b"!"
            for name in ("value", "raw"):
                with contextlib.suppress(TypeError, ValueError, AttributeError, BufferError):
                    setattr(exporter, name, b"!")
    if not writable:
        assert memory.read(pages) == b"s" * (8 * PAGE)
    view.release()
    del exporter, whole
    gc.collect()
    assert memory.inspect(start).views == 0


def test_slices_of_slices_lead_no_further_than_the_view_they_come_from(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    view = memory.view(part(pages, 1))
    piece = view[10:20][2:4]
    for exporter in exporters(piece):
        whole = buffer_of(exporter)
        assert whole is None or whole.nbytes <= PAGE


@pytest.mark.parametrize("pin", [True, False])
def test_a_view_reads_and_writes_after_close(open_memory: Opener, pin: bool) -> None:
    memory = open_memory()
    pages = memory.allocate(4 * PAGE, fill=b"before")
    view = memory.view(pages, pin=pin)
    memory.decref(pages)
    close_with_leftovers(memory)
    if pin:
        assert bytes(view[:6]) == b"before"
    view[PAGE : PAGE + 5] = b"after"
    assert bytes(view[PAGE : PAGE + 5]) == b"after"
    view.release()


def test_dropping_the_last_view_after_close_unmaps(open_memory: Opener) -> None:
    memory = open_memory()
    with Observer(memory.fileno()) as observer:
        inode = observer.inode
    pages = memory.allocate(4 * PAGE)
    first, second = memory.view(pages), memory.view(part(pages, 1), writable=False, pin=False)
    assert mappings_of(inode)
    memory.decref(pages)
    close_with_leftovers(memory)
    assert mappings_of(inode)
    first.release()
    del first
    assert mappings_of(inode), "the other one is still alive"
    assert second[0] == 0
    second.release()
    del second
    gc.collect()
    assert mappings_of(inode) == []


def test_without_views_close_unmaps(open_memory: Opener) -> None:
    memory = open_memory()
    with Observer(memory.fileno()) as observer:
        inode = observer.inode
    pages = memory.allocate(4 * PAGE, fill=b"x")
    memory.view(pages).release()
    memory.decref(pages)
    memory.close()
    gc.collect()
    assert mappings_of(inode) == []


def test_a_view_of_pages_that_nobody_holds_is_refused(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    memory.decref(part(pages, 2))
    for pin in (True, False):
        with pytest.raises(memplat.NotAllocatedError):
            memory.view(pages, pin=pin)
    memory.reclaim()
    with pytest.raises(memplat.NotAllocatedError):
        memory.view(part(pages, 2))
    assert memory.inspect(pages.start).views == 0


def test_a_view_keeps_the_memory_object_from_nothing(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(PAGE)
    view = memory.view(pages)
    memory.decref(pages)
    view.release()
    assert allocated(memory) == 0


def cyclic(view: memoryview) -> None:
    """Leave *view* to the garbage collector."""
    holder: list[Any] = [view]
    holder.append(holder)


def test_views_dropped_by_the_collector_in_the_middle_of_engine_calls_do_no_harm(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=0)

    def churn() -> None:
        for turn in range(150):
            pages = memory.allocate(2 * PAGE)
            cyclic(memory.view(pages))
            _ = [[] for _ in range(turn % 11)]  # so that the collector runs at another place each time
            cyclic(memory.view(part(pages, 1), writable=False))
            memory.incref(pages)
            memory.decref(pages)
            memory.update_usage()
            memory.decref(pages)

    with eager_collector():
        together(churn, churn, churn)
    gc.collect()
    check(memory)
    assert within(lambda: memory.wait_reclaimed(timeout=60)) is True
    assert committed(memory) == {}
    assert allocated(memory) == 0


def test_a_finaliser_may_let_its_pages_go_wherever_the_collector_runs_it(open_memory: Opener) -> None:
    """An object that owns pages and drops them in ``__del__`` is the natural way to use the library; the collector runs
    such a method in the middle of any call of any thread, those of the engine included."""
    memory = open_memory(reclaim="background", reclaim_delay=0)

    class Owner:
        def __init__(self) -> None:
            self.pages = memory.allocate(PAGE)
            self.block = memory.block(PAGE)
            self.view = memory.view(self.pages)
            self.cycle = self

        def __del__(self) -> None:
            memory.decref(self.pages)
            self.block.close()

    def churn() -> None:
        for turn in range(100):
            Owner()
            _ = [[] for _ in range(turn % 11)]  # so that the collector runs at another place each time
            memory.decref(memory.allocate(PAGE))
            memory.usage()

    with eager_collector():
        together(churn, churn)
    gc.collect()
    check(memory)
    assert allocated(memory) == 0
    assert within(lambda: memory.wait_reclaimed(timeout=60)) is True
    assert memory.total_usage() == 0


def test_a_callback_that_interrupts_a_call_of_its_own_thread_is_refused_and_served_otherwise(
    open_memory: Opener,
) -> None:
    memory = open_memory()
    shared = memory.allocate(PAGE, fill=b"s")
    seen: list[int] = []
    refused: list[ReentrantCallError] = []

    class Token:
        def __init__(self) -> None:
            self.cycle = self

    def callback(_: object) -> None:
        try:
            with memory.view(shared) as view:
                seen.append(view[0])
        except ReentrantCallError as error:
            refused.append(error)

    references: list[weakref.ref[Token]] = []

    def churn() -> None:
        for turn in range(100):
            references.append(weakref.ref(Token(), callback))
            _ = [[] for _ in range(turn % 11)]  # so that the collector runs at another place each time
            memory.decref(memory.allocate(PAGE))

    with eager_collector():
        together(churn, churn)
    gc.collect()
    assert len(seen) + len(refused) == 200
    assert set(seen) == {ord("s")}
    assert memory.inspect(shared.start).views == 0
    assert allocated(memory) == PAGE
    check(memory)


def test_a_signal_handler_that_interrupts_a_call_may_drop_references_and_is_refused_the_rest(memory: Memory) -> None:
    dropped: list[FileRange] = []
    refused: list[ReentrantCallError] = []
    spare = [memory.allocate(PAGE) for _ in range(200)]

    def handler(*_: object) -> None:
        if spare:
            dropped.append(spare.pop())
            memory.decref(dropped[-1])
        try:
            memory.usage()
        except ReentrantCallError as error:
            refused.append(error)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        while spare:
            pages = memory.allocate(3 * PAGE)
            memory.incref(part(pages, 1))
            memory.decref(pages)
            memory.decref(part(pages, 1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    check(memory)
    assert allocated(memory) == 0
    memory.reclaim()
    assert memory.total_usage() == 0


def test_views_dropped_by_other_threads_while_memory_is_closed(open_memory: Opener) -> None:
    for _ in range(20):
        memory = open_memory()
        pages = memory.allocate(16 * PAGE)
        views = [memory.view(pages) for _ in range(50)]
        memory.decref(pages)
        started = threading.Event()

        def drop(views: list[memoryview] = views, started: threading.Event = started) -> None:
            while views:
                started.set()
                views.pop().release()

        dropper = threading.Thread(target=drop)
        dropper.start()
        started.wait(60)
        within(partial(close_with_leftovers, memory))
        dropper.join(60)
        assert not dropper.is_alive()


def test_what_a_view_is_made_of_cannot_be_copied_and_names_no_other_memory(open_memory: Opener) -> None:
    memory = open_memory()
    secret, pages = memory.allocate(PAGE, fill=b"secret"), memory.allocate(PAGE)
    kept = memory.view(secret)
    view = memory.view(pages, writable=False)
    exporter: Any = view.obj
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises((TypeError, pickle.PicklingError)):
            copied(exporter)
    made: list[Any] = []
    for number in range(10):  # an exporter of one's own exports nothing
        with contextlib.suppress(TypeError, SystemError, BufferError):
            made.append(memoryview(type(exporter)(number)))
    assert not any(one.nbytes for one in made)
    assert memory.inspect(pages.start).views == 1
    assert bytes(kept[:6]) == b"secret"
    kept.release()
    view.release()
