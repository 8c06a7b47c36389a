"""The shares of one memory: who may get which descriptor, and the references that go with them."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from memplat.engine.leases import Share, running, service
from memplat.engine.refusals import closed
from memplat.engine.state import EngineState, host_error
from memplat.errors import InvalidArgumentError, MemplatError, UnsealedFileError
from memplat.linux import files
from memplat.ranges import FileRange
from memplat.sharing import CORE_DUMP, MARK, MESSAGE, WRITABLE, Handle
from memplat.types import Capability

if TYPE_CHECKING:
    from memplat.memory import Memory

log = logging.getLogger("memplat")


class Shares:
    """All shares of one memory."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._descriptors: dict[bool, int] = {}
        self._living: set[Share] = set()
        self._closed = False

    def share(self, memory: Memory, pages: FileRange, *, writable: bool, trusted: bool, expires: float) -> Handle:
        """See :meth:`memplat.memory.Memory.share`. *pages* carry the reference already."""
        self._check_backend(memory, writable, trusted)
        waiting = service()
        with waiting.lock:  # close() takes it before it closes the file
            if self._closed:
                raise closed()
            self._open_descriptor(writable)
            share = Share(self, pages, writable)
            self._living.add(share)
            address = waiting.offer(share, time.monotonic() + expires)
        return Handle(address, share.token, pages, writable, share)

    def _check_backend(self, memory: Memory, writable: bool, trusted: bool) -> None:
        info = self._state.backend.info
        if Capability.SHARE not in info.capabilities:
            raise InvalidArgumentError(f"backend {info.name!r} cannot share pages with another process")
        if writable:
            fd = memory.fileno()  # from now on, somebody else may write to any page, and punch it
            if not trusted and not _is_sealed(fd):
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

    def ended(self, share: Share) -> None:
        """Drop the reference of a share that has ended."""
        self._living.discard(share)
        memory = self._state.memory() if self._state.memory is not None else None
        if memory is None:
            return
        try:
            memory.decref(share.pages)
        except MemplatError:
            if self._state.refuse is None:
                log.exception("memplat: the reference of a share was not there any more")

    def close(self) -> None:
        """End all shares, before the memory closes. What peers have attached stays valid, as views do."""
        waiting = running()
        if waiting is None or (not self._living and not self._descriptors):
            return
        with waiting.lock:
            self._closed = True
            living = list(self._living)
            for share in living:
                waiting.forget(share)
            self._close_descriptors()
        for share in living:
            share.end()

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self._close_descriptors()


def _is_sealed(fd: int) -> bool:
    try:
        return bool(files.get_seals(fd) & files.F_SEAL_SHRINK)
    except OSError:  # EINVAL: not a file that can be sealed
        return False


__all__ = ["Shares"]
