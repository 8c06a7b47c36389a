"""Address space: reserving it, mapping a file over it, advising and populating it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Final

from memplat import _core
from memplat.linux import _libc
from memplat.ranges import HUGE_PAGE_SIZE, MIB, align_up

# <asm-generic/mman-common.h>, <asm-generic/mman.h>; the same numbers on x86-64, arm64 and riscv64.
PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
MAP_SHARED: Final = 0x01
MAP_PRIVATE: Final = 0x02
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_NORESERVE: Final = 0x4000
MAP_FIXED_NOREPLACE: Final = 0x100000

MADV_NORMAL: Final = 0
MADV_RANDOM: Final = 1
MADV_SEQUENTIAL: Final = 2
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_REMOVE: Final = 9
MADV_DONTFORK: Final = 10
MADV_DOFORK: Final = 11
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_DONTDUMP: Final = 16
MADV_DODUMP: Final = 17
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_COLLAPSE: Final = 25

_MLOCK_ONFAULT: Final = 1
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
#: A populating call that a signal interrupts begins again: at 32 MiB (20 ms) no timer can keep it from getting on.
_POPULATE_STEP: Final = 32 * MIB
_POPULATE_CALL: Final = "madvise(MADV_POPULATE_WRITE)"
_LENGTHS: Final = 1 << 63  # ctypes cuts a size_t off at 64 bits without a word: what was reserved would be shorter
_PYBUF_WRITE: Final = 0x200  # <cpython/memoryobject.h>

_pointer = ctypes.c_void_p
_size = ctypes.c_size_t
_mmap = _libc.function(
    _libc.RELEASED, "mmap", _pointer, (_pointer, _size, ctypes.c_int, ctypes.c_int, ctypes.c_int, _libc.LONG)
)
_munmap = _libc.function(_libc.RELEASED, "munmap", ctypes.c_int, (_pointer, _size))
_mprotect = _libc.function(_libc.RELEASED, "mprotect", ctypes.c_int, (_pointer, _size, ctypes.c_int))
_madvise = _libc.function(_libc.RELEASED, "madvise", ctypes.c_int, (_pointer, _size, ctypes.c_int))
_mlock = _libc.function(_libc.RELEASED, "mlock", ctypes.c_int, (_pointer, _size))
_mlock2 = _libc.function(_libc.RELEASED, "mlock2", ctypes.c_int, (_pointer, _size, ctypes.c_uint))
_memset = _libc.function(_libc.RELEASED, "memset", _pointer, (_pointer, ctypes.c_int, _size))
_from_memory = ctypes.PYFUNCTYPE(ctypes.py_object, _pointer, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


def _map(address: int | None, length: int, protection: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """mmap(2) itself. A new mapping's address; OSError with the call's errno."""
    result = _mmap(address, length, protection, flags, fd, offset)
    if result is None or result == _MAP_FAILED:
        raise _libc.error("mmap")
    return int(result)


def reserve_address_space(length: int, alignment: int = HUGE_PAGE_SIZE) -> int:
    """Reserve *length* bytes of address space that nothing is behind, and return its address.

    mmap(2): PROT_NONE "Pages may not be accessed"; MAP_NORESERVE "Do not reserve swap space for this mapping". Costs no
    memory. A multiple of *alignment*, a power of two: transparent huge pages need address and offset to be congruent
    modulo 2 MiB, and MAP_FIXED of hugetlb pages needs a multiple of their size.

    :raises OSError: ENOMEM if the address space, RLIMIT_AS or the number of mappings does not allow it; EINVAL if the
        length is not positive
    """
    if not 0 < length < _LENGTHS:
        code = errno.ENOMEM if length > 0 else errno.EINVAL
        raise OSError(code, f"mmap of {length} bytes: {os.strerror(code)}")
    size = align_up(length, alignment)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    found = _map(None, size + alignment, PROT_NONE, flags)
    address = align_up(found, alignment)
    if address > found:
        unmap(found, address - found)
    tail = found + size + alignment - (address + length)
    if tail:
        unmap(address + length, tail)
    return address


def map_shared(address: int, length: int, fd: int, offset: int, *, writable: bool = True) -> None:
    """Map ``[offset, offset + length)`` of the file at *address*, over a reservation or over an earlier mapping.

    mmap(2): MAP_FIXED "If the memory region specified by addr and length overlaps pages of any existing mapping(s),
    then the overlapped part of the existing mapping(s) will be discarded". It is mapped PROT_NONE first and then
    mprotect(2)ed: a hugetlb file *grows* to the length of a mapping that is writable from the start. After an error the
    part is reserved address space again.

    :raises OSError: ENOMEM, EACCES, EPERM (a sealed file), EINVAL (alignment)
    """
    reservation = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    try:
        _map(address, length, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, offset)
    except OSError:
        # Older kernels leave a hole, which another thread's mapping may have filled by now: never replace that.
        _mmap(address, length, PROT_NONE, reservation | MAP_FIXED_NOREPLACE, -1, 0)
        raise
    try:
        protect(address, length, PROT_READ | PROT_WRITE if writable else PROT_READ)
    except OSError:
        _map(address, length, PROT_NONE, reservation | MAP_FIXED)
        raise


def map_over(address: int, length: int, fd: int, offset: int, protection: int) -> None:
    """Map ``[offset, offset + length)`` of the file, shared, over what is mapped at *address*: which has to be the
    caller's own. As :func:`map_shared`; after an error, what was there may be reserved address space.

    :raises OSError: ENOMEM, EACCES, EPERM, EINVAL (alignment)
    """
    map_shared(address, length, fd, offset)
    if protection != PROT_READ | PROT_WRITE:
        protect(address, length, protection)


def reserve_over(address: int, length: int) -> None:
    """Turn the caller's own mappings at *address* into reserved address space that nothing is behind. mmap(2)."""
    _map(address, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED)


