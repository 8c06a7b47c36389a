"""What the host is like: sizes, limits, huge pages, and what the kernel can do. Read from /proc and /sys, never
changed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
from pathlib import Path
from typing import Final, NamedTuple

from memplat.ranges import KIB

PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")

_HUGE_PAGES: Final = Path("/sys/kernel/mm/hugepages")
_THP: Final = Path("/sys/kernel/mm/transparent_hugepage")
_CGROUPS: Final = Path("/sys/fs/cgroup")
#: cgroup v1 writes its "no limit" as the greatest multiple of the page below 2**63.
_NO_LIMIT: Final = 1 << 62
_TEXT_BYTES: Final = 1 << 16


class HostMemory(NamedTuple):
    """Bytes. proc_meminfo(5)."""

    ram: int
    available: int
    swap: int
    swap_free: int


def host_memory() -> HostMemory:
    """RAM and swap of the host. proc_meminfo(5): MemTotal, MemAvailable, SwapTotal, SwapFree."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text_of(Path("/proc/meminfo")), re.MULTILINE))
    ram = os.sysconf("SC_PHYS_PAGES") * PAGE_SIZE  # also where /proc is not mounted

    def value(name: str, default: int = 0) -> int:
        return int(fields[name]) * KIB if name in fields else default

    return HostMemory(value("MemTotal", ram), value("MemAvailable"), value("SwapTotal"), value("SwapFree"))


class HugePagePool(NamedTuple):
    """The pool of one huge page size; numbers of pages. Documentation/admin-guide/mm/hugetlbpage.rst."""

    page_size: int
    total: int
    free: int
    reserved: int
    """Promised to mappings and files, not yet taken from *free*."""
    surplus: int
    overcommit: int
    """How many pages the kernel may add on demand (nr_overcommit_hugepages)."""

    @property
    def available(self) -> int:
        """Pages that can still be reserved: free and not promised, or to be added on demand."""
        return self.free - self.reserved + max(0, self.overcommit - self.surplus)


def huge_page_pools() -> dict[int, HugePagePool]:
    """The pools by page size in bytes, smallest first; empty where the kernel has no hugetlb.
    /sys/kernel/mm/hugepages.
    """
    pools = []
    for directory in _HUGE_PAGES.glob("hugepages-*kB"):
        size = int(directory.name.removeprefix("hugepages-").removesuffix("kB")) * KIB
        names = ("nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages", "nr_overcommit_hugepages")
        with contextlib.suppress(ValueError):
            pools.append(HugePagePool(size, *(int(text_of(directory / name)) for name in names)))
    return {pool.page_size: pool for pool in sorted(pools)}


def default_huge_page_size() -> int | None:
    """The size that MFD_HUGETLB without a size means, in bytes. proc_meminfo(5): Hugepagesize."""
    match = re.search(r"^Hugepagesize:\s+(\d+) kB$", text_of(Path("/proc/meminfo")), re.MULTILINE)
    return int(match[1]) * KIB if match else None


def shmem_huge_pages() -> str:
    """When the kernel takes transparent huge pages for memfds: always, within_size, advise, never, deny, force; ""
    unknown.

    Documentation/admin-guide/mm/transhuge.rst: "/sys/kernel/mm/transparent_hugepage/shmem_enabled". The setting for 2
    MiB pages (hugepages-2048kB/shmem_enabled, Linux 6.11) overrides it unless it is "inherit"; deny and force override
    both.
    """
    everywhere = selected_in(_THP / "shmem_enabled")
    this_size = selected_in(_THP / "hugepages-2048kB" / "shmem_enabled")
    return everywhere if everywhere in ("deny", "force") or this_size in ("", "inherit") else this_size


def selected_in(path: Path) -> str:
    """The word in brackets: how /sys shows which of several settings is on."""
    match = re.search(r"\[(\w+)\]", text_of(path))
    return match[1] if match else ""


def address_space_limit() -> int | None:
    """RLIMIT_AS in bytes, or ``None``. getrlimit(2): "The maximum size of the process's virtual memory"."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def kernel_release() -> tuple[int, int]:
    """Major and minor number of the running kernel. uname(2)."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def kernel_features() -> dict[str, bool]:
    """Which interfaces the kernel has, by its release: what a sandbox forbids on top shows when they are used."""
    release = kernel_release()
    since = {
        "memfd_noexec_seal": (6, 3),
        "cachestat": (6, 5),
        "pagemap_scan": (6, 7),
        "populate_write": (5, 14),
        "collapse": (6, 1),
        "process_madvise_remove": (6, 13),
        "userfaultfd_minor_hugetlb": (5, 13),
    }
    return {name: release >= first for name, first in since.items()}


