"""A process that gets handles, and stops in the place that it is told: run as a script, with a socket as descriptor.

Usage: peer.py FD PLACE. It sends ``here`` when it has come to the place, and then waits to be killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
from typing import NoReturn

import memplat
import memplat.linux.exporter
import memplat.peers
import memplat.sharing as peer_side
from memplat.claims import Claims

connection = socket.socket(fileno=int(sys.argv[1]))
place = sys.argv[2]
kept: list[object] = []


def here(*_: object, **__: object) -> NoReturn:
    connection.send(b"here %d" % os.getpid())
    while True:
        signal.pause()


def next_handle() -> memplat.Handle:
    data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 1)
    return memplat.Handle.from_fd(fds[0]) if fds else pickle.loads(data)


def stop_at(name: str, whose: object = peer_side) -> None:
    """Stop where the peer's side of a share calls *name*."""
    setattr(whose, name, here)


def ask_the_owner() -> None:
    """As where claims are not to be had."""
    setattr(memplat.peers, "claim", lambda *_: None)  # noqa: B010 -- for mypy


def stop_after(name: str) -> None:
    """Stop when a method of the claims table has done its work."""
    method = getattr(Claims, name)

    def work_and_stop(*arguments: object, **named: object) -> None:
        method(*arguments, **named)
        here()

    setattr(Claims, name, work_and_stop)


def main() -> None:
    handle = next_handle()
    match place:
        case "descriptor received":
            pass
        case "message read, word not given":
            peer_side.ATTACHED = bytearray  # type: ignore[assignment, misc]  # send() calls for its buffer, and fails
            stop_at("_is_genuine")
            memplat.attach(handle)
        case "answer to the token not mapped yet" | "descriptor taken, not mapped yet":
            ask_the_owner()
            stop_at("_map")
            memplat.attach(handle)
        case "asked for, and not touched":
            ask_the_owner()
            kept.append(memplat.attach(handle))
        case "asked for, no view yet":
            ask_the_owner()
            setattr(memplat.linux.exporter, "export", here)  # noqa: B010 -- for mypy
            memplat.attach(handle)
        case "claimed, not mapped yet":
            stop_at("Window", memplat.peers)
            memplat.attach(handle)
        case "mapped, no view yet":
            stop_at("export", memplat.peers)
            memplat.attach(handle)
        case "about to be let go":
            view = memplat.attach(handle)
            stop_at("unlock", Claims)
            del view
        case "view not touched":
            kept.append(memplat.attach(handle))
        case "in the middle of stores":
            view = memplat.attach(handle)
            connection.send(b"here %d" % os.getpid())
            while True:
                view[: 1 << 16] = os.urandom(1 << 16)
        case "only a slice of a cast is left":
            kept.append(memplat.attach(handle).cast("I")[5:9])
        case "two shares of the same pages":
            kept.extend([memplat.attach(handle), memplat.attach(next_handle())])
        case "one of two views dropped":
            view = memplat.attach(handle)
            memplat.attach(next_handle()).release()
            kept.append(view)
        case "a child that has ended had them, too":
            kept.append(memplat.attach(handle))
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        case "a child has them, too":
            kept.append(memplat.attach(handle))
            if not os.fork():
                here()
            while True:
                signal.pause()
        case "a child let it go, and goes on":
            view = memplat.attach(handle)
            if not os.fork():
                del view
                here()
            while True:
                signal.pause()
        case "a child attaches another one":
            first = memplat.attach(handle)
            kept.append(first)
            if not os.fork():
                del first
                kept.clear()
                kept.append(memplat.attach(next_handle()))
                here()
            while True:
                signal.pause()
        case "mapping, with the file descriptor closed by hand":
            kept.append(memplat.attach(handle))
            for fd in map(int, os.listdir("/proc/self/fd")):  # the lease is one of them: that is a detach
                if fd > 2 and fd != connection.fileno():
                    with contextlib.suppress(OSError):
                        os.close(fd)
        case "echo":
            view = memplat.attach(handle)
            connection.send(bytes(view[:5]))
            connection.recv(1)
            view.release()
    here()


main()
