"""Mapping pages into an address space: the reference that goes with it, and what the space is given."""

from __future__ import annotations

import mmap
from typing import Any

import pytest

import memplat
from memplat import FileRange
from memplat.memory import AddressSpace, Memory
from tests.oracle import PAGE
from tests.unit.engine.helpers import check, part, unchanged


class Recording:
    """An address space that maps nothing, and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any, FileRange, memplat.Access, bool]] = []

    def map_file(self, addr: int, file: Any, pages: FileRange, access: memplat.Access, precommit: bool) -> None:
        self.calls.append((addr, file, pages, access, precommit))

    def unmap(self, addr: int, length: int) -> None:
        raise AssertionError("no test asks for it")

    def release(self) -> None:
        for _, file, pages, _, _ in self.calls:
            file.decref(pages)
        self.calls.clear()


class Mapping(Recording):
    """An address space that really maps, by mmap of the descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: dict[int, mmap.mmap] = {}

    def map_file(self, addr: int, file: Any, pages: FileRange, access: memplat.Access, precommit: bool) -> None:
        super().map_file(addr, file, pages, access, precommit)
        flags = mmap.ACCESS_WRITE if access.writable else mmap.ACCESS_READ
        self.maps[addr] = mmap.mmap(file.fileno(), pages.length, access=flags, offset=pages.start)

    def release(self) -> None:
        for mapped in self.maps.values():
            mapped.close()
        super().release()


class Refusing(Recording):
    """Cannot map."""

    def map_file(self, addr: int, file: Any, pages: FileRange, access: memplat.Access, precommit: bool) -> None:
        raise OSError(12, "no room in the guest")


def test_a_mapping_is_a_reference_that_unmapping_drops(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    space = Recording()
    memory.map_into(space, 0x10000, part(pages, 1, 2), "read_write")
    assert [memory.inspect(part(pages, n).start).refs for n in range(4)] == [1, 2, 2, 1]
    memory.decref(pages)
    memory.reclaim()
    assert [memory.inspect(part(pages, n).start).state for n in range(4)] == ["free", "used", "used", "free"]
    space.release()
    memory.reclaim()
    assert memory.inspect(part(pages, 1).start).state == "free"
    check(memory)


def test_the_space_is_given_address_file_range_access_and_precommit(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    space = Recording()
    memory.map_into(space, 0x7000_0000_0000, pages, memplat.Access.READ_EXECUTE, precommit=True)
    memory.map_into(space, 0, pages, "read")
    (addr, file, given, access, precommit), second = space.calls
    assert (addr, given, precommit) == (0x7000_0000_0000, pages, True)
    assert access is memplat.Access.READ_EXECUTE
    assert file.fileno() == memory.fileno()
    assert file.address(pages) == memory.address(pages)
    assert (second[0], second[3], second[4]) == (0, memplat.Access.READ, False)
    assert isinstance(second[3], memplat.Access)
    space.release()
    assert memory.has_unique_ref(pages)


def test_a_mapping_sees_what_the_memory_sees(memory: Memory) -> None:
    memory.allocate(3 * PAGE)
    pages = memory.allocate(2 * PAGE, fill=b"from the memory")
    space = Mapping()
    memory.map_into(space, 0x1000, pages, "read_write")
    mapped = space.maps[0x1000]
    assert mapped[:15] == b"from the memory"
    mapped[PAGE : PAGE + 5] = b"guest"
    assert memory.read(FileRange(pages.start + PAGE, pages.start + PAGE + 5)) == b"guest"
    space.release()


def test_a_space_that_cannot_map_leaves_no_reference_behind(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    with unchanged(memory), pytest.raises(OSError, match="no room in the guest"):
        memory.map_into(Refusing(), 0x1000, pages, "read")
    assert memory.inspect(pages.start).refs == 1


def test_pages_that_nobody_holds_cannot_be_mapped(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    memory.decref(part(pages, 1))
    space = Recording()
    with unchanged(memory), pytest.raises(memplat.NotAllocatedError):
        memory.map_into(space, 0x1000, pages, "read")
    assert space.calls == []


def test_a_block_can_be_mapped(memory: Memory) -> None:
    space = Recording()
    with memory.block(PAGE) as block:
        memory.map_into(space, 0x1000, block, "read")
        pages = block.pages
        assert space.calls[0][2] == pages
    assert memory.inspect(pages.start).refs == 1
    space.release()
    assert memory.inspect(pages.start).refs == 0


def test_the_space_may_take_further_references_through_the_file(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    space = Recording()
    memory.map_into(space, 0x1000, pages, "read")
    file = space.calls[0][1]
    file.incref(pages)
    assert memory.inspect(pages.start).refs == 3
    file.decref(pages)
    space.release()
    assert memory.has_unique_ref(pages)


def test_whatever_has_the_three_methods_is_an_address_space() -> None:
    assert isinstance(Recording(), AddressSpace)
    assert not isinstance(object(), AddressSpace)
