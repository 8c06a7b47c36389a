"""The default of every hook: right for any file whose holes cost nothing and that ``fallocate(2)`` can punch.

Best on shmem (memfds and tmpfs), where it is exact whatever happened to the pages. On other files the probe is a walk
with SEEK_DATA; pages that were reserved and never touched are found with FIEMAP where the file system has it.
"""

from __future__ import annotations

import errno
import itertools
import os
from array import array
from collections.abc import Iterable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from memplat.hookspecs import hookimpl
from memplat.linux import extents as flat
from memplat.linux import files, shmem
from memplat.linux.fiemap import fiemap_extents
from memplat.linux.headroom import require_headroom
from memplat.linux.punching import punch_batch
from memplat.ranges import MIB, FileRange
from memplat.types import Availability, BackingFile, Extents, Storage

_BLOCK: Final = 512
#: A memory cgroup at its limit kills a process that takes a lot in one call; in such steps swap can keep up.
_RESERVE_STEP: Final = 4 * MIB


@hookimpl(trylast=True)
def memplat_check() -> Availability:
    """A backend that does not say otherwise is available."""
    return Availability(True)


@hookimpl(trylast=True)
def memplat_grow(file: BackingFile, size: int) -> bool:
    """Extend the file with ftruncate(2), unless it is that large already.

    :raises OSError: EPERM (F_SEAL_GROW), EFBIG, ENOSPC
    """
    if os.fstat(file.fd).st_size < size:
        try:
            os.ftruncate(file.fd, size)
        except PermissionError:  # a peer was faster, and sealed files cannot be shrunk to what we asked for
            if os.fstat(file.fd).st_size < size:
                raise
    return True


_known_shmem: WeakKeyDictionary[BackingFile, bool] = WeakKeyDictionary()


def _is_shmem(file: BackingFile) -> bool:
    """What the file is does not change: one fstatfs(2) a file."""
    known = _known_shmem.get(file)
    if known is None:
        known = _known_shmem[file] = shmem.is_shmem(file.fd)
    return known


@hookimpl(trylast=True)
def memplat_mapped() -> bool:
    """Nothing to advise."""
    return True


@hookimpl(trylast=True)
def memplat_reserve(file: BackingFile, ranges: Sequence[FileRange]) -> bool:
    """Allocate the storage of the pages with ``fallocate(2)``.

    On shmem this is RAM, and the host's and the memory cgroup's head-room are looked at first: what is asked of them
    beyond their limits is answered with SIGKILL.

    :raises OSError: ENOSPC, ENOMEM; what was not allocated before is given back, what was, with its content, stays
    """
    memory = _is_shmem(file)
    gaps = _unallocated(file, ranges, memory)
    if memory:
        require_headroom(flat.total(gaps))
    reached = 0
    try:
        for pages in ranges:
            for start in range(pages.start, pages.end, _RESERVE_STEP):
                end = min(start + _RESERVE_STEP, pages.end)
                if memory and reached:  # the first step was looked at with the total
                    require_headroom(end - start)
                reached = max(reached, end)
                files.fallocate(file.fd, 0, start, end - start)
    except BaseException:  # also when a signal's handler raised
        punch_batch(file.fd, file.address, flat.ranges(flat.intersect(gaps, 0, reached)))
        raise
    return True


@hookimpl(trylast=True)
def memplat_probe_committed(file: BackingFile, start: int, end: int) -> Extents:
    """Walk over the data of the file (lseek(2), SEEK_DATA); on shmem the cheapest way that is proven to be exact.

    :raises OSError: EINVAL where the file system does not know SEEK_DATA
    """
    if _is_shmem(file):
        extents, file.probe_method = shmem.committed_extents(file.fd, start, end, file.address, file.size)
        return extents
    file.probe_method = "seek_data"
    return files.seek_extents(file.fd, start, end)


@hookimpl(trylast=True)
def memplat_probe_reserved(file: BackingFile, ranges: Sequence[FileRange]) -> Extents:
    """Which pages of *ranges* are allocated: by cachestat(2) on shmem, by FIEMAP elsewhere, and all of them where the
    host has neither.
    """
    allocated = _allocated_on_shmem if _is_shmem(file) else _allocated_on_disk
    parts = [allocated(file.fd, pages) for pages in sorted(ranges)]
    return _union(
        array("q", pages) if part is None else part for pages, part in zip(sorted(ranges), parts, strict=True)
    )


@hookimpl(trylast=True)
def memplat_storage(file: BackingFile) -> Storage:
    """``st_blocks`` of one fstat(2): "Number of 512B blocks allocated"."""
    return Storage(total=os.fstat(file.fd).st_blocks * _BLOCK)


@hookimpl(trylast=True)
def memplat_decommit(file: BackingFile, ranges: Sequence[FileRange]) -> bool:
    """Punch holes: all with one system call where the kernel can, else one call each.

    :raises OSError: of the first range that failed; those before it are punched
    """
    punch_batch(file.fd, file.address, ranges, together=file.is_private and _is_shmem(file))
    return True


@hookimpl(trylast=True)
def memplat_close_file(file: BackingFile) -> bool:
    """Close the descriptor."""
    os.close(file.fd)
    return True


def _unallocated(file: BackingFile, ranges: Sequence[FileRange], memory: bool) -> array[int]:
    """What of *ranges* has no storage, as far as the host can tell: what fallocate will add."""
    gaps = []
    for pages in ranges:
        held = _allocated_on_shmem(file.fd, pages) if memory else _allocated_on_disk(file.fd, pages)
        if held is None:
            held = files.seek_extents(file.fd, *pages)
        gaps.append(flat.complement(held, *pages))
    return _union(gaps)


def _allocated_on_shmem(fd: int, pages: FileRange) -> array[int] | None:
    return shmem.held_extents(fd, *pages)


def _allocated_on_disk(fd: int, pages: FileRange) -> array[int] | None:
    try:
        return fiemap_extents(fd, *pages)
    except OSError as reason:
        if reason.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            return None
        raise


def _union(parts: Iterable[Sequence[int]]) -> array[int]:
    """Extents in one: sorted, and joined where they touch."""
    bounds = array("q", itertools.chain.from_iterable(parts))
    return flat.union(bounds, flat.empty())
