"""Reserving, mapping, populating and exporting address space."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import resource
from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from memplat import _core
from memplat.linux import files, memory
from tests.hostparts import MIB, hugetlb_pool, in_another_process, tmpfs_mount
from tests.needs import need_root, needs

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


def compiled_batching() -> Any:
    """The compiled calls, whichever core is chosen."""
    try:
        return importlib.import_module("memplat._native.batching")
    except ImportError as error:
        needs("compiler", str(error))


@contextlib.contextmanager
def mapped_memfd(size: int) -> Iterator[tuple[int, int]]:
    """The descriptor of a file, and where it is mapped."""
    fd = files.memfd("test")
    try:
        os.ftruncate(fd, size)
        address = memory.reserve_address_space(size)
        try:
            memory.map_shared(address, size, fd, 0)
            yield fd, address
        finally:
            memory.unmap(address, size)
    finally:
        os.close(fd)


@pytest.fixture(params=["python", "native"])
def either_core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Populating and zeroing, in Python or compiled, whichever core is chosen."""
    monkeypatch.setattr(_core, "BATCHING", compiled_batching() if request.param == "native" else None)
    return str(request.param)


@pytest.mark.usefixtures("either_core")
def test_populating_commits_and_keeps_content(reservation, fd):
    memory.map_shared(reservation, 4 * MIB, fd, 0)
    os.pwrite(fd, b"kept", PAGE)
    memory.populate_write(reservation, 2 * MIB)
    assert os.fstat(fd).st_blocks * 512 == 2 * MIB
    assert memory.copy_from(reservation + PAGE, 4) == b"kept"


@pytest.mark.usefixtures("either_core")
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


LARGE = 40 * MIB  # more than is populated at a time


@pytest.mark.usefixtures("either_core")
@pytest.mark.parametrize("owner", ["nobody", "the owner", "somebody else"])
@pytest.mark.parametrize("is_present", [True, False])
def test_parts_are_zeroed_whoever_is_told_what_is_present(owner, is_present):
    who = {"nobody": -1, "the owner": os.geteuid(), "somebody else": os.geteuid() + 1}[owner]
    extents = array("q", [0, PAGE, 2 * PAGE, 19 * PAGE, MIB, LARGE - PAGE])
    with mapped_memfd(LARGE) as (fd, address):
        if is_present:
            for offset in range(0, LARGE, MIB):
                memory.copy_to(address + offset, b"\xff" * MIB)
        else:
            os.pwrite(fd, b"\xff" * 3 * PAGE, 0)  # not in the page tables, and nothing behind it
        memory.zero_present(address, extents, who)
        for start, end in zip(extents[0::2], extents[1::2], strict=True):
            assert os.pread(fd, end - start, start) == bytes(end - start)
        assert os.pread(fd, PAGE, PAGE) == b"\xff" * PAGE
        assert os.pread(fd, PAGE, LARGE - PAGE) == (b"\xff" if is_present else b"\0") * PAGE


@pytest.mark.usefixtures("either_core")
def test_nothing_is_zeroed_if_there_are_no_extents():
    memory.zero_present(0, ())


@pytest.mark.usefixtures("either_core")
def test_zeroing_what_the_host_cannot_supply_is_efault_and_what_came_before_is_done():
    with tmpfs_mount(MIB) as path, open(path / "file", "w+b", buffering=0) as file:
        file.truncate(4 * MIB)
        address = memory.reserve_address_space(4 * MIB)
        try:
            memory.map_shared(address, 4 * MIB, file.fileno(), 0)
            memory.copy_to(address, b"\xff" * MIB)
            with pytest.raises(OSError, match="POPULATE_WRITE") as caught:
                memory.zero_present(address, (0, PAGE, 2 * PAGE, 3 * MIB, 3 * MIB, 3 * MIB + PAGE), os.geteuid())
            assert caught.value.errno == errno.EFAULT
            assert memory.copy_from(address, 2 * PAGE) == bytes(PAGE) + b"\xff" * PAGE
        finally:
            memory.unmap(address, 4 * MIB)


@pytest.mark.usefixtures("either_core")
def test_zeroing_beyond_the_end_of_the_file_is_an_error_and_no_signal():
    with mapped_memfd(MIB) as (fd, address):
        os.ftruncate(fd, 4 * PAGE)
        with pytest.raises(OSError, match="POPULATE_WRITE"):
            memory.zero_present(address, (0, 8 * PAGE), os.geteuid())


def test_a_stranger_is_told_that_all_is_present_and_is_not_believed():
    """mincore(2) lies to those who neither own the file nor may write it: what they zero has to be populated."""
    need_root("becoming another user")
    code = """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        os.environ["MEMPLAT_CORE"] = "native"
        from memplat.linux import files, memory
        fd = os.open(sys.argv[2], os.O_RDWR)
        os.ftruncate(fd, 4 << 20)
        address = memory.reserve_address_space(4 << 20)
        memory.map_shared(address, 4 << 20, fd, 0)
        owner = os.fstat(fd).st_uid
        os.setresuid(65534, 65534, 65534)
        try:
            memory.zero_present(address, (0, 4 << 20), owner)
        except OSError as reason:
            print("refused", reason.errno)
        """
    compiled_batching()
    with tmpfs_mount(MIB) as path, open(path / "file", "wb"):
        os.chmod(path / "file", 0o600)
        assert in_another_process(code, os.getcwd(), str(path / "file")).split() == ["refused", str(errno.EFAULT)]


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
