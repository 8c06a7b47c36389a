"""What a file holds, creating it and sealing it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import stat
import threading
from collections.abc import Iterator

import pytest

from memplat import _core
from memplat.linux import files, filesystems
from tests.hostparts import MIB, hugetlb_pool, mounted, tmpfs_mount, touch_elsewhere
from tests.needs import needs

PAGE = 4096


@pytest.fixture
def fd() -> Iterator[int]:
    opened = files.memfd("test")
    os.ftruncate(opened, 8 * MIB)
    yield opened
    os.close(opened)


def write_pages(fd: int, *numbers: int) -> None:
    for number in numbers:
        os.pwrite(fd, b"x", number * PAGE)


def page_extents(*pairs: int) -> list[int]:
    return [bound * PAGE for bound in pairs]


# ---- fallocate ------------------------------------------------------------------------------------------------------


def test_fallocate_allocates(fd):
    files.fallocate(fd, 0, PAGE, 3 * PAGE)
    assert os.fstat(fd).st_blocks * 512 == 3 * PAGE


def test_fallocate_is_never_emulated_by_writing():
    with mounted("ramfs") as path, open(path / "file", "w+b", buffering=0) as file:
        with pytest.raises(OSError, match="fallocate") as caught:
            files.fallocate(file.fileno(), 0, 0, PAGE)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert os.fstat(file.fileno()).st_size == 0


def test_a_full_tmpfs_is_enospc_and_rolls_back():
    with tmpfs_mount(MIB) as path, open(path / "file", "w+b", buffering=0) as file:
        with pytest.raises(OSError, match="fallocate") as caught:
            files.fallocate(file.fileno(), 0, 0, 2 * MIB)
        assert caught.value.errno == errno.ENOSPC
        assert os.fstat(file.fileno()).st_blocks == 0


def test_a_punched_hole_reads_as_zeros(fd):
    write_pages(fd, 0, 1, 2)
    files.punch_hole(fd, PAGE, PAGE)
    assert os.pread(fd, 3 * PAGE, 0) == (b"x" + bytes(PAGE - 1)) + bytes(PAGE) + (b"x" + bytes(PAGE - 1))
    assert os.fstat(fd).st_blocks * 512 == 2 * PAGE


# ---- SEEK_DATA ------------------------------------------------------------------------------------------------------


def test_data_are_listed_as_extents(fd):
    write_pages(fd, 1, 2, 5, 2047)
    assert list(files.seek_extents(fd, 0, 8 * MIB)) == page_extents(1, 3, 5, 6, 2047, 2048)


def test_extents_are_clipped_to_what_was_asked_for(fd):
    write_pages(fd, *range(2, 9))
    assert list(files.seek_extents(fd, 4 * PAGE, 6 * PAGE)) == page_extents(4, 6)
    assert list(files.seek_extents(fd, 0, 3 * PAGE)) == page_extents(2, 3)
    assert not files.seek_extents(fd, 9 * PAGE, 8 * MIB)
    assert not files.seek_extents(fd, 5 * PAGE, 5 * PAGE)


def test_beyond_the_end_of_the_file_there_is_nothing(fd):
    write_pages(fd, 2047)
    assert list(files.seek_extents(fd, 0, 64 * MIB)) == page_extents(2047, 2048)
    assert not files.seek_extents(fd, 16 * MIB, 64 * MIB)


def test_long_and_short_extents_are_both_found(fd):
    os.ftruncate(fd, 64 * MIB)
    os.pwrite(fd, b"x" * 20 * MIB, MIB)  # walked with the GIL released, what follows with it held
    numbers = sorted(random.Random(3).sample(range(8192, 16384, 2), 500))
    write_pages(fd, *numbers)
    expected = [MIB, 21 * MIB, *(bound for number in numbers for bound in (number * PAGE, (number + 1) * PAGE))]
    assert list(files.seek_extents(fd, 0, 64 * MIB)) == expected


def test_the_shared_offset_of_the_description_stays(fd):
    write_pages(fd, 3)
    os.lseek(fd, 77, os.SEEK_SET)
    duplicate = os.dup(fd)
    files.seek_extents(fd, 0, 8 * MIB)
    assert os.lseek(duplicate, 0, os.SEEK_CUR) == 77
    os.close(duplicate)


def test_the_offset_is_put_back_where_the_file_cannot_be_opened_again(fd, monkeypatch):
    write_pages(fd, 3)
    os.lseek(fd, 77, os.SEEK_SET)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no /proc here")

    monkeypatch.setattr(_core, "PROBING", None)
    monkeypatch.setattr("memplat.linux.files.os.open", refuse)
    assert list(files.seek_extents(fd, 0, 8 * MIB)) == page_extents(3, 4)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 77


@pytest.mark.parametrize("then", ["gone", "back"])
def test_a_page_that_is_punched_between_the_two_seeks_is_no_extent(fd, monkeypatch, then):
    """A peer punches page 5 when SEEK_DATA has found it; then it stays gone, or comes back behind the walk's back."""
    write_pages(fd, 1, 5, 9)
    seek = files._lseek_released

    def interrupted(own: int, offset: ctypes.c_int64, whence: int) -> int:
        if whence == os.SEEK_HOLE and offset.value == 5 * PAGE:
            files.punch_hole(fd, 5 * PAGE, PAGE)
        found: int = seek(own, offset, whence)
        if then == "back" and whence == os.SEEK_HOLE and offset.value == 5 * PAGE:
            write_pages(fd, 5, 6)
            monkeypatch.undo()
        return found

    monkeypatch.setattr(_core, "PROBING", None)
    monkeypatch.setattr(files, "_lseek_released", interrupted)
    monkeypatch.setattr(files, "_lseek_held", interrupted)
    gone, back = page_extents(1, 2, 9, 10), page_extents(1, 2, 5, 7, 9, 10)
    assert list(files.seek_extents(fd, 0, 8 * MIB)) == (gone if then == "gone" else back)


