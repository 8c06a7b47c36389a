"""Which pages of a shmem file (a memfd, a file on tmpfs) the host spends memory on, exactly, and by the cheapest way.

- ``st_blocks`` counts exactly, whoever touched the pages and wherever they are; it does not say which.
- PAGEMAP_SCAN of one's own mapping is the fastest, and blind to what is swapped out, was touched elsewhere only, or was
  allocated and not touched. It never says too much: if its sum is ``st_blocks``, it is right.
- cachestat(2) counts any part exactly. Where its count agrees with PAGEMAP_SCAN, that part is right.
- SEEK_DATA is right but for pages that were allocated and never touched, and takes 15 times as long.
"""

from __future__ import annotations

import enum
import os
from array import array
from collections.abc import Sequence
from typing import Final

from memplat.linux import extents as flat
from memplat.linux.files import cachestat_raw, seek_extents
from memplat.linux.filesystems import TMPFS_MAGIC, filesystem_magic
from memplat.linux.pagemap import pagemap_sum
from memplat.linux.system import PAGE_SIZE
from memplat.ranges import MIB, FileRange

_BLOCK: Final = 512
#: Up to here counting a part (25 ns a page) and halving it beats a seek, which runs on to the end of the data it meets.
_HALVING_BYTES: Final = 8 * MIB
#: Halving costs two calls a boundary; beyond so many calls a walk with SEEK_DATA is cheaper.
_HALVING_CALLS: Final = 200
#: Into how many parts a region is cut whose count disagrees, until parts are so small that they are walked.
_FAN_OUT: Final = 16
_WALKED_BYTES: Final = 2 * MIB


def is_shmem(fd: int) -> bool:
    """Whether the file is a memfd without huge pages of hugetlbfs, or on tmpfs. fstatfs(2)."""
    return filesystem_magic(fd) == TMPFS_MAGIC


def owner(fd: int) -> int:
    """The user who owns the file, if it is shmem; -1 if it is not. For :func:`memplat.linux.memory.zero_present`."""
    return os.fstat(fd).st_uid if is_shmem(fd) else -1


class Probe(enum.StrEnum):
    """Which interface is asked first. One that the kernel lacks, or that cannot prove its answer, falls to the next."""

    AUTO = "auto"
    """The cheapest one that proves its answer."""
    PAGEMAP_SCAN = "pagemap_scan"
    CACHESTAT = "cachestat"
    SEEK_DATA = "seek_data"


def committed_extents(
    fd: int, start: int, end: int, address: int | None, mapped: int, probe: Probe = Probe.AUTO
) -> tuple[array[int], str]:
    """The committed extents of ``[start, end)`` of a shmem file, and the name of the method that found them.

    Pages that were allocated (fallocate) and never touched may be left out.

    :param address: where offset 0 stands in a mapping of this process, or ``None``
    :param mapped: how many bytes are mapped there
    """
    if probe is not Probe.AUTO:
        return _as_told(fd, start, end, address, mapped, probe)
    if end - start <= _HALVING_BYTES and start < end <= mapped:
        # A part of what is ours: where all of it or nothing is held, as in most recycled ranges, one call tells.
        held = held_bytes(fd, start, end)
        if held is not None and held >= end - start:
            return array("q", (start, end)), "cachestat"
        halved = flat.empty() if held == 0 else held_extents(fd, start, end, _HALVING_CALLS)
        if halved is not None:
            return halved, "cachestat"
    status = os.fstat(fd)
    storage, size = status.st_blocks * _BLOCK, status.st_size
    end = min(end, size)
    if not storage or start >= end:
        return flat.empty(), "st_blocks"
    if start == 0 and end == size:
        if storage == end:
            return array("q", (0, end)), "st_blocks"
        found = _by_page_tables(fd, end, storage, address, mapped)
        if found is not None:
            return found
    elif end - start <= _HALVING_BYTES and (halved := held_extents(fd, start, end, _HALVING_CALLS)) is not None:
        return halved, "cachestat"
    return seek_extents(fd, start, end), "seek_data"


