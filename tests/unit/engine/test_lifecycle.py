"""Opening, closing, dropping, forking, exiting: nothing leaks, hangs or crashes."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import memplat
from memplat import FileRange
from memplat.hookspecs import hookimpl
from memplat.memory import Memory
from tests.oracle import PAGE, Observer, backing_descriptor, descriptors, mappings_of, tasks
from tests.unit.engine.helpers import MIB, check, close_with_leftovers, threads_ended, together, until, within

Opener = Callable[..., Memory]

ROOT = Path(memplat.__file__).parents[1]


# -- leaks ---------------------------------------------------------------------------------------------------------


def virtual_bytes() -> int:
    """The address space of this process, in bytes (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def resident_bytes() -> int:
    """The resident memory of this process, in bytes (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def map_count() -> int:
    """The number of mappings of this process."""
    return len(Path("/proc/self/maps").read_text(errors="replace").splitlines())


def assert_nothing_leaks(cycle: Callable[[], None], times: int) -> int:
    """Run *cycle* so many times, and again if memory has grown: arenas and stacks of threads fill up at their leisure,
    a leak goes on. Descriptors, threads, mappings and memory are as before. How many cycles there were.
    """
    done = 300
    for _ in range(done):  # what is made once is made now
        cycle()
    gc.collect()
    objects = len(gc.get_objects())
    before = (len(descriptors()), tasks())
    for _ in range(4):
        maps, virtual, resident = map_count(), virtual_bytes(), resident_bytes()
        for _ in range(times):
            cycle()
        done += times
        gc.collect()
        threads_ended(before[1])
        maps, resident = map_count() - maps, resident_bytes() - resident
        if maps <= 8 and resident < times * 8 * 1024:  # the interpreter's own arenas come and go, a few at most
            break
    else:
        raise AssertionError(f"{times} cycles more left {maps} mappings and {resident} bytes, time after time")
    assert len(descriptors()) == before[0]
    assert virtual_bytes() - virtual < times * MIB, "each memory reserves 64 times as much address space"
    assert len(gc.get_objects()) - objects < times // 2
    return done


def use(memory: Memory) -> None:
    """What any user does: allocate, write, look, free."""
    pages = memory.allocate(4 * PAGE)
    with memory.view(pages) as view:
        view[:5] = b"hello"
    memory.decref(pages)


@pytest.mark.no_cover  # coverage keeps a tracer of every thread that ever was: some 4 KiB of "leak" each
@pytest.mark.parametrize("reclaim", ["manual", "background"])
def test_a_thousand_memories_opened_and_closed_leak_nothing(reclaim: str) -> None:
    def cycle() -> None:
        with memplat.open("memfd", max_size=64 * MIB, reclaim=reclaim) as memory:
            use(memory)

    assert_nothing_leaks(cycle, 1_000)


@pytest.mark.no_cover  # coverage keeps a tracer of every thread that ever was: some 4 KiB of "leak" each
@pytest.mark.parametrize("reclaim", ["manual", "background"])
def test_a_thousand_memories_dropped_without_close_leak_nothing_and_are_warned_about(
    reclaim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cycle() -> None:
        memory = memplat.open("memfd", max_size=64 * MIB, reclaim=reclaim)
        use(memory)
        del memory
        gc.collect(0)

    told: Counter[str] = Counter()

    def count(message: object, category: type[Warning], *_: object) -> None:
        told[category.__name__] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        monkeypatch.setattr(warnings, "showwarning", count)
        cycles = assert_nothing_leaks(cycle, 1_000)
        gc.collect()
    assert told["ResourceWarning"] == cycles


def test_a_memory_dropped_in_a_cycle_with_live_views_and_references_is_closed_too() -> None:
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        memory = memplat.open("memfd", max_size=64 * MIB)
        fd = backing_descriptor(before)
        inode = os.fstat(fd).st_ino
        pages = memory.allocate(PAGE, fill=b"kept")
        view = memory.view(pages)
        cycle: list[Any] = [memory]
        cycle.append(cycle)
        alive = weakref.ref(memory)
        reclaimers = [one for one in threading.enumerate() if one.name == "memplat-reclaimer"]
        del memory, cycle
        gc.collect()
        assert alive() is None
        for one in reclaimers:
            one.join()  # the last one out closes the file
    assert not descriptors().get(fd, "").startswith("/memfd:")
    assert bytes(view[:4]) == b"kept", "a view keeps the mapping, not the memory"
    assert mappings_of(inode)
    view.release()
    del view
    gc.collect()
    assert mappings_of(inode) == []


def test_a_dropped_memory_is_not_kept_by_its_reclaimer() -> None:
    threads = tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        memory = memplat.open("memfd", max_size=64 * MIB, reclaim="background", reclaim_delay=3600)
        memory.decref(memory.allocate(PAGE))
        alive = weakref.ref(memory)
        del memory
        gc.collect()
        assert alive() is None
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "memplat" in thread.name:
            thread.join(60)
    threads_ended(threads)


def test_references_left_at_close_are_a_resource_warning() -> None:
    memory = memplat.open("memfd", max_size=64 * MIB)
    memory.allocate(3 * PAGE)
    with pytest.warns(ResourceWarning):
        memory.close()


def test_a_clean_close_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory = memplat.open("memfd", max_size=64 * MIB)
        use(memory)
        memory.close()


def test_the_with_statement_closes_also_after_an_exception() -> None:
    with pytest.raises(RuntimeError, match="user"), memplat.open("memfd", max_size=64 * MIB) as memory:
        raise RuntimeError("user")
    with pytest.raises(memplat.ClosedError):
        memory.allocate(PAGE)


# -- close ---------------------------------------------------------------------------------------------------------


def test_close_gives_everything_back_and_closes_the_descriptor(open_memory: Opener) -> None:
    memory = open_memory()
    with Observer(memory.fileno()) as observer:
        fd = memory.fileno()
        pages = memory.allocate(16 * PAGE, mode="committed")
        memory.decref(pages)
        memory.close()
        assert not descriptors().get(fd, "").startswith("/memfd:")
        assert mappings_of(observer.inode) == []


def test_close_is_idempotent_also_from_many_threads(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background")
    use(memory)
    together(*[memory.close] * 8)
    memory.close()


def test_calls_in_flight_end_with_their_result_or_with_closed_error(open_memory: Opener) -> None:
    for _ in range(10):
        memory = open_memory(reclaim="background", reclaim_delay=0)
        warm = threading.Barrier(5)

        def churn(memory: Memory = memory, warm: threading.Barrier = warm) -> None:
            warm.wait()
            try:
                while True:
                    pages = memory.allocate(2 * PAGE, mode="will_commit")
                    memory.write(pages, b"data")
                    with memory.view(pages) as view:
                        assert bytes(view[:4]) == b"data"
                    memory.update_usage()
                    memory.incref(pages)
                    memory.decref(pages)
                    memory.decref(pages)
            except memplat.ClosedError:
                return

        def close(memory: Memory = memory, warm: threading.Barrier = warm) -> None:
            warm.wait()
            for _ in range(50):
                memory.usage()
            close_with_leftovers(memory)

        together(churn, churn, churn, churn, close)


def test_close_waits_for_a_call_in_flight(open_memory: Opener) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        @hookimpl(wrapper=True)
        def memplat_reserve(self) -> Any:
            entered.set()
            assert go_on.wait(60)
            return (yield)

    memory = open_memory(extensions=[Slow()])
    got: list[FileRange] = []
    allocator = threading.Thread(target=lambda: got.append(memory.allocate(PAGE, mode="reserved")))
    allocator.start()
    assert entered.wait(60)
    closed = threading.Event()

    def close() -> None:
        close_with_leftovers(memory)
        closed.set()

    closer = threading.Thread(target=close)
    closer.start()
    until(lambda: _refuses(memory))
    assert not closed.is_set()
    go_on.set()
    allocator.join(60)
    closer.join(60)
    assert closed.is_set()
    assert len(got) == 1


def _refuses(memory: Memory) -> bool:
    try:
        memory.usage()
    except memplat.ClosedError:
        return True
    return False


class Closing:
    """Closes the memory from inside a hook."""

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.memory: Memory | None = None
        self.closed = threading.Event()

    def _close(self, hook: str) -> None:
        if hook == self.hook and self.memory is not None and not self.closed.is_set():
            close_with_leftovers(self.memory)
            self.closed.set()

    @hookimpl(wrapper=True)
    def memplat_decommit(self) -> Any:
        self._close("decommit")
        return (yield)

    @hookimpl
    def memplat_reclaimed(self) -> None:
        self._close("reclaimed")

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self) -> Any:
        self._close("probe")
        return (yield)

    @hookimpl(wrapper=True)
    def memplat_reserve(self) -> Any:
        self._close("reserve")
        return (yield)

    @hookimpl(wrapper=True)
    def memplat_grow(self) -> Any:
        self._close("grow")
        return (yield)

    @hookimpl
    def memplat_out_of_memory(self) -> bool:
        self._close("out_of_memory")
        return False


@pytest.mark.parametrize("hook", ["decommit", "reclaimed", "probe", "reserve", "grow", "out_of_memory"])
@pytest.mark.parametrize("reclaim", ["manual", "background"])
def test_a_memory_can_be_closed_from_a_hook(open_memory: Opener, hook: str, reclaim: str) -> None:
    extension = Closing(hook)
    memory = open_memory(extensions=[extension], reclaim=reclaim, reclaim_delay=0, max_size=8 * MIB)
    extension.memory = memory

    def work() -> None:
        try:
            memory.fileno()
            memory.decref(memory.allocate(PAGE, fill=b"x", mode="reserved"))
            memory.reclaim()
            memory.wait_reclaimed(timeout=30)
            memory.update_usage()
            memory.allocate(9 * MIB)
        except memplat.MemplatError:
            return

    within(work)
    assert extension.closed.wait(60)
    within(memory.close)
    with pytest.raises(memplat.ClosedError):
        memory.usage()


def test_the_events_of_opening_and_closing_are_called_once_each(open_memory: Opener) -> None:
    events: list[str] = []

    class Watching:
        @hookimpl
        def memplat_memory_opened(self, memory: Memory) -> None:
            events.append(f"opened {memory.backend.name}")

        @hookimpl
        def memplat_memory_closed(self, memory: Memory) -> None:
            assert _refuses(memory)
            events.append("closed")

    memory = open_memory(extensions=[Watching()])
    memory.close()
    memory.close()
    assert events == ["opened memfd", "closed"]


def test_the_backing_file_is_closed_on_exec_private_and_sealed_against_shrinking(memory: Memory) -> None:
    fd = memory.fileno()
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    memory.allocate(PAGE)
    with Observer(fd) as peer, pytest.raises(PermissionError):
        os.ftruncate(peer.fd, 0)


# -- fork ----------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], str]) -> str:
    """What *work* says in a forked child. A child that hangs is killed and says so."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking with threads alive is the point here
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            said = work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child died of signal {status & 0x7F} (14: it hung); it said {said!r}"
    return said


def calls(memory: Memory, pages: FileRange) -> dict[str, Callable[[], object]]:
    """Every call of a memory, with good arguments."""

    class Space:
        def map_file(self, *arguments: object) -> None:
            raise AssertionError("must not be reached")

        unmap = release = map_file

    return {
        "round_up": lambda: memory.round_up(1),
        "allocate": lambda: memory.allocate(PAGE),
        "block": lambda: memory.block(PAGE),
        "incref": lambda: memory.incref(pages),
        "decref": lambda: memory.decref(pages),
        "has_unique_ref": lambda: memory.has_unique_ref(pages),
        "first_shared_range": lambda: memory.first_shared_range(pages),
        "inspect": lambda: memory.inspect(pages.start),
        "transfer": lambda: memory.transfer(pages, 1),
        "decommit": lambda: memory.decommit(pages),
        "view": lambda: memory.view(pages),
        "view read-only": lambda: memory.view(pages, writable=False),
        "read": lambda: memory.read(pages),
        "write": lambda: memory.write(pages, b"x"),
        "address": lambda: memory.address(pages),
        "map_into": lambda: memory.map_into(Space(), 0, pages, "read"),
        "update_usage": lambda: memory.update_usage(),
        "usage": lambda: memory.usage(),
        "account_external": lambda: memory.account_external(1),
        "total_usage": lambda: memory.total_usage(),
        "total_size": lambda: memory.total_size(),
        "reclaim": lambda: memory.reclaim(),
        "wait_reclaimed": lambda: memory.wait_reclaimed(timeout=1),
        "fileno": lambda: memory.fileno(),
        "flush": lambda: memory.flush(),
        "dump": lambda: memory.dump(),
        "enter": lambda: memory.__enter__(),
    }


@pytest.mark.parametrize("reclaim", ["manual", "background"])
def test_in_a_forked_child_every_call_but_an_unpinned_view_and_close_is_refused(
    open_memory: Opener, reclaim: str
) -> None:
    memory = open_memory(reclaim=reclaim)
    pages = memory.allocate(PAGE, fill=b"parent")
    memory.decref(memory.allocate(PAGE, fill=b"x"))

    def child() -> str:
        wrong = []
        for name, call in calls(memory, pages).items():
            try:
                call()
            except memplat.ForkedError:
                continue
            except BaseException as error:
                wrong.append(f"{name} raised {type(error).__name__}: {error}")
            else:
                wrong.append(f"{name} went through")
        view = memory.view(pages, pin=False)
        if bytes(view[:6]) != b"parent":
            wrong.append("the view shows something else")
        view[:5] = b"child"
        memory.close()
        memory.close()
        if bytes(view[:5]) != b"child":
            wrong.append("the view does not outlive close")
        return "; ".join(wrong)

    assert in_child(child) == ""
    assert memory.read(pages)[:6] == b"childt", "the child's close touches nothing of the parent's"
    memory.write(pages, b"again")
    memory.decref(pages)
    memory.reclaim()
    assert memory.total_usage() == 0
    check(memory)


def test_a_view_of_the_parent_works_in_the_child_and_dropping_it_there_changes_nothing(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(PAGE, fill=b"x")
    views = [memory.view(pages)]
    memory.decref(pages)

    def child() -> str:
        view = views.pop()
        view[0] = ord("c")
        view.release()
        del view
        gc.collect()
        return ""

    assert in_child(child) == ""
    assert memory.inspect(pages.start).views == 1
    assert bytes(views[0][:1]) == b"c"
    views.pop().release()
    assert memory.reclaim() == PAGE


def test_a_child_can_have_a_memory_of_its_own(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background")
    memory.decref(memory.allocate(PAGE))

    def child() -> str:
        with memplat.open("memfd", max_size=8 * MIB, reclaim="background", reclaim_delay=0) as own:
            own.decref(own.allocate(4 * PAGE, fill=b"x"))
            if not own.wait_reclaimed(timeout=30):
                return "never reclaimed"
            return "" if own.total_usage() == 0 else "not given back"

    assert in_child(child) == ""


def test_a_child_that_drops_the_memory_without_close_leaves_the_parent_alone(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background")
    pages = memory.allocate(PAGE, fill=b"parent")

    def child() -> str:
        gc.collect()
        return ""

    assert in_child(child) == ""
    assert memory.read(pages)[:6] == b"parent"


def test_a_child_forked_while_another_thread_holds_the_engines_lock_does_not_hang(open_memory: Opener) -> None:
    memory = open_memory()
    pages = memory.allocate(PAGE, fill=b"x")
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with memory._state.lock:  # type: ignore[attr-defined]
            held.set()
            let_go.wait(90)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(60)

    def child() -> str:
        try:
            memory.usage()
        except memplat.ForkedError:
            pass
        else:
            return "usage went through"
        if memory.view(pages, pin=False)[0] != ord("x"):
            return "another page"
        memory.close()
        return ""

    try:
        assert in_child(child) == ""
    finally:
        let_go.set()
        holder.join(60)
    assert memory.read(pages)[:1] == b"x"


def test_children_forked_in_the_middle_of_everything_refuse_and_exit(open_memory: Opener) -> None:
    memory = open_memory(reclaim="background", reclaim_delay=0)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            memory.decref(memory.allocate(2 * PAGE, mode="committed"))
            memory.update_usage()

    threads = [threading.Thread(target=churn, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()

    def child() -> str:
        try:
            memory.allocate(PAGE)
        except memplat.ForkedError:
            memory.close()
            gc.collect()
            return ""
        return "went through"

    try:
        for _ in range(25):
            assert in_child(child) == ""
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    check(memory)
    assert memory.wait_reclaimed(timeout=60)
    assert memory.total_usage() == 0


def test_a_child_exits_normally_with_the_parents_memory_and_views_alive() -> None:
    script = """
        import os, sys, memplat
        memory = memplat.open("memfd", max_size=64 << 20)
        pages = memory.allocate(4096, fill=b"x")
        view = memory.view(pages)
        memory.decref(memory.allocate(8192, fill=b"y"))
        pid = os.fork()
        if pid == 0:
            sys.exit(3)              # the whole of the interpreter's shutdown
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 3, status
        assert bytes(view[:1]) == b"x"
        view.release()
        memory.decref(pages)
        memory.close()
    """
    # From Python 3.12 on, forking beside another thread (the reclaimer) is warned of.
    assert run_script(script, "-W", "ignore::DeprecationWarning") == (0, "", "")


# -- the interpreter's end -----------------------------------------------------------------------------------------


def run_script(script: str, *options: str) -> tuple[int, str, str]:
    """Exit status, output and error output of a Python process of its own."""
    lines = script.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    code = "\n".join(line[indent:] for line in lines)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MEMPLAT")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


ENDINGS = {
    "an open memory": """
        import memplat
        memory = memplat.open("memfd", max_size=64 << 20)
        memory.allocate(4096, fill=b"x")
    """,
    "live views": """
        import memplat
        memory = memplat.open("memfd", max_size=64 << 20)
        views = [memory.view(memory.allocate(4096)) for _ in range(100)]
        views[3][0] = 1
    """,
    "a view that outlives the memory": """
        import memplat
        memory = memplat.open("memfd", max_size=64 << 20)
        pages = memory.allocate(4096)
        view = memory.view(pages)
        memory.decref(pages)
        memory.close()
        view[0] = 1
    """,
    "a reclaimer that is waiting": """
        import memplat
        memory = memplat.open("memfd", max_size=64 << 20, reclaim="background", reclaim_delay=3600)
        memory.decref(memory.allocate(4096, fill=b"x"))
    """,
    "a reclaimer at work": """
        import memplat
        memory = memplat.open("memfd", max_size=1 << 30, reclaim="background", reclaim_delay=0)
        pages = memory.allocate(200 << 20, mode="committed")
        memory.decref(pages)
    """,
    "a daemon thread in the middle of calls": """
        import memplat, threading
        memory = memplat.open("memfd", max_size=64 << 20, reclaim="background", reclaim_delay=0)
        started = threading.Event()
        def churn():
            while True:
                memory.decref(memory.allocate(8192, mode="will_commit", fill=b"x"))
                memory.update_usage()
                started.set()
        for _ in range(3):
            threading.Thread(target=churn, daemon=True).start()
        started.wait()
    """,
    "a memory in a cycle with its view": """
        import memplat
        class Holder: pass
        holder = Holder()
        holder.memory = memplat.open("memfd", max_size=64 << 20)
        holder.view = holder.memory.view(holder.memory.allocate(4096))
        holder.me = holder
    """,
    "close in an exit handler": """
        import atexit, memplat
        memory = memplat.open("memfd", max_size=64 << 20, reclaim="background")
        pages = memory.allocate(4096)
        memory.decref(pages)
        atexit.register(memory.close)
    """,
    "blocks that were never closed": """
        import memplat
        memory = memplat.open("memfd", max_size=64 << 20, reclaim="background")
        block = memory.block(4096)
    """,
    "a finalizer that drops a reference and closes": """
        import memplat
        class Owner:
            def __init__(self):
                self.memory = memplat.open("memfd", max_size=64 << 20, reclaim="background")
                self.pages = self.memory.allocate(4096)
            def __del__(self):
                self.memory.decref(self.pages)
                self.memory.close()
        owner = Owner()
    """,
    "blocks that were never closed, of a memory that daemon threads work on": """
        import memplat, threading
        memory = memplat.open("memfd", max_size=64 << 20, reclaim="background", reclaim_delay=0)
        blocks = [memory.block(4096) for _ in range(100)]
        started = threading.Event()
        def churn():
            while True:
                memory.decref(memory.allocate(8192, mode="will_commit", fill=b"x"))
                memory.update_usage()
                started.set()
        for _ in range(3):
            threading.Thread(target=churn, daemon=True).start()
        started.wait()
    """,
    "numpy arrays of views": """
        import memplat, numpy
        memory = memplat.open("memfd", max_size=64 << 20)
        array = numpy.frombuffer(memory.view(memory.allocate(4096)), dtype=numpy.uint8)
        array[:] = 3
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_quietly_with(ending: str) -> None:
    assert run_script(ENDINGS[ending]) == (0, "", "")


def test_an_uncaught_exception_ends_the_interpreter_as_always() -> None:
    status, _, errors = run_script("""
        import memplat
        memory = memplat.open("memfd", max_size=64 << 20, reclaim="background", reclaim_delay=3600)
        memory.decref(memory.allocate(4096, fill=b"x"))
        raise SystemExit(7)
    """)
    assert (status, errors) == (7, "")


def test_development_mode_tells_of_a_memory_that_was_never_closed() -> None:
    status, _, errors = run_script(
        """
        import memplat
        memory = memplat.open("memfd", max_size=64 << 20)
        del memory
        """,
        "-X",
        "dev",
    )
    assert status == 0
    assert re.search(r"ResourceWarning", errors)


def test_the_address_space_is_given_back_with_the_memory() -> None:
    before = virtual_bytes()
    with memplat.open("memfd", max_size=8 << 30) as memory:
        memory.decref(memory.allocate(PAGE))
        assert virtual_bytes() - before >= 8 << 30, "one reservation of max_size"
        assert resident_bytes() < 8 << 30
    gc.collect()
    assert virtual_bytes() - before < 1 << 30


def flags_of(inode: int) -> list[set[str]]:
    """The VmFlags of each mapping of that memfd (proc_pid_smaps(5))."""
    found: list[set[str]] = []
    mine = False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            mine = "memfd:" in line and words[4] == str(inode)
        elif mine and words[0] == "VmFlags:":
            found.append(set(words[1:]))
    return found


@pytest.mark.parametrize("wanted", [True, False])
def test_the_memory_is_part_of_core_dumps_only_if_that_was_asked_for(open_memory: Opener, wanted: bool) -> None:
    memory = open_memory(core_dump=wanted)
    memory.allocate(40 * MIB)
    with Observer(memory.fileno()) as observer:
        flags = flags_of(observer.inode)
    assert flags
    assert all(("dd" in each) is not wanted for each in flags), "dd: do not dump"


def test_without_a_max_size_at_least_64_gibibytes_are_reserved() -> None:
    before = virtual_bytes()
    with memplat.open("memfd") as memory:
        assert virtual_bytes() - before >= 64 << 30
        memory.decref(memory.allocate(PAGE))


def test_a_limit_on_address_space_makes_the_reservation_smaller_and_says_so() -> None:
    script = """
        import resource
        import memplat
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        with memplat.open("memfd") as memory:
            assert memory.backend.notes, memory.backend
            print(*memory.backend.notes)
            pages = memory.allocate(64 << 20)
            memory.write(pages, b"works")
            memory.decref(pages)
    """
    status, output, errors = run_script(script)
    assert status == 0, errors
    assert "RLIMIT_AS" in output


def test_an_address_space_that_is_full_is_not_said_to_be_limited() -> None:
    script = """
        import memplat
        from memplat.linux import memory as host
        for bits in range(46, 34, -1):  # what is left is less than 64 GiB in one piece
            try:
                while True:
                    host.reserve_address_space(1 << bits, 4096)
            except OSError:
                pass
        try:
            memplat.open("memfd", max_size=1 << 40)
        except memplat.BackendUnavailableError as error:
            print(error)
        with memplat.open("memfd") as memory:
            print(*memory.backend.notes)
    """
    status, output, errors = run_script(script)
    assert status == 0, errors
    assert "RLIMIT_AS" not in output + errors
    assert "close memories that are not used or set a smaller max_size" in output
    assert "the process has no room for more in its address space" in output