def commit_headroom() -> int | None:
    """How many bytes this process can still commit before the host or a memory cgroup begins to kill, or ``None`` if
    nobody knows. Best effort: others commit memory meanwhile.
    """
    host = host_memory()
    rooms = [host.available + host.swap_free] if host.available else []
    cgroup = read_cgroup_headroom()
    return min(rooms if cgroup is None else [*rooms, cgroup], default=None)


# ---- memory cgroups --------------------------------------------------------------------------------------------------


def read_cgroup_headroom() -> int | None:
    """How many bytes this process can still commit before a memory cgroup's limit kills it; ``None`` without a limit.

    Best effort: the least over all levels of limit less usage, and what the kernel would drop (page cache of files) or
    swap out first is added. cgroups(7); Documentation/admin-guide/cgroup-v2.rst: memory.max "memory usage hard limit.
    [...] If a cgroup's memory usage reaches this limit and can't be reduced, the OOM killer is invoked".
    """
    rooms = [room for directory in _memory_cgroups() if (room := _headroom(directory)) is not None]
    return min(rooms, default=None)


def _memory_cgroups() -> tuple[Path, ...]:
    """The directories of this process's memory cgroup and of its ancestors, v1 or v2. proc_pid_cgroup(5)."""
    return _cgroup_directories(text_of(Path("/proc/self/cgroup")), _CGROUPS)


@functools.lru_cache(maxsize=4)
def _cgroup_directories(membership: str, mount: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for line in membership.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            roots = [mount, mount / "unified"]
        elif "memory" in controllers.split(","):
            roots = [mount / "memory"]
        else:
            continue
        for root in roots:
            leaf = root / path.lstrip("/")
            found += [place for place in (leaf, *leaf.parents) if place == root or root in place.parents]
    return tuple(place for place in found if place.is_dir())


class CgroupMemory(NamedTuple):
    """The memory figures of one cgroup; bytes. ``None``: no limit, or not told."""

    directory: Path
    limit: int | None
    """memory.max (v1: memory.limit_in_bytes): beyond it the OOM killer is invoked."""
    used: int | None
    """memory.current (v1: memory.usage_in_bytes), page cache included."""
    swap_limit: int | None
    """memory.swap.max; v1 limits memory and swap together."""


def memory_cgroups() -> list[CgroupMemory]:
    """This process's memory cgroup and its ancestors, from the inside out, v1 or v2, as far as they are mounted."""
    found = []
    for directory in _memory_cgroups():
        limit = number_in(directory / "memory.max", directory / "memory.limit_in_bytes")
        used = number_in(directory / "memory.current", directory / "memory.usage_in_bytes")
        if limit is not None or used is not None:
            bounded = None if limit is None or limit >= _NO_LIMIT else limit
            found.append(CgroupMemory(directory, bounded, used, number_in(directory / "memory.swap.max")))
    return found


def _headroom(cgroup: Path) -> int | None:
    limit = number_in(cgroup / "memory.max", cgroup / "memory.limit_in_bytes")
    if limit is None or limit >= _NO_LIMIT:
        return None
    used = number_in(cgroup / "memory.current", cgroup / "memory.usage_in_bytes")
    if used is None:
        return None
    statistics: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", text_of(cgroup / "memory.stat"), re.MULTILINE))
    droppable = sum(
        int(statistics.get("total_" + name, statistics.get(name, "0"))) for name in ("inactive_file", "active_file")
    )
    return max(0, limit - used) + droppable + _swap_room(cgroup)


def _swap_room(cgroup: Path) -> int:
    free = host_memory().swap_free
    limit, used = number_in(cgroup / "memory.swap.max"), number_in(cgroup / "memory.swap.current")
    if limit is not None and used is not None:
        return min(free, max(0, limit - used))
    both, of_both = number_in(cgroup / "memory.memsw.limit_in_bytes"), number_in(cgroup / "memory.memsw.usage_in_bytes")
    return free if both is None or of_both is None else min(free, max(0, both - of_both))


def number_in(*paths: Path) -> int | None:
    """The number in the first of the files that has one."""
    for path in paths:
        text = text_of(path).strip()
        if text.isdigit():
            return int(text)
    return None


def text_of(path: Path) -> str:
    """The file's content, or "" where there is none to be read. Those of /proc and /sys come in one piece."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _TEXT_BYTES).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
