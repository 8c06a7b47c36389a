"""Which huge pages of a hugetlb file exist, whoever touched them: userfaultfd(2) in minor mode, from Linux 5.13 on.

Nothing else tells: SEEK_DATA calls the whole file data, cachestat(2) and FIEMAP do not work, and one's own page tables
know only what one touched oneself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
from array import array
from typing import Final

from memplat.linux import _libc, memory
from memplat.linux.extents import empty

#: <asm/unistd.h>; the second one is that of all architectures that use the generic table.
_SYS_USERFAULTFD: Final = {"x86_64": 323}.get(platform.machine(), 282)

# <linux/userfaultfd.h>
_USER_MODE_ONLY: Final = 1
_API: Final = 0xAA
_FEATURE_MINOR_HUGETLBFS: Final = 1 << 9
_REGISTER_MODE_MINOR: Final = 1 << 2
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_CONTINUE: Final = 0xC020AA07

_userfaultfd = _libc.function(_libc.RELEASED, "syscall", _libc.LONG, (ctypes.c_long, ctypes.c_long))


def existing_huge_pages(fd: int, start: int, end: int, page_size: int, at_most: int) -> array[int] | None:
    """The huge pages of ``[start, end)`` that exist, as extents. Touches and allocates none.

    A throwaway window over the file is registered for minor faults, and UFFDIO_CONTINUE is asked to map the pages into
    it. ioctl_userfaultfd(2): "UFFDIO_CONTINUE [...] Resolve a minor page fault by installing page table entries for
    existing pages in the page cache"; EFAULT "No existing page could be found in the page cache for the given range".

    :param fd: open for reading and writing
    :param at_most: bytes after which there cannot be any more (``st_blocks``): the search stops there
    :return: ``None`` where the kernel or the sandbox does not allow it, or *fd* is not writable
    :raises OSError: ENOMEM
    """
    uffd = _open()
    if uffd is None:
        return None
    try:
        window = memory.map_anywhere(end - start, fd, start, memory.PROT_NONE, memory.MAP_SHARED | memory.MAP_NORESERVE)
        try:
            if not _register(uffd, window, end - start):
                return None
            return _walk(uffd, window - start, start, end, page_size, at_most)
        finally:
            memory.unmap(window, end - start)
    finally:
        os.close(uffd)


def _open() -> int | None:
    """A descriptor that may serve minor faults of hugetlb; works without privilege, for no fault is ever waited for."""
    uffd = int(_userfaultfd(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY))
    if uffd < 0:
        return None
    request = array("Q", (_API, _FEATURE_MINOR_HUGETLBFS, 0))
    if _libc.ioctl_released(uffd, _UFFDIO_API, request.buffer_info()[0]):
        os.close(uffd)
        return None
    return uffd


def _register(uffd: int, address: int, length: int) -> bool:
    request = array("Q", (address, length, _REGISTER_MODE_MINOR, 0))
    if _libc.ioctl_released(uffd, _UFFDIO_REGISTER, request.buffer_info()[0]):
        if _libc.last_errno() in (errno.EINVAL, errno.EPERM):
            return False
        raise _libc.error("ioctl(UFFDIO_REGISTER)")
    return True


def _walk(uffd: int, zero: int, start: int, end: int, page_size: int, at_most: int) -> array[int]:
    """Ask from hole to hole; *zero* is where offset 0 would stand."""
    found = empty()
    request = array("q", (0, 0, 0, 0))
    where = request.buffer_info()[0]
    position, missing = start, at_most
    while position < end and missing > 0:
        request[0], request[1] = zero + position, end - position
        # Held: an ioctl a hole is too short a work to hand the GIL over for.
        failed = _libc.ioctl_held(uffd, _UFFDIO_CONTINUE, where)
        code = _libc.last_errno() if failed else 0
        if code not in (0, errno.EAGAIN, errno.EFAULT, errno.EEXIST):
            raise _libc.error("ioctl(UFFDIO_CONTINUE)")
        there = end - position if not code else max(request[3], 0) if code == errno.EAGAIN else 0
        if code == errno.EEXIST:  # mapped before, by an interrupted call
            there = page_size
        if there:
            _add(found, position, position + there)
            missing -= there
            position += there
        if code == errno.EFAULT:
            position += page_size
    return found


def _add(found: array[int], start: int, end: int) -> None:
    if found and found[-1] == start:
        found[-1] = end
    else:
        found.extend((start, end))


def is_available() -> bool:
    """Whether the kernel and the sandbox allow minor faults of hugetlb to be asked about."""
    uffd = _open()
    if uffd is None:
        return False
    with contextlib.suppress(OSError):
        os.close(uffd)
    return True
