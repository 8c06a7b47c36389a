"""FIEMAP, on the file systems that have it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplat.linux import files
from memplat.linux.fiemap import fiemap_extents, file_map
from tests.hostparts import MIB

PAGE = 4096


def write_pages(fd: int, *numbers: int) -> None:
    for number in numbers:
        os.pwrite(fd, b"x", number * PAGE)


def page_extents(*pairs: int) -> list[int]:
    return [bound * PAGE for bound in pairs]


@pytest.mark.usefixtures("probing")
@pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs"], indirect=True)
class TestFiemap:
    """On the file systems that have it."""

    @pytest.fixture
    def file(self, any_disk_directory: Path) -> Iterator[int]:
        opened = os.open(any_disk_directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.ftruncate(opened, 128 * MIB)
        yield opened
        os.close(opened)

    def test_written_pages_are_found_before_and_after_they_reach_the_disk(self, file):
        write_pages(file, 1, 2, 40)
        expected = page_extents(1, 3, 40, 41)
        assert list(fiemap_extents(file, 0, 128 * MIB)) == expected
        os.fsync(file)
        assert list(fiemap_extents(file, 0, 128 * MIB)) == expected

    def test_allocated_pages_are_found(self, file):
        files.fallocate(file, 0, 8 * PAGE, 8 * PAGE)
        write_pages(file, 10)
        assert list(fiemap_extents(file, 0, 128 * MIB)) == page_extents(8, 16)

    def test_the_answer_is_clipped(self, file):
        files.fallocate(file, 0, 0, 100 * PAGE)
        assert list(fiemap_extents(file, 10 * PAGE, 20 * PAGE)) == page_extents(10, 20)
        files.fallocate(file, files.FALLOC_FL_KEEP_SIZE, 128 * MIB - PAGE, 16 * PAGE)
        assert list(fiemap_extents(file, MIB, 128 * MIB)) == [128 * MIB - PAGE, 128 * MIB]

    def test_more_extents_than_one_call_returns_are_all_found(self, file):
        numbers = range(0, 32768, 3)  # 10,923: more than 128 + 8,192
        write_pages(file, *numbers)
        found = fiemap_extents(file, 0, 128 * MIB)
        assert list(found) == [bound for number in numbers for bound in (number * PAGE, (number + 1) * PAGE)]

    def test_what_is_dirty_is_told_from_what_has_its_place(self, file):
        write_pages(file, *range(0, 100, 2))
        files.fallocate(file, 0, 200 * PAGE, PAGE)
        before = file_map(file, 0, 128 * MIB)
        assert (before.mapped, before.delayed) == (1, 50)
        os.fsync(file)
        after = file_map(file, 0, 128 * MIB)
        assert (after.mapped, after.delayed) == (51, 0)
        assert before.extents == after.extents

    def test_an_empty_file_has_none(self, file):
        assert not fiemap_extents(file, 0, 128 * MIB)


def test_shmem_has_no_fiemap():
    fd = files.memfd("test")
    with pytest.raises(OSError, match="not supported") as caught:
        fiemap_extents(fd, 0, PAGE)
    assert caught.value.errno == errno.EOPNOTSUPP
    os.close(fd)
