"""Pages of a memory in another process: the handle that travels, and the peer's end of a share.

The owner's end stands in ``memplat/engine/leases.py`` and ``slots.py``. A handle is redeemed in one of three ways:

- by its *slot*, which travels in pickles: :mod:`memplat.peers` claims it, without asking anybody.
- by its *token*, where it has no slot or claims are not to be had: :func:`attach` connects to the owner's socket (an
  abstract address of this network namespace, unix(7)) and shows it. The connection stays open: it is the *lease*.
- by a *ticket*, which travels as a descriptor (:meth:`Handle.fileno`, ``socket.send_fds``): a socket in which one
  message waits, with the descriptor of the backing file and a lease. Only one reader can get it.

The owner holds a reference for as long as the other end of the lease is open anywhere, or the lock of the slot is
held, and the kernel ends both when the peer dies, whatever killed it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from memplat import _core, peers, wire
from memplat.errors import HandleError, HandleExpiredError, HandleUsedError, HostError, InvalidArgumentError
from memplat.linux import exporter
from memplat.linux import memory as host
from memplat.ranges import FileRange
from memplat.wording import shown

#: What the owner sends with the descriptors: a mark, the range, flags.
MESSAGE: Final = struct.Struct("<8sQQI")
MARK: Final = b"memplat1"
WRITABLE: Final = 1
CORE_DUMP: Final = 2
#: What the owner answers to a token that it does not honour.
USED: Final = b"used"
UNKNOWN: Final = wire.UNKNOWN
#: The peer has what it needs: said over the lease of a ticket, so that an expired one is noticed.
ATTACHED: Final = b"A"

#: The memory's key, the slot in its claims table (-1: none), the number of the share.
TOKEN: Final = struct.Struct(f"<{wire.KEY_BYTES}sqQ")
#: What the pickled form begins with: the token, the range, whether it is writable. The owner's address is the rest.
_FORM: Final = struct.Struct(f"<{TOKEN.size}sQQ?")
_MOST_FD: Final = (1 << 31) - 1  # a C int


class Shared(Protocol):
    """The owner's end of a share, as a handle knows it."""

    def make_ticket(self) -> int:
        """A descriptor that can be attached once, in place of the token."""

    def revoke(self) -> bool:
        """End the share unless it was attached; whether that was so."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until the share has ended; False on time-out."""


class PythonHandle:
    """The fields of a handle, and how it becomes bytes."""

    __slots__ = ("_address", "_fd", "_shared", "_token", "_used", "pages", "writable")

    def __init__(
        self,
        address: bytes,
        token: bytes,
        pages: FileRange | None,
        writable: bool | None,
        shared: Shared | None = None,
    ) -> None:
        self._fd = -1
        self.pages = pages
        self.writable = writable
        self._address = address
        self._token = token
        self._shared = shared
        self._used = False

    def _pack(self) -> bytes:
        raise NotImplementedError

    def __bytes__(self) -> bytes:
        return self._pack()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restore, (self._pack(),)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)  # not there, if nothing was made of what __new__ gave
        if fd >= 0:
            os.close(fd)


if TYPE_CHECKING or _core.MODULE is None:  # noqa: SIM108 -- mypy has to see a class
    HotHandle = PythonHandle
else:
    HotHandle = _core.MODULE.HotHandle


