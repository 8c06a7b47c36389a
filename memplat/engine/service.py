"""The service that waits for peers: references that are held for other processes until they detach or die.

One thread of this process, started with the first share, waits in epoll(7): for peers that show a token or want to
claim slots, for sockets whose other end was closed (EPOLLHUP: "Hang up happened on the associated file descriptor"),
for peers that died, and for handles that expire. It holds memories weakly. Only this thread closes the sockets that it
watches, so that an event never meets another socket of the same number.

A peer that claims slots is a *guest* of a memory. It tells when it has let something go, if the memory *wants word*.
After the first word the thread looks by itself for a while, so that guests that are busy need not wake it each time.

:attr:`Service.lock` guards slots, times, ``Share.taken`` and the descriptors of ``Owner``. The lock of a memory may be
held when it is taken, never the other way round.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Final

from memplat import daemons, wire
from memplat.claims import FREE
from memplat.engine.door import Door, credentials
from memplat.engine.leases import Owner, Share
from memplat.engine.looking import Looking
from memplat.engine.processes import Processes
from memplat.engine.state import host_error, living
from memplat.errors import HandleExpiredError, HandleUsedError
from memplat.sharing import ATTACHED, TOKEN, UNKNOWN, USED

log = logging.getLogger("memplat")

#: Without memory it tries again after so many seconds.
_NO_MEMORY: Final = 0.02
_UNWATCHED: Final = 0  # epoll_ctl(2): EPOLLHUP and EPOLLERR are reported whatever was asked for
#: When it looks again after a guest has hung up: the kernel may close its descriptors one by one.
_AFTER_HANG_UP: Final = tuple(0.001 * 2**n for n in range(9))


class Service(Looking):
    """The thread, its sockets, and what is to be done at which time.

    :ivar memories: by the key that handles carry, with whether it is good for writing
    :ivar is_parents: this is a forked child, and the service its parent's
    """

    def __init__(self) -> None:
        """:raises OSError: if the host refuses"""
        super().__init__()
        self.is_parents = False
        self._thread = 0
        self.memories: dict[bytes, tuple[weakref.ref[Owner], bool]] = {}
        #: Who a socket belongs to: a lease to its share, a guest to a memory, and a stranger to nobody yet.
        self._sockets: dict[int, tuple[socket.socket, Share | weakref.ref[Owner] | None]] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._wake)
            self._epoll = undo.enter_context(select.epoll())
            self._processes = Processes(self._epoll)
            self._door = undo.enter_context(contextlib.closing(Door()))
            self.address = self._door.address
            self._epoll.register(self._door.fileno(), select.EPOLLIN)
            self._epoll.register(self._wake, select.EPOLLIN)
            try:
                daemons.start(self._serve, "page-sharing")
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, str(error)) from error
            undo.pop_all()

    def is_hindered(self) -> bool:
        """Whether this is the thread that answers, or has a lock that it may need."""
        me = threading.get_ident()
        owned = self.lock._is_owned()  # noqa: SLF001 -- as in state.py
        return me == self._thread or owned or any(state.is_interrupted() for state in living())

    # -- called from any thread ---------------------------------------------------------------------------------------

    def make_ticket(self, share: Share) -> int:
        """A socket in which the message for the peer waits, with a lease that only its reader gets."""
        with self.lock:
            taken = share.take()
            if taken is None:
                raise HandleExpiredError("the handle has expired; share the pages again")
            if not taken:
                raise HandleUsedError("the handle was attached before; share the pages again")
            try:
                message, fd = share.open_file()
                with contextlib.ExitStack() as undo:
                    ticket, sender = (undo.enter_context(end) for end in _pair())
                    ours, theirs = (undo.enter_context(end) for end in _pair())
                    socket.send_fds(sender, [message], [fd, theirs.fileno()])
                    sender.close()
                    theirs.close()
                    self._watch(ours, share, _UNWATCHED)
                    share.lease = ours
                    undo.pop_all()
            except LookupError:
                raise HandleExpiredError("the memory is closed") from None
            except OSError as error:
                share.give_back()
                raise host_error(error, "making a descriptor of the handle") from error
            return ticket.detach()

    def revoke(self, share: Share) -> bool:
        """End a share that nobody has attached."""
        with self.lock:
            taken = self._take_back(share) if share.taken else share.take(FREE)
        if taken is not False:  # it is over, at any rate
            return share.end() and taken is True
        return False

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

    def _watch(self, end: socket.socket, whose: Share | weakref.ref[Owner] | None, events: int) -> None:
        end.setblocking(False)
        self._sockets[end.fileno()] = end, whose
        self._epoll.register(end.fileno(), events)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._thread = threading.get_ident()
        while True:
            try:
                left = self._time_left()
                for fd, events in self._epoll.poll(left):
                    self._protected(partial(self._happened, fd, events))
                self._do_what_is_due()
            except MemoryError:  # who waits for us would wait for ever
                time.sleep(_NO_MEMORY)

    @staticmethod
    def _protected(what: Callable[[], None]) -> None:
        try:
            what()
        except Exception:
            log.exception("memplat: serving a share failed")

    def _do_what_is_due(self) -> None:
        for what in self._take_due():
            self._protected(partial(self._expire, what) if isinstance(what, Share) else what)

    def _expire(self, share: Share) -> None:
        """End a share whose time has come, unless somebody has it."""
        with self.lock:
            ended = self._take_back(share) if share.taken else share.take(FREE)
            share.late = True
        if ended is not False:
            share.end()

    def _happened(self, fd: int, events: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
        elif fd == self._door.fileno():
            self._accept()
        elif fd in self._processes:
            for shares in self._processes.forget(fd):
                self.look(shares, thoroughly=True)
        elif isinstance(self._sockets[fd][1], weakref.ref):
            self._hear(fd)
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self._hung_up(fd)
        else:
            self._answer(fd)

    def _accept(self) -> None:
        peer = self._door.let_in()
        if peer is not None:
            self._watch(peer, None, select.EPOLLIN)
            self._answer(peer.fileno())  # by now the token is mostly there

    def _answer(self, fd: int) -> None:
        """A peer shows a token, and its connection is the lease; or a key, and it is a guest. Or it is closed."""
        peer, share = self._sockets[fd]
        try:
            token = peer.recv(TOKEN.size + 1)
        except BlockingIOError:
            return
        except OSError:
            token = b""
        if share is None and len(token) == wire.KEY_BYTES:
            done = self._let_in(fd, peer, token)
        elif share is None and len(token) == TOKEN.size:
            done = self._lease(fd, peer, token)
        else:  # who has a lease has nothing more to say
            done = False
        if not done:
            self._close(fd)
            if isinstance(share, Share):
                share.end()

    def _lease(self, fd: int, peer: socket.socket, token: bytes) -> bool:
        """Send the pages that a token stands for, once."""
        key, _, number = TOKEN.unpack(token)
        with self.lock:
            shares, _ = self._find(key)
            share = shares.living.get(number) if shares is not None else None
            taken = share.take() if share is not None else None
            if share is not None and taken:
                if self._send_pages(peer, share):
                    self._sockets[fd] = peer, share
                    self._epoll.modify(fd, _UNWATCHED)
                    return True
                share.give_back()
        with contextlib.suppress(OSError):
            peer.send(UNKNOWN if taken is None or taken else USED)
        return False

    def _find(self, key: bytes) -> tuple[Owner | None, bool]:
        reference, writable = self.memories.get(key, (None, False))
        return None if reference is None else reference(), writable

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
        if isinstance(share, Share):
            share.end()

    def _close(self, fd: int) -> tuple[socket.socket, Share | weakref.ref[Owner] | None]:
        found = self._sockets.pop(fd)
        self._epoll.unregister(fd)
        found[0].close()
        return found

    # -- guests -------------------------------------------------------------------------------------------------------

    def _let_in(self, fd: int, peer: socket.socket, key: bytes) -> bool:
        """Give a peer what it needs to claim slots by itself."""
        with self.lock:
            shares, writable = self._find(key)
            if shares is None or shares.slots is None:
                with contextlib.suppress(OSError):
                    peer.send(UNKNOWN if shares is None else wire.ASK)
                return False
            try:
                self._processes.watch(credentials(peer)[0], shares)
                message, file = shares.welcome(writable)
                table, own = shares.slots.for_peer()
                with contextlib.ExitStack() as undo:
                    undo.callback(os.close, own)
                    socket.send_fds(peer, [message], [file, table, own])
            except OSError as error:
                log.warning("memplat: a peer could not be let in: %s", error)
                return False
            self._sockets[fd] = peer, weakref.ref(shares)
            shares.guests.add(peer)
        return True

    def _hear(self, fd: int) -> None:
        """A guest has something to say, or has hung up."""
        peer, reference = self._sockets[fd]
        assert isinstance(reference, weakref.ref)
        shares = reference()
        try:
            said, fds = wire.receive(peer, 2, 1)
        except BlockingIOError:
            return
        except OSError:
            said, fds = b"", []
        if said == wire.LET_GO and shares is not None:
            self._told(shares)
        elif said == wire.FORKED and len(fds) == 1 and shares is not None:
            self._adopt(fds.pop(), shares)
        else:
            self._close(fd)
            self._guest_left(peer, reference)
        for stranger in fds:
            os.close(stranger)

    def _told(self, shares: Owner) -> None:
        self.look(shares)
        self.look_later(shares)
        with self.lock:
            hurry = shares.slots is not None and shares.slots.waiting > 0 and shares.slots.want_word()
        if hurry:
            self.look(shares)

    def _adopt(self, fd: int, shares: Owner) -> None:
        """The connection of a guest's forked child."""
        try:
            line = socket.socket(fileno=fd)
        except OSError:  # no socket
            os.close(fd)
            return
        if line.family != socket.AF_UNIX:
            line.close()
            return
        with self.lock:
            self._watch(line, weakref.ref(shares), select.EPOLLIN)
            shares.guests.add(line)

    def _guest_left(self, peer: socket.socket, reference: weakref.ref[Owner]) -> None:
        """What it had attached is over as soon as the kernel has closed its descriptors."""
        shares = reference()
        if shares is None:
            return
        self.look(shares, thoroughly=True)
        now = time.monotonic()
        with self.lock:
            shares.guests.discard(peer)
            for seconds in _AFTER_HANG_UP:
                self.at(now + seconds, partial(self._look_again, reference, thoroughly=True))

    # -- fork ---------------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: close what is the parent's, or a peer would wait for an answer from here."""
        self.is_parents = True
        self._door.close()
        for end, _ in self._sockets.values():
            end.close()
        self._epoll.close()
        self._processes.close()
        os.close(self._wake)


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


def _is_hindered() -> bool:
    return any(serving.is_hindered() for serving in _current)


wire.hinders.append(_is_hindered)
os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Service", "running", "service"]
