"""Trials of the kernel's interfaces: against its release, in a sandbox that forbids them, leaving nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memplat.linux import files, system, trials
from tests.hostparts import MIB, in_another_process, mounted, setting
from tests.unit.cli.running import SOURCE

SINCE = {
    "pagemap_scan": (6, 7),
    "cachestat": (6, 5),
    "process_madvise": (6, 13),
    "populate_write": (5, 14),
    "collapse": (6, 1),
    "noexec_seal": (6, 3),
}

#: A seccomp filter (seccomp(2)) that makes one system call fail with EPERM, then the trial, which says what came of it.
FORBIDDEN = """
import ctypes, struct, sys
source, number, trial = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, source)
from memplat.linux import trials
program = b"".join(struct.pack("HBBI", *line) for line in (
    (0x20, 0, 0, 0),               # load the number of the call
    (0x15, 0, 1, number),          # is it the one?
    (0x06, 0, 0, 0x00050000 | 1),  # EPERM
    (0x06, 0, 0, 0x7FFF0000),      # allow
))
text = ctypes.create_string_buffer(program, len(program))
header = struct.pack("HxxxxxxQ", 4, ctypes.addressof(text))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0                    # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, header, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, a filter
print(*getattr(trials, trial)(), sep=":")
"""


@pytest.mark.parametrize("name", sorted(SINCE))
def test_what_the_release_promises_works(name: str) -> None:
    found = getattr(trials, name)()
    assert found.works == (system.kernel_release() >= SINCE[name]), found.reason


@pytest.mark.parametrize(("trial", "number"), [("cachestat", 451), ("process_madvise", 440), ("noexec_seal", 319)])
def test_what_a_sandbox_forbids_does_not_work_whatever_the_release(trial: str, number: int) -> None:
    if os.uname().machine != "x86_64":
        return  # the number of memfd_create is another one
    found = in_another_process(FORBIDDEN, SOURCE, number, trial)
    assert found.startswith("False:")
    if trial == "noexec_seal":
        assert "Operation not permitted" in found


def test_trials_leave_nothing_behind() -> None:
    for name in SINCE:
        getattr(trials, name)()
    before, maps = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memplat-trial")
    for name in [*SINCE, "kvm", "userfaultfd_minor"]:
        getattr(trials, name)()
    assert (len(os.listdir("/proc/self/fd")), maps) == (before, 0)


def test_collapsing_is_refused_where_huge_pages_are_denied() -> None:
    with setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "deny"):
        assert trials.collapse() == (False, "Invalid argument")


def test_kvm_is_what_opening_it_says() -> None:
    found = trials.kvm()
    assert found.works == (Path("/dev/kvm").exists() and os.access("/dev/kvm", os.R_OK | os.W_OK))
    assert found.works or found.reason


def test_what_a_file_system_can_do_is_tried_on_it() -> None:
    fd = files.memfd("x")
    try:
        assert trials.punches_holes(fd).works
        assert trials.reserves_blocks(fd).works
        assert os.fstat(fd).st_size == os.fstat(fd).st_blocks == 0
    finally:
        os.close(fd)
    with mounted("ramfs") as directory:
        fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
        try:
            assert trials.punches_holes(fd) == (False, "Operation not supported")
            assert not trials.reserves_blocks(fd).works
        finally:
            os.close(fd)


def test_a_full_file_system_can_still_reserve() -> None:
    with mounted("tmpfs", f"size={MIB}") as directory:
        (directory / "filler").write_bytes(bytes(MIB))
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR)
        try:
            assert trials.reserves_blocks(fd).works
            with pytest.raises(OSError, match="No space left"):
                files.fallocate(fd, 0, 0, 2 * MIB)
        finally:
            os.close(fd)
