"""A peer's mappings of a file, through which views look."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from memplat import _core
from memplat.linux import memory as host


class PythonWindow:
    """The fields of a mapping.

    :ivar start: the offset in the file that it begins with
    :ivar end: and that it ends before
    :ivar base: its address
    :ivar users: the numbers of the shares whose views look through it
    """

    __slots__ = ("base", "end", "start", "users")

    start: int
    end: int
    base: int
    users: set[int]


if TYPE_CHECKING or _core.MODULE is None:  # noqa: SIM108 -- mypy has to see a class
    HotWindow = PythonWindow
else:
    HotWindow = _core.MODULE.HotWindow


class Window(HotWindow):
    """A mapping of a part of the file."""

    __slots__ = ("_mapped",)

    def __init__(self, fd: int, start: int, end: int, *, writable: bool, core_dump: bool) -> None:
        """:raises OSError: if the host refuses"""
        protection = host.PROT_READ | host.PROT_WRITE if writable else host.PROT_READ
        flags = host.MAP_SHARED | host.MAP_NORESERVE
        self.start, self.end = start, end
        self.base = host.map_anywhere(end - start, fd, start, protection, flags)
        self._mapped = [True]
        self.users = set()
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