def test_walking_leaks_no_descriptor(fd):
    write_pages(fd, 3)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        files.seek_extents(fd, 0, 8 * MIB)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_cannot_be_walked_is_an_error():
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            files.seek_extents(read_end, 0, PAGE)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_two_threads_can_walk_at_once(fd):
    write_pages(fd, *range(0, 2048, 2))
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(files.seek_extents(fd, 0, 8 * MIB))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(result == results[0] for result in results)


# ---- cachestat ------------------------------------------------------------------------------------------------------


def test_cachestat_counts_what_is_there(fd):
    write_pages(fd, 0, 1, 5)
    files.fallocate(fd, 0, 9 * PAGE, PAGE)
    touch_elsewhere(fd, [20 * PAGE], 8 * MIB)
    everything = files.cachestat(fd, 0, 8 * MIB)
    if everything is None:
        needs("cachestat", "the kernel has none")
    assert everything.cache + everything.evicted == 5
    parts = [files.cachestat(fd, PAGE, PAGE), files.cachestat(fd, 2 * PAGE, 3 * PAGE)]
    assert [part and part.cache for part in parts] == [1, 0]


def test_cachestat_of_nothing_is_nothing(fd):
    write_pages(fd, 0, 1)
    assert files.cachestat(fd, PAGE, 0) == (0, 0, 0, 0, 0)


def test_cachestat_of_huge_pages_is_no_answer():
    with hugetlb_pool(1):
        huge = files.memfd("huge", files.MFD_HUGETLB)
        try:
            os.ftruncate(huge, 2 * MIB)
            assert files.cachestat(huge, 0, 2 * MIB) is None
        finally:
            os.close(huge)


def test_cachestat_of_a_wrong_descriptor_is_an_error():
    with pytest.raises(OSError, match="cachestat"):
        files.cachestat(-1, 0, PAGE)


# ---- creating and sealing -------------------------------------------------------------------------------------------


def test_a_memfd_is_private_and_closed_on_exec(fd):
    status = os.fstat(fd)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 0
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:test")


def test_a_memfd_cannot_be_made_executable(fd):
    if files.get_seals(fd) & files.F_SEAL_EXEC:
        with pytest.raises(PermissionError):
            os.fchmod(fd, 0o700)


def test_an_older_kernel_makes_a_memfd_without_the_newer_flag(monkeypatch):
    real = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & files.MFD_NOEXEC_SEAL:
            raise OSError(errno.EINVAL, "unknown flag")
        return real(name, flags)

    monkeypatch.setattr("memplat.linux.files.os.memfd_create", old)
    fd = files.memfd("old")
    try:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    finally:
        os.close(fd)


