"""The peer's end of shares: one connection for each memory, and attaching without asking the owner.

At the first attach of a handle of a memory, the peer connects to the owner and gets the file's descriptor, the claims
table (:mod:`memplat.claims`) and an open file description of the table for itself. From then on, attaching is the lock
of a byte, and letting go is its end. The connection stays open: its end tells the owner that the peer has died.

The file stays mapped as long as the connection lasts, as a *window* onto all of it, so that attaching the same pages
again costs no page faults. It goes when the owner hangs up: a thread waits for that, and for nothing else.

A forked child has what the parent had attached. Before the fork, the parent has a description and a connection made
that will be the child's, and has it lock what is attached: from then on, both hold it, each for itself.

:data:`_mutex` is held to attach and to fork. Views die at any moment, so letting go takes no lock at all.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from memplat import _core
from memplat.claims import ATTACHED, ENDED, LEASED, OFFERED, SLOTS, STATES, Claims
from memplat.errors import HandleError, HandleExpiredError, HandleUsedError, HostError
from memplat.linux import exporter, locks
from memplat.ranges import align_down
from memplat.watcher import Watcher
from memplat.windows import Window
from memplat.wire import (
    ANSWER_SECONDS,
    CORE_DUMP,
    FORKED,
    LET_GO,
    MARK,
    UNKNOWN,
    WELCOME,
    WRITABLE,
    check_may_wait,
    receive,
)

export = exporter.export if _core.MODULE is None else _core.MODULE.export
_TURNS: Final = 200
_TURN_SECONDS: Final = 0.0005
_PAGE: Final = os.sysconf("SC_PAGESIZE")
_QUICKLY: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class PythonConnection:
    """What of a connection is looked at to attach a share that is offered, through a window that is there.

    :ivar held: the slots of views by number of the share; inverted (``~slot``) while one is being let go
    :ivar window: the mapping of all of the file, if there is one
    :ivar gone: nothing can be attached any more: the owner has hung up, or a forked child has our description, too, so
        that only its last close ends what it holds
    :ivar watched: whether it will be noticed that the owner hangs up
    :ivar writable: whether views are
    """

    __slots__ = ("claims", "gone", "held", "watched", "window", "writable")

    claims: Claims
    held: dict[int, int]
    window: Window | None
    gone: bool
    watched: bool
    writable: bool


if TYPE_CHECKING or _core.MODULE is None:  # noqa: SIM108 -- mypy has to see a class
    HotConnection = PythonConnection
else:
    HotConnection = _core.MODULE.HotConnection


class Connection(HotConnection):
    """What a peer has of one memory, for reading or for writing.

    :ivar for_child: what a child is to have in place of :attr:`claims` and :attr:`line`, while we fork
    """

    __slots__ = ("_open", "core_dump", "file", "for_child", "key", "line")

    def __init__(self, key: bytes, line: socket.socket, file: int, claims: Claims, flags: int) -> None:
        self.key = key
        self.line = line
        self.file = file
        self.claims = claims
        self.writable = bool(flags & WRITABLE)
        self.core_dump = bool(flags & CORE_DUMP)
        self.held = {}
        self.window = None
        self.gone = self.watched = False
        self.for_child: tuple[int, socket.socket, list[tuple[int, int]]] | None = None
        self._open = [True]

    def attach(self, slot: int, number: int, start: int, end: int) -> memoryview | None:
        """The view; ``None`` if this connection is of no use any more.

        :raises HandleUsedError, HandleExpiredError: it is too late
        :raises HandleError: the file has no such pages
        :raises HostError: it cannot be mapped
        """
        state = OFFERED
        for turn in range(_TURNS):
            with _mutex:
                if self.gone:
                    return None
                if not self.watched:
                    _watcher.watch(self)
                try:
                    claimed = self._claim(slot, number)
                except (OSError, ValueError):
                    if self._open:
                        raise
                    return None  # a view that died in another thread was the last, and has closed it meanwhile
                if claimed:
                    return self._view(slot, number, start, end)
                state = self.claims.states[slot] if self.claims.numbers[slot] == number else ENDED
                if claimed is not None or turn == _TURNS - 1:
                    break
            time.sleep(_TURN_SECONDS)
        if state in (OFFERED, ATTACHED, LEASED):
            raise HandleUsedError("it was attached before; share the pages again")
        raise HandleExpiredError("it has expired, was revoked, or was attached and let go; share the pages again")

    def _claim(self, slot: int, number: int) -> bool | None:
        """Whether the slot is ours now; ``None`` if somebody has the lock who has not yet said what for."""
        claims = self.claims
        if claims.states[slot] != OFFERED or claims.numbers[slot] != number or number in self.held:
            return False
        if not claims.try_lock(slot):
            return None
        if claims.states[slot] != OFFERED or claims.numbers[slot] != number:
            claims.unlock(slot)
            return False
        claims.states[slot] = ATTACHED
        self.held[number] = slot
        return True

    def _view(self, slot: int, number: int, start: int, end: int) -> memoryview | None:
        """A view for a slot that is claimed; ``None`` if this connection was closed meanwhile. With the mutex held."""
        window = self.window
        try:
            if window is None or end > window.end:
                window = self._look_at(start, end)
            window.users.add(number)  # in this order, against that of _close(), which takes no lock
            if not self._open:
                self.let_go(slot, number, window)
                if not window.users:
                    window.close()
                return None
            address = window.base + start - window.start
            release = partial(self.let_go, slot, number, window)
            return export(address, end - start, writable=self.writable, release=release)
        except BaseException:
            self.let_go(slot, number, window)
            raise

    def _look_at(self, start: int, end: int) -> Window:
        """A window onto all of the file as it is now, or else onto these pages."""
        size = align_down(os.fstat(self.file).st_size, _PAGE)
        if end > size:
            raise HandleError(f"the file has no bytes [{start:#x}, {end:#x}): it ends at {size:#x}")
        old = self.window
        try:
            self.window = self._window(0, size)
        except OSError:  # RLIMIT_AS, perhaps
            try:
                return self._window(start, end)
            except OSError as error:
                raise HostError(error.errno, f"mapping {end - start} shared bytes: {error.strerror}") from error
        if old is not None and not old.users:
            old.close()
        return self.window

    def _window(self, start: int, end: int) -> Window:
        return Window(self.file, start, end, writable=self.writable, core_dump=self.core_dump)

    def let_go(self, slot: int, number: int, window: Window | None) -> None:
        """The last view has died: in any thread, at any moment."""
        self.held[number] = ~slot
        if window is not None:
            window.users.discard(number)
            if window is not self.window and not window.users:
                window.close()
        if not self.gone:
            try:
                claims = self.claims
                claims.states[slot] = ENDED
                claims.unlock(slot)
                if claims.wanted[0]:
                    claims.wanted[0] = 0
                    self.say_let_go()
            except (OSError, ValueError):  # closed by hand, or by the owner a moment ago
                pass
        self.held.pop(number, None)
        if not self.held and (self.gone or not self.watched):
            self.hang_up()

    def say_let_go(self) -> None:
        """The owner wants to know."""
        with contextlib.suppress(OSError, ValueError):  # as in let_go
            self.line.send(LET_GO, _QUICKLY)

    def owner_left(self) -> None:
        """The owner has hung up."""
        with _mutex:  # nobody is in the middle of attaching
            self.gone = True
        self.hang_up()

    def hang_up(self) -> None:
        """Attach no more, and go when nothing is attached any more. Takes no lock: see :meth:`let_go`."""
        self.gone = True
        if _connections.get(self.key) is self:
            _connections.pop(self.key, None)
        if not self.held:
            self._close()

    def _close(self) -> None:
        """Give everything back, once."""
        try:
            self._open.pop()
        except IndexError:
            return
        window, self.window = self.window, None
        if window is not None and not window.users:  # else its last user does it
            window.close()
        _watcher.forget(self)
        self.claims.close()
        for fd in (self.claims.fd, self.file):
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(OSError):
            self.line.close()

    # -- fork ---------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Have a description and a connection ready for a child, which hold what is attached now."""
        held = [(number, slot) for number, slot in [*self.held.items()] if slot >= 0]
        if not held or self.gone:
            return
        try:
            with contextlib.ExitStack() as undo:
                fd = locks.reopen(self.claims.fd)
                undo.callback(os.close, fd)
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(theirs.close)
                with ours:
                    for _, slot in held:
                        self.claims.try_lock(slot, shared=True)  # in place of the exclusive lock
                        locks.try_lock(fd, STATES + slot, shared=True)
                    socket.send_fds(self.line, [FORKED], [ours.fileno()], _QUICKLY)
                undo.pop_all()
                self.for_child = fd, theirs, held
        except OSError:
            self.hang_up()

    def after_fork_in_parent(self) -> None:
        """Close what is the child's."""
        if self.for_child is not None:
            fd, line, held = self.for_child
            self.for_child = None
            self._unlock_others(held)
            os.close(fd)
            line.close()

    def after_fork_in_child(self) -> None:
        """Take what was made for us, and close what is the parent's."""
        self.watched = False
        for number in [number for number, slot in self.held.items() if slot < 0]:
            del self.held[number]  # the thread that was about to do it is not here
        if self.for_child is not None:
            os.close(self.claims.fd)
            self.line.close()
            self.claims.fd, self.line, held = self.for_child
            self.for_child = None
            self._unlock_others(held)
        elif not self.held:
            self.hang_up()

    def _unlock_others(self, held: list[tuple[int, int]]) -> None:
        """Unlock what was locked for the fork, and had been let go by another thread."""
        for number, slot in held:
            if number not in self.held:
                with contextlib.suppress(OSError):
                    self.claims.unlock(slot)


