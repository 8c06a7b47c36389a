"""Whether a file system can be exact by page: tried out on an empty file in the directory, because names promise
nothing.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from memplat.linux import files, filesystems
from memplat.linux.system import PAGE_SIZE
from memplat.ranges import format_size
from memplat.types import Availability

_BLOCK: Final = 512
_GOOD: Final = "a directory on ext4, xfs, btrfs (with blocks of one page) or tmpfs"
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL)


def why_not(fd: int, place: str) -> Availability | None:
    """Why the file system of *fd*, an empty file, cannot serve, or ``None`` if it can."""
    found = filesystems.file_system(fd)
    where = f"{place} is on {filesystems.name_of(found.magic)}"
    if found.magic == filesystems.HUGETLBFS_MAGIC:
        return Availability(False, f"{where}: its pages are huge", f'backend = "hugetlb", mount = "{place}"')
    if found.magic != filesystems.RAMFS_MAGIC and found.block_size != PAGE_SIZE:
        return Availability(
            False,
            f"{where} with blocks of {format_size(found.block_size)}: {format_size(PAGE_SIZE)} cannot be counted",
            f"mkfs with blocks of {PAGE_SIZE} bytes (-b {PAGE_SIZE} for mkfs.ext4, -b size={PAGE_SIZE} for mkfs.xfs)",
        )
    if found.magic == filesystems.BTRFS_MAGIC and filesystems.has_mixed_groups(fd):
        why = "with mixed block groups: data can fill the room of metadata, and then reserved pages cannot be touched"
        return Availability(False, f"{where} {why}", "mkfs.btrfs without --mixed")
    try:
        doubt = _doubt(fd)
    except OSError as reason:
        if reason.errno in _UNSUPPORTED:
            return Availability(False, f"{where}, which {_what_is_missing(fd)}", f"directory = {_GOOD}")
        if reason.errno in (errno.ENOSPC, errno.EDQUOT):
            return Availability(False, f"{where}, which is full", "free some space, or directory = another one")
        return Availability(False, f"{where}, which refuses a trial: {reason.strerror}", f"directory = {_GOOD}")
    return None if doubt is None else Availability(False, f"{where}, which {doubt}", f"directory = {_GOOD}")


def _doubt(fd: int) -> str | None:
    """Allocate a page, write another, give both back; what about it was not as it should be."""
    os.ftruncate(fd, 16 * PAGE_SIZE)
    before = _storage(fd)
    files.fallocate(fd, 0, 4 * PAGE_SIZE, PAGE_SIZE)
    allocated = _storage(fd) - before
    if allocated != PAGE_SIZE:
        return f"allocates {format_size(allocated)} for one page"
    os.pwrite(fd, b"x", 8 * PAGE_SIZE)
    if 8 * PAGE_SIZE not in files.seek_extents(fd, 0, 16 * PAGE_SIZE):
        return "does not tell data from holes (SEEK_DATA)"
    files.punch_hole(fd, 4 * PAGE_SIZE, 5 * PAGE_SIZE)
    if _storage(fd) != before or os.pread(fd, 1, 8 * PAGE_SIZE) != b"\0":
        return "does not give back the blocks of punched holes"
    os.ftruncate(fd, 0)
    return None


def _what_is_missing(fd: int) -> str:
    try:
        files.punch_hole(fd, 0, PAGE_SIZE)
    except OSError:
        return "cannot punch holes"
    return "cannot reserve blocks (fallocate)"


def _storage(fd: int) -> int:
    return os.fstat(fd).st_blocks * _BLOCK
