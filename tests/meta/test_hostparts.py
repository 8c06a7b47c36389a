"""How the tests of all runs on a host keep out of each other's way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostparts import Room

Opener = Callable[[float | None], Room]


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Opener]:
    """Opens the room, as a run of its own does."""
    rooms = []

    def open_room(patience: float | None) -> Room:
        rooms.append(Room(tmp_path, ("door", "inside"), patience))
        return rooms[-1]

    yield open_room
    for room in rooms:
        room.close()


def in_child(work: Callable[[], object]) -> int:
    """The pid of a forked child that has done its work, and waits to be killed."""
    said, say = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
            os.write(say, b".")
        finally:
            while True:
                signal.pause()
    os.close(say)
    try:
        assert os.read(said, 1) == b"."
    finally:
        os.close(said)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_many_are_in_it_or_one_alone(enter: Opener) -> None:
    first, second, third = enter(0.0), enter(0.0), enter(0.0)
    assert first.enter()
    assert second.enter()
    assert not third.enter_alone()
    second.leave()
    assert first.enter_alone()
    assert not second.enter()
    assert not third.enter_alone()
    first.let_others_in()
    assert second.enter()
    assert not third.enter_alone()
    first.leave()
    second.leave()
    assert third.enter_alone()


def test_who_waits_to_be_alone_keeps_the_door(enter: Opener) -> None:
    inside, waits, late = enter(0.0), enter(None), enter(0.0)
    assert inside.enter()
    assert late.enter()
    late.leave()
    thread = threading.Thread(target=waits.enter_alone)
    thread.start()
    while late.enter():  # until it is at the door
        late.leave()
    inside.leave()
    thread.join(20)
    assert not inside.enter()


def test_who_dies_is_not_in_it_any_more(enter: Opener) -> None:
    after = enter(20.0)
    child = in_child(lambda: enter(None).enter_alone())
    assert not enter(0.0).enter()
    kill(child)
    assert after.enter()


def test_who_has_waited_in_vain_waits_no_more(enter: Opener) -> None:
    other, ours = enter(None), enter(0.05)
    assert other.enter_alone()
    assert not ours.enter()
    assert ours.patience == 0.0
    other.let_others_in()
    other.leave()
    assert ours.enter(), "what is free is still taken"