def claim(address: bytes, key: bytes, slot: int, number: int, pages: tuple[int, int]) -> memoryview | None:
    """Attach a share that has a slot; ``None`` if its owner has to be asked.

    :raises HandleUsedError, HandleExpiredError: it is too late
    :raises HandleError: the owner's file has no such pages
    :raises HostError: they cannot be mapped
    :raises OSError: the owner does not answer
    """
    if not 0 <= slot < SLOTS:
        return None
    for _ in range(2):
        connection = _connections.get(key) or _connect(address, key)
        if connection is None:
            return None
        view = connection.attach(slot, number, *pages)
        if view is not None:
            return view
    raise HandleExpiredError("its memory is closed, or the process that shared it is gone")


def _connect(address: bytes, key: bytes) -> Connection | None:
    """A connection to the memory's owner; ``None`` if one has to ask for each share instead."""
    check_may_wait("attach pages of a memory that it knows nothing of yet")
    with contextlib.ExitStack() as undo:
        line = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        line.connect(address)
        line.settimeout(ANSWER_SECONDS)
        line.send(key)
        packet, fds = receive(line, WELCOME.size, 3)
        for fd in fds:
            undo.callback(os.close, fd)
        if packet == UNKNOWN or not packet:
            raise HandleExpiredError("its memory is closed, or can serve no more peers")
        if len(packet) != WELCOME.size or not packet.startswith(MARK) or len(fds) != 3:
            return None
        file, table, own = fds
        try:
            locks.try_lock(own, 0, shared=True)
            locks.unlock(own, 0)
        except OSError:  # a kernel without such locks
            return None
        made = Connection(key, line, file, Claims(own, table), WELCOME.unpack(packet)[1])
        line.settimeout(None)
        undo.pop_all()
        os.close(table)
    with _mutex:
        found = _connections.setdefault(key, made)
    if found is not made:
        made.hang_up()  # another thread was quicker
    return found


