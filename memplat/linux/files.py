"""The backing file: allocating and giving back its storage, finding out what it holds, creating and sealing it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
from array import array
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from memplat import _core
from memplat.linux import _libc
from memplat.ranges import KIB, MIB, FileRange

# <linux/falloc.h>
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02

# <linux/memfd.h>
MFD_CLOEXEC: Final = 0x0001
MFD_ALLOW_SEALING: Final = 0x0002
MFD_HUGETLB: Final = 0x0004
MFD_NOEXEC_SEAL: Final = 0x0008
#: The logarithm of the huge page size stands from this bit on.
MFD_HUGE_SHIFT: Final = 26

# <linux/fcntl.h>
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SEAL: Final = 0x0001
F_SEAL_SHRINK: Final = 0x0002
F_SEAL_GROW: Final = 0x0004
F_SEAL_WRITE: Final = 0x0008
F_SEAL_FUTURE_WRITE: Final = 0x0010
F_SEAL_EXEC: Final = 0x0020

# System calls that C libraries have no wrapper for; since Linux 5.0 the numbers are the same on all architectures but
# alpha.
_SYS_CACHESTAT: Final = 451

#: A punch of so much takes about 40 us: less than it may cost to get the GIL back, and no harm to those who wait for
#: it.
_PUNCH_HELD_BYTES: Final = 256 * KIB
#: A seek over so much data takes about 30 us, for the same trade.
_SEEK_HELD_BYTES: Final = 4 * MIB
_ENDLESS: Final = 1 << 63
#: How a walk ends: well, with an error of one of the two calls, or where both succeed in vain: at what is no file.
_SEEKS: Final = ("", "lseek(SEEK_DATA)", "lseek(SEEK_HOLE)", "lseek does not advance")
_BLOCK: Final = 512
#: So many times in a row a page may be punched between the two questions about it.
_MOST_STALLS: Final = 1_000
#: Counting so much takes about 50 us, at most; a scan may count hundreds of parts.
_COUNT_HELD_BYTES: Final = 8 * MIB

_fallocate_types: Final = (ctypes.c_int, ctypes.c_int, _libc.LONG, _libc.LONG)
_fallocate_released = _libc.function(_libc.RELEASED, "fallocate", ctypes.c_int, _fallocate_types)
_fallocate_held = _libc.function(_libc.HELD, "fallocate", ctypes.c_int, _fallocate_types)
#: Called as often as there are extents, so without a prototype: the offset is to be given as a ``LONG``.
_lseek_released = _libc.function(_libc.RELEASED, "lseek", _libc.LONG, None)
_lseek_held = _libc.function(_libc.HELD, "lseek", _libc.LONG, None)
_OFFSET: Final = _libc.LONG
#: Where st_blocks stands in struct stat, in words, on those that are known; C libraries of today export fstat.
_ST_BLOCKS: Final = 8
_Status: Final = ctypes.c_uint64 * 32
_fstat_held = (
    _libc.function(_libc.HELD, "fstat", ctypes.c_int, None)
    if platform.machine() in ("x86_64", "aarch64", "riscv64") and hasattr(_libc.HELD, "fstat")
    else None
)
_cachestat_types: Final = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong)
_cachestat_released = _libc.function(_libc.RELEASED, "syscall", _libc.LONG, _cachestat_types)
_cachestat_held = _libc.function(_libc.HELD, "syscall", _libc.LONG, _cachestat_types)


# ---- storage ---------------------------------------------------------------------------------------------------------


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or give back storage of a file. fallocate(2), the system call itself: ``posix_fallocate`` is emulated by
    writing zeros where the file system has no such call. Interrupted calls are repeated.

    :raises OSError: ENOSPC, EOPNOTSUPP, EPERM (a sealed file), EBADF (not writable); some file systems keep the part
        done
    """
    while _fallocate_released(fd, mode, offset, length):
        if _libc.last_errno() != errno.EINTR:
            raise _libc.error(f"fallocate({mode:#x}) of {FileRange(offset, offset + length)}")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the storage of a part of a file back; it reads as zeros afterwards.

    fallocate(2): FALLOC_FL_PUNCH_HOLE "deallocates space (i.e., creates a hole) [...] Within the specified range,
    partial filesystem blocks are zeroed, and whole filesystem blocks are removed from the file". Up to 256 KiB with the
    GIL held.

    :raises OSError: as :func:`fallocate`
    """
    call = _fallocate_held if length <= _PUNCH_HELD_BYTES else _fallocate_released
    while call(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
        if _libc.last_errno() != errno.EINTR:
            raise _libc.error(f"fallocate(PUNCH_HOLE) of {FileRange(offset, offset + length)}")


# ---- what a file holds -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reopened(fd: int) -> Iterator[int]:
    """A descriptor of the same file with an offset of its own, to be closed at the end; *fd* itself, put back to its
    offset, where it cannot be opened again (no /proc, another user's file).

    dup(2): duplicates "refer to the same open file description [...] and thus share file offset"; opening
    /proc/self/fd/N (proc_pid_fd(5)) makes a new description.
    """
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            yield fd
        finally:
            os.lseek(fd, offset, os.SEEK_SET)
    else:
        try:
            yield own
        finally:
            os.close(own)


def seek_extents(fd: int, start: int, end: int, at_most: int = _ENDLESS) -> array[int]:
    """The data of a file between *start* and *end*, as extents. lseek(2): "SEEK_DATA Adjust the file offset to the next
    location in the file greater than or equal to offset containing data", SEEK_HOLE likewise; ENXIO beyond the last
    data.

    A file system may call data what is a hole (hugetlbfs does), and a hole what was allocated and never written.

    :param at_most: bytes after which there cannot be any more (``st_blocks``): the search stops there
    :raises OSError: EINVAL where the file system knows neither
    """
    if _core.PROBING is not None:
        held = min(end - start, at_most) <= _SEEK_HELD_BYTES
        walked = _core.PROBING.seek(fd, start, end, min(at_most, _ENDLESS - 1), held)
        if walked is not None:
            return _walked(*walked)
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        with reopened(fd) as same:
            return _walk(same, start, end, at_most)
    try:  # by far the most frequent case: a context manager takes as long as a short walk
        return _walk(own, start, end, at_most)
    finally:
        os.close(own)


def seek_in_place(fd: int, at_most: int) -> array[int]:
    """As :func:`seek_extents`, of all of a file of *at_most* bytes whose offset nobody else uses: it is put back."""
    offset = _lseek_held(fd, _OFFSET(0), os.SEEK_CUR)
    try:
        return _walk(fd, 0, _ENDLESS, at_most)
    finally:
        _lseek_held(fd, _OFFSET(offset), os.SEEK_SET)


def _walked(extents: array[int], ended: int, code: int) -> array[int]:
    """What the compiled walk has found, or the error that it ended with."""
    if ended:
        raise _libc.error_of(_SEEKS[ended], code)
    return extents


def _walk(fd: int, start: int, end: int, missing: int = _ENDLESS) -> array[int]:
    found = array("q")
    append = found.append
    seek: Any = _lseek_held if missing <= _SEEK_HELD_BYTES else _lseek_released
    position = start
    stalled = 0
    while position < end and missing > 0:
        data = seek(fd, _OFFSET(position), os.SEEK_DATA)
        if data < 0:
            if _libc.last_errno() == errno.ENXIO:
                break
            raise _libc.error(_SEEKS[1])
        if data >= end:
            break
        hole = seek(fd, _OFFSET(data), os.SEEK_HOLE)
        if hole < 0:
            if _libc.last_errno() == errno.ENXIO:  # truncated between the two calls
                break
            raise _libc.error(_SEEKS[2])
        if found and found[-1] == data:  # what was a hole a moment ago was touched: no extent of its own
            found[-1] = min(end, hole)
        elif hole > data:  # else it was punched between the two calls
            append(data)
            append(min(end, hole))
        # Where extents are short the GIL is kept: handing it over 131,072 times takes minutes beside a busy thread.
        stalled = stalled + 1 if hole <= position else 0
        if stalled > _MOST_STALLS or data < position:
            raise _libc.error_of(_SEEKS[3], errno.EIO)
        seek = _lseek_held if hole - position <= _SEEK_HELD_BYTES else _lseek_released
        missing -= hole - data
        position = hole
    return found


def storage_held(fd: int) -> int:
    """The bytes that the host spends on a file of shmem: ``st_blocks`` of fstat(2), 512 bytes each. The GIL is kept, so
    that no Python thread gets in between two such calls; on a disk that might take too long.

    :raises OSError: EBADF
    """
    if _fstat_held is None:
        return os.fstat(fd).st_blocks * _BLOCK
    status = _Status()
    if _fstat_held(fd, status):
        raise _libc.error("fstat")
    return status[_ST_BLOCKS] * _BLOCK


class CacheStat(NamedTuple):
    """Pages, of the processor's base size. cachestat(2)."""

    cache: int
    """In the page cache. Of a shmem file: in RAM."""
    dirty: int
    writeback: int
    evicted: int
    """Were in the cache before. Of a shmem file: swapped out."""
    recently_evicted: int


def cachestat(fd: int, offset: int, length: int) -> CacheStat | None:
    """Count the pages of ``[offset, offset + length)`` in the page cache. cachestat(2), from Linux 6.5 on: "queries the
    page cache statistics of a file". ``None`` where the kernel, a sandbox or the file (hugetlb) does not allow it.

    :raises OSError: EBADF
    """
    counts = cachestat_raw(fd, offset, length)
    return None if counts is None else CacheStat._make(counts[2:])


def cachestat_raw(fd: int, offset: int, length: int) -> array[int] | None:
    """As :func:`cachestat`, for those in a hurry: offset, length, then the five counts."""
    if length <= 0:  # a length of 0 would mean: to the end of the file
        return array("Q", bytes(56))
    both = array("Q", (offset, length, 0, 0, 0, 0, 0))  # struct cachestat_range, then struct cachestat
    where, _ = both.buffer_info()
    count = _cachestat_held if length <= _COUNT_HELD_BYTES else _cachestat_released
    if count(_SYS_CACHESTAT, fd, where, where + 16, 0):
        if _libc.last_errno() in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):
            return None
        raise _libc.error("cachestat")
    return both


