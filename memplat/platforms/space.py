"""What all address spaces have in common: the table of what is mapped where, and the references that go with it.

A space owns one reference to each page that it maps; splitting a mapping splits the reference, replacing or unmapping a
part drops that part's. A subclass says how pages get into the guest: :meth:`Space._apply`.
"""

from __future__ import annotations

import abc
import bisect
import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from memplat.errors import AccessError, AddressSpaceError, ClosedError, HostError, InvalidArgumentError, NotMappedError
from memplat.linux import memory as host
from memplat.linux import system
from memplat.memory import MappableFile
from memplat.ranges import Address, FileRange, Offset
from memplat.types import Access
from memplat.wording import shown

#: What each access means to mmap(2).
PROTECTION: Final = {
    Access.READ: host.PROT_READ,
    Access.READ_WRITE: host.PROT_READ | host.PROT_WRITE,
    Access.READ_EXECUTE: host.PROT_READ | host.PROT_EXEC,
    Access.READ_WRITE_EXECUTE: host.PROT_READ | host.PROT_WRITE | host.PROT_EXEC,
}


class Mapped(NamedTuple):
    """One piece of a guest's address space, and what is mapped there."""

    start: Address
    end: Address
    file: MappableFile
    offset: Offset
    """Of *start*, in the file."""
    access: Access
    hold: memoryview | None
    """Keeps the host address valid, in spaces that use it."""
    host_address: int
    """Where the pages stand in this process: noted when they are mapped, because a closed memory does not tell it."""

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.end - self.start

    @property
    def pages(self) -> FileRange:
        """The pages that are mapped."""
        return FileRange(self.offset, self.offset + self.length)

    def clip(self, start: int, end: int) -> Mapped:
        """The part of the piece within ``[start, end)``, which must overlap it."""
        low, high = Address(max(start, self.start)), Address(min(end, self.end))
        by = low - self.start
        return self._replace(start=low, end=high, offset=Offset(self.offset + by), host_address=self.host_address + by)


