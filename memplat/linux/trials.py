"""Which interfaces of the kernel work here: each is tried, because a sandbox can forbid what the release promises."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from memplat.linux import files, memory, pagemap, punching, userfaultfd
from memplat.linux.system import PAGE_SIZE
from memplat.ranges import HUGE_PAGE_SIZE, FileRange

# <linux/kvm.h>
_KVM_GET_API_VERSION: Final = 0xAE00
_KVM_API: Final = 12


class Trial(NamedTuple):
    """What came of trying."""

    works: bool
    reason: str = ""
    """The host's words, where it does not."""


def _tried(attempt: Callable[[], bool]) -> Trial:
    try:
        return Trial(attempt())
    except OSError as reason:
        return Trial(False, os.strerror(reason.errno) if reason.errno else str(reason))


@contextlib.contextmanager
def _mapped_memfd(length: int) -> Iterator[tuple[int, int]]:
    """A memfd of *length* bytes and its address: mapped at a multiple of 2 MiB, nothing touched.

    :raises OSError: where not even that is allowed
    """
    fd = files.memfd("memplat-trial")
    try:
        os.ftruncate(fd, length)
        address = memory.reserve_address_space(length)
        try:
            memory.map_shared(address, length, fd, 0)
            yield fd, address
        finally:
            memory.unmap(address, length)
    finally:
        os.close(fd)


def pagemap_scan() -> Trial:
    """Ioctl PAGEMAP_SCAN. Documentation/admin-guide/mm/pagemap.rst, from Linux 6.7 on."""

    def attempt() -> bool:
        with _mapped_memfd(PAGE_SIZE) as (_, address):
            memory.copy_to(address, b"x")
            found = pagemap.pagemap_scan(address, 0, PAGE_SIZE)
            return found is not None and list(found) == [0, PAGE_SIZE]

    return _tried(attempt)


def cachestat() -> Trial:
    """cachestat(2), from Linux 6.5 on."""

    def attempt() -> bool:
        with _mapped_memfd(PAGE_SIZE) as (fd, address):
            memory.copy_to(address, b"x")
            found = files.cachestat(fd, 0, PAGE_SIZE)
            return found is not None and found.cache == 1

    return _tried(attempt)


def process_madvise() -> Trial:
    """process_madvise(2) of this process with MADV_REMOVE, from Linux 6.13 on."""

    def attempt() -> bool:
        with _mapped_memfd(2 * PAGE_SIZE) as (fd, address):
            memory.copy_to(address, b"x")
            batch = [FileRange(0, PAGE_SIZE), FileRange(PAGE_SIZE, 2 * PAGE_SIZE)]
            return punching.advise_removal(address, batch) == 2 * PAGE_SIZE and os.fstat(fd).st_blocks == 0

    return _tried(attempt)


def populate_write() -> Trial:
    """madvise(2), MADV_POPULATE_WRITE, from Linux 5.14 on."""

    def attempt() -> bool:
        with _mapped_memfd(PAGE_SIZE) as (fd, address):
            memory.populate_write(address, PAGE_SIZE)
            return os.fstat(fd).st_blocks > 0

    return _tried(attempt)


def collapse() -> Trial:
    """madvise(2), MADV_COLLAPSE of a memfd's 2 MiB, from Linux 6.1 on. Takes a huge page for a moment."""

    def attempt() -> bool:
        with _mapped_memfd(HUGE_PAGE_SIZE) as (_, address):
            memory.populate_write(address, HUGE_PAGE_SIZE)
            memory.madvise(address, HUGE_PAGE_SIZE, memory.MADV_COLLAPSE)
            return True

    return _tried(attempt)


def noexec_seal() -> Trial:
    """memfd_create(2), MFD_NOEXEC_SEAL, from Linux 6.3 on."""

    def attempt() -> bool:
        os.close(os.memfd_create("memplat-trial", files.MFD_CLOEXEC | files.MFD_NOEXEC_SEAL))
        return True

    return _tried(attempt)


def userfaultfd_minor() -> Trial:
    """userfaultfd(2) in user mode, with minor faults of hugetlb, from Linux 5.13 on."""
    return Trial(userfaultfd.is_available())


def kvm() -> Trial:
    """/dev/kvm, and KVM_GET_API_VERSION of it. Documentation/virt/kvm/api.rst: "Applications should refuse to run if
    KVM_GET_API_VERSION returns a value other than 12".
    """

    def attempt() -> bool:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(fd, _KVM_GET_API_VERSION) == _KVM_API
        finally:
            os.close(fd)

    return _tried(attempt)


def punches_holes(fd: int) -> Trial:
    """fallocate(2), FALLOC_FL_PUNCH_HOLE, on the file system of an empty file; EOPNOTSUPP: "The filesystem containing
    the file referred to by fd does not support this operation".
    """

    def attempt() -> bool:
        files.punch_hole(fd, 0, PAGE_SIZE)
        return True

    return _tried(attempt)


def reserves_blocks(fd: int) -> Trial:
    """fallocate(2) with mode 0, on the file system of an empty file, which is empty again afterwards. A full one has
    room for no page, and can still reserve in principle.
    """

    def attempt() -> bool:
        try:
            files.fallocate(fd, 0, 0, PAGE_SIZE)
        except OSError as reason:
            if reason.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        os.ftruncate(fd, 0)
        return True

    return _tried(attempt)
