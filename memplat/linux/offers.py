"""What the host offers and what it limits, for people who set one up: read from /proc and /sys, never changed.

:mod:`memplat.linux.system` has what the engine and the backends need themselves.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Final, NamedTuple

from memplat.linux import system
from memplat.ranges import KIB

_PROC_VM: Final = Path("/proc/sys/vm")
_THP: Final = Path("/sys/kernel/mm/transparent_hugepage")
_COMMIT_FIGURES: Final = ("CommitLimit", "Committed_AS")


class TransparentHugePages(NamedTuple):
    """The settings, each in the kernel's own word; "" where there is none.
    Documentation/admin-guide/mm/transhuge.rst.
    """

    enabled: str
    """For anonymous memory: always, madvise, never. Says nothing about memfds."""
    shmem_enabled: str
    """For memfds and tmpfs: always, within_size, advise, never; deny and force override all sizes."""
    shmem_2m: str
    """The same for 2 MiB alone (Linux 6.11); "inherit" is the default of most kernels."""
    effective: str
    """What counts for a memfd."""


def transparent_huge_pages() -> TransparentHugePages:
    """/sys/kernel/mm/transparent_hugepage."""
    return TransparentHugePages(
        system.selected_in(_THP / "enabled"),
        system.selected_in(_THP / "shmem_enabled"),
        system.selected_in(_THP / "hugepages-2048kB" / "shmem_enabled"),
        system.shmem_huge_pages(),
    )


class Overcommit(NamedTuple):
    """proc_sys_vm(5), proc_meminfo(5); bytes."""

    mode: int | None
    """0: heuristic, 1: always, 2: never beyond *limit*."""
    limit: int | None
    """CommitLimit: counts in mode 2 only."""
    committed: int | None
    """Committed_AS: "an estimate of how much RAM/swap you would need"."""


def overcommit() -> Overcommit:
    """/proc/sys/vm/overcommit_memory: "This file contains the kernel virtual memory accounting mode"."""
    figures = dict(re.findall(r"^(\w+):\s+(\d+) kB$", system.text_of(Path("/proc/meminfo")), re.MULTILINE))
    limit, committed = (int(figures[name]) * KIB if name in figures else None for name in _COMMIT_FIGURES)
    return Overcommit(system.number_in(_PROC_VM / "overcommit_memory"), limit, committed)


class Swap(NamedTuple):
    """A swap area; bytes. proc_swaps(5)."""

    path: str
    size: int
    used: int


def swaps() -> list[Swap]:
    """/proc/swaps: "Swap areas in use"."""
    lines = [line.split() for line in system.text_of(Path("/proc/swaps")).splitlines()[1:]]
    return [Swap(fields[0], int(fields[2]) * KIB, int(fields[3]) * KIB) for fields in lines if len(fields) > 3]


def memfd_noexec() -> int | None:
    """The sysctl vm.memfd_noexec; memfd_create(2): 2 refuses memfds that are made without MFD_NOEXEC_SEAL. ``None``
    before Linux 6.3.
    """
    return system.number_in(_PROC_VM / "memfd_noexec")


def unprivileged_userfaultfd() -> int | None:
    """The sysctl vm.unprivileged_userfaultfd. userfaultfd(2): 0 leaves users only UFFD_USER_MODE_ONLY, which is all
    that memplat uses. ``None`` where the kernel has no userfaultfd.
    """
    return system.number_in(_PROC_VM / "unprivileged_userfaultfd")


def locked_memory_limit() -> int | None:
    """RLIMIT_MEMLOCK in bytes, or ``None``. getrlimit(2): "the maximum number of bytes of memory that may be locked
    into RAM"; those with CAP_IPC_LOCK are not bound by it.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def hugetlbfs_mounts() -> list[str]:
    """Where hugetlbfs is mounted. proc_pid_mounts(5); spaces in a path are escaped there."""
    try:
        text = Path("/proc/self/mounts").read_text(errors="replace")  # may be longer than one read(2) returns
    except OSError:
        return []
    lines = [line.split() for line in text.splitlines()]
    return [fields[1].replace(r"\040", " ") for fields in lines if len(fields) > 2 and fields[2] == "hugetlbfs"]
