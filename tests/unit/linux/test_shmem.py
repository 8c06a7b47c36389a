"""Which pages of shmem are committed, against the pages that the test itself touched, through every way of touching."""

from __future__ import annotations

import mmap
import os
import random
from array import array
from collections.abc import Iterator

import pytest

from memplat.linux import _libc, files, memory, punching, shmem
from memplat.linux import extents as flat
from memplat.linux.pagemap import pagemap_scan
from memplat.ranges import FileRange
from tests.hostparts import MIB, swap_file, touch_elsewhere
from tests.needs import needs

PAGE = 4096
SIZE = 64 * MIB
PAGES = SIZE // PAGE


class Shared:
    """A memfd that is mapped whole."""

    def __init__(self, size: int = SIZE) -> None:
        self.fd = files.memfd("test")
        self.size = size
        os.ftruncate(self.fd, size)
        self.address = memory.reserve_address_space(size)
        memory.map_shared(self.address, size, self.fd, 0)

    def touch(self, numbers: object) -> None:
        for number in numbers:  # type: ignore[attr-defined]
            memory.copy_to(self.address + number * PAGE, b"x")

    def probe(self, start: int = 0, end: int | None = None) -> tuple[set[int], str]:
        found, method = shmem.committed_extents(
            self.fd, start, self.size if end is None else end, self.address, self.size
        )
        assert flat.validate(found, start, self.size if end is None else end, PAGE) is None
        return numbers_of(found), method


