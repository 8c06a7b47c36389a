"""A region of this process: pages mapped where the user wants them, over address space that was reserved for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from memplat.errors import AddressSpaceError, HostError, InvalidArgumentError
from memplat.linux import memory as host
from memplat.linux import system
from memplat.platforms.space import PROTECTION, Mapped, Space
from memplat.ranges import GIB, HUGE_PAGE_SIZE, Address, format_size
from memplat.wording import shown

_DEFAULT_LENGTH: Final = 64 * GIB
_MOST: Final = 1 << 47  # the user's half of 48-bit addresses; beyond it mmap(2) goes only where it is told to


def check_region(length: int) -> int:
    """The length of a region, checked. What goes on to the kernel has to be the very number that addresses are compared
    with later: an int, and no more than 64 bits hold.
    """
    if type(length) is not int or not 0 < length <= _MOST or length % system.PAGE_SIZE:
        raise InvalidArgumentError(
            f"length {shown(length)} is not possible; allowed are positive multiples of {system.PAGE_SIZE} up "
            f"to {_MOST} (128 TiB)"
        )
    return length


def reserve_region(length: int) -> Address:
    """The address of a region of this process.

    :raises InvalidArgumentError: if no region has that length
    :raises HostError: ENOMEM if there is no room for it
    """
    try:
        return Address(host.reserve_address_space(check_region(length), HUGE_PAGE_SIZE))
    except OSError as error:
        raise HostError(
            error.errno, f"cannot reserve {format_size(length)} of address space ({error.strerror})"
        ) from error


def _map_here(start: Address, end: Address, pieces: Sequence[tuple[Mapped, int]]) -> None:
    """Have *pieces*, with their descriptors, within ``[start, end)``. mmap(2) with MAP_FIXED replaces in one go."""
    for piece, fd in pieces:
        host.map_over(piece.start, piece.length, fd, piece.offset, PROTECTION[piece.access])
    if not pieces:
        host.reserve_over(start, end - start)


def _protect_here(pieces: Sequence[Mapped]) -> None:
    for piece in pieces:
        host.protect(piece.start, piece.length, PROTECTION[piece.access])


class HostSpace(Space):
    """*length* bytes of this process's address space, from :attr:`first` on. Only this region is ever mapped over.

    It is a second mapping of the file, in the same process: the engine's fast look at its own page tables does not see
    what is touched here, and falls back on a slower one.

    :raises HostError: if there is no room for the region
    """

    def __init__(self, length: int = _DEFAULT_LENGTH, *, write_execute: bool = False) -> None:
        super().__init__(write_execute=write_execute)
        self.first = reserve_region(length)
        self.length = length
        self.last = Address(self.first + length - 1)

    def _apply(self, start: Address, end: Address, removed: Sequence[Mapped], new: Sequence[Mapped]) -> None:
        before = [piece.clip(start, end) for piece in removed]
        try:
            if new and [piece[:4] for piece in before] == [piece[:4] for piece in new]:
                self._protect(before, new)
            elif new or removed:
                self._replace(start, end, before, [(piece, piece.file.fileno()) for piece in new])
        except OSError as error:
            raise AddressSpaceError(f"the host refuses to map [{start:#x}, {end:#x}): {error}") from error

    @staticmethod
    def _protect(before: Sequence[Mapped], new: Sequence[Mapped]) -> None:
        try:
            _protect_here(new)
        except OSError:
            _protect_here(before)
            raise

    def _replace(
        self, start: Address, end: Address, before: Sequence[Mapped], new: Sequence[tuple[Mapped, int]]
    ) -> None:
        try:
            _map_here(start, end, new)
        except OSError:
            host.reserve_over(start, end - start)
            back = self._still_open(start, end, before)
            _map_here(start, end, back)
            raise

    def _load(self, piece: Mapped) -> bytes:
        return host.copy_from(piece.start, piece.length)

    def _store(self, piece: Mapped, data: bytes) -> None:
        host.copy_to(piece.start, data)

    def _take_down(self) -> None:
        host.unmap(self.first, self.length)


__all__ = ["HostSpace", "check_region", "reserve_region"]
