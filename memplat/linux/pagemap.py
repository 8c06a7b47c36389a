"""Which pages of one's own mapping are there: PAGEMAP_SCAN, from Linux 6.7 on."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable
from typing import Final

from memplat import _core
from memplat.linux import _libc
from memplat.linux.extents import empty, moved_pairs
from memplat.linux.files import storage_held

_PAGEMAP: Final = b"/proc/self/pagemap"

# <linux/fs.h>
_PAGEMAP_SCAN: Final = 0xC0606610
_PAGE_IS_PRESENT: Final = 1 << 3
_PAGE_IS_SWAPPED: Final = 1 << 4
_ARGUMENT_WORDS: Final = 12
_REGION_WORDS: Final = 3
_REGION_BYTES: Final = 8 * _REGION_WORDS
_FIRST_REGIONS: Final = 512
_REGIONS: Final = 16384
#: The kernel has no such call, or a sandbox does not allow it.
_REFUSALS: Final = (errno.ENOTTY, errno.EPERM, errno.ENOSYS)


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
    with _opened_pagemap() as pagemap:
        return _scan(pagemap.value, address, start, end, held=False)


def pagemap_present(address: int, start: int, end: int) -> array[int] | None:
    """As :func:`pagemap_scan`, without what the page tables only have a mark of; the GIL is kept.

    "Swapped" is a page of shmem, too, that was never touched, if writes to it are watched (userfaultfd(2)).
    """
    with _opened_pagemap() as pagemap:
        found = _scan(pagemap.value, address, start, end, held=True, categories=_PAGE_IS_PRESENT)
    return None if found is None else found[0]


def pagemap_proof(fd: int, address: int, size: int) -> tuple[array[int], int] | None:
    """As :func:`pagemap_sum`, of a whole file of shmem, if what is found is proven to be all: it adds up to what the
    host spends on the file, before and after. The GIL is kept all the time, so that no Python thread touches pages in
    between.

    :return: ``None``, too, where that is not so
    """
    with _opened_pagemap() as pagemap:
        storage = storage_held(fd)
        found = _scan(pagemap.value, address, 0, size, held=True)
        return found if found is not None and found[1] == storage == storage_held(fd) else None


def _opened_pagemap() -> _libc.Descriptor:
    """The page tables of this mm: not to be kept over a fork."""
    return _libc.open_held(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)


def _scan(
    fd: int, address: int, start: int, end: int, *, held: bool, categories: int = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED
) -> tuple[array[int], int] | None:
    if fd < 0:
        return None
    if _core.PROBING is not None:
        found: tuple[array[int], int] | int = _core.PROBING.pagemap(fd, address, start, end, held, categories)
        if not isinstance(found, int):
            return found
        if found in _REFUSALS:
            return None
        raise OSError(found, f"ioctl(PAGEMAP_SCAN): {os.strerror(found)}")
    ioctl = _libc.ioctl_held if held else _libc.ioctl_released
    starts, ends = empty(), empty()
    position, limit = address + start, address + end
    regions = array("q", bytes(_REGION_BYTES * _FIRST_REGIONS))
    while position < limit:
        walked, count = _scan_once(fd, position, limit, regions, categories, ioctl)
        if count < 0:
            return None
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


def _scan_once(
    fd: int, start: int, end: int, regions: array[int], categories: int, ioctl: Callable[..., int]
) -> tuple[int, int]:
    """One ioctl: the address up to which it walked, and how many regions it stored (struct pm_scan_arg); -1 where it is
    not allowed.
    """
    argument = array("Q", bytes(8 * _ARGUMENT_WORDS))
    argument[0] = 8 * _ARGUMENT_WORDS
    argument[2], argument[3] = start, end
    argument[5], argument[6] = regions.buffer_info()[0], len(regions) // _REGION_WORDS
    argument[10] = categories
    where, _ = argument.buffer_info()
    while (count := ioctl(fd, _PAGEMAP_SCAN, where)) < 0:
        code = _libc.last_errno()
        if code in _REFUSALS:
            return 0, -1
        if code != errno.EINTR:
            raise _libc.error("ioctl(PAGEMAP_SCAN)")
    return argument[4], count
