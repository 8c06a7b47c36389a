"""What the host says about a backing file, asked without memplat and without the backend.

Every look opens the file anew through /proc/self/fd, because descriptors that were dup'ed share an offset, and a
backend may exchange its file. The extents that the host holds are found with

- lseek(2) SEEK_DATA on shmem (memfds, tmpfs), which is exact there for all pages that were ever touched;
- FIEMAP on files with a disk below them;
- nothing on hugetlbfs and on what is unknown: there is only the sum of stat(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

BASE_PAGE: Final = mmap.PAGESIZE
_BLOCK: Final = 512
_READ_BYTES: Final = 1 << 20

_FS_IOC_FIEMAP: Final = 0xC020660B
_FIEMAP_HEADER: Final = struct.Struct("=QQLLLL")
_FIEMAP_EXTENT: Final = struct.Struct("=QQQQQLLLL")
_FIEMAP_COUNT: Final = 512
_FIEMAP_LAST: Final = 0x1
_FIEMAP_DELALLOC: Final = 0x4
_FIEMAP_UNWRITTEN: Final = 0x800

SHMEM: Final = "shmem"
HUGETLB: Final = "hugetlb"
#: Where st_blocks is the data and nothing else.
_NO_METADATA: Final = frozenset({SHMEM, HUGETLB, "btrfs"})


class MapLine(NamedTuple):
    """A line of /proc/self/maps."""

    start: int
    end: int
    permissions: str
    offset: int


class Observer:
    """A second look at one file.

    :ivar fd: the descriptor that the memory uses; never read, written or moved
    :ivar kind: ``shmem``, ``hugetlb``, or the name of the file system, ``""`` if that cannot be found out
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.kind = _kind(fd)

    @contextlib.contextmanager
    def opened(self, flags: int = os.O_RDWR) -> Iterator[int]:
        """A descriptor of one's own; a duplicate where the file cannot be opened again."""
        try:
            own = os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC)
        except OSError:
            own = os.dup(self.fd)
        try:
            yield own
        finally:
            os.close(own)

    # -- content ------------------------------------------------------------------------------------------------------

    def read(self, start: int, length: int) -> bytes:
        """The content, by pread(2), which commits nothing."""
        parts = []
        with self.opened(os.O_RDONLY) as own:
            while length > 0 and (part := os.pread(own, length, start)):
                parts.append(part)
                start += len(part)
                length -= len(part)
        return b"".join(parts)

    def write(self, start: int, data: bytes) -> None:
        """Store *data* by pwrite(2); through a mapping where the file knows no such call (hugetlbfs)."""
        with self.opened() as own:
            try:
                os.pwrite(own, data, start)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                page = os.fstatvfs(own).f_bsize
                first = start // page * page
                with mmap.mmap(own, -(-(start + len(data)) // page) * page - first, offset=first) as window:
                    window[start - first : start - first + len(data)] = data

    def is_zero(self, start: int, length: int) -> bool:
        """Whether the part reads as zeros, to its end."""
        step = 1 << 20
        parts = range(start, start + length, step)
        return all(
            self.read(low, min(step, start + length - low)) == bytes(min(step, start + length - low)) for low in parts
        )

    # -- figures ------------------------------------------------------------------------------------------------------

    def stat(self) -> os.stat_result:
        """fstat(2)."""
        with self.opened(os.O_RDONLY) as own:
            return os.fstat(own)

    def total(self) -> int:
        """The bytes that the host spends on the file, metadata included: stat(2), st_blocks."""
        return self.stat().st_blocks * _BLOCK

    def data_bytes(self) -> int:
        """The bytes of storage that hold data, exact wherever the host can say so."""
        if self.kind in _NO_METADATA or (found := self.extents()) is None:
            return self.total()
        return sum(end - start for start, end in found)

    @property
    def is_exact(self) -> bool:
        """Whether :meth:`data_bytes` is exact, and not only st_blocks of a file system with metadata of its own."""
        return self.kind in _NO_METADATA or self.extents() is not None

    def extents(self) -> list[tuple[int, int]] | None:
        """The parts that the host holds storage for, sorted; ``None`` where it does not say which."""
        if self.kind == HUGETLB:
            return None
        with self.opened(os.O_RDONLY) as own:
            if self.kind == SHMEM:
                return _seek(own)
            return _fiemap(own)

    def cost(self, start: int, end: int) -> int | None:
        """The bytes of storage of ``[start, end)``; ``None`` where the host does not say."""
        found = self.extents()
        if found is None:
            return None
        return sum(max(0, min(end, high) - max(start, low)) for low, high in found)

    def unwritten(self, start: int, end: int) -> int | None:
        """The bytes of ``[start, end)`` that have not reached the disk, by FIEMAP's flags; ``None`` if it has none."""
        with self.opened(os.O_RDONLY) as own:
            found = _fiemap_all(own)
        if found is None:
            return None
        return sum(
            max(0, min(end, low + length) - max(start, low))
            for low, length, flags in found
            if flags & (_FIEMAP_DELALLOC | _FIEMAP_UNWRITTEN)
        )

    def capacity(self) -> int | None:
        """The bytes that the host can still supply, where that is bounded by a file system or a pool; else ``None``."""
        with self.opened(os.O_RDONLY) as own:
            figures = os.fstatvfs(own)
        if self.kind == HUGETLB:
            return free_huge_pages(figures.f_bsize) * figures.f_bsize
        free = figures.f_bavail if os.geteuid() else figures.f_bfree  # root may use what is set aside for root
        return free * figures.f_frsize if figures.f_blocks else None

    # -- in this process ----------------------------------------------------------------------------------------------

    @property
    def inode(self) -> int:
        """The inode number."""
        return self.stat().st_ino

    @property
    def link(self) -> str:
        """What the descriptor leads to: ``/memfd:name (deleted)``, ``/mnt/#123 (deleted)``, a path."""
        return os.readlink(f"/proc/self/fd/{self.fd}")

    def mappings(self) -> list[MapLine]:
        """Where this process has the file mapped."""
        return mappings_of(self.inode, self.link)


def mappings_of(inode: int, link: str) -> list[MapLine]:
    """The mappings of the file with that inode and that name, sorted by address. proc_pid_maps(5)."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, permissions, offset, _, number, *rest = line.split(None, 5)
        if int(number) == inode and rest and rest[0].strip() == link:
            start, _, end = span.partition("-")
            found.append(MapLine(int(start, 16), int(end, 16), permissions, int(offset, 16)))
    return found


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, and what they lead to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def smaps(address: int) -> dict[str, str]:
    """The fields of the mapping that begins at *address*. proc_pid_smaps(5)."""
    fields: dict[str, str] = {}
    inside = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if head := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line):
                if inside:
                    break
                inside = int(head[1], 16) == address
            elif inside:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
    return fields


def free_huge_pages(page_size: int) -> int:
    """How many huge pages of that size can still be had."""
    directory = Path(f"/sys/kernel/mm/hugepages/hugepages-{page_size // 1024}kB")
    names = ("free_hugepages", "resv_hugepages", "nr_overcommit_hugepages", "surplus_hugepages")
    try:
        free, reserved, overcommit, surplus = (int((directory / name).read_text()) for name in names)
    except (OSError, ValueError):
        return 0
    return free - reserved + max(0, overcommit - surplus)


def _kind(fd: int) -> str:
    """What sort of file it is. The kernel's own mounts of memfds do not stand in /proc/self/mountinfo."""
    fields = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii", errors="replace")
    mount = re.search(r"^mnt_id:\s+(\d+)$", fields, re.MULTILINE)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if mount is not None and line.split()[0] == mount[1]:
            name = line.partition(" - ")[2].split()[0]
            return {"tmpfs": SHMEM, "devtmpfs": SHMEM, "hugetlbfs": HUGETLB}.get(name, name)
    if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
        return SHMEM if os.fstatvfs(fd).f_bsize == BASE_PAGE else HUGETLB
    return ""


def _seek(fd: int) -> list[tuple[int, int]]:
    found = []
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, position))
    return found


