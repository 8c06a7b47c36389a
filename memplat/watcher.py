"""The thread of a peer that waits for owners to hang up."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Protocol

from memplat import daemons


class Watched(Protocol):
    """A peer's connection to an owner.

    :ivar watched: whether it will be noticed that the owner hangs up
    """

    line: socket.socket
    watched: bool

    def owner_left(self) -> None:
        """The owner has hung up."""


class Watcher:
    """The thread that waits for owners to hang up. Made anew in a forked child."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}

    def watch(self, connection: Watched) -> None:
        """Have it hang up when its owner does. One thread at a time may ask for that."""
        if self._epoll is None:
            epoll = select.epoll()
            try:
                daemons.start(self._wait, "page-sharing-peer", epoll)
            except RuntimeError:  # no more threads, or none any more: the connection goes with its last view
                epoll.close()
                return
            self._epoll = epoll
        fd = connection.line.fileno()
        self._watched[fd] = connection
        self._epoll.register(fd, 0)  # epoll_ctl(2): EPOLLHUP is reported whatever was asked for
        connection.watched = True

    def forget(self, connection: Watched) -> None:
        """It is about to be closed."""
        fd = connection.line.fileno()
        if self._watched.get(fd) is connection:
            del self._watched[fd]
            self._unregister(fd)

    def _unregister(self, fd: int) -> None:
        if self._epoll is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def _wait(self, epoll: select.epoll) -> None:
        while True:
            try:
                events = epoll.poll()
            except (OSError, ValueError):  # closed by hand
                return
            for fd, _ in events:
                self._unregister(fd)
                connection = self._watched.pop(fd, None)
                if connection is not None:
                    connection.owner_left()
            connection = None

    def close(self) -> None:
        """In a forked child: the parent's thread is not here."""
        if self._epoll is not None:
            self._epoll.close()


__all__ = ["Watcher"]