def _as_told(fd: int, start: int, end: int, address: int | None, mapped: int, probe: Probe) -> tuple[array[int], str]:
    """As :func:`committed_extents`, without its short cuts: from the interface that was named, down."""
    status = os.fstat(fd)
    end = min(end, status.st_size)
    if start >= end:
        return flat.empty(), "st_blocks"
    if probe is Probe.PAGEMAP_SCAN and start == 0 and end == status.st_size:
        found = _by_page_tables(fd, end, status.st_blocks * _BLOCK, address, mapped)
        if found is not None:
            return found
    if probe is not Probe.SEEK_DATA and (held := held_extents(fd, start, end)) is not None:
        return held, "cachestat"
    return seek_extents(fd, start, end), "seek_data"


def _by_page_tables(
    fd: int, size: int, storage: int, address: int | None, mapped: int
) -> tuple[array[int], str] | None:
    """The whole file by PAGEMAP_SCAN: proven, or mended where most of it is right; else ``None``."""
    found = None if address is None else pagemap_sum(address, 0, min(size, mapped))
    if found is None:
        return None
    scanned, seen = found
    after = os.fstat(fd)
    if seen == storage == after.st_blocks * _BLOCK and after.st_size == size:
        return scanned, "pagemap_scan"
    if 2 * seen > storage and (mended := _mended(fd, scanned, size)) is not None:
        return mended, "cachestat"
    return None


def held_bytes(fd: int, start: int, end: int) -> int | None:
    """How much of ``[start, end)`` the host holds in RAM or in swap, pages that were never touched included.
    cachestat(2).

    ``None`` where the kernel cannot tell.
    """
    counts = cachestat_raw(fd, start, end - start)
    return None if counts is None else (counts[2] + counts[5]) * PAGE_SIZE  # in the cache, and evicted from it


def held_extents(fd: int, start: int, end: int, max_calls: int | None = None) -> array[int] | None:
    """As :func:`held_bytes`, as extents, by counting halves of halves. ``None`` if that takes more than *max_calls*."""
    starts, ends = array("q"), array("q")
    parts = [(start, end)]
    calls = 0
    while parts:
        low, high = parts.pop()
        held = held_bytes(fd, low, high)
        calls += 1
        if held is None or (max_calls is not None and calls > max_calls):
            return None
        if held >= high - low:
            starts.append(low)
            ends.append(high)
        elif held and high - low > PAGE_SIZE:
            middle = (low + high) // 2 // PAGE_SIZE * PAGE_SIZE
            parts += ((middle, high), (low, middle))
    return flat.from_starts_and_ends(starts, ends)


def _mended(fd: int, scanned: array[int], end: int) -> array[int] | None:
    """*scanned*, what is in one's own page tables, with those parts walked in which the host holds more than that."""
    result = flat.empty()
    regions = [FileRange(0, end)]
    while regions:  # taken from the end, lowest first
        region = regions.pop()
        known = flat.intersect(scanned, *region)
        held = held_bytes(fd, *region)
        if held is None:
            return None
        if held == flat.total(known):
            _append(result, known)
        elif region.length <= _WALKED_BYTES:
            _append(result, seek_extents(fd, *region))
        else:
            regions += reversed(_cut(region))
    return result


def _cut(region: FileRange) -> Sequence[FileRange]:
    step = max(_WALKED_BYTES, -(-region.length // _FAN_OUT) // PAGE_SIZE * PAGE_SIZE)
    return [FileRange(low, min(low + step, region.end)) for low in range(region.start, region.end, step)]


def _append(extents: array[int], behind: array[int]) -> None:
    """Add extents that lie behind all others, and may touch the last one."""
    if extents and behind and extents[-1] == behind[0]:
        extents.pop()
        behind = behind[1:]
    extents.extend(behind)
