"""Which pages of one's own mapping are there: PAGEMAP_SCAN, from Linux 6.7 on."""

from __future__ import annotations

import errno
import fcntl
import os
from array import array
from typing import Final

from memplat.linux.extents import empty, moved_pairs

# <linux/fs.h>
_PAGEMAP_SCAN: Final = 0xC0606610
_PAGE_IS_PRESENT: Final = 1 << 3
_PAGE_IS_SWAPPED: Final = 1 << 4
_ARGUMENT_WORDS: Final = 12
_REGION_WORDS: Final = 3
_REGION_BYTES: Final = 8 * _REGION_WORDS
_FIRST_REGIONS: Final = 512
_REGIONS: Final = 16384


def pagemap_scan(address: int, start: int, end: int) -> array[int] | None:
    """:func:`pagemap_sum`, without the sum."""
    found = pagemap_sum(address, start, end)
    return None if found is None else found[0]


def pagemap_sum(address: int, start: int, end: int) -> tuple[array[int], int] | None:
    """The pages of ``[start, end)`` that this process's mapping has in its page tables, as extents of file offsets, and
    their bytes.

    ioctl PAGEMAP_SCAN (Documentation/admin-guide/mm/pagemap.rst): "get or optionally clear the info about page table
    entries". It knows nothing of pages that only somebody else touched, and of shmem pages that are swapped out.

    :param address: where file offset 0 stands in this process
    :return: ``None`` where the kernel or the sandbox does not allow it
    :raises OSError: EFAULT and the like, for a mapping that is none
    """
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)  # of this mm: not to be kept over a fork
    except OSError:
        return None
    try:
        return _scan(fd, address, start, end)
    except OSError as reason:
        if reason.errno in (errno.ENOTTY, errno.EPERM, errno.ENOSYS):
            return None
        raise
    finally:
        os.close(fd)


def _scan(fd: int, address: int, start: int, end: int) -> tuple[array[int], int]:
    starts, ends = empty(), empty()
    position, limit = address + start, address + end
    regions = array("q", bytes(_REGION_BYTES * _FIRST_REGIONS))
    while position < limit:
        walked, count = _scan_once(fd, position, limit, regions)
        if not count:
            break
        if ends and ends[-1] == regions[0]:  # only here can two regions touch: within a call the kernel joins them
            ends.pop()
            starts += regions[_REGION_WORDS : count * _REGION_WORDS : _REGION_WORDS]
        else:
            starts += regions[0 : count * _REGION_WORDS : _REGION_WORDS]
        ends += regions[1 : count * _REGION_WORDS : _REGION_WORDS]
        # walk_end can lie below the end of the last region, which would then be reported again.
        position = max(walked, ends[-1])
        if position < limit and len(regions) < _REGIONS * _REGION_WORDS:
            regions = array("q", bytes(_REGION_BYTES * _REGIONS))
    return moved_pairs(starts, ends, -address)


def _scan_once(fd: int, start: int, end: int, regions: array[int]) -> tuple[int, int]:
    """One ioctl: the address up to which it walked, and how many regions it stored (struct pm_scan_arg)."""
    argument = array("Q", bytes(8 * _ARGUMENT_WORDS))
    argument[0] = 8 * _ARGUMENT_WORDS
    argument[2], argument[3] = start, end
    argument[5], argument[6] = regions.buffer_info()[0], len(regions) // _REGION_WORDS
    argument[10] = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED
    while True:
        try:
            count = fcntl.ioctl(fd, _PAGEMAP_SCAN, argument, True)
        except InterruptedError:
            continue
        return argument[4], count
