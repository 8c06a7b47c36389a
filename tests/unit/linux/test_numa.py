"""Nodes of the host, and mbind(2)."""

from __future__ import annotations

import errno
import mmap

import pytest

from memplat.linux import files, memory, numa
from tests.hostparts import MIB
from tests.needs import needs


@pytest.fixture
def nodes() -> tuple[int, ...]:
    found = numa.nodes_with_memory()
    if found is None:
        needs("numa", "the kernel does not tell of nodes")
    return found


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0\n", [0]), ("0-3,8\n", [0, 1, 2, 3, 8]), ("1,5,7-7", [1, 5, 7]), ("\n", [])],
)
def test_lists_of_nodes_are_read_as_the_kernel_writes_them(text: str, numbers: list[int]):
    assert numa.parse_list(text) == numbers


def test_the_policy_of_shared_memory_is_that_of_the_file(nodes: tuple[int, ...]):
    fd = files.memfd("numa")
    with open(fd, "r+b", buffering=0) as file:
        file.truncate(MIB)
        flags = memory.MAP_SHARED
        first = memory.map_anywhere(MIB, fd, 0, memory.PROT_READ | memory.PROT_WRITE, flags)
        numa.mbind(first, MIB, numa.MPOL_BIND, nodes[:1])
        second = memory.map_anywhere(MIB, fd, 0, memory.PROT_READ | memory.PROT_WRITE, flags)
        with open("/proc/self/numa_maps") as maps:
            lines = {line.split()[0]: line.split()[1] for line in maps}
        assert lines.get(f"{first:08x}") == lines.get(f"{second:08x}") == f"bind:{nodes[0]}"
        memory.unmap(first, MIB)
        memory.unmap(second, MIB)


def test_a_node_that_does_not_exist_is_an_error(nodes: tuple[int, ...]):
    address = memory.reserve_address_space(mmap.PAGESIZE, mmap.PAGESIZE)
    with pytest.raises(OSError, match="mbind") as caught:
        numa.mbind(address, mmap.PAGESIZE, numa.MPOL_BIND, [max(nodes) + 900])
    assert caught.value.errno == errno.EINVAL
    assert not numa.is_missing(caught.value)
    memory.unmap(address, mmap.PAGESIZE)
