"""Reserving, mapping, populating and exporting address space."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

import pytest

from memplat.linux import files, memory
from tests.hostparts import MIB, hugetlb_pool, in_another_process, tmpfs_mount
from tests.needs import need_root

PAGE = 4096
RESERVED = 16 * MIB


def mappings() -> list[tuple[int, int, str, str]]:
    """Start, end, permissions and path of each mapping of this process."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        rows = [line.split(maxsplit=5) for line in file]
    return [
        (*(int(bound, 16) for bound in row[0].split("-")), row[1], row[5].strip() if len(row) > 5 else "")  # type: ignore[misc]
        for row in rows
    ]


def permissions_at(address: int) -> str:
    return next((what for start, end, what, _ in mappings() if start <= address < end), "nothing")


@pytest.fixture
def reservation() -> Iterator[int]:
    address = memory.reserve_address_space(RESERVED)
    yield address
    memory.unmap(address, RESERVED)


@pytest.fixture
def fd() -> Iterator[int]:
    opened = files.memfd("test")
    os.ftruncate(opened, RESERVED)
    yield opened
    os.close(opened)


def test_a_reservation_is_inaccessible_and_aligned_and_costs_nothing(reservation):
    assert reservation % (2 * MIB) == 0
    assert permissions_at(reservation) == "---p"
    assert permissions_at(reservation + RESERVED - 1) == "---p"


@pytest.mark.parametrize("alignment", [PAGE, 2 * MIB, 1024 * MIB])
@pytest.mark.parametrize("length", [PAGE, 3 * MIB, 1024 * MIB + PAGE])
def test_a_reservation_covers_exactly_what_was_asked_for(length, alignment):
    address = memory.reserve_address_space(length, alignment)
    assert address % alignment == 0
    assert permissions_at(address) == "---p"
    assert permissions_at(address + length - PAGE) == "---p"
    before = sum(end - start for start, end, *_ in mappings())
    memory.unmap(address, length)
    assert before - sum(end - start for start, end, *_ in mappings()) == length


@pytest.mark.parametrize("length", [-PAGE, 0, 1 << 63, 1 << 64, (1 << 64) + PAGE])
def test_a_length_that_would_be_another_one_to_the_kernel_is_refused(length):
    before = mappings()
    with pytest.raises(OSError, match="mmap") as told:
        memory.reserve_address_space(length)
    assert told.value.errno == (errno.ENOMEM if length > 0 else errno.EINVAL)
    assert mappings() == before


def test_a_reservation_beyond_the_address_space_limit_is_enomem():
    output = in_another_process(
        """
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        from memplat.linux import memory
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        try:
            memory.reserve_address_space(1 << 40)
        except OSError as reason:
            print(reason.errno)
        """,
        os.getcwd(),
    )
    assert int(output) == errno.ENOMEM


def test_a_mapped_file_is_seen_through_the_reservation(reservation, fd):
    memory.map_shared(reservation, 2 * MIB, fd, 0)
    memory.copy_to(reservation + 5, b"hello")
    assert os.pread(fd, 5, 5) == b"hello"
    assert permissions_at(reservation) == "rw-s"
    assert permissions_at(reservation + 2 * MIB) == "---p"


def test_a_read_only_mapping_cannot_be_written(reservation, fd):
    memory.map_shared(reservation, PAGE, fd, 0, writable=False)
    assert permissions_at(reservation) == "r--s"


def test_a_mapping_of_a_part_begins_at_the_offset(reservation, fd):
    os.pwrite(fd, b"there", 3 * MIB)
    memory.map_shared(reservation + MIB, MIB, fd, 3 * MIB)
    assert memory.copy_from(reservation + MIB, 5) == b"there"


def test_a_mapping_that_the_host_refuses_leaves_the_reservation(reservation, fd):
    with pytest.raises(OSError, match="mmap") as caught:
        memory.map_shared(reservation, PAGE, fd, 1)
    assert caught.value.errno == errno.EINVAL
    assert permissions_at(reservation) == "---p"


