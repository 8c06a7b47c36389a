"""What only one kind of address space has."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import memplat
from memplat import FileRange
from memplat.linux import kvm
from memplat.memory import Memory
from memplat.platforms import HostSpace, KvmSpace, ProcessSpace, Window
from memplat.ranges import MIB, Address
from tests.hostparts import hugetlb_pool, tmpfs_mount
from tests.needs import needs
from tests.unit.platforms.guests import KvmGuest

PAGE = 4096


def lines_of(pid: int, first: int, length: int) -> list[str]:
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if first <= start and end <= first + length:
            found.append(line.split()[1])
    return found


def test_the_host_maps_over_its_own_reservation_and_nothing_else(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    with HostSpace(MIB) as space:
        for addr in (space.first - PAGE, space.last + 1, space.last + 1 - PAGE, memory.address(pages)):
            with pytest.raises(memplat.NotMappedError):
                memory.map_into(space, addr, pages, "read")
        memory.map_into(space, space.first + PAGE, pages, "read_execute")
        assert lines_of(os.getpid(), space.first, MIB) == ["---p", "r-xs", "---p"]
        space.unmap(Address(space.first + PAGE), PAGE)
        assert lines_of(os.getpid(), space.first, MIB) == ["---p", "r-xs", "---p"]
        first = space.first
    assert lines_of(os.getpid(), first, MIB) == []
    memory.decref(pages)


@pytest.mark.parametrize("kind", [HostSpace, ProcessSpace])
@pytest.mark.parametrize(
    "length",
    [0, -PAGE, PAGE + 1, (1 << 47) + PAGE, 1 << 64, (1 << 64) + PAGE, True, None, 4096.0, "4096", np.int64(PAGE)],
)
def test_a_region_has_a_length_that_an_address_space_can_have(kind: type[HostSpace], length: int) -> None:
    with pytest.raises(memplat.InvalidArgumentError, match="length"):
        kind(length)


@pytest.mark.parametrize("kind", [HostSpace, ProcessSpace])
def test_a_region_that_there_is_no_room_for_is_a_host_error(kind: type[HostSpace]) -> None:
    with pytest.raises(memplat.HostError, match="reserve") as told:
        kind(1 << 47)
    assert told.value.errno == errno.ENOMEM


def test_whole_huge_pages_go_into_a_region() -> None:
    with hugetlb_pool(2), memplat.open("hugetlb", config={}, max_size=4 * MIB) as memory, HostSpace(8 * MIB) as space:
        pages = memory.allocate(2 * memory.page_size, fill=b"huge")
        memory.map_into(space, space.first, pages, "read_write")
        assert space.read(space.first, 4) == b"huge"
        with pytest.raises(memplat.InvalidArgumentError, match="within a page"):
            space.unmap(space.first, PAGE)
        space.unmap(space.first, memory.page_size)
        assert [memory.inspect(offset).refs for offset in pages[:1]] == [1]
        space.release()
        memory.decref(pages)


def test_precommit_on_a_full_disk_is_a_host_error_and_maps_nothing() -> None:
    with (
        tmpfs_mount(2 * MIB) as directory,
        memplat.open("tmpfile", config={}, max_size=64 * MIB, tmpfile={"directory": str(directory)}) as memory,
        HostSpace(16 * MIB) as space,
    ):
        pages = memory.allocate(16 * MIB, mode="uncommitted")
        with pytest.raises(memplat.HostError, match="precommit") as told:
            memory.map_into(space, space.first, pages, "read_write", precommit=True)
        assert told.value.errno == errno.EFAULT
        assert space.mappings() == ()
        assert memory.inspect(pages.start).refs == 1
        memory.decref(pages)


def die(window: Window, how: int) -> None:
    os.kill(os.getpid(), how)


def complain(window: Window) -> None:
    raise LookupError("no such luck")


def length_of(window: Window) -> int:
    return window.length


def nothing_to_pickle(window: Window) -> object:
    return lambda: None


def test_a_child_that_dies_is_a_typed_error_and_its_references_are_gone(memory: Memory) -> None:
    pages = memory.allocate(2 * PAGE)
    with ProcessSpace(MIB) as space:
        memory.map_into(space, space.first, pages, "read_write")
        assert space.call(length_of) == MIB
        with pytest.raises(LookupError, match="no such luck"):
            space.call(complain)
        with pytest.raises(memplat.AddressSpaceError, match="cannot be sent back"):
            space.call(nothing_to_pickle)
        with pytest.raises(memplat.GuestDiedError) as told:
            space.call(die, signal.SIGKILL)
        assert told.value.status == -signal.SIGKILL
        assert memory.inspect(pages.start).refs == 1
        with pytest.raises(memplat.GuestDiedError):
            memory.map_into(space, space.first, pages, "read")
        assert memory.inspect(pages.start).refs == 1
        assert space.mappings() == ()
    memory.decref(pages)


def test_a_child_that_is_killed_between_two_calls_is_noticed_by_the_next(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    with ProcessSpace(MIB) as space:
        memory.map_into(space, space.first, pages, "read_write")
        os.kill(space.pid, signal.SIGKILL)
        with pytest.raises(memplat.GuestDiedError):
            space.read(space.first, 1)
        assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)


@pytest.fixture
def guest(memory: Memory):
    made = KvmGuest(memory)
    yield made
    made.close()


def test_stores_to_read_only_slots_end_the_run(guest: KvmGuest, memory: Memory) -> None:
    pages = memory.allocate(PAGE, fill=b"A")
    memory.map_into(guest.space, guest.base, pages, "read")
    assert guest.load(guest.base) == ord("A")
    guest.cpu.start_flat(guest.code + 5)
    guest.cpu.set_registers({"rbx": guest.base + 3, "rax": 9})
    stop = guest.cpu.run()
    assert (stop.reason, stop.is_write, stop.address, stop.data) == (kvm.EXIT_MMIO, True, guest.base + 3, b"\x09")
    assert memory.read(pages.part(3, 1)) == b"\0"
    memory.decref(pages)


def test_the_dirty_log_tells_the_pages_that_the_guest_wrote_to(guest: KvmGuest, memory: Memory) -> None:
    pages = memory.allocate(200 * PAGE)
    memory.map_into(guest.space, guest.base, pages, "read_write")
    for page in (0, 1, 2, 63, 64, 65, 130, 199):
        guest.store(guest.base + page * PAGE + 5, 1)
    guest.load(guest.base + 20 * PAGE)
    expected = [(0, 3), (63, 66), (130, 131), (199, 200)]
    found = guest.space.dirty()
    assert found == [(memory, FileRange(pages.start + a * PAGE, pages.start + b * PAGE)) for a, b in expected]
    assert guest.space.dirty() == []
    guest.store(guest.base + 7 * PAGE, 1)
    guest.space.unmap(Address(guest.base + 5 * PAGE), 10 * PAGE)  # the log of a slot that is taken apart is kept
    assert guest.space.dirty() == [(memory, pages.part(7 * PAGE, PAGE))]
    memory.decref(pages)


def test_a_machine_without_a_free_slot_says_so_and_is_as_before(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    try:
        space = KvmSpace(max_slots=3)
    except memplat.HostError as error:
        needs("kvm", str(error))
    with space:
        memory.map_into(space, 0x10000, pages, "read_write")
        memory.map_into(space, 0x20000, pages, "read_write")
        space.unmap(Address(0x11000), PAGE)
        before = space.mappings()
        assert len(before) == 3
        with pytest.raises(memplat.TooManyMappingsError):
            memory.map_into(space, 0x30000, pages, "read_write")
        with pytest.raises(memplat.TooManyMappingsError):
            space.unmap(Address(0x21000), PAGE)  # would cut one slot into two
        assert space.mappings() == before
        assert space.read(Address(0x20000), 4 * PAGE) == bytes(4 * PAGE)
        space.unmap(Address(0x10000), PAGE)
        space.unmap(Address(0x21000), PAGE)
    assert [memory.inspect(offset).refs for offset in range(pages.start, pages.end, PAGE)] == [1] * 4
    memory.decref(pages)


def test_a_machine_is_as_before_also_when_the_memory_is_closed() -> None:
    memory = memplat.open("memfd", config={}, max_size=MIB, reclaim="manual")
    pages = memory.allocate(4 * PAGE, fill=b"kept")
    try:
        space = KvmSpace(max_slots=1)
    except memplat.HostError as error:
        needs("kvm", str(error))
    with space:
        memory.map_into(space, 0x10000, pages, "read_write")
        memory.decref(pages)
        with pytest.warns(ResourceWarning):
            memory.close()
        before = space.mappings()
        with pytest.raises(memplat.TooManyMappingsError):
            space.unmap(Address(0x11000), PAGE)
        assert space.mappings() == before
        assert space.read(Address(0x10000), 4) == b"kept"
        space.unmap(Address(0x10000), 4 * PAGE)
        assert space.mappings() == ()


@pytest.mark.parametrize("max_slots", [0, -1, 1 << 40, True, 1.5, "2", np.int64(2)])
def test_a_number_of_slots_is_one_that_the_kernel_has(max_slots: int) -> None:
    before = os.listdir("/proc/self/fd")
    try:
        with pytest.raises(memplat.InvalidArgumentError, match="max_slots"):
            KvmSpace(max_slots=max_slots)
    except memplat.HostError as error:
        needs("kvm", str(error))
    assert os.listdir("/proc/self/fd") == before


class ReadOnlyFile:
    """A file that no space can map writable: its descriptor does not allow it."""

    page_size = PAGE

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.fd = os.open(f"/proc/self/fd/{memory.fileno()}", os.O_RDONLY)

    def fileno(self) -> int:
        return self.fd

    def address(self, pages: FileRange) -> int:
        return self.memory.address(pages)

    def view(self, range: FileRange, *, writable: bool = True, pin: bool = True) -> memoryview:  # noqa: A002 -- as the protocol
        return self.memory.view(range, writable=writable, pin=pin)

    def incref(self, pages: FileRange) -> None:
        self.memory.incref(pages)

    def decref(self, pages: FileRange) -> None:
        self.memory.decref(pages)


@pytest.mark.parametrize("kind", [HostSpace, ProcessSpace])
def test_what_cannot_be_put_back_because_its_memory_is_closed_is_not_mapped_any_more(
    kind: type[HostSpace], memory: Memory
) -> None:
    pages = memory.allocate(3 * PAGE)
    memory.write(pages, b"open" * (3 * PAGE // 4))
    other = memplat.open("memfd", config={}, max_size=MIB, reclaim="manual")
    gone = other.allocate(PAGE)
    refused = ReadOnlyFile(memory)
    with kind(MIB) as space:
        at = [Address(space.first + page * PAGE) for page in range(4)]
        memory.map_into(space, at[0], pages, "read_write")
        before = space.mappings()
        with pytest.raises(memplat.AddressSpaceError):
            space.map_file(at[1], refused, pages.part(0, 2 * PAGE), memplat.Access.READ_WRITE, False)
        assert space.mappings() == before
        other.map_into(space, at[1], gone, "read_write")
        other.decref(gone)
        with pytest.warns(ResourceWarning):
            other.close()
        with pytest.raises(memplat.AddressSpaceError):
            space.map_file(at[1], refused, pages.part(0, 2 * PAGE), memplat.Access.READ_WRITE, False)
        assert [piece.start for piece in space.mappings()] == [at[0], at[2]]
        assert space.read(at[2], 4) == space.read(at[0], 4) == b"open"
        with pytest.raises(memplat.NotMappedError):
            space.read(at[1], 1)
    os.close(refused.fd)
    assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)