class Space(abc.ABC):
    """An :class:`~memplat.memory.AddressSpace`. Thread-safe; a context manager that releases everything.

    :param write_execute: allow mappings that are writable and executable at once; otherwise they are refused
    """

    #: The least and the greatest address that can be mapped.
    first: Address = Address(0)
    last: Address = Address((1 << 64) - 1)

    def __init__(self, *, write_execute: bool = False) -> None:
        self._lock = threading.RLock()
        self._mapped: list[Mapped] = []  # sorted, disjoint
        self._write_execute = write_execute
        self._released = False

    # -- mapping ------------------------------------------------------------------------------------------------------

    def map_file(self, addr: Address, file: MappableFile, pages: FileRange, access: Access, precommit: bool) -> None:
        """See :meth:`memplat.memory.AddressSpace.map_file`. Replaces what was mapped there.

        :raises NotMappedError: outside of what may be mapped
        :raises AccessError: writable and executable, and that was not allowed
        :raises InvalidArgumentError: an address that is not aligned, a wrong type
        :raises InvalidRangeError: pages that the file does not have: to touch them would be a signal
        :raises HostError: *precommit*, and the host cannot supply the pages
        :raises TooManyMappingsError, GuestDiedError, AddressSpaceError: as the space is
        """
        access = self._checked_access(access)
        _check_source(file, pages)
        here = file.address(pages)  # which refuses what the file does not have
        start, end = self._checked(addr, pages.length)
        with self._lock:
            self._check_open()
            self._check_cut(start, end)
            if precommit:
                self._precommit(here, pages)
            new = Mapped(start, end, file, Offset(pages.start), access, self._hold(file, pages), here)
            self._drop(self._exchange(start, end, [new]))

    @staticmethod
    def _precommit(address: int, pages: FileRange) -> None:
        try:
            host.populate_write(address, pages.length)
        except OSError as error:
            raise HostError(error.errno, f"cannot precommit {pages}: {error.strerror}") from error

    def unmap(self, addr: Address, length: int) -> None:
        """Unmap ``[addr, addr + length)``, whatever of it is mapped, and drop the references.

        :raises InvalidArgumentError: not aligned, also to the pages of a mapping that would be cut
        """
        start, end = self._checked(addr, length)
        with self._lock:
            self._check_open()
            self._check_cut(start, end)
            self._drop(self._exchange(start, end, []))

    def protect(self, addr: Address, length: int, access: Access | str) -> None:
        """Change the access of ``[addr, addr + length)``, all of which must be mapped.

        :raises NotMappedError: if part of it is not mapped
        :raises AccessError: as :meth:`map_file`
        """
        access = self._checked_access(access)
        start, end = self._checked(addr, length)
        with self._lock:
            self._check_open()
            self._check_cut(start, end)
            found = [piece.clip(start, end) for piece in self._overlapping(start, end)]
            self._require(start, end, found)
            self._exchange(start, end, [piece._replace(access=access) for piece in found])

    def release(self) -> None:
        """Unmap everything, drop all references, and take the space down; idempotent."""
        with self._lock:
            if self._released:
                return
            try:
                if self._mapped:
                    self._drop(self._exchange(self._mapped[0].start, self._mapped[-1].end, []))
            finally:
                self._released = True
                self._take_down()

    def mappings(self) -> tuple[Mapped, ...]:
        """What is mapped, in order of addresses."""
        with self._lock:
            return tuple(self._mapped)

    # -- looking at the guest -----------------------------------------------------------------------------------------

    def read(self, addr: Address, length: int) -> bytes:
        """What the guest sees at ``[addr, addr + length)``.

        :raises NotMappedError: if part of it is not mapped
        :raises InvalidArgumentError: a wrong type, a negative length
        """
        with self._lock:
            return b"".join(self._load(piece) for piece in self._pieces(addr, length))

    def write(self, addr: Address, data: bytes | bytearray | memoryview) -> None:
        """Store as the guest would.

        :raises NotMappedError: if part of it is not mapped
        :raises AccessError: if part of it is read-only; nothing was stored
        :raises InvalidArgumentError: a wrong type
        """
        try:
            contiguous = memoryview(data).cast("B")
        except TypeError:
            raise InvalidArgumentError(f"data {type(data).__name__} is no contiguous buffer of bytes") from None
        with self._lock, contiguous as source:
            pieces = self._pieces(addr, len(source))
            for piece in pieces:
                if not piece.access.writable:
                    raise AccessError(f"{piece.start:#x} is mapped {piece.access}: it cannot be written to")
            for piece in pieces:
                self._store(piece, bytes(source[piece.start - addr : piece.end - addr]))

    def _pieces(self, addr: Address, length: int) -> list[Mapped]:
        self._check_open()
        _check_numbers(addr, length)
        if length < 0:
            raise InvalidArgumentError(f"length {length} is negative; allowed are 0 and more")
        found = [piece.clip(addr, addr + length) for piece in self._overlapping(addr, addr + length)]
        self._require(addr, addr + length, found)
        return found

    # -- what a subclass brings ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _apply(self, start: Address, end: Address, removed: Sequence[Mapped], new: Sequence[Mapped]) -> None:
        """Have the guest see *new* within ``[start, end)`` and nothing else there. *removed* are the pieces that
        overlap it. If it raises, the guest sees what it saw before.
        """

    @abc.abstractmethod
    def _load(self, piece: Mapped) -> bytes:
        """The bytes of a piece, which need not be aligned."""

    @abc.abstractmethod
    def _store(self, piece: Mapped, data: bytes) -> None:
        """Store *data* in a piece, which need not be aligned."""

    def _take_down(self) -> None:
        """Give back what the space itself has; nothing is mapped any more."""
        self._mapped.clear()

    def _hold(self, file: MappableFile, pages: FileRange) -> memoryview | None:  # noqa: ARG002 -- for subclasses
        return None

    # -- the table ----------------------------------------------------------------------------------------------------

    def _exchange(self, start: Address, end: Address, new: Sequence[Mapped]) -> list[Mapped]:
        """Put *new* in the place of what is mapped in ``[start, end)``, and return that."""
        removed = self._overlapping(start, end)
        self._apply(start, end, removed, new)
        self._note(start, end, new)
        return [piece.clip(start, end) for piece in removed]

    def _note(self, start: Address, end: Address, new: Sequence[Mapped]) -> None:
        """In the table, put *new* in the place of what is in ``[start, end)``."""
        removed = self._overlapping(start, end)
        first = bisect.bisect_right(self._mapped, int(start), key=lambda piece: int(piece.end))
        rest = _outside(removed, start, end)
        self._mapped[first : first + len(removed)] = sorted([*rest, *new], key=lambda piece: piece.start)

    def _still_open(self, start: Address, end: Address, pieces: Sequence[Mapped]) -> list[tuple[Mapped, int]]:
        """Those of the *pieces* within ``[start, end)`` that can be mapped again, with their descriptors. Those of a
        closed memory cannot, and leave the table.
        """
        found = []
        for piece in pieces:
            with contextlib.suppress(ClosedError):
                found.append((piece, piece.file.fileno()))
        if len(found) < len(pieces):
            self._note(start, end, [piece for piece, _ in found])
        return found

    def _overlapping(self, start: int, end: int) -> list[Mapped]:
        first = bisect.bisect_right(self._mapped, start, key=lambda piece: int(piece.end))
        last = bisect.bisect_left(self._mapped, end, key=lambda piece: int(piece.start))
        return self._mapped[first:last]

    @staticmethod
    def _drop(pieces: Sequence[Mapped]) -> None:
        for piece in pieces:
            with contextlib.suppress(ClosedError):  # a closed memory counts no references
                piece.file.decref(piece.pages)

    @staticmethod
    def _require(start: int, end: int, found: Sequence[Mapped]) -> None:
        at = start
        for piece in found:
            if piece.start != at:
                break
            at = piece.end
        if at < end:
            raise NotMappedError(f"nothing is mapped at {at:#x} of [{start:#x}, {end:#x})")

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._released:
            raise AddressSpaceError("the address space was released; make another one")

    def _checked_access(self, access: Access | str) -> Access:
        try:
            access = Access(access)
        except ValueError:
            raise InvalidArgumentError(
                f"access {shown(access)} does not exist; allowed are {', '.join(Access)}"
            ) from None
        if access is Access.READ_WRITE_EXECUTE and not self._write_execute:
            raise AccessError("a mapping that is writable and executable has to be asked for: write_execute=True")
        return access

    def _checked(self, addr: int, length: int) -> tuple[Address, Address]:
        page = system.PAGE_SIZE
        _check_numbers(addr, length)
        if addr % page or length % page or length <= 0:
            raise InvalidArgumentError(
                f"[{addr:#x}, {addr:#x} + {length:#x}) is no range of addresses: both are multiples of {page}, and the "
                "length is positive"
            )
        if not self.first <= addr <= self.last - length + 1:
            raise NotMappedError(
                f"[{addr:#x}, {addr + length:#x}) is outside of what may be mapped: {self.first:#x} to {self.last:#x}"
            )
        return Address(addr), Address(addr + length)

    def _check_cut(self, start: int, end: int) -> None:
        """A mapping can be cut only between pages of its file."""
        for piece in self._overlapping(start, end):
            for edge in (start, end):
                if piece.start < edge < piece.end and (edge - piece.start) % piece.file.page_size:
                    raise InvalidArgumentError(
                        f"{edge:#x} is within a page of {piece.file.page_size} bytes that is mapped at {piece.start:#x}"
                    )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _check_numbers(addr: object, length: object) -> None:
    for value, what in ((addr, "address"), (length, "length")):
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidArgumentError(f"{what} {shown(value)} is no integer; allowed are whole bytes")


