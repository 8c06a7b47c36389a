"""Whatever kills a peer, wherever: its references go with it, and no other."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import memplat
from memplat.memory import Memory
from tests.oracle import PAGE

PEER = Path(__file__).with_name("peer.py")
LENGTH = 16 * PAGE
TICKET, TOKEN = "ticket", "token"

PLACES = [
    ("descriptor received", [TICKET]),
    ("message read, word not given", [TICKET]),
    ("descriptor taken, not mapped yet", [TICKET]),
    ("answer to the token not mapped yet", [TOKEN]),
    ("asked for, no view yet", [TOKEN]),
    ("asked for, and not touched", [TOKEN]),
    ("claimed, not mapped yet", [TOKEN]),
    ("mapped, no view yet", [TOKEN]),
    ("about to be let go", [TOKEN]),
    ("view not touched", [TICKET]),
    ("view not touched", [TOKEN]),
    ("in the middle of stores", [TOKEN]),
    ("only a slice of a cast is left", [TICKET]),
    ("only a slice of a cast is left", [TOKEN]),
    ("two shares of the same pages", [TICKET, TOKEN]),
    ("two shares of the same pages", [TOKEN, TOKEN]),
    ("one of two views dropped", [TOKEN, TICKET]),
    ("one of two views dropped", [TOKEN, TOKEN]),
    ("a child that has ended had them, too", [TOKEN]),
]


@contextlib.contextmanager
def peer(place: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, str(PEER), str(theirs.fileno()), place]
        environment = {**os.environ, "PYTHONPATH": str(Path(memplat.__file__).parents[1])}
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


def send(connection: socket.socket, handle: memplat.Handle, way: str) -> None:
    if way == TICKET:
        socket.send_fds(connection, [b"-"], [handle.fileno()])
    else:
        connection.send(pickle.dumps(handle))


@pytest.mark.parametrize(("place", "ways"), PLACES, ids=[f"{place}, {ways[0]}" for place, ways in PLACES])
def test_a_killed_peer_leaves_no_reference_behind(memory: Memory, place: str, ways: list[str]) -> None:
    pages = memory.allocate(LENGTH)
    with peer(place) as (process, connection):
        handles = [memory.share(pages, writable=True) for _ in ways]
        for handle, way in zip(handles, ways, strict=True):
            send(connection, handle, way)
            handle.close()  # while our own copy of a descriptor is open, the share could still be attached
        assert connection.recv(32).startswith(b"here")
        dropped = place == "one of two views dropped"
        if dropped:
            assert handles[1].wait(20)
        assert memory.inspect(pages.start).refs == 1 + len(ways) - dropped
        memory.decref(pages)  # the owner has no use for them any more
        assert memory.inspect(pages.start).refs == len(ways) - dropped
        assert memory.reclaim() == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(handle.wait(20) for handle in handles)
    assert memory.inspect(pages.start).state in ("waste", "free")
    memory.reclaim()
    assert memory.total_usage() == 0


def test_a_child_that_was_forked_off_a_peer_keeps_the_pages_too(memory: Memory) -> None:
    pages = memory.allocate(LENGTH)
    with peer("a child has them, too") as (process, connection):
        handle = memory.share(pages)
        send(connection, handle, TOKEN)
        child = int(connection.recv(32).split()[1])
        process.kill()
        process.wait()
        assert memory.inspect(pages.start).refs == 2
        assert not handle.wait(0)
        os.kill(child, signal.SIGKILL)
        assert handle.wait(20)
    assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)


def test_a_child_that_lets_go_first_leaves_the_parent_what_it_has(memory: Memory) -> None:
    pages = memory.allocate(LENGTH)
    with peer("a child let it go, and goes on") as (process, connection):
        handle = memory.share(pages)
        send(connection, handle, TOKEN)
        child = int(connection.recv(32).split()[1])
        assert not handle.wait(0)
        assert memory.inspect(pages.start).refs == 2
        process.kill()
        process.wait()
        assert handle.wait(20)  # the child is still there
        os.kill(child, signal.SIGKILL)
    assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)


def test_what_a_child_attaches_is_not_its_parents(memory: Memory) -> None:
    pages = memory.allocate(LENGTH)
    with peer("a child attaches another one") as (process, connection):
        first, second = memory.share(pages), memory.share(pages)
        send(connection, first, TOKEN)
        send(connection, second, TOKEN)
        child = int(connection.recv(32).split()[1])
        process.kill()
        process.wait()
        assert first.wait(20)
        assert not second.wait(0)
        assert memory.inspect(pages.start).refs == 2
        os.kill(child, signal.SIGKILL)
        assert second.wait(20)
    assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)


def test_a_peer_that_closes_its_end_by_hand_has_detached(memory: Memory) -> None:
    pages = memory.allocate(LENGTH)
    with peer("mapping, with the file descriptor closed by hand") as (_, connection):
        handle = memory.share(pages)
        send(connection, handle, TOKEN)
        assert handle.wait(20)
    assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)


def test_what_a_live_peer_looks_at_is_not_recycled(memory: Memory) -> None:
    pages = memory.allocate(LENGTH, fill=b"hello")
    with peer("echo") as (_, connection):
        handle = memory.share(pages)
        send(connection, handle, TOKEN)
        assert connection.recv(32) == b"hello"
        memory.decref(pages)
        others = [memory.allocate(LENGTH, mode="committed") for _ in range(20)]
        assert not any(pages.overlaps(other) for other in others)
        connection.send(b"-")
        assert handle.wait(20)
        assert memory.allocate(LENGTH, mode="committed") == pages
        for other in [*others, pages]:
            memory.decref(other)


def test_forks_amid_threads_that_attach_leave_no_reference_behind(memory: Memory) -> None:
    pages = memory.allocate(LENGTH)
    handles: list[memplat.Handle] = []
    going = [True]

    def work() -> None:
        while going:
            handle = memory.share(pages)
            view = memplat.attach(handle)
            handles.append(handle)
            del view

    kept = memplat.attach(memory.share(pages))
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(15):
        child = os.fork()
        if not child:
            os._exit(len(kept) != LENGTH)
        children.append(child)
    going.clear()
    for thread in threads:
        thread.join()
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    del kept
    assert all(handle.wait(20) for handle in handles)
    last = memory.share(pages)
    memplat.attach(last).release()
    assert last.wait(20)
    assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)
