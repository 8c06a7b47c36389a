"""Where the pages of a file come to lie, and that they stay there: the options ``numa`` and ``lock``.

Both belong to a mapping, and are applied to each part of it when it is mapped. What the host would ignore is not done,
and said in :attr:`Placement.notes`.
"""

from __future__ import annotations

import errno
import logging
import resource
from pathlib import Path
from typing import Final

from memplat.linux import filesystems, numa
from memplat.linux import memory as host
from memplat.linux.system import PAGE_SIZE
from memplat.ranges import align_down, format_size
from memplat.types import BackingFile, EngineOptions, Numa, NumaPolicy

log = logging.getLogger("memplat")

_CAP_IPC_LOCK: Final = 14  # <linux/capability.h>
_MODES: Final = {
    NumaPolicy.BIND: numa.MPOL_BIND,
    NumaPolicy.PREFERRED: numa.MPOL_PREFERRED_MANY,
    NumaPolicy.INTERLEAVE: numa.MPOL_INTERLEAVE,
    NumaPolicy.LOCAL: numa.MPOL_LOCAL,
}
_REMEDY: Final = "raise it (ulimit -l; systemd: LimitMEMLOCK=), grant CAP_IPC_LOCK, or leave the option lock out"


class Placement:
    """What one memory wants of the host for the pages of its mapping.

    :ivar notes: what is not effective here, and why
    """

    __slots__ = ("_lock", "_numa", "_page_size", "notes")

    def __init__(self, file: BackingFile, options: EngineOptions) -> None:
        self.notes: tuple[str, ...] = ()
        self._page_size = file.page_size
        self._numa = options.numa
        self._lock = options.lock
        if self._numa is not None and (why := why_ignored(file, self._numa)):
            self._note(f"numa is not effective: {why}")
            self._numa = None
        if self._lock and filesystems.file_system(file.fd).magic == filesystems.HUGETLBFS_MAGIC:
            self._lock = False  # mlock(2) does nothing there, because these pages are never swapped out

    def place(self, address: int, length: int) -> None:
        """Apply the options to a part of the mapping that is new.

        :raises OSError: ENOMEM if RLIMIT_MEMLOCK does not allow it; EINVAL for a node that has gone
        """
        if self._numa is not None:
            _bind(address, length, self._numa)
        if self._lock:
            try:
                host.lock_on_fault(address, length)
            except OSError as error:
                raise _refused(error.errno or errno.ENOMEM, length) from error

    def reach(self, size: int, needed: int, target: int) -> int:
        """How far a file of *size* bytes may grow, at least to *needed* and at most to *target*: what is mapped has to
        be locked, touched or not.

        :raises OSError: ENOMEM if RLIMIT_MEMLOCK does not allow what is needed
        """
        room = lockable() if self._lock else None
        if room is None:
            return target
        if size + room < needed:
            raise _refused(errno.ENOMEM, needed - size)
        return max(needed, min(target, size + align_down(room, self._page_size)))

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, text)
        log.warning("%s", text)


def refuse(wanted: Numa) -> str:
    """What is wrong with the nodes of *wanted* on this host, and which ones there are; empty if nothing is."""
    known = numa.nodes_with_memory()
    if known is None:
        return ""  # a kernel without NUMA: that is not effective, but no mistake
    there = f"the nodes with memory are {', '.join(map(str, known))}"
    if unknown := sorted(set(wanted.nodes) - set(known)):
        return f"the host has no memory on node {', '.join(map(str, unknown))}: {there}"
    address = host.reserve_address_space(PAGE_SIZE, PAGE_SIZE)
    try:
        _bind(address, PAGE_SIZE, wanted)
    except OSError as error:
        return "" if numa.is_missing(error) else f"the kernel refuses these nodes ({error}): {there}, cpusets aside"
    finally:
        host.unmap(address, PAGE_SIZE)
    return ""


def _bind(address: int, length: int, wanted: Numa) -> None:
    mode, nodes = _MODES[wanted.policy], wanted.nodes
    if not nodes and wanted.policy is not NumaPolicy.LOCAL:
        nodes = numa.nodes_with_memory() or (0,)
    if mode == numa.MPOL_PREFERRED_MANY and len(nodes) == 1:
        mode = numa.MPOL_PREFERRED  # MPOL_PREFERRED_MANY came with Linux 5.15
    numa.mbind(address, length, mode, nodes)


def why_ignored(file: BackingFile, wanted: Numa) -> str:
    """Why *wanted* would change nothing for the pages of *file*; empty if it does."""
    system = filesystems.file_system(file.fd)
    if system.magic not in (filesystems.TMPFS_MAGIC, filesystems.HUGETLBFS_MAGIC):
        return (
            f"the file is on {filesystems.name_of(system.magic)}, and the kernel ignores mbind(2) for the pages of its "
            "files; take a backend on shared memory (memfd, hugetlb, tmpfile on tmpfs), or start it with numactl(8)"
        )
    address = host.reserve_address_space(PAGE_SIZE, PAGE_SIZE)
    try:
        _bind(address, PAGE_SIZE, wanted)
    except OSError as error:
        if numa.is_missing(error):
            return f"kernel or sandbox refuses it ({error})"
        raise
    finally:
        host.unmap(address, PAGE_SIZE)
    return ""


def lockable() -> int | None:
    """The bytes that this process may still lock; ``None`` without a limit.

    getrlimit(2), RLIMIT_MEMLOCK: "the maximum number of bytes of memory that may be locked into RAM"; capabilities(7),
    CAP_IPC_LOCK. proc_pid_status(5): VmLck, CapEff.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no /proc: what is locked is not known, and root is not told from others
        return limit
    status = dict(line.split(":", 1) for line in lines)
    if int(status["CapEff"], 16) >> _CAP_IPC_LOCK & 1:
        return None
    return max(0, limit - int(status["VmLck"].split()[0]) * 1024)


def _refused(code: int, length: int) -> OSError:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allows = "forbids it" if limit == resource.RLIM_INFINITY else f"is {format_size(limit)}"
    return OSError(code, f"cannot lock {format_size(length)} more: RLIMIT_MEMLOCK {allows}; {_REMEDY}")
