"""Finding the huge pages that exist, whoever touched them."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Iterator
from itertools import pairwise

import pytest

from memplat.linux import files, userfaultfd
from memplat.linux.userfaultfd import existing_huge_pages
from tests.hostparts import MIB, hugetlb_pool, in_another_process, mounted, touch_elsewhere
from tests.needs import need_root, needs

HUGE = 2 * MIB
PAGES = 16


@pytest.fixture(autouse=True)
def _pool() -> Iterator[None]:
    if not userfaultfd.is_available():
        needs("userfaultfd", "the kernel or the sandbox refuses it")
    with hugetlb_pool(PAGES):
        yield


@pytest.fixture(params=["memfd", "mount"])
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param == "memfd":
        opened = files.memfd("huge", files.MFD_HUGETLB)
        os.ftruncate(opened, PAGES * HUGE)
        yield opened
        os.close(opened)
        return
    with mounted("hugetlbfs", "pagesize=2M") as path:
        opened = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.ftruncate(opened, PAGES * HUGE)
        yield opened
        os.close(opened)


def found(fd: int, start: int = 0, end: int = PAGES, at_most: int = PAGES) -> set[int]:
    extents = existing_huge_pages(fd, start * HUGE, end * HUGE, HUGE, at_most * HUGE)
    assert extents is not None
    bounds = zip(extents[0::2], extents[1::2], strict=True)
    assert all(low < high for low, high in pairwise(extents))
    return {number for low, high in bounds for number in range(low // HUGE, high // HUGE)}


def mappings() -> int:
    """How many mappings of huge pages this process has."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        return sum("memfd:huge" in line or "memplat-" in line for line in file)


def storage(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


@pytest.mark.parametrize("seed", range(6))
def test_pages_that_only_another_process_touched_are_found(fd, seed):
    rng = random.Random(seed)
    touched = set(rng.sample(range(PAGES), rng.randrange(PAGES + 1)))
    if touched:
        touch_elsewhere(fd, [number * HUGE for number in touched], PAGES * HUGE)
    assert found(fd) == touched
    assert storage(fd) == len(touched) * HUGE  # nothing was allocated by looking


def test_allocated_and_punched_pages_are_told(fd):
    files.fallocate(fd, 0, 2 * HUGE, 6 * HUGE)
    files.punch_hole(fd, 4 * HUGE, HUGE)
    assert found(fd) == {2, 3, 5, 6, 7}
    assert found(fd, 3, 6) == {3, 5}
    assert found(fd, 4, 5) == set()


def test_looking_twice_gives_the_same_and_leaves_nothing(fd):
    files.fallocate(fd, 0, 0, 3 * HUGE)
    maps = mappings()
    descriptors = len(os.listdir("/proc/self/fd"))
    assert found(fd) == found(fd) == {0, 1, 2}
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert mappings() == maps
    assert os.fstat(fd).st_size == PAGES * HUGE


def test_the_search_stops_when_all_are_found(fd):
    files.fallocate(fd, 0, HUGE, HUGE)
    assert found(fd, at_most=1) == {1}
    assert existing_huge_pages(fd, 0, PAGES * HUGE, HUGE, 0) == array("q")


def test_a_read_only_descriptor_gets_no_answer(fd):
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        assert existing_huge_pages(read_only, 0, PAGES * HUGE, HUGE, PAGES * HUGE) is None
    finally:
        os.close(read_only)


def test_no_privilege_is_needed(fd):
    need_root("becoming a user without privilege")
    files.fallocate(fd, 0, HUGE, 2 * HUGE)
    os.fchmod(fd, 0o666)
    output = in_another_process(
        """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        from memplat.linux.userfaultfd import existing_huge_pages
        os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        print(existing_huge_pages(int(sys.argv[1]), 0, 16 << 21, 2 << 20, 16 << 21).tolist())
        """,
        fd,
        os.getcwd(),
        fds=[fd],
    )
    assert output.strip() == str([HUGE, 3 * HUGE])


def test_a_sandbox_that_forbids_it_gets_no_answer(fd, monkeypatch):
    monkeypatch.setattr(userfaultfd, "_userfaultfd", lambda *_: -1)
    assert existing_huge_pages(fd, 0, PAGES * HUGE, HUGE, HUGE) is None
    assert not userfaultfd.is_available()


def test_a_kernel_without_minor_faults_gets_no_answer(fd, monkeypatch):
    monkeypatch.setattr(userfaultfd, "_FEATURE_MINOR_HUGETLBFS", 1 << 60)
    before = len(os.listdir("/proc/self/fd"))
    assert existing_huge_pages(fd, 0, PAGES * HUGE, HUGE, HUGE) is None
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_ordinary_file_gets_no_answer():
    ordinary = files.memfd("ordinary")
    os.ftruncate(ordinary, HUGE)
    try:
        assert existing_huge_pages(ordinary, 0, HUGE, HUGE, HUGE) in (None, array("q"))
    finally:
        os.close(ordinary)
