"""What every specimen is made of: a small honest backend on a plain memfd, of which a specimen breaks one thing.

A specimen is a class. Made with ``broken=False`` it is its own repaired twin: the same hook, written right.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from array import array
from collections.abc import Sequence
from typing import Any, ClassVar

from memplat.hookspecs import hookimpl
from memplat.ranges import FileRange
from memplat.types import Availability, BackendInfo, BackingFile, Capability

PAGE = mmap.PAGESIZE
KIB, MIB = 1 << 10, 1 << 20

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_SYS_CACHESTAT = 451
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK = 1033, 1, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.poll.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
libc.mmap.restype = ctypes.c_void_p
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def checked(result: int | None, what: str) -> int:
    """The result of a C function, or the OSError that it stands for."""
    if result is None or result in (-1, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def fallocate(fd: int, start: int, length: int) -> None:
    while libc.fallocate(fd, 0, start, length):
        if ctypes.get_errno() != 4:
            checked(-1, "fallocate")


def punch(fd: int, start: int, length: int) -> None:
    checked(libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, start, length), "punch")


def map_over(address: int, length: int, flags: int, fd: int = -1, offset: int = 0) -> None:
    """Put another mapping in the place of what is mapped."""
    checked(libc.mmap(address, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, offset), "mmap")


def madvise(address: int, length: int, advice: int) -> None:
    checked(libc.madvise(address, length, advice), "madvise")


def protect(address: int, length: int, protection: int) -> None:
    checked(libc.mprotect(address, length, protection), "mprotect")


def held_of(fd: int, start: int, end: int, *, swapped: bool = True) -> list[tuple[int, int]]:
    """What the host holds of a shmem file, pages that were never touched included: cachestat(2), by halving."""
    where, result = array("Q", (start, end - start)), array("Q", bytes(40))
    checked(libc.syscall(_SYS_CACHESTAT, fd, where.buffer_info()[0], result.buffer_info()[0], 0), "cachestat")
    held = (result[0] + swapped * result[3]) * PAGE
    if not held or held == end - start:
        return [(start, end)] if held else []
    middle = (start + end) // 2 // PAGE * PAGE
    return [*held_of(fd, start, middle, swapped=swapped), *held_of(fd, middle, end, swapped=swapped)]


def data_of(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """The data of the file, through a descriptor with an offset of its own."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return seek(own, start, end)
    finally:
        os.close(own)


def seek(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while start < end:
        try:
            low = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:
            break
        if low >= end:
            break
        start = os.lseek(fd, low, os.SEEK_HOLE)
        if found and found[-1][1] == low:  # touched since it was found to be a hole
            low = found.pop()[0]
        if low < start:  # else punched since it was found to be data
            found.append((low, min(start, end)))
    return found


def flat(extents: Sequence[tuple[int, int]]) -> array[int]:
    """Extents in the form that a probe returns; those that touch are joined."""
    joined: list[list[int]] = []
    for start, end in sorted(extents):
        if joined and joined[-1][1] >= start:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return array("q", [edge for extent in joined for edge in extent])


class Specimen:
    """An honest backend. Subclasses break it, and say which checks have to find that out."""

    fails: ClassVar[tuple[str, ...]] = ()
    """The checks that have to fail for what is broken, and that nothing else explains."""
    requires: ClassVar[str] = ""
    """What the host has to have: ``swap``, ``tmpfs`` (a small one), ``noexec`` (a tmpfs), ``hugetlb``."""
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.RESERVE, Capability.SHARE, Capability.SWAP_EXACT, Capability.SUB_PAGE_DECOMMIT, Capability.EXECUTE}
    )
    page_size: ClassVar[int] = PAGE

    def __init__(self, *, broken: bool = True, directory: str = "") -> None:
        self.broken = broken
        self.directory = directory or tempfile.gettempdir()
        self.created: list[int] = []

    @classmethod
    def label(cls) -> str:
        """Its name: what is broken, in words."""
        words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in cls.__name__)
        return words.strip()

    def create(self) -> int:
        """A new, empty file."""
        fd = os.memfd_create("specimen", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(fd, 0o600)
        return fd

    def info(self) -> Any:
        return BackendInfo(name="specimen", version="1.0", capabilities=self.capabilities)

    @hookimpl
    def memplat_backend_info(self) -> Any:
        return self.info()

    @hookimpl
    def memplat_create_file(self) -> BackingFile:
        return BackingFile(fd=self.create(), page_size=self.page_size, backend="specimen")


class InDirectory(Specimen):
    """The same with a file in a directory."""

    capabilities = frozenset({Capability.RESERVE, Capability.SHARE, Capability.SWAP_EXACT})

    def create(self) -> int:
        return os.open(self.directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)


def available() -> Availability:
    return Availability(True)


def whole(ranges: Sequence[FileRange]) -> list[tuple[int, int]]:
    return [(one.start, one.end) for one in ranges]
