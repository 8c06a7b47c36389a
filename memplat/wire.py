"""What owner and peers of shared pages say to each other over sockets, and how it is received."""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections.abc import Callable
from typing import Final

from memplat.errors import ReentrantCallError

#: What a peer says first: the memory's key, which also tells whether it may write.
KEY_BYTES: Final = 16
#: What it says later: that shares have ended; that the descriptor is the end of a connection of a child of it.
LET_GO: Final = b"."
FORKED: Final = b"F"
#: What the owner answers: with three descriptors (file, table, the peer's own description of the table), or without.
WELCOME: Final = struct.Struct("<8sI")
MARK: Final = b"memplat2"
WRITABLE: Final = 1
CORE_DUMP: Final = 2
ASK: Final = b"ask"
UNKNOWN: Final = b"unknown"
ANSWER_SECONDS: Final = 30.0


#: Whether this thread is the one that answers peers, or has a lock that that one may need: it can wait for no answer.
hinders: list[Callable[[], bool]] = []


def check_may_wait(what: str) -> None:
    """To be asked before an owner is waited for.

    :raises ReentrantCallError: in a finalizer that has interrupted who answers peers, or may be waited for by him
    """
    if any(hinder() for hinder in hinders):
        raise ReentrantCallError(
            f"a finalizer, callback or signal handler has interrupted what answers peers, and cannot {what} there, "
            "because nobody would answer; let another thread do it"
        )


def receive(connection: socket.socket, room: int, count: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """A message of at most *room* bytes, and at most *count* descriptors with it, which are closed on exec.

    :raises OSError: EMFILE if this process may not have them
    """
    fds = array("i")
    ancillary = socket.CMSG_LEN(count * fds.itemsize)
    packet, messages, answer, _ = connection.recvmsg(room, ancillary, socket.MSG_CMSG_CLOEXEC | flags)
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if answer & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, "no descriptors are left in this process (ulimit -n)")
    return packet, list(fds)
