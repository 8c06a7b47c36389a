"""Processes that have pages of ours: told once each, when it has ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from memplat.engine.leases import Owner


class Processes:
    """Which memories a process has pages of. One descriptor a process, however many memories it meets in its life:
    pidfd_open(2), "when the process terminates, these interfaces indicate the file descriptor as readable".
    """

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._owners: dict[int, tuple[int, WeakSet[Owner]]] = {}  # by descriptor
        self._by_pid: dict[int, int] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._owners

    def watch(self, pid: int, owner: Owner) -> None:
        """Remember that *pid* has pages of *owner*. Of one that cannot be watched nothing is told: it has died already,
        or is of another pid namespace.
        """
        with contextlib.suppress(OSError):
            fd = self._by_pid.get(pid, -1)
            if fd < 0 or not _is_alive(fd):
                fd = os.pidfd_open(pid)
                try:
                    self._epoll.register(fd, select.EPOLLIN)
                except OSError:
                    os.close(fd)
                    raise
                self._by_pid[pid] = fd
                self._owners[fd] = pid, WeakSet()
            self._owners[fd][1].add(owner)

    def forget(self, fd: int) -> list[Owner]:
        """The process has ended: whose pages it had."""
        pid, owners = self._owners.pop(fd)
        if self._by_pid.get(pid) == fd:
            del self._by_pid[pid]
        self._epoll.unregister(fd)
        os.close(fd)
        return [*owners]

    def close(self) -> None:
        """In a forked child: the descriptors are the parent's."""
        for fd in self._owners:
            os.close(fd)


def _is_alive(fd: int) -> bool:
    try:
        signal.pidfd_send_signal(fd, 0)
    except ProcessLookupError:  # its number may be another process's by now
        return False
    except PermissionError:
        pass
    return True


__all__ = ["Processes"]
