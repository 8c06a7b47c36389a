"""Giving the storage of many parts of a file back at once.

A page that is mapped has to leave the page tables before it can go, and every processor that runs a thread of this
process is interrupted for it: 25 us a range where others are busy (two virtual processors), and 1 us where not. So
ranges of shmem that lie close together are taken out of the page tables at one go, with what is between them; that is
mapped again afterwards, as it was: nobody's pages are less there than before, and PAGEMAP_SCAN sees what it saw.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from memplat import _core
from memplat.linux import _libc, files, memory
from memplat.linux import extents as flat
from memplat.linux.pagemap import pagemap_present
from memplat.ranges import GIB, KIB, FileRange

# A system call that C libraries have no wrapper for; since Linux 5.0 the number is the same on all architectures but
# alpha.
_SYS_PROCESS_MADVISE: Final = 440
_PIDFD_SELF: Final = -10000
_IOV_MAX: Final = 1024
#: import_iovec() in the kernel cuts a vector off at 2 GiB less a page, wherever that is within a huge page.
_VECTOR_BYTES: Final = GIB

#: So close together mapping what is between them again (0.4 us a page) takes less than they would disturb.
_CLOSE: Final = 32 * KIB
#: Fewer ranges are not worth two system calls more.
_FEW: Final = 4

_process_madvise = _libc.function(
    _libc.RELEASED,
    "syscall",
    _libc.LONG,
    (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long, ctypes.c_ulong),
)


def punch_batch(fd: int, address: int | None, ranges: Sequence[FileRange], *, together: bool = False) -> None:
    """Give the storage of many parts of a file back, with as few hand-overs of the GIL as possible, in order.

    With *address*, where offset 0 stands in a writable shared mapping of the same file: process_madvise(2) of this
    process with MADV_REMOVE (from Linux 6.13 on), 1024 ranges a call. Wherever that stops, for whatever reason,
    fallocate(2) decides about that range. Without *address*, or where the kernel cannot, fallocate(2) for each.

    :param ranges: with the compiled core also a buffer of pairs of offsets
    :param together: ranges that lie close together may be taken out of the page tables at one go, with the pages
        between them. Not if anybody else can punch the file or map anything over these: what was punched meanwhile
        would be mapped again. And not of a file on disk, whose file system would have to be told of the next write to
        each of those pages
    :raises OSError: as :func:`memplat.linux.files.fallocate`, of the first range that failed; all ranges before it are
        punched, none after it
    """
    if _core.BATCHING is not None:
        done, code = _core.BATCHING.punch(fd, address, ranges, together)
        if code:
            raise _libc.error_of(f"fallocate(PUNCH_HOLE) of {FileRange(*ranges[done])}", code)
        return
    done = 0
    if address is not None and len(ranges) > 1:
        done = _remove_vectors(fd, address, ranges, together=together)
    for start, end in ranges[done:]:
        files.punch_hole(fd, start, end - start)


def _remove_vectors(fd: int, address: int, ranges: Sequence[FileRange], *, together: bool) -> int:
    """Punch ranges from the first on with process_madvise; how many are done when the kernel turned out not to be
    able.
    """
    done = 0
    while done < len(ranges):
        batch = _next_vector(ranges, done)
        between = _unmap_together(address, batch) if together else flat.empty()
        try:
            advised = advise_removal(address, batch) if batch else 0
            code = _libc.last_errno()
        finally:
            _map_again(address, between)
        if advised < 0 and code == errno.EINTR:
            continue
        finished = _whole_ranges(batch, advised)
        done += finished
        if batch and finished == len(batch):
            continue
        files.punch_hole(fd, ranges[done].start, ranges[done].length)  # raises what is wrong with this very range
        done += 1
        if advised < 0:
            break
    return done


def _next_vector(ranges: Sequence[FileRange], first: int) -> Sequence[FileRange]:
    """The ranges that go into one call; none if the first one alone is too long for it."""
    batch = ranges[first : first + _IOV_MAX]
    nbytes = 0
    for index, (start, end) in enumerate(batch):
        nbytes += end - start
        if nbytes > _VECTOR_BYTES:
            return batch[:index]
    return batch


def _whole_ranges(batch: Sequence[FileRange], nbytes: int) -> int:
    """How many ranges *nbytes* of progress cover whole: a range that is done in part only has to be done again."""
    for index, (start, end) in enumerate(batch):
        nbytes -= end - start
        if nbytes < 0:
            return index
    return len(batch)


def advise_removal(address: int, batch: Sequence[FileRange]) -> int:
    """Give the storage of many mapped parts back: 1024 at most in *batch*; the bytes done, -1 on error."""
    return _advise(address, batch, memory.MADV_REMOVE)


def _advise(address: int, batch: Sequence[FileRange], advice: int) -> int:
    """The bytes done, -1 on error.

    process_madvise(2): "On success, process_madvise() returns the number of bytes advised. This return value may be
    less than the total number of requested bytes, if an error occurred after some iovec elements were already
    processed".
    """
    vector = array("Q", [word for start, end in batch for word in (address + start, end - start)])
    where, _ = vector.buffer_info()
    advised = int(_process_madvise(_SYS_PROCESS_MADVISE, _PIDFD_SELF, where, len(batch), advice, 0))
    if advised < 0 and _libc.last_errno() == errno.EBADF:  # before Linux 6.15 there is no PIDFD_SELF
        try:
            pidfd = os.pidfd_open(os.getpid())
        except OSError:
            return -1
        try:
            advised = int(_process_madvise(_SYS_PROCESS_MADVISE, pidfd, where, len(batch), advice, 0))
        finally:
            os.close(pidfd)
    return advised


# ---- page tables -----------------------------------------------------------------------------------------------------


def _unmap_together(address: int, batch: Sequence[FileRange]) -> array[int]:
    """Take ranges that lie close together out of this process's page tables, with what is between them: those pages
    are returned that were there.

    madvise(2): after MADV_DONTNEED "subsequent accesses of pages in the range will succeed, but will result in [...]
    repopulating the memory contents from the up-to-date contents of the underlying mapped file (for shared file
    mappings, shared anonymous mappings, and shmem-based techniques [...])". A locked mapping refuses it.
    """
    between = flat.empty()
    if any(before.end > behind.start for before, behind in pairwise(batch)):
        return between  # one that comes later must not be taken for what is between others
    for span in _close_together(batch):
        start, end = span[0].start, span[-1].end
        try:
            seen = pagemap_present(address, start, end)
            if seen is None:
                break
            memory.madvise(address + start, end - start, memory.MADV_DONTNEED)
        except OSError:
            break
        between += flat.subtract(
            seen, flat.union(array("q", [bound for pages in span for bound in pages]), flat.empty())
        )
    return between


def _close_together(batch: Sequence[FileRange]) -> Iterator[Sequence[FileRange]]:
    """Those of the ascending ranges that follow one another closely, and are more than a few."""
    first = 0
    for index in range(1, len(batch) + 1):
        if index < len(batch) and batch[index].start - batch[index - 1].end <= _CLOSE:
            continue
        if index - first >= _FEW:
            yield batch[first:index]
        first = index


def _map_again(address: int, extents: array[int]) -> None:
    """Map pages that exist. What is refused comes back when it is touched.

    madvise(2): MADV_POPULATE_READ "Populate (prefault) page tables readable, faulting-in all pages in the range just
    as if manually reading from each page". In a writable mapping of shmem they are writable then, too.
    """
    parts = flat.ranges(extents)
    for first in range(0, len(parts), _IOV_MAX):
        batch = parts[first : first + _IOV_MAX]
        done = _whole_ranges(batch, _advise(address, batch, memory.MADV_POPULATE_READ))
        for start, end in batch[done:]:
            with contextlib.suppress(OSError):
                memory.madvise(address + start, end - start, memory.MADV_POPULATE_READ)
