"""Security of the file: nobody gets at it who was not given the descriptor."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.observer import smaps
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.types import Capability

_F_SEAL_GROW: Final = 4
_F_SEAL_WRITE: Final = 8

#: Prints device and inode of everything that a program has open.
_LIST: Final = """
import os
for name in os.listdir("/proc/self/fd"):
    try:
        status = os.fstat(int(name))
    except OSError:
        continue
    print(f"{status.st_dev}:{status.st_ino}")
"""


@check("SEC-01", rule="15.1", after="LIFE-03")
def the_file_has_no_name(case: Case) -> None:
    """Open it with O_TMPFILE or memfd_create, or unlink it at once: whoever finds the name can open it."""
    observer = case.observer(case.open())
    links = observer.stat().st_nlink
    expect(links == 0, f"the file has {links} name(s): {observer.link}")


@check("SEC-02", rule="15.2", after="LIFE-03")
def nobody_else_may_open_the_file(case: Case) -> None:
    """Set the mode to 0600 and let the file belong to the user: others can get at it through /proc/PID/fd. memfd_create
    makes 0777.
    """
    status = case.observer(case.open()).stat()
    mode = stat.S_IMODE(status.st_mode)
    expect(mode & 0o077 == 0, f"the mode of the file is {mode:#o}: others may open it; 0600 is allowed")
    expect(status.st_uid == os.geteuid(), f"the file belongs to user {status.st_uid}, the process to {os.geteuid()}")


@check("SEC-03", rule="15.3", after="LIFE-03")
def a_program_that_is_started_does_not_inherit_the_file(case: Case) -> None:
    """Every descriptor that a hook opens has to be close-on-exec from the start (O_CLOEXEC, MFD_CLOEXEC)."""
    memory = case.open()
    memory.decref(case.allocate(memory, 1))
    observer = case.observer(memory)
    flags = fcntl.fcntl(observer.fd, fcntl.F_GETFD)
    expect(bool(flags & fcntl.FD_CLOEXEC), f"descriptor {observer.fd} of the file is not close-on-exec")
    status = observer.stat()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LIST], capture_output=True, text=True, close_fds=False, check=False
    )
    expect(done.returncode == 0, f"the suite itself is wrong: {done.stderr}")
    inherited = f"{status.st_dev}:{status.st_ino}" in done.stdout.split()
    expect(not inherited, "a program that was started has a descriptor of the file")


@check("SEC-04", rule="15.4", after="LIFE-03 SEC-01")
def the_file_cannot_be_given_a_name(case: Case) -> None:
    """O_TMPFILE needs O_EXCL beside it, or linkat(2) gives the file a name afterwards."""
    observer = case.observer(case.open())
    directory = Path(observer.link.removesuffix(" (deleted)")).parent
    if observer.link.startswith("/memfd:") or not directory.is_dir():
        return  # there is no directory in its file system
    name = directory / f"memplat-conformance-{os.getpid()}"
    names = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # with a directory's descriptor Python calls linkat(2), AT_SYMLINK_FOLLOW
        os.link(str(observer.fd), name, src_dir_fd=names, follow_symlinks=True)
    except OSError:
        return
    finally:
        os.close(names)
    with contextlib.suppress(OSError):
        name.unlink()
    case.fail(f"linkat(2) gave the file a name in {directory}")


@check("SEC-05", rule="15.5", needs=Capability.SEAL, after="LIFE-04")
def nobody_can_truncate_the_file(case: Case) -> None:
    """The capability ``seal`` says that no holder of the descriptor can take pages away by truncating the file:
    F_SEAL_SHRINK.
    """
    memory = case.open()
    pages = case.allocate(memory, 1)
    case.fill(memory, pages)
    theirs = case.share(memory)
    with contextlib.suppress(OSError):
        theirs.truncate(0)
    size = case.observer(memory).stat().st_size
    expect(size >= pages.end, f"seal is declared, but another process has truncated the file to {size} bytes")
    theirs.drop()


@check("SEC-06", rule="15.6", needs=Capability.SEAL, after="SEC-05")
def nobody_can_seal_the_file_against_its_owner(case: Case) -> None:
    """Add F_SEAL_SEAL to F_SEAL_SHRINK: otherwise a holder of the descriptor can add seals that keep the owner from
    growing it.
    """
    memory = case.open()
    case.allocate(memory, 1)
    theirs = case.share(memory)
    for seal, name in ((_F_SEAL_GROW, "F_SEAL_GROW"), (_F_SEAL_WRITE, "F_SEAL_WRITE")):
        try:
            theirs.seal(seal)
        except OSError:
            continue
        case.fail(f"seal is declared, but another process could add {name}")
    theirs.drop()


@check("SEC-07", rule="15.7", after="LIFE-04 VIEW-02")
def the_memory_is_not_part_of_core_dumps(case: Case) -> None:
    """memplat_mapped must not undo the engine's MADV_DONTDUMP: a sandbox's memory does not belong into our core
    dumps.
    """
    memory = case.open()
    case.allocate(memory, 1)
    case.allocate(memory, memory.total_size() // memory.page_size + 1)
    for line in case.observer(memory).mappings():
        flags = smaps(line.start).get("VmFlags", "dd").split()
        expect("dd" in flags, f"the mapping of offset {line.offset:#x} would be part of a core dump: {' '.join(flags)}")


@check("SEC-08", rule="15.8", after="VIEW-02")
def the_mapping_is_not_executable(case: Case) -> None:
    """memplat_mapped must not make the engine's mapping executable: what a sandbox writes is not our code."""
    memory = case.open()
    case.allocate(memory, 1)
    case.allocate(memory, memory.total_size() // memory.page_size + 1)
    for line in case.observer(memory).mappings():
        expect("x" not in line.permissions, f"offset {line.offset:#x} is mapped {line.permissions}: executable")
