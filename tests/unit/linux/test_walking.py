"""Walking along the data of a file, in Python and compiled: the same extents, and the same errors."""

from __future__ import annotations

import errno
import os
import random
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplat.linux import files
from memplat.linux.fiemap import FileMap, file_map
from memplat.ranges import MIB

PAGE = 4096
PAGES = 48
CORES = ("python", "native")
Chooser = Callable[[str], Any]


@pytest.fixture
def fd() -> Iterator[int]:
    opened = files.memfd("test")
    os.ftruncate(opened, 8 * MIB)
    yield opened
    os.close(opened)


def by_both(choose: Chooser, fd: int, start: int, end: int, at_most: int = 1 << 63) -> list[array[int]]:
    """What both find."""
    found = []
    for core in CORES:
        choose(core)
        found.append(files.seek_extents(fd, start, end, at_most))
    return found


def write_pages(fd: int, numbers: set[int] | frozenset[int] | range) -> None:
    for number in numbers:
        os.pwrite(fd, b"x", number * PAGE)


def extents_of(numbers: list[int]) -> list[int]:
    """The extents of ascending page numbers."""
    edges: list[int] = []
    for number in numbers:
        if edges and edges[-1] == number * PAGE:
            edges[-1] += PAGE
        else:
            edges += (number * PAGE, (number + 1) * PAGE)
    return edges


@given(
    st.frozensets(st.integers(0, PAGES - 1)), st.integers(0, PAGES), st.integers(0, PAGES + 8), st.integers(1, PAGES)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_find_the_pages_that_were_written(choose_probing, numbers, start, end, most):
    fd = files.memfd("test")
    try:
        os.ftruncate(fd, PAGES * PAGE)
        write_pages(fd, numbers)
        inside = extents_of([number for number in sorted(numbers) if start <= number < end])
        assert [list(found) for found in by_both(choose_probing, fd, start * PAGE, end * PAGE)] == [inside, inside]
        python, native = by_both(choose_probing, fd, start * PAGE, end * PAGE, most * PAGE)
        assert python == native
    finally:
        os.close(fd)


@pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs", "tmpfs"], indirect=True)
def test_both_find_the_same_on_every_file_system(choose_probing: Chooser, any_disk_directory: Path) -> None:
    fd = os.open(any_disk_directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.ftruncate(fd, 32 * MIB)
        chosen = random.Random(7)
        write_pages(fd, {chosen.randrange(8192) for _ in range(1000)})
        files.punch_hole(fd, 5 * MIB, MIB)
        for start, end in ((0, 32 * MIB), (4 * MIB, 7 * MIB), (0, 64 * MIB), (7 * PAGE, 8 * PAGE)):
            python, native = by_both(choose_probing, fd, start, end)
            assert python == native
    finally:
        os.close(fd)


@pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs"], indirect=True)
def test_both_find_the_same_blocks(choose_probing: Chooser, any_disk_directory: Path) -> None:
    fd = os.open(any_disk_directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.ftruncate(fd, 32 * MIB)
        chosen = random.Random(8)
        for number in {chosen.randrange(8192) for _ in range(1000)}:
            os.pwrite(fd, b"x", number * PAGE)
        files.fallocate(fd, 0, 9 * MIB, MIB)
        files.fallocate(fd, files.FALLOC_FL_KEEP_SIZE, 32 * MIB, MIB)
        os.fsync(fd)
        for start, end in ((0, 32 * MIB), (9 * MIB + PAGE, 9 * MIB + 3 * PAGE), (0, 64 * MIB), (5 * MIB, 5 * MIB)):
            answers = []
            for core in CORES:
                choose_probing(core)
                answers.append(file_map(fd, start, end))
            assert answers[0] == answers[1]
            assert isinstance(answers[1], FileMap)
    finally:
        os.close(fd)


@pytest.mark.usefixtures("probing")
def test_what_cannot_be_walked_is_an_error_that_names_the_call() -> None:
    ends = os.pipe()
    try:
        with pytest.raises(OSError, match=r"lseek\(SEEK_DATA\)") as caught:
            files.seek_extents(ends[0], 0, PAGE)
        assert caught.value.errno == errno.ESPIPE
        with pytest.raises(OSError, match=r"ioctl\(FS_IOC_FIEMAP\)") as refused:
            file_map(ends[0], 0, PAGE)
        assert refused.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
    finally:
        for end in ends:
            os.close(end)


@given(st.frozensets(st.integers(0, PAGES - 1)))
@settings(max_examples=30, deadline=None)
def test_a_file_of_ones_own_is_walked_in_place_and_its_offset_put_back(numbers):
    fd = files.memfd("test")
    try:
        os.ftruncate(fd, PAGES * PAGE)
        write_pages(fd, numbers)
        os.lseek(fd, 77, os.SEEK_SET)
        assert list(files.seek_in_place(fd, len(numbers) * PAGE)) == extents_of(sorted(numbers))
        assert os.lseek(fd, 0, os.SEEK_CUR) == 77
    finally:
        os.close(fd)


def test_a_walk_in_place_that_fails_puts_the_offset_back(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pages(fd, {3})
    os.lseek(fd, 77, os.SEEK_SET)
    held = files._lseek_held

    def refuse(own: int, offset: Any, whence: int) -> Any:
        return held(own, offset, os.SEEK_SET + 99) if whence == os.SEEK_HOLE else held(own, offset, whence)

    monkeypatch.setattr(files, "_lseek_held", refuse)
    with pytest.raises(OSError, match=r"lseek\(SEEK_HOLE\)"):
        files.seek_in_place(fd, PAGE)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 77


@pytest.mark.usefixtures("probing")
def test_a_closed_descriptor_is_an_error(fd: int) -> None:
    gone = os.dup(fd)
    os.close(gone)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.seek_extents(gone, 0, PAGE)


@pytest.mark.usefixtures("probing")
def test_the_offset_of_the_file_stays_and_no_descriptor_is_left(fd: int) -> None:
    write_pages(fd, range(0, 2048, 2))
    os.lseek(fd, 77, os.SEEK_SET)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert len(files.seek_extents(fd, 0, 8 * MIB)) == 2048
    assert os.lseek(fd, 0, os.SEEK_CUR) == 77
    assert set(os.listdir("/proc/self/fd")) <= set(before)


@pytest.mark.usefixtures("probing")
def test_more_extents_than_are_walked_in_one_go_are_all_found(fd: int) -> None:
    os.ftruncate(fd, 40_000 * 2 * PAGE)
    write_pages(fd, range(0, 80_000, 2))
    assert list(files.seek_extents(fd, 0, 40_000 * 2 * PAGE)) == extents_of(list(range(0, 80_000, 2)))
