"""The service that waits for peers: references that are held for other processes until they detach or die.

One thread of this process, started with the first share, waits in epoll(7): for peers that show a token, for leases
whose other end was closed (EPOLLHUP: "Hang up happened on the associated file descriptor"), and for handles that
expire. It holds memories weakly. Only this thread closes the sockets that it watches, so that an event never meets
another socket of the same number.

:attr:`Service.lock` guards tokens, deadlines, :attr:`Share.taken` and the descriptors of :class:`Owner`. The lock of a
memory may be held when it is taken, never the other way round.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import os
import select
import socket
import struct
import threading
import time
import weakref
from typing import Final, Protocol

from memplat.engine.arguments import check_timeout
from memplat.engine.refusals import forked
from memplat.engine.state import host_error
from memplat.errors import HandleExpiredError, HandleUsedError
from memplat.ranges import FileRange
from memplat.sharing import ATTACHED, TOKEN_BYTES, UNKNOWN, USED

log = logging.getLogger("memplat")

_BACKLOG: Final = 128
_MANY: Final = 1024
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_UNWATCHED: Final = 0  # epoll_ctl(2): EPOLLHUP and EPOLLERR are reported whatever was asked for


class Owner(Protocol):
    """Whose pages are shared: all shares of one memory."""

    def open_file(self, share: Share) -> tuple[bytes, int]:
        """See :meth:`Share.open_file`."""

    def ended(self, share: Share) -> None:
        """Drop the reference of a share that has ended."""


class Share:
    """One reference, held for a peer.

    :ivar pages: what is shared
    :ivar token: redeems it once
    :ivar taken: whether it was redeemed, by token or as a ticket; guarded by the service's lock
    :ivar lease: our end of a ticket's lease, ``None`` otherwise
    """

    __slots__ = (
        "__weakref__",
        "_alive",
        "_done",
        "_ended",
        "_pid",
        "_shares",
        "lease",
        "pages",
        "taken",
        "token",
        "writable",
    )

    def __init__(self, shares: Owner, pages: FileRange, writable: bool) -> None:
        self._shares = weakref.ref(shares)
        self._alive = [True]
        self._done: threading.Event | None = None  # made when somebody waits
        self._ended = False
        self._pid = os.getpid()
        self.pages = pages
        self.writable = writable
        self.token = os.urandom(TOKEN_BYTES)
        self.taken = False
        self.lease: socket.socket | None = None

    def end(self) -> bool:
        """Drop the reference, once; whether it was there."""
        try:
            self._alive.pop()  # atomic: whoever gets it drops the reference
        except IndexError:
            return False
        shares = self._shares()
        if shares is not None:
            shares.ended(self)
        self._ended = True
        done = self._done  # whoever has made one after this line has seen that it is over
        if done is not None:
            done.set()
        return True

    @property
    def is_over(self) -> bool:
        """Whether the reference was dropped."""
        return not self._alive

    def open_file(self) -> tuple[bytes, int]:
        """What a peer gets to know, and the descriptor that it gets; under the service's lock.

        :raises OSError, LookupError: if the memory is gone or the host refuses
        """
        shares = self._shares()
        if shares is None or self.is_over:
            raise LookupError
        return shares.open_file(self)

    def make_ticket(self) -> int:
        """See :meth:`memplat.sharing.Shared.make_ticket`."""
        return self._service().make_ticket(self)

    def revoke(self) -> bool:
        """See :meth:`memplat.sharing.Shared.revoke`."""
        return self._service().revoke(self)

    def wait(self, timeout: float | None) -> bool:
        """See :meth:`memplat.sharing.Shared.wait`."""
        self._service()
        seconds = None if timeout is None else check_timeout(timeout, "timeout")
        with service().lock:
            done = self._done = self._done or threading.Event()
        return self._ended or done.wait(seconds)

    def _service(self) -> Service:
        if os.getpid() != self._pid:
            raise forked()
        return service()


class Service:
    """The thread, its sockets, and the shares that somebody may still come for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._epoll = select.epoll()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind("")  # unix(7), autobind: the kernel picks an abstract address that is free
        self._listener.listen(_BACKLOG)
        self.address: bytes = self._listener.getsockname()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._tokens: dict[bytes, Share] = {}
        self._leases: dict[int, tuple[socket.socket, Share | None]] = {}
        self._deadlines: list[tuple[float, int, weakref.ref[Share]]] = []
        self._numbers = itertools.count()
        self._next_deadline = float("inf")
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        threading.Thread(target=self._serve, name="page-sharing", daemon=True).start()

    # -- called from any thread, with the lock held or taking it -------------------------------------------------------

    def offer(self, share: Share, deadline: float) -> bytes:
        """Honour the share's token until *deadline*; the address at which to show it."""
        self._tokens[share.token] = share
        if len(self._deadlines) > _MANY + 4 * len(self._tokens):  # most of these shares have ended
            self._deadlines = [item for item in self._deadlines if item[2]() is not None]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, next(self._numbers), weakref.ref(share)))
        if deadline < self._next_deadline:
            self._next_deadline = deadline
            os.eventfd_write(self._wake, 1)
        return self.address

    def make_ticket(self, share: Share) -> int:
        """A socket in which the message for the peer waits, with a lease that only its reader gets."""
        with self.lock:
            if share.is_over:
                raise HandleExpiredError("the handle has expired; share the pages again")
            if share.taken:
                raise HandleUsedError("the handle was attached before; share the pages again")
            try:
                message, fd = share.open_file()
                with contextlib.ExitStack() as undo:
                    ticket, sender = (undo.enter_context(end) for end in _pair())
                    ours, theirs = (undo.enter_context(end) for end in _pair())
                    socket.send_fds(sender, [message], [fd, theirs.fileno()])
                    sender.close()
                    theirs.close()
                    share.lease = ours
                    self._watch(ours, share, _UNWATCHED)
                    share.taken = True
                    undo.pop_all()
            except LookupError:
                raise HandleExpiredError("the memory is closed") from None
            except OSError as error:
                raise host_error(error, "making a descriptor of the handle") from error
            return ticket.detach()

    def revoke(self, share: Share) -> bool:
        """End a share that nobody has attached."""
        with self.lock:
            if share.taken and not self._take_back(share):
                return False
            self.forget(share)
            share.taken = True
        return share.end()

    def forget(self, share: Share) -> None:
        """Honour the share's token no more."""
        self._tokens.pop(share.token, None)

    @staticmethod
    def _take_back(share: Share) -> bool:
        """Whether a ticket was not attached, and cannot be any more: from the shutdown on, its lease refuses the
        peer's word, and a word that came before is still there to be read.
        """
        if share.lease is None:
            return False
        with contextlib.suppress(OSError):
            share.lease.shutdown(socket.SHUT_RD)
        try:
            return share.lease.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != ATTACHED
        except OSError:
            return True

    def _watch(self, end: socket.socket, share: Share | None, events: int) -> None:
        end.setblocking(False)
        self._leases[end.fileno()] = end, share
        self._epoll.register(end.fileno(), events)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self.lock:
                self._next_deadline = self._deadlines[0][0] if self._deadlines else float("inf")
                # At most a day, because epoll_wait(2) takes milliseconds that fit into an int: 24 days.
                left = min(86_400.0, max(0.0, self._next_deadline - time.monotonic())) if self._deadlines else None
            for fd, events in self._epoll.poll(left):
                try:
                    self._happened(fd, events)
                except Exception:
                    log.exception("memplat: serving a share failed")
            self._expire()

    def _happened(self, fd: int, events: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
        elif fd == self._listener.fileno():
            self._accept()
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self._hung_up(fd)
        else:
            self._answer(fd)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("memplat: a peer could not be let in: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return
        _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (os.geteuid(), 0):
            peer.close()
            return
        self._watch(peer, None, select.EPOLLIN)
        self._answer(peer.fileno())  # by now the token is mostly there

    def _turn_away(self) -> None:
        """No descriptor is left: the one that was spared lets the peer in and out, or it would knock for ever."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _answer(self, fd: int) -> None:
        """A peer shows a token. Afterwards its connection is the lease, or is closed."""
        peer, share = self._leases[fd]
        try:
            token = peer.recv(TOKEN_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            token = b""
        if share is not None or len(token) != TOKEN_BYTES:
            self._close(fd)  # who has a lease has nothing more to say
            if share is not None:
                share.end()
            return
        with self.lock:
            share = self._tokens.get(token)
            sent = share is not None and not share.taken and self._send_pages(peer, share)
            if share is not None and sent:
                share.taken = True
                self._leases[fd] = peer, share
                self._epoll.modify(fd, _UNWATCHED)
                return
        with contextlib.suppress(OSError):
            peer.send(USED if share is not None and share.taken else UNKNOWN)
        self._close(fd)

    @staticmethod
    def _send_pages(peer: socket.socket, share: Share) -> bool:
        try:
            message, fd = share.open_file()
            socket.send_fds(peer, [message], [fd])
        except LookupError:
            return False
        except OSError as error:
            log.warning("memplat: %s could not be sent to its peer: %s", share.pages, error)
            return False
        return True

    def _hung_up(self, fd: int) -> None:
        _, share = self._close(fd)
        if share is not None:
            with self.lock:
                self.forget(share)
            share.end()

    def _close(self, fd: int) -> tuple[socket.socket, Share | None]:
        found = self._leases.pop(fd)
        self._epoll.unregister(fd)
        found[0].close()
        return found

    def _expire(self) -> None:
        """End the shares whose time has come and that nobody has attached."""
        now = time.monotonic()
        ended = []
        with self.lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                share = heapq.heappop(self._deadlines)[2]()
                if share is not None and (not share.taken or self._take_back(share)):
                    self.forget(share)
                    share.taken = True
                    ended.append(share)
        for share in ended:
            share.end()

    # -- fork ---------------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: close what is the parent's, or a peer would wait for an answer from here."""
        for end, _ in [*self._leases.values(), (self._listener, None)]:
            end.close()
        self._epoll.close()
        os.close(self._wake)
        os.close(self._spare)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


_current: list[Service] = []
_starting = threading.RLock()


def running() -> Service | None:
    """This process's service, if there is one."""
    return _current[0] if _current else None


def service() -> Service:
    """This process's service; the first call starts it."""
    if not _current:
        with _starting:
            if not _current:
                try:
                    _current.append(Service())
                except OSError as error:
                    raise host_error(error, "starting to share pages") from error
    return _current[0]


def _after_fork_in_child() -> None:
    global _starting  # noqa: PLW0603 -- the parent's may be held by a thread that does not exist here
    _starting = threading.RLock()
    while _current:
        _current.pop().abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Share", "running", "service"]
