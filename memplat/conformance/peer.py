"""The other process of the suite: it gets a descriptor, and does with the file what strangers might do.

It is run as a script, by path, and imports nothing of memplat. Requests come as packets of JSON over a socket, answers
go back in the same way. It uses mappings of its own; ``madvise(MADV_REMOVE)`` punches, because Python has no
``fallocate``.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

PACKET = 1 << 17
_MADV_REMOVE = 9
_F_ADD_SEALS = 1033

_handles = itertools.count(1)
_files: dict[int, int] = {}
_mappings: dict[int, mmap.mmap] = {}


def keep(fd: int) -> int:
    """Hold on to a descriptor; returns the handle that the other requests take."""
    handle = next(_handles)
    _files[handle] = fd
    return handle


def drop(handle: int) -> None:
    """Let go of it, and of what was mapped."""
    if handle in _mappings:
        _mappings.pop(handle).close()
    os.close(_files.pop(handle))


def drop_all() -> None:
    """Let go of everything: a check has ended."""
    for handle in list(_files):
        drop(handle)


def map_all(handle: int) -> int:
    """Map the file as it is now, and keep it mapped."""
    length = os.fstat(_files[handle]).st_size
    _mappings[handle] = mmap.mmap(_files[handle], length)
    return length


def _window(handle: int, start: int, length: int) -> tuple[mmap.mmap, int]:
    """A mapping that shows ``[start, start + length)``, and where in it that begins."""
    if handle in _mappings:
        return _mappings[handle], start
    return mmap.mmap(_files[handle], length, offset=start), 0


def poke(handle: int, start: int, length: int, text: str) -> None:
    """Store *text* at the front of the pages ``[start, start + length)``, and as often as it fits."""
    window, at = _window(handle, start, length)
    data = text.encode()
    window[at : at + length] = (data * (length // len(data) + 1))[:length]


def peek(handle: int, start: int, length: int) -> str:
    """The first bytes of the pages ``[start, start + length)``."""
    window, at = _window(handle, start, length)
    return window[at : at + 32].decode("latin-1")


def load(handle: int, start: int, length: int) -> int:
    """Read one byte of each page of the processor, through a mapping."""
    window, at = _window(handle, start, length)
    return sum(window[at + offset] for offset in range(0, length, mmap.PAGESIZE))


def pwrite(handle: int, start: int, text: str) -> int:
    """Write by system call."""
    return os.pwrite(_files[handle], text.encode(), start)


def punch(handle: int, start: int, length: int) -> None:
    """Give pages back to the host."""
    with mmap.mmap(_files[handle], length, offset=start) as window:
        window.madvise(_MADV_REMOVE)


def truncate(handle: int, size: int) -> None:
    """Change the size of the file."""
    os.ftruncate(_files[handle], size)


def seal(handle: int, seals: int) -> None:
    """Add seals."""
    fcntl.fcntl(_files[handle], _F_ADD_SEALS, seals)


def execute(handle: int, length: int) -> None:
    """Map the front of the file executable."""
    mmap.mmap(_files[handle], length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()


_REQUESTS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (drop, drop_all, map_all, poke, peek, load, pwrite, punch, truncate, seal, execute)
}


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side hangs up."""
    while True:
        packet, fds, _, _ = socket.recv_fds(connection, PACKET, 1)
        if not packet:
            return
        name, arguments = json.loads(packet)
        answer: dict[str, Any]
        try:
            answer = {"value": keep(fds[0]) if name == "keep" else _REQUESTS[name](*arguments)}
        except OSError as error:
            answer = {"errno": error.errno, "message": str(error)}
        except Exception as error:  # noqa: BLE001 -- told to the other side, which raises it
            answer = {"errno": 0, "message": f"{type(error).__name__}: {error}"}
        connection.send(json.dumps(answer).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