class Handle(HotHandle):
    """Pages to be attached by one process, once. Made by :meth:`Memory.share`.

    It can be pickled (arguments and queues of ``multiprocessing``, whatever the start method) for processes of the same
    user and network namespace, or sent as ``bytes(handle)``. For others send its descriptor::

        socket.send_fds(connection, [b"pages"], [handle.fileno()]); handle.close()        # here
        view = memplat.attach(memplat.Handle.from_fd(socket.recv_fds(peer, 16, 1)[1][0]))  # there

    :ivar pages: the range in the backing file; ``None`` for one that came as a descriptor
    :ivar writable: whether the view will be writable; ``None`` for one that came as a descriptor
    """

    __slots__ = ("__weakref__",)

    @classmethod
    def from_fd(cls, fd: int) -> Handle:
        """The handle whose descriptor was received. Takes *fd* over, unless an error is raised.

        :raises InvalidArgumentError: if *fd* is no number of a descriptor
        :raises HostError: if the host refuses: no descriptor of that number is open
        """
        if type(fd) is not int or not 0 <= fd <= _MOST_FD:
            raise InvalidArgumentError(
                f"fd={shown(fd)} is no descriptor; allowed is the integer that socket.recv_fds has returned"
            )
        try:
            os.fstat(fd)
        except OSError as error:
            raise HostError(error.errno, f"fd={fd} cannot be taken over: {error.strerror}") from error
        handle = cls(b"", b"", None, None)
        handle._fd = fd
        os.set_inheritable(fd, False)
        return handle

    @classmethod
    def from_bytes(cls, data: bytes) -> Handle:
        """The handle that ``bytes(handle)`` was made of; see :func:`attach`, which takes such bytes, too.

        :raises InvalidArgumentError: if *data* is no such bytes
        """
        handle = _unpack(data)
        if handle is None:
            raise InvalidArgumentError(f"{shown(data)} is nothing that bytes(handle) has made")
        return handle

    def fileno(self) -> int:
        """A descriptor to be sent to the peer; it stays the handle's, to be closed with :meth:`close`. From now on only
        the descriptor can be attached, and a pickle of the handle no more. When all its copies are closed without
        having been attached, the share ends.

        :raises HandleError: in a process that got the handle as a pickle
        :raises HandleUsedError, HandleExpiredError: if it is too late
        """
        if self._fd < 0:
            if self._shared is None:
                raise HandleError("only the process that shared the pages can turn the handle into a descriptor")
            self._fd = self._shared.make_ticket()
        return self._fd

    def revoke(self) -> bool:
        """End the share if nobody has attached it. False if somebody has, or it has ended.

        :raises HandleError, ForkedError: in another process than the one that shared the pages
        """
        return self._owner().revoke()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the share's reference is gone: the peer has detached or died, or the handle has expired. False
        on time-out.

        :raises HandleError, ForkedError: in another process than the one that shared the pages
        """
        return self._owner().wait(timeout)

    def attach(self) -> memoryview:
        """See :func:`attach`."""
        if self._used:
            raise HandleUsedError(f"{self!r} was attached before; share the pages again")
        try:
            if self._fd >= 0:
                view = _map(*self._redeem_ticket())
            else:
                key, slot, number, pages = self._read_token()
                found = peers.claim(self._address, key, slot, number, pages)
                view = _map(*self._redeem_token()) if found is None else found
        except HandleError as error:
            if self._fd < 0:
                error.args = (f"{self!r}: {error}",)
            raise
        except (ConnectionError, TimeoutError) as error:
            raise HandleExpiredError(
                f"{self!r}: the process that shared the pages does not answer ({error}): it is gone, or belongs to "
                "another user or network namespace; for those, send the handle's descriptor"
            ) from error
        except HostError:
            raise
        except OSError as error:
            raise HostError(error.errno, f"attaching {self!r}: {error.strerror or error}") from error
        self._used = True
        return view

    def _read_token(self) -> tuple[bytes, int, int, tuple[int, int]]:
        """The memory's key, slot and number of the share, first and last byte but one."""
        try:
            key, slot, number = TOKEN.unpack(self._token)
            start, end = self.pages or (0, 0)
            if type(self._address) is bytes and type(start) is type(end) is int and 0 <= start < end:
                return key, slot, number, (start, end)
        except (TypeError, ValueError, struct.error):
            pass
        raise InvalidArgumentError(f"{self!r} is no handle that Memory.share() has made")

    def _redeem_token(self) -> tuple[bytes, int, int]:
        """The owner's message, the descriptor of the file, and the lease."""
        wire.check_may_wait("attach pages")
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.connect(self._address)
            connection.settimeout(wire.ANSWER_SECONDS)
            connection.send(self._token)
            packet, fds = wire.receive(connection, MESSAGE.size, 1)
            for fd in fds:
                undo.callback(os.close, fd)
            if packet == USED:
                raise HandleUsedError("it was attached before; share the pages again")
            if not packet:
                raise HandleExpiredError("the process that shared the pages has ended, or can serve no more peers")
            if not _is_genuine(packet, fds, 1):
                raise HandleExpiredError("it has expired, was revoked, or was attached and let go; share them again")
            undo.pop_all()
            connection.settimeout(None)
            return packet, fds[0], connection.detach()

    def _redeem_ticket(self) -> tuple[bytes, int, int]:
        """As :meth:`_redeem_token`."""
        fd, self._fd = self._fd, -1
        with contextlib.ExitStack() as undo:
            try:
                ticket = undo.enter_context(socket.socket(fileno=fd))
            except OSError:
                os.close(fd)
                raise InvalidArgumentError(f"descriptor {fd} is no handle: it is no socket") from None
            if ticket.family != socket.AF_UNIX:
                raise InvalidArgumentError(f"descriptor {fd} is no handle: it is no socket of memplat")
            try:
                packet, fds = wire.receive(ticket, MESSAGE.size, 2, socket.MSG_DONTWAIT)
            except BlockingIOError:
                raise InvalidArgumentError(f"descriptor {fd} is no handle: no message waits in it") from None
            for received in fds:
                undo.callback(os.close, received)
            if not packet:
                raise HandleUsedError("the descriptor was attached before; share the pages again")
            if not _is_genuine(packet, fds, 2):
                raise InvalidArgumentError(f"descriptor {fd} is no handle of memplat")
            with socket.socket(fileno=os.dup(fds[1])) as lease:
                try:
                    lease.send(ATTACHED)
                except ConnectionError as error:
                    raise HandleExpiredError("the descriptor has expired, or its owner is gone") from error
            undo.pop_all()
            ticket.close()
            return packet, fds[0], fds[1]

    def _owner(self) -> Shared:
        if self._shared is None:
            raise HandleError("only the process that shared the pages can do that")
        return self._shared

    def _pack(self) -> bytes:
        """What :meth:`from_bytes` and pickles take."""
        if self._fd >= 0:
            raise HandleError("this handle is a descriptor by now: send that, with socket.send_fds")
        if self.pages is None:
            raise HandleError("this handle was a descriptor: it can be attached here only")
        try:
            return _FORM.pack(self._token, *self.pages, bool(self.writable)) + self._address
        except (TypeError, struct.error):
            raise InvalidArgumentError(f"{self!r} is no handle that Memory.share() has made") from None

    def close(self) -> None:
        """Close this process's copy of the descriptor, once it was sent; idempotent. While any copy is open, the share
        can still be attached.
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __repr__(self) -> str:
        how = "read and write" if self.writable else "read"
        return f"<handle of {self.pages}, to {how}>" if self._fd < 0 else f"<handle, descriptor {self._fd}>"


def attach(handle: Handle | bytes) -> memoryview:
    """Map the pages of *handle* into this process, and return a view of them. They are neither reclaimed nor recycled
    until the view, and whatever was derived from it, is gone, in this process and in those forked from it meanwhile.

    What ``bytes(handle)`` has made does as well as the handle. Whoever makes up such bytes can have pages of his own
    attached: take them from whom you would take a pickle.

    The view stays valid when the owner closes the memory or dies; it is then the last to keep the pages.

    :raises HandleUsedError: if it was attached before
    :raises HandleExpiredError: if it has expired, was revoked, or its owner is gone
    :raises HostError: if the host refuses; the handle is used up
    """
    if isinstance(handle, bytes):
        handle = Handle.from_bytes(handle)
    if not isinstance(handle, Handle):
        raise InvalidArgumentError(f"{shown(handle)} is no handle; Memory.share makes one")
    return handle.attach()


def _restore(packed: bytes) -> Handle | None:
    """A handle out of its pickle. In Python, as pickle asks functions that are compiled one question more."""
    return _unpack(packed)


def _unpack(packed: bytes) -> Handle | None:
    """A handle out of its bytes; ``None`` for what is too short, or no bytes."""
    if type(packed) is not bytes or len(packed) < _FORM.size:
        return None
    token, start, end, writable = _FORM.unpack_from(packed)
    return Handle(packed[_FORM.size :], token, FileRange(start, end), writable)


if not TYPE_CHECKING and _core.MODULE is not None:
    _unpack = _core.MODULE.unpack
    _core.MODULE.install_handles(Handle, _restore, attach)
    attach = _core.MODULE.attach
    attach.__module__ = __name__  # by which it is pickled


def _is_genuine(packet: bytes, fds: list[int], wanted: int) -> bool:
    return len(packet) == MESSAGE.size and packet.startswith(MARK) and len(fds) == wanted


def _map(packet: bytes, fd: int, lease: int) -> memoryview:
    _, start, end, flags = MESSAGE.unpack(packet)
    writable = bool(flags & WRITABLE)
    protection = host.PROT_READ | host.PROT_WRITE if writable else host.PROT_READ
    length = end - start
    try:
        address = host.map_anywhere(length, fd, start, protection, host.MAP_SHARED | host.MAP_NORESERVE)
        if not flags & CORE_DUMP:
            host.madvise(address, length, host.MADV_DONTDUMP)
    except OSError as error:
        os.close(lease)
        raise HostError(error.errno, f"mapping {length} shared bytes: {error.strerror}") from error
    finally:
        os.close(fd)
    return exporter.export(address, length, writable=writable, release=partial(_detach, address, length, lease))


def _detach(address: int, length: int, lease: int) -> None:
    """The last view has died. The mapping goes before the reference: nobody sees what becomes of the pages."""
    host.unmap(address, length)
    os.close(lease)


__all__ = ["Handle", "attach"]
