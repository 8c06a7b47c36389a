"""Which pages of a part of a shmem file were touched, against the pages that the test itself touched."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from memplat.linux import files
from memplat.linux.touched import few_touched
from tests.oracle import PAGE

SIZE = 1024 * PAGE


@pytest.fixture
def fd() -> Iterator[int]:
    made = files.memfd("test")
    os.ftruncate(made, SIZE)
    yield made
    os.close(made)


def found(fd: int, start: int = 0, end: int = SIZE, most: int = 16) -> list[int] | None:
    extents = few_touched(fd, start, end, most)
    return None if extents is None else [edge // PAGE for edge in extents]


def touch(fd: int, *numbers: int) -> None:
    for number in numbers:
        os.pwrite(fd, b"x", number * PAGE)


def test_of_an_untouched_file_there_is_nothing(fd: int) -> None:
    assert found(fd) == []


def test_pages_are_joined_and_cut_to_the_part(fd: int) -> None:
    touch(fd, 0, 4, 5, 6, 512, 1023)
    assert found(fd, PAGE) == [4, 7, 512, 513, 1023, 1024]
    assert found(fd, 5 * PAGE, 512 * PAGE) == [5, 7]
    assert found(fd, 7 * PAGE, 512 * PAGE) == []


def test_as_many_as_are_allowed_are_found_and_no_more(fd: int) -> None:
    touch(fd, *range(100, 116))
    assert found(fd) == [100, 116]
    assert found(fd, most=15) is None


def test_what_has_data_at_its_front_and_in_its_middle_is_not_looked_at_further(fd: int) -> None:
    touch(fd, 0, 512)
    assert found(fd) is None
    assert found(fd, 0, PAGE) == [0, 1]


def test_the_offset_is_left_alone(fd: int) -> None:
    os.lseek(fd, 5, os.SEEK_SET)
    touch(fd, 7, 9)
    assert found(fd) == [7, 8, 9, 10]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 5


def test_a_descriptor_that_is_none_tells_nothing() -> None:
    assert few_touched(-1, 0, SIZE, 16) is None