def test_a_name_that_is_too_long_is_an_error_and_leaks_nothing():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Invalid argument"):
        files.memfd("x" * 250)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_seals_are_added_and_read(fd):
    files.add_seals(fd, files.F_SEAL_SHRINK | files.F_SEAL_SEAL)
    seals = files.get_seals(fd)
    assert seals & (files.F_SEAL_SHRINK | files.F_SEAL_SEAL) == files.F_SEAL_SHRINK | files.F_SEAL_SEAL
    with pytest.raises(PermissionError):
        os.ftruncate(fd, PAGE)
    with pytest.raises(PermissionError):
        files.add_seals(fd, files.F_SEAL_GROW)
    os.ftruncate(fd, 16 * MIB)


# ---- file systems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("any_disk_directory", "magic"),
    [
        ("ext4", filesystems.EXT4_MAGIC),
        ("xfs", filesystems.XFS_MAGIC),
        ("btrfs", filesystems.BTRFS_MAGIC),
        ("tmpfs", filesystems.TMPFS_MAGIC),
    ],
    indirect=["any_disk_directory"],
)
def test_file_systems_are_told_apart(any_disk_directory, magic):
    opened = os.open(any_disk_directory, os.O_RDONLY)
    try:
        system = filesystems.file_system(opened)
        reference = os.fstatvfs(opened)
    finally:
        os.close(opened)
    assert system.magic == magic
    assert system.block_size == reference.f_bsize == PAGE
    assert system.size == reference.f_blocks * reference.f_frsize
    assert system.free == reference.f_bfree * reference.f_frsize
    assert system.available == reference.f_bavail * reference.f_frsize


def test_memfds_and_huge_pages_are_told_apart(fd):
    assert filesystems.filesystem_magic(fd) == filesystems.TMPFS_MAGIC
    huge = files.memfd("huge", files.MFD_HUGETLB)
    try:
        assert filesystems.filesystem_magic(huge) == filesystems.HUGETLBFS_MAGIC
    finally:
        os.close(huge)


def test_the_file_system_of_no_descriptor_is_an_error():
    with pytest.raises(OSError, match="fstatfs"):
        filesystems.file_system(-1)


def test_copy_on_write_can_be_switched_off_on_btrfs(btrfs_directory):
    opened = os.open(btrfs_directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        flags = filesystems.get_flags(opened)
        assert not flags & filesystems.FS_NOCOW_FL
        filesystems.set_flags(opened, flags | filesystems.FS_NOCOW_FL)
        assert filesystems.get_flags(opened) == flags | filesystems.FS_NOCOW_FL
    finally:
        os.close(opened)


def test_inode_flags_of_a_pipe_are_an_error():
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="ioctl") as caught:
            filesystems.get_flags(read_end)
        assert caught.value.errno == errno.ENOTTY
    finally:
        os.close(read_end)
        os.close(write_end)


def test_pages_touched_or_punched_between_two_seeks_make_no_extents_that_touch_or_are_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # SEEK_DATA and SEEK_HOLE in turn: data at 0 that is gone when its end is asked for; then a page; then one after it
    # that was a hole when the first one's end was asked for.
    answers = iter((0, 0, PAGE, 2 * PAGE, 2 * PAGE, 3 * PAGE, 5 * PAGE, 5 * PAGE, 6 * PAGE, 8 * PAGE, 8 * PAGE))

    def seek(fd: int, offset: ctypes.c_int64, whence: int) -> int:
        return next(answers)

    monkeypatch.setattr(files, "_lseek_held", seek)
    monkeypatch.setattr(files, "_lseek_released", seek)
    assert list(files._walk(0, 0, 8 * PAGE)) == page_extents(1, 3, 6, 8)


def test_a_descriptor_that_is_no_file_any_more_is_an_error_and_no_endless_loop() -> None:
    descriptor = os.eventfd(0)  # lseek(2) on it is a success, and stays where it is
    try:
        with pytest.raises(OSError, match="does not advance"):
            files._walk(descriptor, 0, MIB)
    finally:
        os.close(descriptor)
