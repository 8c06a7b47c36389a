"""Another process as an address space: a child whose mappings are driven by this one, over a socket."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing import connection as connections
from multiprocessing import reduction
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from memplat.errors import AddressSpaceError, GuestDiedError
from memplat.platforms import child
from memplat.platforms.host import check_region
from memplat.platforms.space import PROTECTION, Mapped, Space
from memplat.ranges import GIB, Address

_DEFAULT_LENGTH: Final = 64 * GIB
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 10.0

P = ParamSpec("P")
T = TypeVar("T")


class ProcessSpace(Space):
    """*length* bytes of the address space of a child, from :attr:`first` on. The child is spawned, not forked: programs
    that use it need ``if __name__ == "__main__":``.

    When the child dies, every call but :meth:`release` raises :class:`GuestDiedError`; its references are dropped.

    :raises HostError: if the child has no room for the region
    """

    def __init__(self, length: int = _DEFAULT_LENGTH, *, write_execute: bool = False) -> None:
        super().__init__(write_execute=write_execute)
        context = multiprocessing.get_context("spawn")
        self._connection: connections.Connection[Any, Any]
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=child.serve, args=(theirs, check_region(length)), daemon=True)
        self._process.start()
        theirs.close()
        self._died = False
        self.length = length
        try:
            self.first = Address(self._answer(_START_SECONDS))
        except BaseException:
            self._take_down()
            raise
        self.last = Address(self.first + length - 1)

    @property
    def pid(self) -> int:
        """The child."""
        return self._process.pid or 0

    def call(self, function: Callable[Concatenate[child.Window, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *function* in the child, and return what it returns; both are pickled. Its first argument is a
        :class:`~memplat.platforms.child.Window`, which gives views of what is mapped there.

        :raises GuestDiedError: if the child dies meanwhile
        """
        with self._lock:
            self._check_open()
            result: T = self._ask("call", function, args, kwargs)
            return result

    def _apply(self, start: Address, end: Address, removed: Sequence[Mapped], new: Sequence[Mapped]) -> None:
        before = [piece.clip(start, end) for piece in removed]
        if new and [piece[:4] for piece in before] == [piece[:4] for piece in new]:
            for piece in new:
                self._ask("protect", piece.start, piece.length, PROTECTION[piece.access])
            return
        try:
            if not new and removed:
                self._ask("unmap", start, end - start)
            for piece in new:
                self._map(piece)
        except AddressSpaceError:
            if not self._died:
                self._ask("unmap", start, end - start)
                for piece, _ in self._still_open(start, end, before):
                    self._map(piece)
            raise

    def _map(self, piece: Mapped) -> None:
        fd = piece.file.fileno()
        self._ask("map_over", piece.start, piece.length, piece.offset, PROTECTION[piece.access], fd=fd)

    def _load(self, piece: Mapped) -> bytes:
        loaded: bytes = self._ask("load", piece.start, piece.length)
        return loaded

    def _store(self, piece: Mapped, data: bytes) -> None:
        self._ask("store", piece.start, data)

    def _take_down(self) -> None:
        self._connection.close()
        self._process.join(_END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()

    def release(self) -> None:
        """See :meth:`Space.release`."""
        with self._lock, contextlib.suppress(GuestDiedError):
            super().release()

    def _check_open(self) -> None:
        super()._check_open()
        if self._died:
            raise self._death()

    def _ask(self, request: str, *arguments: Any, fd: int | None = None) -> Any:
        if self._died:
            raise self._death()
        try:
            self._connection.send((request, arguments))
            if fd is not None:
                reduction.send_handle(self._connection, fd, self.pid)
        except OSError:
            raise self._notice_death() from None
        return self._answer(None)

    def _answer(self, timeout: float | None) -> Any:
        try:
            if not self._connection.poll(timeout):
                raise AddressSpaceError(f"the child does not answer for {timeout} s")
            good, value = self._connection.recv()
        except (EOFError, OSError):
            raise self._notice_death() from None
        if good:
            return value
        raise value

    def _notice_death(self) -> GuestDiedError:
        """The socket has ended: the child's mappings went with it, and so do the references."""
        self._process.join(_END_SECONDS)
        self._died = True
        gone, self._mapped = self._mapped, []
        self._drop(gone)
        return self._death()

    def _death(self) -> GuestDiedError:
        status = self._process.exitcode
        return GuestDiedError(f"the process of the address space has ended (status {status})", status=status)


__all__ = ["ProcessSpace"]
