"""A region of this process: pages mapped where the user wants them, over address space that was reserved for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from memplat.errors import AddressSpaceError, InvalidArgumentError
from memplat.linux import memory as host
from memplat.linux import system
from memplat.platforms.space import PROTECTION, Mapped, Space
from memplat.ranges import GIB, HUGE_PAGE_SIZE, Address

_DEFAULT_LENGTH: Final = 64 * GIB


def check_region(length: int) -> int:
    """The length of a region, checked."""
    if length <= 0 or length % system.PAGE_SIZE:
        raise InvalidArgumentError(f"length {length!r} is no positive multiple of {system.PAGE_SIZE}")
    return length


def apply_here(
    start: Address, end: Address, removed: Sequence[Mapped], new: Sequence[tuple[Mapped, int]], *, protect_only: bool
) -> None:
    """Change this process's own region; *new* come with descriptors. mmap(2) with MAP_FIXED replaces in one go."""
    try:
        if protect_only:
            for piece, _ in new:
                host.protect(piece.start, piece.length, PROTECTION[piece.access])
            return
        for piece, fd in new:
            host.map_over(piece.start, piece.length, fd, piece.offset, PROTECTION[piece.access])
        if not new and removed:
            host.reserve_over(start, end - start)
    except OSError as error:
        raise AddressSpaceError(f"the host refuses to map [{start:#x}, {end:#x}): {error}") from error


class HostSpace(Space):
    """*length* bytes of this process's address space, from :attr:`first` on. Only this region is ever mapped over.

    It is a second mapping of the file, in the same process: the engine's fast look at its own page tables does not see
    what is touched here, and falls back on a slower one.
    """

    def __init__(self, length: int = _DEFAULT_LENGTH, *, write_execute: bool = False) -> None:
        super().__init__(write_execute=write_execute)
        self.length = check_region(length)
        self.first = Address(host.reserve_address_space(length, HUGE_PAGE_SIZE))
        self.last = Address(self.first + length - 1)

    def _apply(self, start: Address, end: Address, removed: Sequence[Mapped], new: Sequence[Mapped]) -> None:
        protect_only = [piece.clip(start, end)[:4] for piece in removed] == [piece[:4] for piece in new]
        with_files = [(piece, piece.file.fileno()) for piece in new]
        try:
            apply_here(start, end, removed, with_files, protect_only=protect_only and bool(new))
        except AddressSpaceError:
            before = [(piece, piece.file.fileno()) for piece in (old.clip(start, end) for old in removed)]
            host.reserve_over(start, end - start)
            apply_here(start, end, [], before, protect_only=False)
            raise

    def _load(self, piece: Mapped) -> bytes:
        return host.copy_from(piece.start, piece.length)

    def _store(self, piece: Mapped, data: bytes) -> None:
        host.copy_to(piece.start, data)

    def _take_down(self) -> None:
        host.unmap(self.first, self.length)


__all__ = ["HostSpace", "apply_here", "check_region"]
