"""The backend ``devshm``: POSIX shared memory (shm_overview(7)), in /dev/shm or another directory on a tmpfs.

What is not implemented here is done by memplat's defaults, which are exact on tmpfs: growing, reserving, probing and
giving back.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import attrs

from memplat import Availability, BackendInfo, BackingFile, Capability, hookimpl


@attrs.frozen
class DevshmOptions:
    """The options of the backend; in memplat.toml they stand under ``[memory.devshm]``."""

    directory: str = "/dev/shm"
    """Where the files are made: a directory on a tmpfs."""


@hookimpl
def memplat_backend_info() -> BackendInfo:
    """Say who the backend is, and what it can do beyond what every backend has to do."""
    return BackendInfo(
        name="devshm",
        version="1.0.0",
        summary="POSIX shared memory: /dev/shm, or another directory on a tmpfs",
        capabilities=frozenset(
            {Capability.RESERVE, Capability.SHARE, Capability.SWAP_EXACT, Capability.SUB_PAGE_DECOMMIT}
        ),
        options=DevshmOptions,
    )


@hookimpl
def memplat_check(options: DevshmOptions) -> Availability:
    """Say whether it can be used here, as configured; if not, why, and what would help."""
    where = options.directory
    if not os.path.isdir(where):
        return Availability(False, f"{where} is no directory", "directory = one on a tmpfs, such as /run")
    kind = _file_system(where)
    if kind != "tmpfs":
        return Availability(False, f"{where} is on {kind}, which is no tmpfs", f"mount -t tmpfs devshm {where}")
    try:
        os.close(_open(where))
    except OSError as error:
        return Availability(False, f"no file can be made in {where}: {error.strerror}", "directory = a writable one")
    return Availability(True, f"tmpfs at {where}")


@hookimpl
def memplat_create_file(options: DevshmOptions) -> BackingFile:
    """Make an empty file that nobody else can get at. What goes wrong is the reason why the next backend is tried."""
    return BackingFile(fd=_open(options.directory), page_size=mmap.PAGESIZE, backend="devshm")


def _open(directory: str) -> int:
    """A file without a name, that cannot be given one, and that programs which are started do not inherit."""
    return os.open(directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _file_system(directory: str) -> str:
    """The type of the file system that *directory* is on. proc_pid_mountinfo(5)."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[2] == wanted:
            return line.partition(" - ")[2].split()[0]
    return "a file system that is not mounted here"
