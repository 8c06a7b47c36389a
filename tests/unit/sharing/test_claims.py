"""Claims: attaching without asking the owner, what peers can do to the table, and what is given back when."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memplat
from memplat import claims, peers, wire
from memplat.engine.service import service
from memplat.linux import locks
from memplat.memory import Memory
from memplat.ranges import FileRange
from memplat.sharing import TOKEN
from memplat.watcher import Watcher
from memplat.windows import Window
from tests.oracle import PAGE
from tests.unit.sharing.looks import FIRST, ROOT, refs

never_before = pytest.mark.parametrize("memory", [FIRST], indirect=True)


def key_of(handle: memplat.Handle) -> bytes:
    return bytes(TOKEN.unpack(handle._token)[0])


def slot_of(handle: memplat.Handle) -> int:
    return int(TOKEN.unpack(handle._token)[1])


@contextlib.contextmanager
def guest(handle: memplat.Handle) -> Iterator[tuple[claims.Claims, list[int]]]:
    """A peer that does what it likes: the table, and its descriptors (file, table, its own description)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(handle._address)
        line.send(key_of(handle))
        _, fds = wire.receive(line, wire.WELCOME.size, 3)
        table = claims.Claims(fds[2], fds[1])
        try:
            yield table, fds
        finally:
            table.close()
            for fd in fds:
                os.close(fd)


