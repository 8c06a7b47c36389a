"""Processes that have pages: one descriptor each, until they end."""

from __future__ import annotations

import os
import select
import signal

import pytest

from memplat.engine.processes import Processes


class Owner:
    """Whose pages they are."""


@pytest.fixture
def epoll() -> select.epoll:
    return select.epoll()


def sleeping_child() -> int:
    """Its pid."""
    pid = os.fork()
    if not pid:
        while True:
            signal.pause()
    return pid


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_end_of_a_process_is_told_once_with_all_owners(epoll: select.epoll) -> None:
    processes, owners = Processes(epoll), [Owner(), Owner()]
    child = sleeping_child()
    for owner in (*owners, owners[0]):
        processes.watch(child, owner)  # type: ignore[arg-type]
    assert epoll.poll(0) == []
    end(child)
    [(fd, _)] = epoll.poll(20)
    assert fd in processes
    assert set(processes.forget(fd)) == set(owners)  # type: ignore[comparison-overlap]
    assert fd not in processes
    assert epoll.poll(0) == []


def test_owners_that_are_gone_are_forgotten(epoll: select.epoll) -> None:
    processes, child = Processes(epoll), sleeping_child()
    processes.watch(child, Owner())  # type: ignore[arg-type]
    end(child)
    [(fd, _)] = epoll.poll(20)
    assert processes.forget(fd) == []


def test_a_process_of_the_same_number_is_another_one(epoll: select.epoll) -> None:
    processes, owners = Processes(epoll), [Owner(), Owner()]
    first, second = sleeping_child(), sleeping_child()
    processes.watch(first, owners[0])  # type: ignore[arg-type]
    end(first)
    processes._by_pid[second] = processes._by_pid.pop(first)  # as if the kernel had used the number again
    processes.watch(second, owners[1])  # type: ignore[arg-type]
    [(fd, _)] = epoll.poll(20)
    assert processes.forget(fd) == [owners[0]]  # type: ignore[comparison-overlap]
    end(second)
    [(fd, _)] = epoll.poll(20)
    assert processes.forget(fd) == [owners[1]]  # type: ignore[comparison-overlap]


def test_a_process_that_is_not_there_is_not_watched(epoll: select.epoll) -> None:
    processes = Processes(epoll)
    processes.watch(0, Owner())  # type: ignore[arg-type]
    assert not processes._owners
