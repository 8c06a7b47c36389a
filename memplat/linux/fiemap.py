"""Which parts of a file have disk blocks: FIEMAP, for file systems with a disk."""

from __future__ import annotations

import errno
from array import array
from typing import Final, NamedTuple

from memplat import _core
from memplat.linux import _libc
from memplat.linux.extents import empty, from_starts_and_ends, intersect

# <linux/fs.h>, <linux/fiemap.h>
_FS_IOC_FIEMAP: Final = 0xC020660B
_EXTENT_LAST: Final = 0x0001
_EXTENT_DELALLOC: Final = 0x0004
_FIRST_CAPACITY: Final = 128
_CAPACITY: Final = 8192
_HEADER_WORDS: Final = 4
_EXTENT_WORDS: Final = 7


class FileMap(NamedTuple):
    """What FIEMAP knows of a part of a file."""

    extents: array[int]
    """What has blocks, or is about to get some."""
    mapped: int
    """How many extents the file system keeps for it: one each that is contiguous in the file and on the disk."""
    delayed: int
    """How many more there will be when what is dirty reaches the disk; at most."""


def fiemap_extents(fd: int, start: int, end: int) -> array[int]:
    """The parts of ``[start, end)`` that have disk blocks or are to get some: :attr:`FileMap.extents`."""
    return file_map(fd, start, end).extents


def file_map(fd: int, start: int, end: int) -> FileMap:
    """What has disk blocks in ``[start, end)``.

    Documentation/filesystems/fiemap.rst: without FIEMAP_FLAG_SYNC nothing is written; extents that are allocated and
    never written (FIEMAP_EXTENT_UNWRITTEN) and those whose place is still open (FIEMAP_EXTENT_DELALLOC) are included.

    :raises OSError: EOPNOTSUPP where the file system has no such call (tmpfs, hugetlbfs)
    """
    if _core.PROBING is not None:
        mapped = _core.PROBING.fiemap(fd, start, end)
        if isinstance(mapped, int):
            raise _libc.error_of("ioctl(FS_IOC_FIEMAP)", mapped)
        extents, count, delayed = mapped
        return FileMap(extents, count - delayed, delayed)
    starts, ends = empty(), empty()
    delayed = 0
    position = start
    while position < end:
        words = _call(fd, position, end - position, _CAPACITY if starts else _FIRST_CAPACITY)
        offsets, lengths, flags = words[4::_EXTENT_WORDS], words[6::_EXTENT_WORDS], words[9::_EXTENT_WORDS]
        if not offsets:
            break
        starts += offsets
        ends += array("q", map(int.__add__, offsets, lengths))
        delayed += sum(map(_EXTENT_DELALLOC.__and__, flags)) // _EXTENT_DELALLOC
        position = max(ends[-1], position + 1)
        if flags[-1] & _EXTENT_LAST:
            break
    return FileMap(intersect(from_starts_and_ends(starts, ends), start, end), len(starts) - delayed, delayed)


def _call(fd: int, start: int, length: int, capacity: int) -> array[int]:
    """One ioctl: the header of 4 words (struct fiemap), then 7 words an extent (struct fiemap_extent): logical offset,
    physical offset, length, 2 reserved, flags, reserved.
    """
    words = array("q", bytes(8 * (_HEADER_WORDS + _EXTENT_WORDS * capacity)))
    words[0], words[1], words[3] = start, length, capacity
    while _libc.ioctl_released(fd, _FS_IOC_FIEMAP, words.buffer_info()[0]):
        if _libc.last_errno() != errno.EINTR:
            raise _libc.error("ioctl(FS_IOC_FIEMAP)")
    mapped = words[2] >> 32  # fm_flags and fm_mapped_extents share a word
    return words[: _HEADER_WORDS + _EXTENT_WORDS * mapped]