# ---- creating and sealing --------------------------------------------------------------------------------------------


def memfd(name: str, flags: int = 0) -> int:
    """An empty file without a name in any directory: readable and writable by its owner only, close-on-exec, sealable.

    memfd_create(2): MFD_NOEXEC_SEAL "marks the file as not executable and seals it from being changed", left out before
    Linux 6.3. The mode is set, because it is 0777 otherwise and any user who gets at /proc/PID/fd could open it again.

    :param flags: further ones, such as MFD_HUGETLB
    :raises OSError: EMFILE, ENOMEM, EINVAL (the flags, or a name of more than 249 bytes)
    """
    flags |= MFD_CLOEXEC | MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | MFD_NOEXEC_SEAL)
    except OSError as reason:
        if reason.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, flags)
    try:
        os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def add_seals(fd: int, seals: int) -> None:
    """Forbid what *seals* say, for all holders of the file and for good. fcntl(2), F_ADD_SEALS.

    :raises OSError: EPERM (F_SEAL_SEAL is set), EBUSY (F_SEAL_WRITE and there are writable mappings), EINVAL (no such
        file)
    """
    fcntl.fcntl(fd, F_ADD_SEALS, seals)


def get_seals(fd: int) -> int:
    """The seals of a file. fcntl(2), F_GET_SEALS.

    :raises OSError: EINVAL if the file cannot have any
    """
    return fcntl.fcntl(fd, F_GET_SEALS)
