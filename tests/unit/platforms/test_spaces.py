"""Every address space does the same: the same tests for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import memplat
from memplat import Access, FileRange
from memplat.memory import AddressSpace, Memory
from memplat.platforms import HostSpace, KvmSpace, ProcessSpace, Space, UnicornSpace
from memplat.ranges import Address
from tests.needs import needs
from tests.unit.platforms.guests import LENGTH, Guest, HostGuest, KvmGuest, ProcessGuest, UnicornGuest

PAGE = 4096


def refs(memory: Memory, pages: FileRange) -> list[int]:
    return [memory.inspect(offset).refs for offset in range(pages.start, pages.end, PAGE)]


def numbered(memory: Memory, count: int, first: int = 1) -> FileRange:
    """Pages that begin with their number."""
    pages = memory.allocate(count * PAGE)
    for number in range(count):
        memory.write(pages.part(number * PAGE, 1), bytes([first + number]))
    return pages


def at(guest: Guest, page: int) -> Address:
    return Address(guest.base + page * PAGE)


def test_the_guest_sees_the_pages_and_the_host_what_it_stores(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 3)
    memory.map_into(guest.space, at(guest, 5), pages, "read_write")
    assert isinstance(guest.space, AddressSpace)
    assert [guest.load(at(guest, page)) for page in (5, 6, 7)] == [1, 2, 3]
    guest.store(at(guest, 6) + 9, 77)
    assert memory.read(pages.part(PAGE + 9, 1)) == b"M"
    memory.write(pages.part(0, 1), b"!")
    assert guest.load(at(guest, 5)) == ord("!")
    assert guest.space.read(at(guest, 5), 2 * PAGE)[PAGE + 9] == 77
    guest.space.write(Address(at(guest, 6) - 2), b"abcd")
    assert memory.read(pages.part(PAGE - 2, 4)) == b"abcd"
    memory.decref(pages)


def test_a_mapping_is_a_reference_and_unmapping_drops_it_page_by_page(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 4)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    assert refs(memory, pages) == [2, 2, 2, 2]
    guest.space.unmap(at(guest, 1), 2 * PAGE)
    assert refs(memory, pages) == [2, 1, 1, 2]
    assert guest.load(at(guest, 0)) == 1
    assert guest.load(at(guest, 3)) == 4
    guest.space.unmap(at(guest, 0), 10 * PAGE)  # what is not mapped is no error, as with munmap(2)
    assert refs(memory, pages) == [1, 1, 1, 1]
    assert at(guest, 0) not in [piece.start for piece in guest.space.mappings()]
    memory.decref(pages)


def test_a_mapping_over_others_replaces_what_it_covers(guest: Guest, memory: Memory) -> None:
    first, second = numbered(memory, 4), numbered(memory, 2, 11)
    memory.map_into(guest.space, at(guest, 0), first, "read_write")
    memory.map_into(guest.space, at(guest, 1), second, "read_write")
    assert [guest.load(at(guest, page)) for page in range(4)] == [1, 11, 12, 4]
    assert refs(memory, first) == [2, 1, 1, 2]
    memory.map_into(guest.space, at(guest, 1), second, "read")
    assert refs(memory, second) == [2, 2]
    assert guest.load(at(guest, 2)) == 12
    for pages in (first, second):
        memory.decref(pages)


def test_the_same_pages_can_be_mapped_twice(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 2)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    memory.map_into(guest.space, at(guest, 8), pages, "read")
    assert refs(memory, pages) == [3, 3]
    guest.store(at(guest, 0), 9)
    assert guest.load(at(guest, 8)) == 9
    memory.decref(pages)


def test_pages_that_the_owner_frees_are_not_recycled_before_the_mapping_is_gone(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 4)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    memory.decref(pages)
    memory.reclaim()
    others = [memory.allocate(4 * PAGE, mode="committed") for _ in range(20)]
    assert not any(other.overlaps(pages) for other in others)
    assert [guest.load(at(guest, page)) for page in range(4)] == [1, 2, 3, 4]
    guest.space.unmap(at(guest, 0), PAGE)
    assert memory.allocate(PAGE, mode="committed") == pages.part(0, PAGE)
    assert guest.load(at(guest, 3)) == 4
    guest.space.unmap(at(guest, 0), LENGTH)
    memory.decref(pages.part(0, PAGE))
    for other in others:
        memory.decref(other)
    memory.reclaim()
    assert memory.total_usage() == 0


def test_protection_changes_a_part(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 3)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    guest.space.protect(at(guest, 1), PAGE, "read")
    assert refs(memory, pages) == [2, 2, 2]
    assert [piece.access for piece in guest.space.mappings() if piece.start >= guest.base] == [
        "read_write",
        "read",
        "read_write",
    ]
    with pytest.raises(memplat.AccessError):
        guest.space.write(at(guest, 1), b"x")
    with pytest.raises(memplat.AccessError):
        guest.space.write(at(guest, 0), bytes(3 * PAGE))
    assert guest.load(at(guest, 0)) == 1  # all or nothing
    guest.space.protect(at(guest, 0), 3 * PAGE, "read_write")
    guest.store(at(guest, 1), 8)
    assert guest.load(at(guest, 1)) == 8
    memory.decref(pages)


def test_writing_and_executing_at_once_has_to_be_asked_for(guest: Guest, memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    with pytest.raises(memplat.AccessError, match="write_execute=True"):
        memory.map_into(guest.space, at(guest, 0), pages, "read_write_execute")
    memory.map_into(guest.space, at(guest, 0), pages, "read_execute")
    with pytest.raises(memplat.AccessError):
        guest.space.protect(at(guest, 0), PAGE, "read_write_execute")
    assert refs(memory, pages) == [2]
    memory.decref(pages)


def test_what_makes_no_sense_is_refused_and_changes_nothing(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 2)
    space = guest.space
    memory.map_into(space, at(guest, 1), pages, "read")
    before = space.mappings()
    for addr, length in ((1, PAGE), (guest.base, 1), (guest.base, 0), (guest.base, -PAGE)):
        with pytest.raises(memplat.InvalidArgumentError):
            space.unmap(Address(addr), length)
    with pytest.raises(memplat.InvalidArgumentError):
        space.protect(at(guest, 1), PAGE, "nonsense")
    for call in (
        lambda: space.protect(at(guest, 0), 2 * PAGE, "read"),
        lambda: space.protect(at(guest, 2), 2 * PAGE, "read"),
        lambda: space.read(at(guest, 0), PAGE),
        lambda: space.read(Address(at(guest, 3) - 1), 2),
        lambda: space.unmap(Address(space.last + 1 - PAGE), 2 * PAGE),
        lambda: memory.map_into(space, Address((1 << 64) - PAGE), pages, "read"),
    ):
        with pytest.raises(memplat.NotMappedError):
            call()
    assert space.mappings() == before
    assert refs(memory, pages) == [2, 2]
    memory.decref(pages)


@pytest.mark.parametrize("wrong", [None, True, 1.5, 4096.0, "4096", b"x", [], np.int64(PAGE)])
def test_wrong_types_are_typed_errors_and_change_nothing(guest: Guest, memory: Memory, wrong: Any) -> None:
    pages = numbered(memory, 2)
    space = guest.space
    memory.map_into(space, at(guest, 0), pages, "read_write")
    before = space.mappings()
    for call in (
        lambda: space.unmap(wrong, PAGE),
        lambda: space.unmap(at(guest, 0), wrong),
        lambda: space.protect(wrong, PAGE, "read"),
        lambda: space.protect(at(guest, 0), wrong, "read"),
        lambda: space.protect(at(guest, 0), PAGE, wrong),
        lambda: space.read(wrong, 1),
        lambda: space.read(at(guest, 0), wrong),
        lambda: space.write(wrong, b"x"),
        lambda: space.map_file(wrong, memory, pages, Access.READ, False),
        lambda: space.map_file(at(guest, 0), wrong, pages, Access.READ, False),
        lambda: space.map_file(at(guest, 0), memory, wrong, Access.READ, False),
        lambda: space.map_file(at(guest, 0), memory, pages, wrong, False),
    ):
        with pytest.raises(memplat.InvalidArgumentError):
            call()
    assert space.mappings() == before
    assert refs(memory, pages) == [2, 2]
    memory.decref(pages)


@pytest.mark.parametrize("data", [None, 5, "text", [1], np.zeros((4, 4))[:, ::2]])
def test_what_is_stored_is_a_contiguous_buffer(guest: Guest, memory: Memory, data: Any) -> None:
    pages = numbered(memory, 1)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    with pytest.raises(memplat.InvalidArgumentError, match="no contiguous buffer"):
        guest.space.write(at(guest, 0), data)
    memory.decref(pages)


def test_nothing_can_be_read_and_less_than_nothing_cannot(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 1)
    memory.map_into(guest.space, at(guest, 0), pages, "read")
    assert guest.space.read(Address(at(guest, 0) + 9), 0) == b""
    with pytest.raises(memplat.InvalidArgumentError, match="length -1"):
        guest.space.read(Address(at(guest, 0) + 9), -1)
    memory.decref(pages)


def test_only_pages_that_the_file_has_can_be_mapped(guest: Guest, memory: Memory) -> None:
    pages = numbered(memory, 1)
    before = guest.space.mappings()
    for wrong in (
        FileRange(1 << 40, (1 << 40) + PAGE),
        FileRange(memory.total_size(), memory.total_size() + PAGE),
        FileRange(PAGE, 0),
        FileRange(-PAGE, PAGE),
        FileRange(1, PAGE + 1),
    ):
        with pytest.raises(memplat.InvalidRangeError):
            guest.space.map_file(at(guest, 0), memory, wrong, Access.READ, False)
    with pytest.raises(memplat.NotAllocatedError):
        guest.space.map_file(at(guest, 0), memory, FileRange(pages.end, pages.end + PAGE), Access.READ, False)
    assert guest.space.mappings() == before
    memory.decref(pages)


def test_precommit_makes_pages_present_first(guest: Guest, memory: Memory) -> None:
    pages = memory.allocate(8 * PAGE)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write", precommit=True)
    assert memory.total_usage() == 8 * PAGE
    memory.decref(pages)


def test_a_guest_outlives_the_memory(guest: Guest) -> None:
    memory = memplat.open("memfd", config={}, max_size=64 << 20, reclaim="manual")
    pages = numbered(memory, 2)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    memory.decref(pages)
    with pytest.warns(ResourceWarning):
        memory.close()
    assert guest.load(at(guest, 1)) == 2
    guest.store(at(guest, 0), 5)
    assert guest.load(at(guest, 0)) == 5


def test_what_is_mapped_can_be_used_and_taken_apart_when_the_memory_is_closed(guest: Guest) -> None:
    memory = memplat.open("memfd", config={}, max_size=64 << 20, reclaim="manual")
    pages = numbered(memory, 5)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    memory.decref(pages)
    with pytest.warns(ResourceWarning):
        memory.close()
    assert guest.space.read(Address(at(guest, 1) - 1), 2) == b"\0\2"
    guest.space.write(Address(at(guest, 1) - 1), b"ab")
    assert guest.load(at(guest, 1)) == ord("b")
    guest.space.protect(at(guest, 3), PAGE, "read")
    guest.space.unmap(at(guest, 1), PAGE)
    assert [guest.load(at(guest, page)) for page in (0, 2, 3, 4)] == [1, 3, 4, 5]
    guest.space.unmap(at(guest, 0), 5 * PAGE)
    with pytest.raises(memplat.NotMappedError):
        guest.space.read(at(guest, 0), 1)


@pytest.mark.parametrize("kind", [HostGuest, ProcessGuest, UnicornGuest, KvmGuest])
def test_release_unmaps_everything_and_is_final(kind: type[Guest], memory: Memory) -> None:
    guest = kind(memory) if kind is KvmGuest else kind()
    pages = numbered(memory, 2)
    memory.map_into(guest.space, at(guest, 0), pages, "read_write")
    memory.map_into(guest.space, at(guest, 7), pages.part(PAGE, PAGE), "read")
    guest.close()
    guest.space.release()
    assert refs(memory, pages) == [1, 1]
    with pytest.raises(memplat.AddressSpaceError):
        memory.map_into(guest.space, at(guest, 0), pages, "read")
    assert refs(memory, pages) == [1, 1]
    memory.decref(pages)
    memory.reclaim()
    assert memory.total_usage() == 0


@pytest.mark.parametrize("make", [HostSpace, ProcessSpace, UnicornSpace, KvmSpace])
def test_writing_and_executing_at_once_can_be_asked_for(make: type[Space], memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    try:
        space = make(write_execute=True)
    except memplat.HostError as error:
        needs("kvm", str(error))
    except memplat.AddressSpaceError as error:
        needs("unicorn", str(error))
    with space:
        memory.map_into(space, space.first + 0x10000, pages, "read_write_execute")
        assert space.mappings()[0].access.executable
    memory.decref(pages)
