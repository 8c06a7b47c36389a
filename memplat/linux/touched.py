"""Which pages of a part of a shmem file were touched, if they are few."""

from __future__ import annotations

import ctypes
import errno
import os
from array import array

from memplat.linux import _libc
from memplat.linux.system import PAGE_SIZE

_lseek = _libc.function(_libc.HELD, "lseek", _libc.LONG, (ctypes.c_int, _libc.LONG, ctypes.c_int))


def few_touched(fd: int, start: int, end: int, most: int) -> array[int] | None:
    """The touched pages of ``[start, end)``, as extents, whoever touched them and wherever they are; ``None`` if there
    are more than *most* of them, or the host does not tell. Pages that were allocated (fallocate) and not touched are
    left out. The offset of *fd*, which nobody else may use, is put back.

    lseek(2): SEEK_DATA finds "the next location in the file greater than or equal to offset containing data". It is
    asked page by page, because SEEK_HOLE goes through all of the data. What has data at its front and in its middle is
    not worth asking on.
    """
    offset = _lseek(fd, 0, os.SEEK_CUR)
    try:
        return _walk(fd, start, end, most)
    finally:
        _lseek(fd, offset, os.SEEK_SET)


def _walk(fd: int, start: int, end: int, most: int) -> array[int] | None:
    middle = start + (end - start) // 2 // PAGE_SIZE * PAGE_SIZE
    found = array("q")
    position, touched = start, 0
    while position < end:
        data = _lseek(fd, position, os.SEEK_DATA)
        if data >= end or (data < 0 and _libc.last_errno() == errno.ENXIO):
            break
        if data < position or touched == most or (data == start < middle == _lseek(fd, middle, os.SEEK_DATA)):
            return None
        data = data // PAGE_SIZE * PAGE_SIZE
        position, touched = data + PAGE_SIZE, touched + 1
        if found and found[-1] == data:
            found[-1] = position
        else:
            found.extend((data, position))
    return found
