"""Locks of single bytes that belong to an open file description: the kernel drops them when its last copy is closed.

fcntl(2), "Open file description locks (non-POSIX)": "Open file description locks placed via the same open file
description [...] are always compatible: if a new lock is placed on an already locked region, then the existing lock is
converted to the new lock type"; "by contrast [with record locks] open file description locks are only released on the
last close". So what conflicts are descriptions, not processes, and fork(2) shares a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("@hhqqi")  # struct flock; l_pid has to be 0
_TYPE: Final = struct.Struct("@h")
_FREE: Final = _TYPE.pack(fcntl.F_UNLCK)
_HELD: Final = frozenset({errno.EAGAIN, errno.EACCES})
_SET: Final = fcntl.F_OFD_SETLK


def _request(kind: int, at: int) -> bytes:
    """What :func:`fcntl.fcntl` takes for the byte at *at*: *kind* is F_WRLCK, F_RDLCK or F_UNLCK."""
    return _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0)


def try_lock(fd: int, at: int, *, shared: bool = False) -> bool:
    """Lock the byte at *at*, without waiting; False if another description holds it. *shared* locks go together.

    :raises OSError: EBADF (the descriptor is closed, or not open for that), EINVAL (the kernel knows no such locks)
    """
    try:
        fcntl.fcntl(fd, _SET, _request(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, at))
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def unlock(fd: int, at: int) -> None:
    """Let go of the byte at *at*.

    :raises OSError: EBADF
    """
    fcntl.fcntl(fd, _SET, _request(fcntl.F_UNLCK, at))


def is_locked(fd: int, at: int) -> bool:
    """Whether another description holds the byte at *at*. F_OFD_GETLK.

    :raises OSError: EBADF
    """
    return not fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, at)).startswith(_FREE)


def reopen(fd: int) -> int:
    """A description of one's own for the file behind *fd*, for reading and writing; close-on-exec. proc(5)."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


__all__ = ["is_locked", "reopen", "try_lock", "unlock"]
