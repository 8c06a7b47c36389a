"""Where peers knock: a socket with an address that travels in handles."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import time
from typing import Final

log = logging.getLogger("memplat")

_BACKLOG: Final = 128
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
#: Who cannot even be turned away knocks on: look again after so many seconds.
_KNOCKS: Final = 0.02


class Door:
    """A listening socket for processes of the same user, and root's.

    :ivar address: an abstract one, unix(7)
    """

    def __init__(self) -> None:
        """:raises OSError: if the host refuses"""
        with contextlib.ExitStack() as undo:
            self._listener = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            )
            self._listener.bind("")  # unix(7), autobind: the kernel picks an abstract address that is free
            self._listener.listen(_BACKLOG)
            self.address: bytes = self._listener.getsockname()
            self._spare = _open_spare()
            undo.pop_all()

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._listener.fileno()

    def let_in(self) -> socket.socket | None:
        """Who has knocked, if he may come in."""
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            log.warning("memplat: a peer could not be let in: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.turn_away()
            return None
        if credentials(peer)[1] in (os.geteuid(), 0):
            return peer
        peer.close()
        return None

    def turn_away(self) -> None:
        """No descriptor is left: the one that was spared lets the peer in and out, or it would knock for ever."""
        if self._spare >= 0:
            spare, self._spare = self._spare, -1
            os.close(spare)
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
        else:
            time.sleep(_KNOCKS)
        with contextlib.suppress(OSError):  # another thread may have taken the number
            self._spare = _open_spare()

    def close(self) -> None:
        """Nobody is let in any more."""
        self._listener.close()
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)


def _open_spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def credentials(peer: socket.socket) -> tuple[int, int, int]:
    """The pid (0 if it is of a pid namespace that we do not see), uid and gid of who has connected."""
    room = _CREDENTIALS.size
    pid, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, room))
    return pid, uid, gid


__all__ = ["Door", "credentials"]