@contextlib.contextmanager
def python(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which talks through its standard streams."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_the_owner_is_not_asked_again(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    memplat.attach(memory.share(pages)).release()
    handle = memory.share(pages)
    running = memory._shares._service  # type: ignore[attr-defined]
    with running.lock:  # whatever comes to its door now has to wait
        view = memplat.attach(handle)
        assert bytes(view[:5]) == b"hello"
        again = pickle.loads(pickle.dumps(handle))
        with pytest.raises(memplat.HandleUsedError):
            memplat.attach(again)
        del view
    assert handle.wait(20)
    with pytest.raises(memplat.HandleExpiredError):
        memplat.attach(again)
    memory.decref(pages)


def test_nonsense_in_the_table_ends_no_share_that_is_attached(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    attached, offered = memory.share(pages), memory.share(pages, expires=0.3)
    view = memplat.attach(attached)
    with guest(attached) as (table, _):
        for state in range(256):
            table.states[slot_of(attached)] = state
            table.numbers[slot_of(attached)] = state * 0x0101010101010101
            table.wanted[0] = state
            memory.share(pages).revoke()  # the owner looks
            assert not attached.revoke()
        table.states[slot_of(offered)] = claims.ENDED  # what nobody has attached, it may end
        memory.share(pages).revoke()
        assert offered.wait(20)
        for slot in range(claims.SLOTS):
            table.states[slot] = claims.ENDED
        memory.share(pages).revoke()
        assert refs(memory, pages) == 2
        assert view[0] == 0
    assert not attached.wait(0)
    del view
    assert attached.wait(20)
    assert refs(memory, pages) == 1
    memory.decref(pages)


def test_who_locks_all_slots_keeps_shares_until_it_dies_and_no_longer(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages, expires=0.01)
    with guest(handle) as (table, _):
        for slot in range(4):
            assert table.try_lock(slot)
        with pytest.raises(memplat.HandleUsedError):
            memplat.attach(handle)
        assert not handle.wait(0.05)  # its time is over, but for all the owner knows it is attached
        assert not handle.revoke()
    assert handle.wait(20)
    assert refs(memory, pages) == 1
    memory.decref(pages)


def test_the_table_can_be_neither_shrunk_nor_grown(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    with guest(handle) as (_, fds):
        for size in (0, 2 * claims.SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(fds[1], size)
    assert handle.revoke()
    memory.decref(pages)


def test_who_may_read_gets_no_descriptor_to_write_with(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    reading, writing = memory.share(pages), memory.share(pages, writable=True)
    with guest(reading) as (_, fds), pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fds[0], b"x", 0)
    with guest(writing) as (_, fds):
        assert os.pwrite(fds[0], b"x", 0) == 1
    reading.writable = True  # a handle that lies
    view = memplat.attach(reading)
    assert view.readonly
    del view
    assert writing.revoke()
    assert reading.wait(20)
    memory.decref(pages)


def test_strangers_among_the_guests_are_shown_out(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    for word in (b"?", b"F", b".", b"x" * 99):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            line.connect(handle._address)
            line.send(key_of(handle))
            _, fds = wire.receive(line, wire.WELCOME.size, 3)
            read, write = os.pipe()
            socket.send_fds(line, [word], [read])
            for fd in (*fds, read, write):
                os.close(fd)
            if word not in (b".", b"F"):
                assert line.recv(1) == b""
    assert bytes(memplat.attach(handle)[:1]) == b"\0"
    assert handle.wait(20)
    memory.decref(pages)


def test_shares_beyond_the_table_are_asked_for(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SLOTS", 2)
    pages = memory.allocate(PAGE, fill=b"hello")
    handles = [memory.share(pages) for _ in range(4)]
    assert [slot_of(handle) for handle in handles] == [0, 1, -1, -1]
    views = [memplat.attach(pickle.loads(pickle.dumps(handle))) for handle in handles[:3]]
    assert all(bytes(view[:5]) == b"hello" for view in views)
    for handle in handles[:3]:
        with pytest.raises(memplat.HandleUsedError):
            memplat.attach(handle)
        assert not handle.revoke()
    assert handles[3].revoke()
    with pytest.raises(memplat.HandleExpiredError):
        memplat.attach(handles[3])
    views.clear()
    assert all(handle.wait(20) for handle in handles)
    assert slot_of(memory.share(pages)) in (0, 1)
    memory.decref(pages)
    memory.close()


@never_before
def test_an_owner_without_a_table_is_asked(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(1, "no")

    monkeypatch.setattr(claims, "make_file", refused)
    pages = memory.allocate(PAGE, fill=b"hello")
    handle = memory.share(pages)
    assert slot_of(handle) == -1
    assert bytes(memplat.attach(handle)[:5]) == b"hello"
    assert handle.wait(20)
    memory.decref(pages)


def test_a_kernel_without_such_locks_has_the_peer_ask(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    handle = memory.share(pages)

    def refused(fd: int, at: int, *, shared: bool = False) -> bool:
        raise OSError(22, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(locks, "try_lock", refused)
        assert peers._connect(handle._address, key_of(handle)) is None
    monkeypatch.setattr(peers, "claim", lambda *_: None)
    view = memplat.attach(handle)
    assert bytes(view[:5]) == b"hello"
    with pytest.raises(memplat.HandleUsedError):
        memplat.attach(pickle.loads(pickle.dumps(handle)))
    del view
    assert handle.wait(20)
    memory.decref(pages)


PEER = """
    import os, sys, pickle, memplat
    views = []
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "attach":
            views.append(memplat.attach(pickle.loads(bytes.fromhex(rest))))
            print(bytes(views[-1][:5]).decode(), flush=True)
        elif word == "drop":
            del views[:]
            print("dropped", flush=True)
        elif word == "files":
            print(sum("memplat" in os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                      if os.path.lexists(f"/proc/self/fd/{n}")),
                  open("/proc/self/maps").read().count("memfd:memplat"), flush=True)
    """


def wait_until_given_back(process: subprocess.Popen[str], wanted: str) -> None:
    while tell(process, "files") != wanted:
        pass  # bounded by the timeout of the test run


def test_an_idle_peer_gives_the_file_back_when_the_owner_closes_it(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    with python(PEER) as process:
        handle = memory.share(pages)
        assert tell(process, f"attach {pickle.dumps(handle).hex()}") == "hello"
        assert tell(process, "drop") == "dropped"
        assert handle.wait(20)
        files, maps = map(int, tell(process, "files").split())
        assert files >= 2
        assert maps == 2  # the window, and the table
        memory.decref(pages)
        memory.close()
        wait_until_given_back(process, "0 0")


def test_one_that_still_looks_gives_it_back_with_its_last_view(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    with python(PEER) as process:
        assert tell(process, f"attach {pickle.dumps(memory.share(pages)).hex()}") == "hello"
        later = memory.share(pages)
        memory.decref(pages)
        memory.close()
        assert tell(process, "drop") == "dropped"
        wait_until_given_back(process, "0 0")
        with pytest.raises(memplat.HandleExpiredError):
            memplat.attach(later)


@never_before
def test_a_peer_that_can_start_no_thread_gives_the_file_back_with_each_last_view(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pages = memory.allocate(PAGE, fill=b"hello")
    memory.share(pages).revoke()  # the service has its thread
    peers._watcher = Watcher()
    monkeypatch.setattr(threading.Thread, "start", refused)
    handle = memory.share(pages)
    view = memplat.attach(handle)
    assert bytes(view[:5]) == b"hello"
    assert re.findall(r"r--s.*memfd:memplat ", Path("/proc/self/maps").read_text())
    del view
    assert not re.findall(r"r--s.*memfd:memplat ", Path("/proc/self/maps").read_text())
    assert handle.wait(20)
    memory.decref(pages)


class _Closing(Watcher):
    """While a connection is about to be watched, a view that dies in another thread is its last, and closes it."""

    def watch(self, connection: Any) -> None:
        peers._watcher = Watcher()
        connection.hang_up()


@never_before
def test_a_connection_that_is_closed_while_it_attaches_is_made_again(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    handle = memory.share(pages)
    monkeypatch.setattr(peers, "_watcher", _Closing())
    with memplat.attach(handle) as view:
        assert bytes(view[:5]) == b"hello"
    del view
    assert handle.wait(20)
    memory.decref(pages)


@never_before
def test_a_connection_that_is_closed_at_the_last_moment_leaves_the_view_its_pages(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*args: Any, **named: Any) -> memoryview:
        for connection in [*peers._connections.values()]:
            connection.gone = True
            connection._close()  # it was found unused a moment ago
        return real(*args, **named)

    real = peers.export
    monkeypatch.setattr(peers, "export", export)
    pages = memory.allocate(PAGE, fill=b"hello")
    maps = Path("/proc/self/maps").read_text().count("memfd:memplat ")
    view = memplat.attach(memory.share(pages))
    assert bytes(view[:5]) == b"hello"
    del view
    assert Path("/proc/self/maps").read_text().count("memfd:memplat ") == maps
    peers._connections.clear()
    memory.decref(pages)


def test_the_thread_that_answers_peers_does_not_wait_for_itself(memory: Memory) -> None:
    """A finalizer may run there, as anywhere."""
    pages = memory.allocate(PAGE, fill=b"hello")
    handle, refused = memory.share(pages), []
    done = threading.Event()

    def finalize() -> None:
        for call in (lambda: memplat.attach(pickle.loads(pickle.dumps(handle))), handle.wait):
            try:
                call()
            except memplat.ReentrantCallError as error:
                refused.append(error)
        done.set()

    with memplat.open("memfd", max_size=64 << 20) as unknown:
        theirs = unknown.allocate(PAGE)
        handle = unknown.share(theirs)
        running = service()
        with running.lock:
            running.at(0.0, finalize)
        assert done.wait(20)
        assert len(refused) == 2
        assert handle.revoke()
        unknown.decref(theirs)
    memory.decref(pages)


def test_who_may_be_waited_for_does_not_wait_for_an_answer(memory: Memory) -> None:
    """A signal handler that has interrupted share(), or a call on any memory."""
    pages = memory.allocate(PAGE, fill=b"hello")
    state: Any = memory._state  # type: ignore[attr-defined]
    with memplat.open("memfd", max_size=64 << 20) as unknown:
        theirs = unknown.allocate(PAGE)
        handle = unknown.share(theirs)
        for lock in (service().lock, state.lock):
            with lock, pytest.raises(memplat.ReentrantCallError, match="let another thread do it"):
                memplat.attach(handle)
        memplat.attach(handle).release()
        unknown.decref(theirs)
    memory.decref(pages)


def test_the_window_grows_with_the_file_and_old_views_stay(memory: Memory) -> None:
    first = memory.allocate(PAGE, fill=b"first")
    before = memplat.attach(memory.share(first))
    size = memory.total_size()
    many = memory.allocate(2 * size)
    memory.write(memplat.FileRange(many.end - PAGE, many.end - PAGE + 4), b"last")
    after = memplat.attach(memory.share(many))
    assert bytes(after[-PAGE : -PAGE + 4]) == b"last"
    assert bytes(before[:5]) == b"first"
    maps = Path("/proc/self/maps").read_text()
    assert len(re.findall(r"r--s.*memfd:memplat ", maps)) == 2
    del before
    maps = Path("/proc/self/maps").read_text()
    assert len(re.findall(r"r--s.*memfd:memplat ", maps)) == 1
    del after
    memory.decref(first)
    memory.decref(many)


@never_before
def test_where_all_of_the_file_cannot_be_mapped_the_pages_are(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = memory.allocate(4 * PAGE)
    memory.write(memplat.FileRange(pages.start + PAGE, pages.start + PAGE + 5), b"hello")
    part = memplat.FileRange(pages.start + PAGE, pages.end)

    def small_only(fd: int, start: int, end: int, **named: Any) -> Window:
        if end - start > part.length:
            raise OSError(12, "Cannot allocate memory")
        return Window(fd, start, end, **named)

    monkeypatch.setattr(peers, "Window", small_only)
    handle = memory.share(part)
    view = memplat.attach(handle)
    assert bytes(view[:5]) == b"hello"
    assert len(view) == part.length
    del view
    assert handle.wait(20)
    assert not re.findall(r"r--s.*memfd:memplat ", Path("/proc/self/maps").read_text())
    memory.decref(pages)


RIVAL = """
    import pickle, sys, memplat
    views = []
    for line in sys.stdin:
        try:
            views.append(memplat.attach(pickle.loads(bytes.fromhex(line))))
            print("got", flush=True)
        except memplat.HandleError as error:
            print(type(error).__name__, flush=True)
    """


@pytest.mark.parametrize("held", [0, 1], ids=["none is held", "one is held"])
def test_shares_that_have_ended_are_forgotten(held: int) -> None:
    code = f"""
    import memplat
    from memplat.engine.service import service
    with memplat.open("memfd") as memory:
        pages = memory.allocate(4096)
        for _ in range(3000):
            assert memory.share(pages).revoke()
            if not {held}:
                assert len(service()._times) < 3
        held = [memory.share(pages) for _ in range({held})]
        for _ in range(3000):
            assert memory.share(pages).revoke()
        assert len(service()._times) <= 1024, len(service()._times)
        memory.decref(pages)
    print("done")
    """
    with python(code) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "done\n"


def test_two_peers_want_the_same_share_and_one_gets_it(memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"hello")
    handles = [memory.share(pages) for _ in range(40)]
    with python(RIVAL) as one, python(RIVAL) as other:
        for handle in handles:
            for rival in (one, other):
                assert rival.stdin is not None
                rival.stdin.write(pickle.dumps(handle).hex() + "\n")
                rival.stdin.flush()
        for _ in handles:
            answers = [rival.stdout.readline().strip() for rival in (one, other) if rival.stdout is not None]
            assert sorted(answers) == ["HandleUsedError", "got"]
        assert refs(memory, pages) == 1 + len(handles)
    assert all(handle.wait(20) for handle in handles)
    assert refs(memory, pages) == 1
    memory.decref(pages)


def test_what_is_no_handle_is_refused_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    wrong: list[Any] = [(1, 2, 3, 4), (b"x", b"y", None, False), (b"x", b"y" * 32, memplat.FileRange(0, 1), False)]
    wrong += [("x", b"y" * 32, (0, 1), True), (b"x", b"y" * 32, (1, 0), True), (b"x", b"y" * 32, 5, True)]
    for arguments in wrong[:2] + wrong[3:]:
        with pytest.raises(memplat.InvalidArgumentError):
            memplat.Handle(*arguments).attach()
    with pytest.raises(memplat.MemplatError):
        memplat.Handle(*wrong[2]).attach()
    memplat.Handle.__new__(memplat.Handle)
    assert "Error" not in capfd.readouterr().err


def test_a_range_beyond_the_file_is_refused(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    handle.pages = memplat.FileRange(0, 1 << 40)
    with pytest.raises(memplat.HandleError, match="no bytes"):
        memplat.attach(handle)
    assert handle.wait(20)
    memory.decref(pages)


def test_locks_belong_to_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    first = os.open(path, os.O_RDWR)
    second, twin = locks.reopen(first), os.dup(first)
    assert locks.try_lock(first, 7)
    assert locks.try_lock(twin, 7)
    assert not locks.try_lock(second, 7)
    assert locks.is_locked(second, 7)
    assert not locks.is_locked(second, 8)
    os.close(first)
    assert locks.is_locked(second, 7)
    os.close(twin)
    assert locks.try_lock(second, 7)
    locks.unlock(second, 7)
    os.close(second)


@pytest.mark.parametrize("limited", [False, True], ids=["all of max_size", "all that the owner may have"])
def test_what_a_peer_has_just_let_go_is_there_for_the_next_allocation(memory: Memory, limited: bool) -> None:
    if limited:
        memory.set_limit(7, allocated=PAGE)
    length = PAGE if limited else 64 << 20
    pages = memory.allocate(length, owner=7)
    view = memplat.attach(memory.share(pages))
    memory.decref(pages)
    with service().lock:  # the thread that looks cannot
        view.release()
        del view
        again = memory.allocate(length, owner=7)
    assert refs(memory, again) == 1
    memory.decref(again)


def test_shares_of_two_memories_are_attached_in_turn(memory: Memory) -> None:
    """Which connection was used last is remembered."""
    other = memplat.open("memfd", max_size=64 << 20, reclaim="manual")
    both = [(owner, owner.allocate(PAGE)) for owner in (memory, other)]
    for number in range(3):
        for owner, pages in both:
            owner.write(FileRange(pages.start, pages.start + 1), bytes([10 * number + (owner is other)]))
            assert memplat.attach(owner.share(pages))[0] == 10 * number + (owner is other)
    late = other.share(both[1][1])
    other.decref(both[1][1])
    other.close()
    with pytest.raises(memplat.HandleExpiredError):
        memplat.attach(late)
    assert memplat.attach(memory.share(both[0][1]))[0] == 20
    memory.decref(both[0][1])


def test_attach_can_be_sent_by_name() -> None:
    """As the function that a pool of workers calls: the other process may have another core."""
    assert b"memplat.sharing" in pickle.dumps(memplat.attach)
    assert pickle.loads(pickle.dumps(memplat.attach)) is memplat.attach
