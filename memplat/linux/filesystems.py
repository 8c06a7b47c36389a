"""File systems: which one a file is on, how full it is, and the flags of its inodes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from array import array
from typing import Final, NamedTuple

from memplat.linux import _libc

# <linux/magic.h>, <linux/fs.h>
TMPFS_MAGIC: Final = 0x01021994
HUGETLBFS_MAGIC: Final = 0x958458F6
RAMFS_MAGIC: Final = 0x858458F6
EXT4_MAGIC: Final = 0xEF53
XFS_MAGIC: Final = 0x58465342
BTRFS_MAGIC: Final = 0x9123683E
OVERLAYFS_MAGIC: Final = 0x794C7630
_NAMES: Final = {
    TMPFS_MAGIC: "tmpfs",
    HUGETLBFS_MAGIC: "hugetlbfs",
    RAMFS_MAGIC: "ramfs",
    EXT4_MAGIC: "ext4",
    XFS_MAGIC: "xfs",
    BTRFS_MAGIC: "btrfs",
    OVERLAYFS_MAGIC: "overlayfs",
}
FS_NOCOW_FL: Final = 0x00800000

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_BTRFS_IOC_FS_INFO: Final = 0x8400941F

_fstatfs = _libc.function(_libc.HELD, "fstatfs", ctypes.c_int, (ctypes.c_int, ctypes.c_void_p))


def get_flags(fd: int) -> int:
    """The inode flags. ioctl_iflags(2), FS_IOC_GETFLAGS.

    :raises OSError: ENOTTY, EOPNOTSUPP where the file system has none
    """
    flags = array("i", (0, 0))  # the number says long, the kernel stores an int: see the manual page's bugs
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags, True)
    return flags[0]


def set_flags(fd: int, flags: int) -> None:
    """Set the inode flags. ioctl_iflags(2): FS_NOCOW_FL "may be set on an empty file" only.

    :raises OSError: EOPNOTSUPP, EPERM, EINVAL
    """
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, array("i", (flags, 0)))


class FileSystem(NamedTuple):
    """What statfs(2) says about the file system of a file; sizes in bytes."""

    magic: int
    """f_type: which file system it is."""
    block_size: int
    size: int
    free: int
    available: int
    """Free for those who are not root."""


def file_system(fd: int) -> FileSystem:
    """The file system that the file is on. fstatfs(2).

    :raises OSError: EBADF
    """
    words = array("q", bytes(256))  # struct statfs: 15 words; musl and glibc agree on 64-bit machines
    while _fstatfs(fd, words.buffer_info()[0]):
        if _libc.last_errno() != errno.EINTR:
            raise _libc.error("fstatfs")
    magic, block, blocks, free, available = words[:5]
    return FileSystem(magic & 0xFFFFFFFF, block, blocks * block, free * block, available * block)


def has_mixed_groups(fd: int) -> bool:
    """Whether the file is on a btrfs whose data and metadata share block groups (mkfs.btrfs --mixed), as far as the
    kernel tells: BTRFS_IOC_FS_INFO has the UUID in bytes 16 to 31, <linux/btrfs.h>; sysfs has the features.
    """
    info = bytearray(1024)
    try:
        fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, info)
    except OSError:
        return False
    words = info[16:32].hex()
    name = "-".join((words[:8], words[8:12], words[12:16], words[16:20], words[20:]))
    return os.path.exists(f"/sys/fs/btrfs/{name}/features/mixed_groups")


def name_of(magic: int) -> str:
    """The name of a file system, or its number. <linux/magic.h>."""
    return _NAMES.get(magic, f"file system {magic:#x}")


def filesystem_magic(fd: int) -> int:
    """Which file system the file is on: one of the ``_MAGIC`` constants. fstatfs(2)."""
    return file_system(fd).magic
