"""The thread that waits for peers, where the host is short of things."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time

import pytest

from memplat import daemons
from memplat.engine.door import Door
from memplat.engine.service import Service


class _Short(Service):
    """There is no memory when it is to wait for the first time."""

    def __init__(self) -> None:
        self.failed = False
        super().__init__()

    def _time_left(self) -> float | None:
        if not self.failed:
            self.failed = True
            raise MemoryError
        return super()._time_left()


def test_the_service_goes_on_when_there_was_no_memory_for_a_moment() -> None:
    serving = _Short()
    done = threading.Event()
    with serving.lock:
        serving.at(time.monotonic(), done.set)
    assert done.wait(20)
    assert serving.failed


def test_where_no_thread_can_be_started_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(daemons, "start", refuse)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="can't start new thread"):
        Service()
    # Threads of other tests may close theirs meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_door_closes_no_descriptor_but_its_own() -> None:
    """Another thread may take the number that was spared for turning peers away."""
    door = Door()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = max(map(int, os.listdir("/proc/self/fd")))
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(0))
        spare = door._spare
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))  # so its number cannot be had again
        door.turn_away()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        mine = os.open(os.devnull, os.O_RDONLY)
        assert mine == spare
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        door.turn_away()
        door.turn_away()
        os.fstat(mine)
        os.close(mine)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill:
            os.close(fd)
    door.turn_away()  # there is one again
    assert door._spare >= 0
    door.close()