def numbers_of(extents: array[int]) -> set[int]:
    bounds = zip(extents[0::2], extents[1::2], strict=True)
    return {number for start, end in bounds for number in range(start // PAGE, end // PAGE)}


@pytest.fixture
def file() -> Iterator[Shared]:
    shared = Shared()
    yield shared
    memory.unmap(shared.address, shared.size)
    os.close(shared.fd)


def need_pagemap(file: Shared) -> None:
    if pagemap_scan(file.address, 0, file.size) is None:
        needs("pagemap_scan", "the kernel has none")


def sample(count: int, seed: int = 1) -> set[int]:
    return set(random.Random(seed).sample(range(PAGES), count))


def test_an_untouched_file_is_answered_by_its_blocks(file):
    assert file.probe() == (set(), "st_blocks")


def test_a_full_file_is_answered_by_its_blocks(file):
    memory.populate_write(file.address, file.size)
    assert file.probe() == (set(range(PAGES)), "st_blocks")


def test_what_this_mapping_touched_is_answered_by_its_page_tables(file):
    need_pagemap(file)
    file.touch(sample(3000))
    assert file.probe() == (sample(3000), "pagemap_scan")


@pytest.mark.parametrize("ours", [100, 3000])
def test_what_others_touched_is_found_too(file, ours):
    mine, theirs = sample(ours), sample(700, seed=2)
    file.touch(mine)
    touch_elsewhere(file.fd, [number * PAGE for number in theirs], file.size)
    found, method = file.probe()
    assert found == mine | theirs
    assert method in ("cachestat", "seek_data")


def test_every_way_of_touching_counts(file):
    file.touch(sample(2000))
    os.pwrite(file.fd, b"x" * 3 * PAGE, 5000 * PAGE)
    with mmap.mmap(file.fd, file.size) as second:
        second[9000 * PAGE] = 1
        assert second[9500 * PAGE] == 0 or 9500 in sample(2000)  # reading through a map commits
    assert os.pread(file.fd, 1, 9700 * PAGE) in (b"\0", b"x")  # reading by system call does not
    files.punch_hole(file.fd, 10000 * PAGE, 100 * PAGE)
    expected = (sample(2000) | {5000, 5001, 5002, 9000, 9500}) - set(range(10000, 10100))
    assert file.probe()[0] == expected


def test_a_part_is_answered_by_counting(file):
    file.touch({100, 101, 102, 110})
    memory.populate_write(file.address + 32 * MIB, 32 * MIB)
    assert file.probe(96 * PAGE, 112 * PAGE) == ({100, 101, 102, 110}, "cachestat")
    assert file.probe(100 * PAGE, 102 * PAGE) == ({100, 101}, "cachestat")
    assert file.probe(48 * MIB, 50 * MIB) == (set(range(12 * 1024, 12 * 1024 + 512)), "cachestat")
    assert file.probe(0, 16 * PAGE) == (set(), "cachestat")


def test_a_part_with_many_boundaries_is_walked(file):
    file.touch(range(0, 2048, 2))
    assert file.probe(0, 8 * MIB) == (set(range(0, 2048, 2)), "seek_data")


@pytest.mark.parametrize("seed", range(5))
def test_any_part_is_answered_exactly(file, seed):
    rng = random.Random(seed)
    file.touch(sample(4000, seed))
    for _ in range(20):
        start, end = sorted(rng.sample(range(PAGES + 1), 2))
        found, _method = file.probe(start * PAGE, end * PAGE)
        assert found == {number for number in sample(4000, seed) if start <= number < end}


def test_beyond_the_end_of_the_file_there_is_nothing(file):
    file.touch({3})
    found, _ = shmem.committed_extents(file.fd, 0, 4 * file.size, file.address, file.size)
    assert numbers_of(found) == {3}
    assert shmem.committed_extents(file.fd, 2 * file.size, 4 * file.size, None, 0)[0] == array("q")


def test_a_part_that_a_peer_added_is_found(file):
    file.touch({3})
    os.ftruncate(file.fd, 2 * file.size)
    os.pwrite(file.fd, b"x", file.size + PAGE)
    found, _ = shmem.committed_extents(file.fd, 0, 2 * file.size, file.address, file.size)
    assert numbers_of(found) == {3, PAGES + 1}


def test_page_tables_are_not_believed_where_blocks_say_otherwise(file):
    file.touch(range(2000))
    files.fallocate(file.fd, 0, 8000 * PAGE, 50 * PAGE)  # allocated, never touched
    found, method = file.probe()
    assert method != "pagemap_scan"
    assert found >= set(range(2000))
    assert found - set(range(2000)) <= set(range(8000, 8050))


def test_without_a_mapping_the_file_is_walked(file):
    file.touch(sample(3000))
    found, method = shmem.committed_extents(file.fd, 0, file.size, None, 0)
    assert (numbers_of(found), method) == (sample(3000), "seek_data")


def old_kernel(monkeypatch: pytest.MonkeyPatch, *without: str) -> None:
    for name in without:
        monkeypatch.setattr(shmem, name, lambda *_: None)


@pytest.mark.parametrize("without", [("cachestat_raw",), ("pagemap_sum",), ("cachestat_raw", "pagemap_sum")])
def test_an_older_kernel_gets_the_same_answers(file, monkeypatch, without):
    old_kernel(monkeypatch, *without)
    file.touch(sample(3000))
    touch_elsewhere(file.fd, [number * PAGE for number in sample(100, 2)], file.size)
    assert file.probe()[0] == sample(3000) | sample(100, 2)
    assert file.probe(0, 4 * MIB)[0] == {number for number in sample(3000) | sample(100, 2) if number < 1024}
    if "cachestat_raw" in without:
        assert shmem.held_bytes(file.fd, 0, SIZE) is None
        assert shmem.held_extents(file.fd, 0, SIZE) is None


def test_held_pages_include_those_that_were_never_touched(file):
    file.touch({0, 5})
    files.fallocate(file.fd, 0, 7 * PAGE, 2 * PAGE)
    assert shmem.held_bytes(file.fd, 0, SIZE) == 4 * PAGE
    assert numbers_of(shmem.held_extents(file.fd, 0, SIZE) or array("q")) == {0, 5, 7, 8}
    assert shmem.held_extents(file.fd, 0, SIZE, max_calls=3) is None


@pytest.mark.parametrize("mixed", [False, True])
def test_swapped_pages_are_committed_in_every_answer(file, mixed):
    wanted = set(range(0, 4096, 2))
    with swap_file(64 * MIB):
        file.touch(wanted)
        memory.madvise(file.address, 16 * MIB, memory.MADV_PAGEOUT)
        counted = files.cachestat(file.fd, 0, SIZE)
        if counted is not None:
            assert counted.evicted >= 0.9 * len(wanted), f"not swapped out: {counted}"
        if mixed:
            file.touch(range(8000, 16000, 2))
            wanted |= set(range(8000, 16000, 2))
        assert os.fstat(file.fd).st_blocks * 512 == len(wanted) * PAGE
        assert file.probe()[0] == wanted
        assert file.probe(0, 200 * PAGE)[0] == set(range(0, 200, 2))
        assert file.probe(2 * PAGE, 3 * PAGE) == ({2}, "cachestat")
        ranges = [FileRange(number * PAGE, (number + 1) * PAGE) for number in wanted]
        punching.punch_batch(file.fd, file.address, ranges)
        assert file.probe() == (set(), "st_blocks")


def test_shmem_is_told_from_other_files(file, ext4_directory, tmpfs_directory):
    assert shmem.is_shmem(file.fd)
    for directory, expected in ((ext4_directory, False), (tmpfs_directory, True)):
        fd = os.open(directory, os.O_RDONLY)
        assert shmem.is_shmem(fd) is expected
        os.close(fd)


# ---- PAGEMAP_SCAN ---------------------------------------------------------------------------------------------------


def test_a_scan_of_more_regions_than_fit_one_call_repeats_none(file):
    need_pagemap(file)
    file.touch(range(0, PAGES, 2))
    found = pagemap_scan(file.address, 0, SIZE)
    assert found is not None
    assert flat.validate(found, 0, SIZE, PAGE) is None
    assert numbers_of(found) == set(range(0, PAGES, 2))


@pytest.mark.parametrize("first", [511, 512, 513, 1024])
def test_regions_that_meet_at_the_end_of_a_call_are_joined(file, first):
    need_pagemap(file)
    wanted = set(range(0, 2 * first, 2)) | set(range(2 * first, 3 * first + 5))
    file.touch(wanted)
    found = pagemap_scan(file.address, 0, SIZE)
    assert found is not None
    assert flat.validate(found, 0, SIZE, PAGE) is None
    assert numbers_of(found) == wanted


def test_a_scan_is_clipped(file):
    need_pagemap(file)
    file.touch(range(100))
    assert numbers_of(pagemap_scan(file.address, 10 * PAGE, 20 * PAGE) or array("q")) == set(range(10, 20))
    assert pagemap_scan(file.address, 10 * PAGE, 10 * PAGE) == array("q")


def test_a_scan_leaks_no_descriptor_and_needs_proc(file, monkeypatch):
    need_pagemap(file)
    before = len(os.listdir("/proc/self/fd"))
    pagemap_scan(file.address, 0, SIZE)
    assert len(os.listdir("/proc/self/fd")) <= before
    monkeypatch.setattr("memplat.linux.pagemap._libc.open_held", lambda *_: _libc.Descriptor(-1))
    assert pagemap_scan(file.address, 0, SIZE) is None
