"""What a small file proves of itself by the page tables, in Python and compiled."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplat.linux import _libc, files, memory
from memplat.linux import pagemap as module
from memplat.linux.pagemap import pagemap_proof, pagemap_scan, pagemap_sum
from memplat.ranges import MIB
from tests.needs import needs

PAGE = 4096
PAGES = 32


class Mapped:
    """A memfd that is mapped whole."""

    def __init__(self, size: int) -> None:
        self.fd, self.size = files.memfd("test"), size
        os.ftruncate(self.fd, size)
        self.address = memory.reserve_address_space(size)
        memory.map_shared(self.address, size, self.fd, 0)
        if pagemap_scan(self.address, 0, size) is None:
            self.close()
            needs("pagemap_scan", "the kernel has none")

    def touch(self, *numbers: int) -> None:
        for number in numbers:
            memory.copy_to(self.address + number * PAGE, b"x")

    def prove(self) -> tuple[array[int], int] | None:
        return pagemap_proof(self.fd, self.address, self.size)

    def close(self) -> None:
        memory.unmap(self.address, self.size)
        os.close(self.fd)


@pytest.fixture
def file() -> Iterator[Mapped]:
    mapped = Mapped(4 * MIB)
    yield mapped
    mapped.close()


@given(st.frozensets(st.integers(0, PAGES - 1)), st.frozensets(st.integers(0, PAGES - 1)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_touched_here_and_not_punched_is_proven(
    choose_probing: Callable[[str], Any], touched: frozenset[int], punched: frozenset[int]
) -> None:
    mapped = Mapped(PAGES * PAGE)
    try:
        mapped.touch(*touched)
        for number in punched:
            files.punch_hole(mapped.fd, number * PAGE, PAGE)
        left = sorted(touched - punched)
        for core in ("python", "native"):
            choose_probing(core)
            found = mapped.prove()
            assert found is not None
            extents, total = found
            assert total == len(left) * PAGE
            pairs = list(zip(extents[::2], extents[1::2], strict=True))
            assert [page // PAGE for low, high in pairs for page in range(low, high, PAGE)] == left
            assert all(high < low for (_, high), (low, _) in pairwise(pairs)), "none touch"
    finally:
        mapped.close()


@pytest.mark.usefixtures("probing")
def test_more_regions_than_one_call_returns_are_all_proven() -> None:
    mapped = Mapped(40_000 * PAGE)
    try:
        for number in range(0, 40_000, 2):  # 20,000 regions: more than both cores' buffers hold
            memory.copy_to(mapped.address + number * PAGE, b"x")
        found = mapped.prove()
        assert found is not None
        assert found[1] == 20_000 * PAGE
        assert list(found[0][0::2]) == list(range(0, 40_000 * PAGE, 2 * PAGE))
    finally:
        mapped.close()


@pytest.mark.usefixtures("probing")
def test_what_the_page_tables_do_not_know_is_no_proof(file: Mapped) -> None:
    file.touch(1, 2)
    assert file.prove() is not None
    os.pwrite(file.fd, b"x", 9 * PAGE)  # by system call: in no page table
    assert file.prove() is None
    file.touch(9)
    assert file.prove() == (array("q", [PAGE, 3 * PAGE, 9 * PAGE, 10 * PAGE]), 3 * PAGE)
    files.fallocate(file.fd, 0, 20 * PAGE, PAGE)  # reserved, and not touched
    assert file.prove() is None


@pytest.mark.usefixtures("probing")
def test_a_part_that_is_not_looked_at_is_no_proof(file: Mapped) -> None:
    file.touch(1, 600)
    assert pagemap_proof(file.fd, file.address, 2 * MIB) is None
    assert pagemap_sum(file.address, 0, 2 * MIB) == (array("q", [PAGE, 2 * PAGE]), PAGE)


@pytest.mark.usefixtures("probing")
def test_an_empty_file_is_proven_empty(file: Mapped) -> None:
    assert file.prove() == (array("q"), 0)


@pytest.mark.usefixtures("probing")
def test_proofs_leave_no_descriptor(file: Mapped) -> None:
    file.touch(3)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        file.prove()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("probing")
def test_where_proc_is_not_mounted_nothing_is_proven(file: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    file.touch(3)
    monkeypatch.setattr(_libc, "open_held", lambda path, flags: _libc.Descriptor(-1))
    assert file.prove() is None


@pytest.mark.usefixtures("probing")
def test_a_page_that_comes_while_the_tables_are_read_spoils_the_proof(
    file: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.touch(3)
    asked: list[int] = []

    def storage_held(fd: int) -> int:
        asked.append(fd)
        if len(asked) == 2:
            os.pwrite(fd, b"x", 9 * PAGE)
        return files.storage_held(fd)

    monkeypatch.setattr(module, "storage_held", storage_held)
    assert file.prove() is None
    assert len(asked) == 2


@pytest.mark.usefixtures("probing")
def test_a_descriptor_that_is_none_is_an_error_and_leaves_no_other(file: Mapped) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        pagemap_proof(-1, file.address, file.size)
    assert sorted(os.listdir("/proc/self/fd")) == before
