"""The shares of one memory: who may get which descriptor, and the references that go with them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import weakref
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from memplat import _core, peers, wire
from memplat.engine.leases import Owner, Share
from memplat.engine.refusals import closed
from memplat.engine.service import Service, service
from memplat.engine.slots import Slots
from memplat.engine.state import EngineState, host_error
from memplat.errors import InvalidArgumentError, MemplatError, UnsealedFileError
from memplat.linux import files
from memplat.ranges import FileRange
from memplat.sharing import CORE_DUMP, MARK, MESSAGE, TOKEN, WRITABLE, Handle
from memplat.types import Capability

if TYPE_CHECKING:
    from memplat.memory import Memory

log = logging.getLogger("memplat")
_NONE: Final[list[Share]] = []


class PythonShares:
    """What share() looks at.

    :ivar slots: see :class:`~memplat.engine.leases.Owner`, as for ``living``
    :ivar _keys: what peers show, by whether they may write; nothing before the first such share
    :ivar _trust_needed: whether shares for writing have to be trusted
    """

    slots: Slots | None
    living: dict[int, Share]
    _keys: dict[bool, bytes]
    _service: Service | None
    _weak: weakref.ref[Owner]
    _closed: bool
    _trust_needed: bool


if TYPE_CHECKING or _core.MODULE is None:  # noqa: SIM108 -- mypy has to see a class
    HotShares = PythonShares
else:
    HotShares = _core.MODULE.HotShares


class Shares(HotShares):
    """All shares of one memory; see :class:`~memplat.engine.leases.Owner`."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._descriptors: dict[bool, int] = {}
        self._keys = {}
        self._service = None
        self._weak = weakref.ref(self)
        self._closed = False
        self._trust_needed = False
        self.slots = None
        self.living = {}
        self.guests: set[socket.socket] = set()

    def share(self, memory: Memory, pages: FileRange, *, writable: bool, trusted: bool, expires: float) -> Handle:
        """See :meth:`memplat.memory.Memory.share`. *pages* carry the reference already, which is the share's from now
        on, or dropped if there is none.
        """
        over: list[Share] = _NONE
        share = None
        try:
            if writable not in self._keys or (writable and self._trust_needed and not trusted):
                self._prepare(memory, writable, trusted)
            waiting = self._service
            assert waiting is not None
            with waiting.lock:  # close() takes it before it closes the file
                self._check_open()
                number = next(waiting.numbers)
                # Both at once: the reference is dropped by who finds it among the living, and only by him.
                self.living[number] = share = Share(waiting, self._weak, number, pages, writable)
                slots = self.slots
                if slots is not None:
                    over = slots.collect()
                    share.slot = slots.offer(share, number)
                waiting.at(time.monotonic() + expires, share)
            return Handle(waiting.address, TOKEN.pack(self._keys[writable], share.slot, number), pages, writable, share)
        except BaseException:
            if share is None:
                memory.decref(pages)
            else:
                share.end()
            raise
        finally:
            if over:
                self.ended(over)

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _prepare(self, memory: Memory, writable: bool, trusted: bool) -> None:
        """The first share for reading, or for writing: what peers are to get."""
        self._check_backend(memory, writable, trusted)
        waiting = service()
        with waiting.lock:
            self._check_open()
            self._service = waiting
            self._state.collect = partial(_collect, self._weak)
            self._open_descriptor(writable)
            if self.slots is None:
                try:
                    self.slots = Slots()
                except OSError as error:  # no memfd, no /proc: peers have to ask for each share
                    log.info("memplat: shares cannot be claimed: %s", error)
            if writable not in self._keys:
                key = os.urandom(wire.KEY_BYTES)
                waiting.memories[key] = self._weak, writable
                self._keys[writable] = key

    def _check_backend(self, memory: Memory, writable: bool, trusted: bool) -> None:
        info = self._state.backend.info
        if Capability.SHARE not in info.capabilities:
            raise InvalidArgumentError(f"backend {info.name!r} cannot share pages with another process")
        if writable:
            fd = memory.fileno()  # from now on, somebody else may write to any page, and punch it
            self._trust_needed = not _is_sealed(fd)
            if self._trust_needed and not trusted:
                raise UnsealedFileError(
                    f"whoever can write to the file of backend {info.name!r} can also truncate it, and stop this "
                    "process with SIGBUS; use a backend that seals its file, or say trusted=True"
                )

    def _open_descriptor(self, writable: bool) -> None:
        """The descriptor that peers get: one that is open for reading only, where that is all they may do."""
        if writable in self._descriptors:
            return
        fd = self._state.file.fd
        path = f"/proc/self/fd/{fd}"
        try:
            self._descriptors[writable] = os.dup(fd) if writable else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise host_error(error, "opening the file for a peer") from error

    def open_file(self, share: Share) -> tuple[bytes, int]:
        """See :meth:`memplat.engine.leases.Share.open_file`."""
        if self._closed:
            raise LookupError
        flags = WRITABLE * share.writable | CORE_DUMP * self._state.options.core_dump
        return MESSAGE.pack(MARK, *share.pages, flags), self._descriptors[share.writable]

    def welcome(self, writable: bool) -> tuple[bytes, int]:
        """See :meth:`memplat.engine.leases.Owner.welcome`. Under the service's lock."""
        flags = wire.WRITABLE * writable | wire.CORE_DUMP * self._state.options.core_dump
        return wire.WELCOME.pack(wire.MARK, flags), self._descriptors[writable]

    def ended(self, shares: Iterable[Share]) -> None:
        """See :meth:`memplat.engine.leases.Owner.ended`."""
        for share in shares:
            if self.living.pop(share.number, None) is not None:  # atomic
                self.drop(share)

    def drop(self, share: Share) -> None:
        """Drop the reference of a share that is not among the living any more."""
        memory = self._state.memory() if self._state.memory is not None else None
        try:
            if memory is not None:
                memory.decref(share.pages)
        except MemplatError:
            if self._state.refuse is None:
                log.exception("memplat: the reference of a share was not there any more")
        share.has_ended()

    def collect(self) -> bool:
        """End the shares that peers have let go, whether or not the service has noticed. Whether there were any."""
        return self._service is not None and self._service.look(self)

    def give_up(self, share: Share) -> None:
        """See :meth:`memplat.engine.leases.Owner.give_up`."""
        if self._service is not None:
            with self._service.lock:
                if self.slots is not None:
                    self.slots.give_up(share)

    def close(self) -> None:
        """End all shares, before the memory closes. What peers have attached stays valid, as views do."""
        waiting = self._service
        if waiting is None or waiting.is_parents:
            return
        with waiting.lock:
            self._closed = True
            living = list(self.living.values())
            self._let_peers_go(waiting)
        self.ended(living)
        for key in self._keys.values():
            peers.forget(key)  # our own end of it, if we have attached what we have shared

    def _let_peers_go(self, waiting: Service) -> None:
        """They notice that we hang up, and give the file back when they do not look at it any more."""
        for key in self._keys.values():
            waiting.memories.pop(key, None)
        slots, self.slots = self.slots, None
        if slots is not None:
            slots.close()
        for guest in [*self.guests]:
            with contextlib.suppress(OSError):
                guest.shutdown(socket.SHUT_RDWR)
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        """The memory was dropped without close, or is the parent's."""
        waiting = self._service
        if waiting is not None and not self._closed:
            if waiting.is_parents:
                if self.slots is not None:
                    self.slots.abandon()
                self._close_descriptors()
            else:
                self._let_peers_go(waiting)


def _collect(reference: weakref.ref[Owner]) -> bool:
    shares = reference()
    return isinstance(shares, Shares) and shares.collect()


def _is_sealed(fd: int) -> bool:
    try:
        return bool(files.get_seals(fd) & files.F_SEAL_SHRINK)
    except OSError:  # EINVAL: not a file that can be sealed
        return False


__all__ = ["Shares"]