def forget(key: bytes) -> None:
    """Hang up: the memory is this process's own, and has been closed."""
    connection = _connections.get(key)
    if connection is not None:
        connection.owner_left()


def _make_mutex() -> Any:
    return threading.RLock() if _core.MODULE is None else _core.MODULE.Lock()


_mutex = _make_mutex()
_connections: dict[bytes, Connection] = {}
_watcher = Watcher()
if _core.MODULE is not None:
    _core.MODULE.install_peers(_connections, _mutex)
#: Connections with views whose owner is gone have to be known, too, while the process forks.
_forking: list[Connection] = []


def _before_fork() -> None:
    _mutex.acquire()
    _forking[:] = _connections.values()
    for connection in _forking:
        connection.before_fork()


def _after_fork_in_parent() -> None:
    for connection in _forking:
        connection.after_fork_in_parent()
    _forking.clear()
    _mutex.release()


def _after_fork_in_child() -> None:
    global _mutex, _watcher  # noqa: PLW0603 -- the thread that was to let go of it, or to watch, is not here
    _mutex = _make_mutex()
    if _core.MODULE is not None:
        _core.MODULE.install_peers(_connections, _mutex)
    _watcher.close()
    _watcher = Watcher()
    for connection in _forking:
        connection.after_fork_in_child()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

__all__ = ["claim", "forget"]
