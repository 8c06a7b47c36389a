"""The pool that huge pages come from: which one, what it has left, and what mends it."""

from __future__ import annotations

import os
from typing import Final

import attrs

from memplat.linux import filesystems, system
from memplat.ranges import KIB, format_size
from memplat.types import Availability

_PAGES: Final = "/sys/kernel/mm/hugepages"


@attrs.frozen
class Pool:
    """The pool of one page size, seen through a mount if there is one, which can have a limit of its own."""

    page_size: int
    mount: str | None = None

    def available(self) -> int:
        """Bytes that can still be reserved."""
        pool = system.huge_page_pools().get(self.page_size)
        free = 0 if pool is None else pool.available * self.page_size
        if self.mount is not None:
            limit = _mounted(self.mount)
            if limit.size:  # 0: the mount has no limit
                free = min(free, limit.available)
        return free

    def figures(self) -> str:
        """The pool in words."""
        pool = system.huge_page_pools().get(self.page_size)
        if pool is None:
            return f"the host has no huge pages of {format_size(self.page_size)}"
        text = (
            f"the pool has {pool.total} pages of {format_size(self.page_size)}, {pool.free} free, "
            f"{pool.reserved} of these reserved"
        )
        if pool.overcommit:
            text += f", and may grow by {max(0, pool.overcommit - pool.surplus)}"
        if self.mount is not None and (limit := _mounted(self.mount)).size:
            text += f"; the mount {self.mount} has {format_size(limit.available)} of {format_size(limit.size)} left"
        return text

    def shortage(self, nbytes: int) -> str:
        """Why *nbytes* more cannot be had, and what would help."""
        pages = -(-nbytes // self.page_size)
        return f"{pages} huge pages wanted: {self.figures()}; remedy: {self.remedy(pages)}"

    def remedy(self, pages: int) -> str:
        """The command that makes the pool large enough for *pages* more."""
        pool = system.huge_page_pools().get(self.page_size)
        total = pages if pool is None else pool.total + max(pages - pool.available, 0)
        if self.page_size == system.default_huge_page_size():
            return f"sysctl vm.nr_hugepages={total}"
        return f"echo {total} > {_PAGES}/hugepages-{self.page_size // KIB}kB/nr_hugepages"


def _mounted(mount: str) -> filesystems.FileSystem:
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return filesystems.file_system(fd)
    finally:
        os.close(fd)


def find_pool(page_size: int | None, mount: str | None) -> Pool | Availability:
    """The pool that the options mean, or why there is none."""
    pools = system.huge_page_pools()
    if not pools:
        return Availability(
            False, "the kernel has no huge pages (CONFIG_HUGETLBFS)", "another kernel, or backend memfd"
        )
    if mount is not None:
        return _pool_of_mount(page_size, mount)
    size = page_size or system.default_huge_page_size() or next(iter(pools))
    if size not in pools:
        known = ", ".join(format_size(known) for known in pools)
        return Availability(
            False, f"the host has no huge pages of {format_size(size)}: it has {known}", f"page_size = one of {known}"
        )
    return Pool(size)


def _pool_of_mount(page_size: int | None, mount: str) -> Pool | Availability:
    remedy = f"mount -t hugetlbfs -o pagesize=2M none {mount}"
    try:
        file_system = _mounted(mount)
    except OSError as reason:
        return Availability(False, f"{mount}: {reason.strerror}", f"mkdir -p {mount} && {remedy}")
    if file_system.magic != filesystems.HUGETLBFS_MAGIC:
        return Availability(False, f"{mount} is not on a hugetlbfs mount", remedy)
    if not os.access(mount, os.W_OK | os.X_OK):
        return Availability(False, f"{mount} is not writable for this user", "mount it with the options uid= and mode=")
    size = file_system.block_size
    if page_size not in (None, size):
        return Availability(
            False,
            f"{mount} has pages of {format_size(size)}, not of {format_size(page_size)}",
            f"page_size = {format_size(size)}, or another mount",
        )
    return Pool(size, mount)
