"""The rows of the exactness matrix: what a memory can stand on, and the kernel's own word on it.

Nothing of memplat is asked here what is committed. Files in memory are looked at as ``tests/oracle.py`` does; files on
a disk with an own FIEMAP (Documentation/filesystems/fiemap.rst), checked against SEEK_DATA; of hugetlb the kernel tells
how many pages there are, and the scene which ones it touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests import hostparts
from tests.oracle import PAGE, Observer

MIB = 1 << 20
HUGE = 2 * MIB

_FS_IOC_FIEMAP = 0xC020660B
_EXTENT_LAST = 1
_HEADER, _EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQ16xL12x")
_AT_ONCE = 512

#: The pages that are committed; gets the file and those that the scene has committed.
Oracle = Callable[[Observer, set[int]], set[int]]


class Host:
    """One row.

    :ivar options: what the memory is opened with
    :ivar page: the size of its pages
    :ivar count: how many pages a scene needs
    :ivar family: ``memory``, ``disk`` or ``hugetlb``
    """

    def __init__(self, backend: str, family: str, oracle: Oracle, *, page: int = PAGE, count: int = 180) -> None:
        self.backend = backend
        self.family = family
        self.oracle = oracle
        self.page = page
        self.count = count
        self.options: dict[str, Any] = {}
        self.huge = False


def _in_memory(observer: Observer, touched: set[int]) -> set[int]:
    committed = observer.committed_pages()
    assert committed == touched, f"the scene and the host differ: {sorted(committed ^ touched)}"
    return committed


def _in_huge_pages(observer: Observer, touched: set[int]) -> set[int]:
    """A touch commits more than was touched: only the host knows."""
    committed = observer.committed_pages()
    assert committed >= touched
    return committed


def _of_hugetlb(observer: Observer, touched: set[int]) -> set[int]:
    assert len(touched) * HUGE == observer.blocks, f"{len(touched)} pages touched, the host has {observer.blocks}"
    return touched


def _on_disk(observer: Observer, touched: set[int]) -> set[int]:
    """What was written, or reserved and not written, has blocks; reading commits nothing."""
    pages = fiemap_pages(observer.fd, observer.size)
    data = observer.data_pages()
    assert data <= pages, f"SEEK_DATA sees pages that FIEMAP does not: {sorted(data - pages)}"
    assert pages >= touched, f"the scene has committed pages that FIEMAP does not see: {sorted(touched - pages)}"
    return pages


def fiemap_pages(fd: int, size: int) -> set[int]:
    """The pages that have blocks, or are about to get some."""
    pages: set[int] = set()
    position = 0
    while position < size:
        buffer = bytearray(_HEADER.size + _EXTENT.size * _AT_ONCE)
        _HEADER.pack_into(buffer, 0, position, size - position, 0, 0, _AT_ONCE, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _HEADER.unpack_from(buffer)[3]
        flags = _EXTENT_LAST
        for number in range(count):
            start, _, length, flags = _EXTENT.unpack_from(buffer, _HEADER.size + number * _EXTENT.size)
            position = start + length
            pages.update(range(start // PAGE, -(-min(position, size) // PAGE)))
        if not count or flags & _EXTENT_LAST:
            break
    return pages


@contextlib.contextmanager
def _memfd() -> Iterator[Host]:
    yield Host("memfd", "memory", _in_memory)


@contextlib.contextmanager
def _transparent() -> Iterator[Host]:
    with hostparts.setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise"):
        host = Host("memfd", "memory", _in_huge_pages, count=1100)
        host.options = {"memfd": {"huge": "advise"}}
        host.huge = True
        yield host


def _tmpfile(fstype: str) -> Callable[[], contextlib.AbstractContextManager[Host]]:
    @contextlib.contextmanager
    def row() -> Iterator[Host]:
        mount = hostparts.tmpfs_mount(128 * MIB) if fstype == "tmpfs" else hostparts.loop_mount(fstype)
        with mount as directory:
            yield on_directory(fstype, directory)

    return row


def on_directory(fstype: str, directory: Path) -> Host:
    """A file in a directory on that file system."""
    in_memory = fstype == "tmpfs"
    host = Host("tmpfile", "memory" if in_memory else "disk", _in_memory if in_memory else _on_disk)
    host.options = {"tmpfile": {"directory": str(directory)}}
    return host


@contextlib.contextmanager
def _hugetlb() -> Iterator[Host]:
    with hostparts.hugetlb_pool(40):
        yield Host("hugetlb", "hugetlb", _of_hugetlb, page=HUGE, count=18)


#: What the memory stands on, by the name in the table.
HOSTS: Mapping[str, Callable[[], contextlib.AbstractContextManager[Host]]] = {
    "memfd": _memfd,
    "memfd with THP": _transparent,
    "tmpfile on ext4": _tmpfile("ext4"),
    "tmpfile on xfs": _tmpfile("xfs"),
    "tmpfile on btrfs": _tmpfile("btrfs"),
    "tmpfile on tmpfs": _tmpfile("tmpfs"),
    "hugetlb": _hugetlb,
}


def backing_descriptor(before: Mapping[int, str]) -> int:
    """The descriptor of the backing file that was opened since *before*, found without asking the memory for it."""
    new = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if before.get(int(name)) != target and ("memfd:" in target or "(deleted)" in target):
                new.append(int(name))
    assert len(new) == 1, f"expected one new file, found {new}"
    return new[0]