def _fiemap(fd: int) -> list[tuple[int, int]] | None:
    """The extents by FIEMAP without FIEMAP_FLAG_SYNC, joined, within the file's size."""
    raw = _fiemap_all(fd)
    if raw is None:
        return None
    size = -(-os.fstat(fd).st_size // BASE_PAGE) * BASE_PAGE
    found: list[tuple[int, int]] = []
    for start, length, _ in raw:
        end = min(start + length, size)
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        elif start < end:
            found.append((start, end))
    return found


def _fiemap_all(fd: int) -> list[tuple[int, int, int]] | None:
    """Start, length and flags of each extent; ``None`` where the file system has no FIEMAP."""
    found: list[tuple[int, int, int]] = []
    position = 0
    while True:
        request = bytearray(_FIEMAP_HEADER.size + _FIEMAP_COUNT * _FIEMAP_EXTENT.size)
        _FIEMAP_HEADER.pack_into(request, 0, position, (1 << 63) - 1 - position, 0, 0, _FIEMAP_COUNT, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        except OSError:
            return None
        count = _FIEMAP_HEADER.unpack_from(request)[3]
        for index in range(count):
            fields = _FIEMAP_EXTENT.unpack_from(request, _FIEMAP_HEADER.size + index * _FIEMAP_EXTENT.size)
            found.append((fields[0], fields[2], fields[5]))
        if not count or found[-1][2] & _FIEMAP_LAST:
            return found
        position = found[-1][0] + found[-1][1]


__all__ = [
    "BASE_PAGE",
    "HUGETLB",
    "SHMEM",
    "MapLine",
    "Observer",
    "descriptors",
    "free_huge_pages",
    "mappings_of",
    "smaps",
]
