"""The backend memfd."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

import pytest

from memplat.backends import memfd
from memplat.backends.memfd import MemfdOptions
from memplat.linux import files, memory
from memplat.types import AllocationMode, BackingFile
from tests.hostparts import MIB, in_another_process, setting, swap_file
from tests.unit.backends.hooked import hooks_of, opened

PAGE = 4096
SIZE = 32 * MIB
THP = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


def test_it_says_who_it_is():
    info = hooks_of(memfd).memplat_backend_info()
    assert info is not None
    assert (info.name, info.options, info.default_mode) == ("memfd", MemfdOptions, AllocationMode.UNCOMMITTED)
    assert info.decommit_releases


@pytest.mark.parametrize("options", [None, MemfdOptions(), MemfdOptions(seal=False, name="x", huge="advise")])
def test_the_file_is_empty_private_and_closed_on_exec(options):
    with opened(memfd, options, 0x200000) as hooked:
        status = os.fstat(hooked.fd)
        assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_blocks) == (0, 0o600, 0)
        assert fcntl.fcntl(hooked.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert fcntl.fcntl(hooked.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        name = "memplat" if options is None else options.name
        assert os.readlink(f"/proc/self/fd/{hooked.fd}") == f"/memfd:{name} (deleted)"


def test_nobody_can_truncate_the_file_and_the_owner_can_do_the_rest():
    with opened(memfd, None, SIZE) as hooked:
        with pytest.raises(PermissionError):
            os.ftruncate(hooked.fd, PAGE)
        with pytest.raises(PermissionError):
            files.add_seals(hooked.fd, files.F_SEAL_WRITE)
        assert not files.get_seals(hooked.fd) & files.F_SEAL_FUTURE_WRITE
        hooked.touch(3)
        hooked.decommit(hooked.pages(3, 4))
        assert hooked.storage() == 0
        hooked.hooks.memplat_grow(file=hooked.file, size=2 * SIZE)


def test_sealing_can_be_left_out():
    with opened(memfd, MemfdOptions(seal=False), SIZE) as hooked:
        assert not files.get_seals(hooked.fd) & (files.F_SEAL_SHRINK | files.F_SEAL_SEAL)


def test_a_failure_to_seal_leaks_no_descriptor(monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr("memplat.backends.memfd.files.add_seals", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PermissionError):
        hooks_of(memfd).memplat_create_file(options=None)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    "wrong",
    [{"name": "x" * 250}, {"name": "é" * 125}, {"name": "a\0b"}, {"name": 5}, {"seal": 1}, {"huge": "sometimes"}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        MemfdOptions(**wrong)


def test_the_longest_name_works():
    with opened(memfd, MemfdOptions(name="x" * 249), SIZE):
        pass


def test_swapped_pages_count():
    with swap_file(48 * MIB), opened(memfd, None, SIZE) as hooked:
        hooked.touch(*range(2000))
        memory.madvise(hooked.address, SIZE, memory.MADV_PAGEOUT)
        assert hooked.probe() == set(range(2000))


# ---- huge pages -----------------------------------------------------------------------------------------------------


def reason(huge: str) -> tuple[str, str]:
    availability = hooks_of(memfd).memplat_check(options=MemfdOptions(huge=huge))
    assert availability is not None
    assert availability.available
    return availability.reason, availability.remedy


def huge_bytes(address: int) -> int:
    """How much of the mapping at *address* huge pages map: ShmemPmdMapped of proc_pid_smaps(5)."""
    found = False
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        for line in lines:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                found = int(words[0].split("-")[0], 16) == address
            elif found and words[0] == "ShmemPmdMapped:":
                return int(words[1]) * 1024
    return 0


def test_huge_pages_are_off_as_configured():
    assert reason("never") == ("huge pages: never, as configured", "")
    assert hooks_of(memfd).memplat_check(options=None) is not None


@pytest.mark.parametrize("value", ["advise", "within_size", "always"])
def test_advised_huge_pages_are_taken_where_the_host_allows_it(value):
    with setting(THP, value):
        assert reason("advise") == (f"huge pages: advise, shmem_enabled is {value}: a first touch takes 2 MiB", "")
        with opened(memfd, MemfdOptions(huge="advise"), SIZE) as hooked:
            hooked.touch(0, 1024)
            assert hooked.storage() == 4 * MIB
            assert hooked.probe() == {*range(512), *range(1024, 1536)}
            assert huge_bytes(hooked.address) == 4 * MIB


@pytest.mark.parametrize("value", ["never", "deny"])
def test_advised_huge_pages_that_the_host_refuses_are_reported_with_the_remedy(value):
    with setting(THP, value):
        text, remedy = reason("advise")
        assert text == f"huge pages: never, though advise is configured: shmem_enabled is {value}"
        assert remedy == f"echo advise > {THP}"
        with opened(memfd, MemfdOptions(huge="advise"), SIZE) as hooked:
            hooked.touch(0)
            assert hooked.storage() == PAGE


@pytest.mark.parametrize("value", ["always", "within_size"])
def test_never_means_never_also_where_the_host_gives_them_unasked(value):
    with setting(THP, value), opened(memfd, MemfdOptions(huge="never"), SIZE) as hooked:
        hooked.touch(0)
        assert hooked.storage() == PAGE


@pytest.mark.parametrize("value", ["never", "advise"])
def test_whole_reserved_regions_are_collapsed(value):
    with setting(THP, value), opened(memfd, MemfdOptions(huge="collapse"), SIZE) as hooked:
        assert reason("collapse")[0].startswith("huge pages: collapse")
        hooked.touch(520)
        hooked.reserve(hooked.pages(500, 2100))
        assert hooked.storage() == 1600 * PAGE
        assert huge_bytes(hooked.address) == 6 * MIB
        assert hooked.content(520)[:1] == b"x"
        assert hooked.probe() == set(range(512, 2048))  # the rest is reserved and was never touched
        assert hooked.probe_reserved(hooked.pages(0, 8192)) == set(range(500, 2100))
        hooked.decommit(hooked.pages(600, 601))
        assert hooked.storage() == 1599 * PAGE


def test_a_host_that_denies_huge_pages_collapses_none_and_still_reserves():
    with setting(THP, "deny"), opened(memfd, MemfdOptions(huge="collapse"), SIZE) as hooked:
        assert reason("collapse")[0] == "huge pages: never, though collapse is configured: shmem_enabled is deny"
        hooked.reserve(hooked.pages(0, 1024))
        assert hooked.storage() == 4 * MIB
        assert huge_bytes(hooked.address) == 0


@pytest.mark.parametrize(
    ("setting_now", "collapse", "expected"),
    [("", True, "no transparent huge pages"), ("never", False, "no MADV_COLLAPSE")],
)
def test_a_kernel_without_the_means_is_reported(monkeypatch, setting_now, collapse, expected):
    monkeypatch.setattr("memplat.backends.memfd.system.shmem_huge_pages", lambda: setting_now)
    monkeypatch.setattr("memplat.backends.memfd.system.kernel_features", lambda: {"collapse": collapse})
    assert expected in reason("collapse")[0]


def test_an_adopted_file_has_the_default_options():
    hooks = hooks_of(memfd)
    fd = files.memfd("adopted")
    os.ftruncate(fd, SIZE)
    file = BackingFile(fd=fd, page_size=PAGE, backend="memfd")
    assert hooks.memplat_mapped(file=file, start=0, end=SIZE) is True
    assert hooks.memplat_reserve(file=file, ranges=[]) is True
    hooks.memplat_close_file(file=file)


def test_the_peer_of_a_sealed_file_cannot_truncate_it():
    with opened(memfd, None, SIZE) as hooked:
        code = """
            import os, sys
            try:
                os.ftruncate(int(sys.argv[1]), 4096)
            except PermissionError:
                print("refused")
            """
        assert in_another_process(code, hooked.fd, fds=[hooked.fd]).strip() == "refused"
