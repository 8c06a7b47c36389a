"""The second look at a file: what it says is what was done to the file, and not what a backend thinks."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplat.conformance.case import stamp
from memplat.conformance.observer import HUGETLB, SHMEM, Observer, descriptors, smaps
from tests import hostparts
from tests.hostparts import MIB, btrfs_directory, ext4_directory, tmpfs_directory, xfs_directory

__all__ = ["btrfs_directory", "ext4_directory", "tmpfs_directory", "xfs_directory"]

PAGE = mmap.PAGESIZE


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("seen")
    os.ftruncate(fd, 64 * PAGE)
    yield fd
    os.close(fd)


def test_a_memfd_is_shmem_and_its_pages_are_found(fd: int):
    os.pwrite(fd, b"x", 3 * PAGE)
    os.pwrite(fd, b"x", 40 * PAGE)
    look = Observer(fd)
    assert (look.kind, look.is_exact) == (SHMEM, True)
    assert look.extents() == [(3 * PAGE, 4 * PAGE), (40 * PAGE, 41 * PAGE)]
    assert look.cost(3 * PAGE, 41 * PAGE) == 2 * PAGE == look.data_bytes() == look.total()
    assert look.cost(4 * PAGE, 40 * PAGE) == 0
    assert look.capacity() is None


def test_looking_moves_no_offset_and_commits_nothing(fd: int):
    os.lseek(fd, 5, os.SEEK_SET)
    look = Observer(fd)
    assert look.is_zero(0, 64 * PAGE)
    assert len(look.read(0, 64 * PAGE)) == 64 * PAGE
    look.extents()
    assert os.lseek(fd, 0, os.SEEK_CUR) == 5
    assert look.total() == 0


def test_what_is_not_zero_is_seen_wherever_it_is(fd: int):
    os.pwrite(fd, b"\1", 64 * PAGE - 1)
    assert not Observer(fd).is_zero(0, 64 * PAGE)
    assert Observer(fd).is_zero(0, 64 * PAGE - 1)


def test_mappings_and_descriptors_of_this_process_are_found(fd: int):
    look = Observer(fd)
    assert look.mappings() == []
    with mmap.mmap(fd, 4 * PAGE, offset=8 * PAGE) as window:
        window[0] = 1
        (line,) = look.mappings()
        assert (line.end - line.start, line.offset, line.permissions) == (4 * PAGE, 8 * PAGE, "rw-s")
        assert smaps(line.start)["Rss"] == f"{PAGE // 1024} kB"
    assert descriptors()[fd].startswith("/memfd:seen")


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_a_file_system_is_known_by_its_name_and_its_extents(name: str, request: pytest.FixtureRequest):
    directory: Path = request.getfixturevalue(f"{name}_directory")
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.ftruncate(fd, 64 * PAGE)
        os.pwrite(fd, b"x" * PAGE, 8 * PAGE)
        os.pwrite(fd, b"x" * PAGE, 32 * PAGE)
        look = Observer(fd)
        assert look.kind == (SHMEM if name == "tmpfs" else name)
        assert look.extents() == [(8 * PAGE, 9 * PAGE), (32 * PAGE, 33 * PAGE)]
        assert look.data_bytes() == 2 * PAGE <= look.total()
        free = look.capacity()
        assert free is not None
        assert 0 < free <= 512 * MIB
        if name != "tmpfs":
            assert look.unwritten(8 * PAGE, 9 * PAGE) == PAGE
            os.fdatasync(fd)
            assert look.unwritten(8 * PAGE, 9 * PAGE) == 0
    finally:
        os.close(fd)


def test_huge_pages_are_counted_and_not_located():
    with hostparts.hugetlb_pool(4):
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
        try:
            os.ftruncate(fd, 8 * MIB)
            look = Observer(fd)
            assert (look.kind, look.extents(), look.cost(0, 8 * MIB)) == (HUGETLB, None, None)
            assert look.capacity() == 8 * MIB
            look.write(2 * MIB + 100, b"through a mapping")
            assert look.read(2 * MIB + 100, 7) == b"through"
            assert look.total() == 2 * MIB
            assert look.capacity() == 6 * MIB
        finally:
            os.close(fd)


def test_stamps_differ_by_page_and_by_salt():
    stamps = {stamp(page * PAGE, salt, 32) for page in range(200) for salt in range(20)}
    assert len(stamps) == 4000
    assert all(stamp(page, 0, 32) != bytes(32) for page in range(100))
    assert len(stamp(0, 0, 100)) == 100