def _check_source(file: object, pages: object) -> None:
    if not isinstance(pages, FileRange) or not callable(getattr(file, "address", None)):
        raise InvalidArgumentError(f"{shown(pages)} of {file!r} cannot be mapped; allowed is a FileRange of a memory")


def _outside(pieces: Sequence[Mapped], start: Address, end: Address) -> Iterator[Mapped]:
    for piece in pieces:
        if piece.start < start:
            yield piece.clip(piece.start, start)
        if piece.end > end:
            yield piece.clip(end, piece.end)


class PiecewiseSpace(Space):
    """A space whose guest knows pieces only as a whole, at host addresses of this process: a piece that is cut is taken
    out, and what stays of it put in again.
    """

    def _hold(self, file: MappableFile, pages: FileRange) -> memoryview | None:
        return file.view(pages, pin=False)

    def _apply(self, start: Address, end: Address, removed: Sequence[Mapped], new: Sequence[Mapped]) -> None:
        taken: list[Mapped] = []
        put: list[Mapped] = []
        try:
            for piece in removed:
                self._take(piece)
                taken.append(piece)
            for piece in [*_outside(removed, start, end), *new]:
                self._put(piece)
                put.append(piece)
        except BaseException:
            for piece in put:
                self._take(piece)
            for piece in taken:
                self._put(piece)
            raise

    def _load(self, piece: Mapped) -> bytes:
        return host.copy_from(piece.host_address, piece.length)

    def _store(self, piece: Mapped, data: bytes) -> None:
        host.copy_to(piece.host_address, data)

    @abc.abstractmethod
    def _put(self, piece: Mapped) -> None:
        """Let the guest see a piece where nothing is."""

    @abc.abstractmethod
    def _take(self, piece: Mapped) -> None:
        """Undo :meth:`_put` of the same piece."""


__all__ = ["PROTECTION", "Mapped", "PiecewiseSpace", "Space"]