def test_a_mapping_that_must_not_be_writable_leaves_the_reservation(reservation, fd):
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        with pytest.raises(PermissionError, match="mprotect"):
            memory.map_shared(reservation, PAGE, read_only, 0)
    finally:
        os.close(read_only)
    assert permissions_at(reservation) == "---p"


def test_mapping_more_than_a_hugetlb_file_has_does_not_make_it_grow(reservation):
    with hugetlb_pool(1):
        fd = files.memfd("huge", files.MFD_HUGETLB)
        try:
            memory.map_shared(reservation, 8 * MIB, fd, 0)
            assert os.fstat(fd).st_size == 0
            memory.unmap(reservation, 8 * MIB)
            assert memory.ima_workaround(fd, 2 * MIB) in (True, False)
            assert os.fstat(fd).st_size == 0
        finally:
            os.close(fd)


def test_populating_commits_and_keeps_content(reservation, fd):
    memory.map_shared(reservation, 4 * MIB, fd, 0)
    os.pwrite(fd, b"kept", PAGE)
    memory.populate_write(reservation, 2 * MIB)
    assert os.fstat(fd).st_blocks * 512 == 2 * MIB
    assert memory.copy_from(reservation + PAGE, 4) == b"kept"


def test_populating_what_the_host_cannot_supply_is_efault_and_no_signal():
    with tmpfs_mount(MIB) as path, open(path / "file", "w+b", buffering=0) as file:
        file.truncate(4 * MIB)
        address = memory.reserve_address_space(4 * MIB)
        try:
            memory.map_shared(address, 4 * MIB, file.fileno(), 0)
            with pytest.raises(OSError, match="POPULATE_WRITE") as caught:
                memory.populate_write(address, 4 * MIB)
        finally:
            memory.unmap(address, 4 * MIB)
        assert caught.value.errno == errno.EFAULT


def test_zeroing_makes_every_byte_zero(reservation, fd):
    memory.map_shared(reservation, MIB, fd, 0)
    memory.copy_to(reservation, b"\xff" * 3 * PAGE)
    memory.zero(reservation + PAGE, PAGE)
    content = os.pread(fd, 3 * PAGE, 0)
    assert content == b"\xff" * PAGE + bytes(PAGE) + b"\xff" * PAGE


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytes"), memoryview(b"xbytesx")[1:6]])
def test_any_contiguous_buffer_can_be_copied(reservation, fd, data):
    memory.map_shared(reservation, PAGE, fd, 0)
    memory.copy_to(reservation, data)
    assert memory.copy_from(reservation, 6) == b"bytes\0"


def test_copying_nothing_touches_nothing(reservation):
    memory.copy_to(reservation, b"")
    assert memory.copy_from(reservation, 0) == b""


def test_unknown_advice_is_einval(reservation):
    with pytest.raises(OSError, match="madvise") as caught:
        memory.madvise(reservation, PAGE, 4711)
    assert caught.value.errno == errno.EINVAL


def test_the_ima_workaround_never_raises(fd):
    assert memory.ima_workaround(fd, PAGE) is True
    assert memory.ima_workaround(-1, PAGE) is False


def test_a_locked_mapping_is_resident(reservation, fd):
    memory.map_shared(reservation, MIB, fd, 0)
    memory.lock(reservation, MIB)
    assert os.fstat(fd).st_blocks * 512 == MIB


def test_locking_beyond_the_limit_is_an_error(reservation, fd):
    code = """
        import os, resource, sys
        sys.path.insert(0, sys.argv[1])
        from memplat.linux import files, memory
        os.setresuid(65534, 65534, 65534)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        address = memory.reserve_address_space(4096)
        try:
            memory.lock(address, 4096)
        except PermissionError as reason:
            print("refused", reason.errno)
        """
    need_root("becoming a user without privilege")
    assert in_another_process(code, os.getcwd()).split() == ["refused", str(errno.EPERM)]


def test_reserving_a_lot_spends_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    address = memory.reserve_address_space(1 << 40)
    memory.unmap(address, 1 << 40)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000