def map_anywhere(length: int, fd: int, offset: int, protection: int, flags: int) -> int:
    """Map a part of the file where the kernel likes, and return the address. mmap(2).

    :raises OSError: the call's errno
    """
    return _map(None, length, protection, flags, fd, offset)


def unmap(address: int, length: int) -> None:
    """Give address space back. munmap(2): "further references to addresses within the range [...] generate invalid
    memory references".

    :raises OSError: EINVAL (alignment), ENOMEM (it would split a mapping and there are too many)
    """
    if _munmap(address, length):
        raise _libc.error("munmap")


def protect(address: int, length: int, protection: int) -> None:
    """Change what may be done with mapped pages. mprotect(2).

    :raises OSError: EACCES, EINVAL, ENOMEM
    """
    if _mprotect(address, length, protection):
        raise _libc.error("mprotect")


def madvise(address: int, length: int, advice: int) -> None:
    """Give *advice* about mapped pages. madvise(2). Interrupted calls are repeated.

    :raises OSError: EINVAL (the kernel does not know the advice, or not for this mapping), ENOMEM (not mapped), EAGAIN
    """
    while _madvise(address, length, advice):
        if _libc.last_errno() != errno.EINTR:
            raise _libc.error("madvise")


def populate_write(address: int, length: int) -> None:
    """Make pages present and writable, as if each had been written to, but with an error instead of a signal.

    madvise(2): MADV_POPULATE_WRITE "Populate (prefault) page tables writable, faulting-in all pages in the range just
    as if manually writing to each page". Content is kept. After an error a part may be populated.

    :raises OSError: EFAULT if the host cannot supply a page; EHWPOISON; EINVAL before Linux 5.14; ENOMEM if not mapped
    """
    if _core.BATCHING is not None:
        code = _core.BATCHING.populate(address, length)
        if code:
            raise _libc.error_of(_POPULATE_CALL, code)
        return
    if length <= _POPULATE_STEP and not _madvise(address, length, MADV_POPULATE_WRITE):
        return
    end = address + length
    while address < end:
        step = min(_POPULATE_STEP, end - address)
        while _madvise(address, step, MADV_POPULATE_WRITE):
            if _libc.last_errno() not in (errno.EINTR, errno.EAGAIN):
                raise _libc.error(_POPULATE_CALL)
        address += step


def lock(address: int, length: int) -> None:
    """Keep pages in RAM. mlock(2): "All pages that contain a part of the specified address range are guaranteed to be
    resident in RAM when the call returns successfully". It commits them. A locked mapping refuses MADV_REMOVE.

    :raises OSError: ENOMEM or EPERM, by RLIMIT_MEMLOCK
    """
    if _mlock(address, length):
        raise _libc.error("mlock")


def lock_on_fault(address: int, length: int) -> None:
    """Keep pages in RAM from when they are touched. mlock2(2), MLOCK_ONFAULT: "Lock pages that are currently resident
    and mark the entire range so that the remaining nonresident pages are locked when they are populated by a page
    fault". Commits nothing. The whole range counts against RLIMIT_MEMLOCK. A locked mapping refuses MADV_REMOVE.

    :raises OSError: ENOMEM or EPERM, by RLIMIT_MEMLOCK
    """
    if _mlock2(address, length, _MLOCK_ONFAULT):
        raise _libc.error("mlock2")


def zero(address: int, length: int) -> None:
    """Set memory to zero, with the GIL released. Commits what is uncommitted; SIGBUS if the host cannot supply it."""
    _memset(address, 0, length)


def zero_present(address: int, extents: Sequence[int], owner: int = -1) -> None:
    """Zero parts of a mapping, which are made present first: an error instead of a signal. Pages that are in RAM anyway
    need not be made present, if that can be found out for less: with the compiled core, by mincore(2).

    :param extents: distances from *address*: start, end, start, end, …
    :param owner: if the file is shmem, the user who owns it: to others mincore(2) says that everything is in RAM. -1:
        it is not, or nobody knows
    :raises OSError: as :func:`populate_write`; the parts before are zero, then
    """
    if _core.BATCHING is not None:
        code = _core.BATCHING.zero(address, extents, owner)
        if code:
            raise _libc.error_of(_POPULATE_CALL, code)
        return
    for place in range(0, len(extents), 2):
        start, length = address + extents[place], extents[place + 1] - extents[place]
        populate_write(start, length)
        _memset(start, 0, length)


def copy_from(address: int, length: int) -> bytes:
    """The *length* bytes at *address*."""
    return ctypes.string_at(address, length)


def copy_to(address: int, data: bytes | bytearray | memoryview) -> None:
    """Copy *data* to *address*."""
    with memoryview(data) as view, view.cast("B") as source:
        if source.nbytes:
            _from_memory(address, source.nbytes, _PYBUF_WRITE)[:] = source


def ima_workaround(fd: int, page_size: int) -> bool:
    """Map one page PROT_EXEC and unmap it again; whether that was allowed. Never raises.

    Where the Integrity Measurement Architecture is on, the kernel checksums a whole file when it is first mapped
    executable. Done while the file is small, this is cheap; done later it reads a terabyte of holes.
    """
    try:
        address = _map(None, page_size, PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd, 0)
        unmap(address, page_size)
    except OSError:
        return False
    return True
