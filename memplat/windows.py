"""A peer's mappings of a file, through which views look."""

from __future__ import annotations

import contextlib

from memplat.linux import memory as host


class Window:
    """A mapping of a part of the file.

    :ivar users: the slots whose views look through it
    """

    __slots__ = ("_mapped", "base", "end", "start", "users")

    def __init__(self, fd: int, start: int, end: int, *, writable: bool, core_dump: bool) -> None:
        """:raises OSError: if the host refuses"""
        protection = host.PROT_READ | host.PROT_WRITE if writable else host.PROT_READ
        flags = host.MAP_SHARED | host.MAP_NORESERVE
        self.start, self.end = start, end
        self.base = host.map_anywhere(end - start, fd, start, protection, flags)
        self._mapped = [True]
        self.users: set[int] = set()
        # A huge page would be taken with all neighbours of what is attached. Of hugetlb it has to be: EINVAL.
        self._advise(host.MADV_NOHUGEPAGE)
        if not core_dump:
            self._advise(host.MADV_DONTDUMP)

    def _advise(self, advice: int) -> None:
        with contextlib.suppress(OSError):
            host.madvise(self.base, self.end - self.start, advice)

    def close(self) -> None:
        """Unmap, once."""
        with contextlib.suppress(IndexError, OSError):
            self._mapped.pop()  # atomic: whoever gets it unmaps
            host.unmap(self.base, self.end - self.start)


__all__ = ["Window"]
