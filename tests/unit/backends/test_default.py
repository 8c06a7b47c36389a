"""The default hooks, on shmem and on disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplat.backends import default
from memplat.hookspecs import hookimpl
from memplat.linux import files, shmem
from memplat.ranges import FileRange
from memplat.types import BackendInfo, BackingFile
from tests.hostparts import MIB, loop_mount, tmpfs_mount, touch_elsewhere
from tests.unit.backends.hooked import Hooked, hooks_of, opened

PAGE = 4096
SIZE = 32 * MIB
GIB = 1 << 30


class InDirectory:
    """The smallest backend that works on any file system: a nameless file in the directory of its options."""

    @hookimpl
    def memplat_backend_info(self) -> BackendInfo:
        return BackendInfo(name="tiny", version="1.0")

    @hookimpl
    def memplat_create_file(self, options: Path | None) -> BackingFile:
        if options is None:
            fd = os.memfd_create("tiny")
        else:
            fd = os.open(options, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return BackingFile(fd=fd, page_size=PAGE, backend="tiny")


@pytest.fixture
def shared() -> Iterator[Hooked]:
    with opened(InDirectory(), None, SIZE) as hooked:
        yield hooked


@pytest.fixture
def on_disk(any_disk_directory: Path) -> Iterator[Hooked]:
    with opened(InDirectory(), any_disk_directory, SIZE) as hooked:
        yield hooked


every_file_system = pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs", "tmpfs"], indirect=True)
every_disk = pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs"], indirect=True)


def test_a_backend_is_available_unless_it_says_otherwise():
    availability = hooks_of(InDirectory()).memplat_check(options=None)
    assert availability is not None
    assert availability.available


# ---- growing --------------------------------------------------------------------------------------------------------


def test_growing_sets_the_size(shared):
    assert shared.hooks.memplat_grow(file=shared.file, size=2 * SIZE) is True
    assert os.fstat(shared.fd).st_size == 2 * SIZE


def test_growing_never_shrinks_what_a_peer_has_grown(shared):
    os.ftruncate(shared.fd, 4 * SIZE)
    assert shared.hooks.memplat_grow(file=shared.file, size=2 * SIZE) is True
    assert os.fstat(shared.fd).st_size == 4 * SIZE


def test_losing_a_race_of_growing_on_a_sealed_file_is_success(shared, monkeypatch):
    fd = files.memfd("sealed")
    files.add_seals(fd, files.F_SEAL_SHRINK)
    file = BackingFile(fd=fd, page_size=PAGE, backend="tiny")
    ftruncate = os.ftruncate

    def beaten(fd: int, size: int) -> None:
        ftruncate(fd, 2 * size)  # the peer
        ftruncate(fd, size)

    monkeypatch.setattr("memplat.backends.default.os.ftruncate", beaten)
    assert shared.hooks.memplat_grow(file=file, size=PAGE) is True
    assert os.fstat(fd).st_size == 2 * PAGE
    os.close(fd)


def test_growing_that_the_host_refuses_is_an_error_and_changes_nothing(shared):
    fd = files.memfd("sealed")
    files.add_seals(fd, files.F_SEAL_GROW)
    with pytest.raises(PermissionError):
        shared.hooks.memplat_grow(file=BackingFile(fd=fd, page_size=PAGE, backend="tiny"), size=PAGE)
    assert os.fstat(fd).st_size == 0
    os.close(fd)


# ---- reserving ------------------------------------------------------------------------------------------------------


@every_file_system
def test_reserved_pages_have_storage(on_disk):
    on_disk.reserve(on_disk.pages(3, 8), on_disk.pages(100, 5000))
    assert on_disk.storage() >= (5 + 4900) * PAGE
    assert on_disk.probe_reserved(on_disk.pages(0, 6000)) == {*range(3, 8), *range(100, 5000)}


def test_reserving_beyond_what_the_host_has_is_refused_before_anything_is_taken(shared):
    shared.hooks.memplat_grow(file=shared.file, size=1 << 44)
    shared.touch(5)
    with pytest.raises(OSError, match="wanted") as caught:
        shared.reserve(FileRange(0, 1 << 43))
    assert caught.value.errno == errno.ENOMEM
    assert shared.storage() == PAGE
    os.ftruncate(shared.fd, SIZE)


def test_a_full_tmpfs_gives_back_exactly_what_was_added():
    with tmpfs_mount(8 * MIB) as path, opened(InDirectory(), path, SIZE) as hooked:
        hooked.touch(0, 1, 700, 1500)
        files.fallocate(hooked.fd, 0, 900 * PAGE, 10 * PAGE)  # allocated and not touched: must stay, too
        hooked.touch(905)
        before = hooked.storage()
        with pytest.raises(OSError, match="fallocate") as caught:
            hooked.reserve(hooked.pages(0, 1), hooked.pages(600, 1000), hooked.pages(1200, 8000))
        assert caught.value.errno == errno.ENOSPC
        assert hooked.storage() == before
        assert hooked.probe() >= {0, 1, 700, 905, 1500}
        assert hooked.probe_reserved(hooked.pages(0, 8192)) == {0, 1, 700, 1500, *range(900, 910)}
        assert hooked.content(700)[:1] == b"x"
        hooked.reserve(hooked.pages(2000, 2100))


@every_disk
def test_a_full_disk_gives_back_exactly_what_was_added(any_disk_directory):
    with loop_mount(type_of(any_disk_directory)) as path, opened(InDirectory(), path, GIB) as hooked:
        hooked.touch(10, 4000)
        files.fallocate(hooked.fd, 0, 100 * PAGE, 10 * PAGE)
        os.fsync(hooked.fd)
        with pytest.raises(OSError, match="fallocate") as caught:
            hooked.reserve(hooked.pages(0, 200), hooked.pages(3000, 200_000))
        assert caught.value.errno == errno.ENOSPC
        assert hooked.probe_reserved(hooked.pages(0, GIB // PAGE)) >= {10, 4000, *range(100, 110)}
        assert hooked.storage() < MIB
        assert (hooked.content(10)[:1], hooked.content(4000)[:1]) == (b"x", b"x")
        hooked.reserve(hooked.pages(3000, 3100))


def type_of(path: Path) -> str:
    with open("/proc/mounts", encoding="utf-8") as file:
        return next(line.split()[2] for line in file if line.split()[1] == str(path))


def test_a_signal_handler_that_raises_leaves_nothing_reserved(shared, monkeypatch):
    fallocate = files.fallocate
    calls = 0

    def interrupted(*arguments: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        fallocate(*arguments)

    monkeypatch.setattr("memplat.backends.default.files.fallocate", interrupted)
    shared.touch(1)
    with pytest.raises(KeyboardInterrupt):
        shared.reserve(shared.pages(0, 8192))
    assert shared.storage() == PAGE
    assert shared.content(1)[:1] == b"x"


# ---- probing --------------------------------------------------------------------------------------------------------


@every_file_system
def test_the_probe_finds_what_was_touched_here_and_elsewhere(on_disk):
    on_disk.touch(3, 4, 77)
    os.pwrite(on_disk.fd, b"x", 500 * PAGE)
    touch_elsewhere(on_disk.fd, [900 * PAGE], SIZE)
    os.fsync(on_disk.fd)
    assert on_disk.probe() >= {3, 4, 77, 500, 900}
    on_disk.decommit(on_disk.pages(0, 400), on_disk.pages(900, 1000))
    assert 500 in on_disk.probe()
    assert not on_disk.probe() & {*range(400), *range(900, 1000)}


def test_the_method_of_the_probe_is_kept_with_the_file(shared, ext4_directory):
    shared.probe()
    assert shared.file.probe_method == "st_blocks"
    shared.touch(1)
    shared.probe()
    assert shared.file.probe_method in ("pagemap_scan", "cachestat", "seek_data")
    with opened(InDirectory(), ext4_directory, SIZE) as hooked:
        hooked.probe()
        assert hooked.file.probe_method == "seek_data"


def test_without_an_own_mapping_the_probe_is_right_too(shared):
    shared.touch(3, 9)
    shared.file.address = None
    assert shared.probe() == {3, 9}


def test_reserved_pages_are_all_named_where_the_host_cannot_tell(shared, monkeypatch):
    monkeypatch.setattr(shmem, "cachestat_raw", lambda *_: None)
    assert shared.probe_reserved(shared.pages(2, 4), shared.pages(4, 5), shared.pages(8, 9)) == {2, 3, 4, 8}


def test_reserved_pages_are_found_among_many(shared):
    wanted = set(range(0, 8192, 2))
    for number in wanted:
        files.fallocate(shared.fd, 0, number * PAGE, PAGE)
    assert shared.probe_reserved(shared.pages(0, 8192)) == wanted
    assert shared.probe_reserved() == set()


def test_an_old_kernel_reserves_and_rolls_back_what_it_can_see(monkeypatch):
    monkeypatch.setattr(shmem, "cachestat_raw", lambda *_: None)
    with tmpfs_mount(8 * MIB) as path, opened(InDirectory(), path, SIZE) as hooked:
        hooked.touch(10)
        with pytest.raises(OSError, match="fallocate"):
            hooked.reserve(hooked.pages(0, 8000))
        assert hooked.storage() == PAGE
        assert hooked.content(10)[:1] == b"x"


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_storage_is_what_fstat_says(shared):
    shared.touch(1, 2)
    storage = shared.hooks.memplat_storage(file=shared.file)
    assert storage is not None
    assert (storage.total, storage.overhead, storage.reserved) == (2 * PAGE, 0, 0)


def test_decommitted_pages_are_zero_and_cost_nothing(shared):
    shared.touch(*range(100))
    shared.decommit(*(shared.pages(number, number + 1) for number in range(0, 100, 2)))
    assert shared.storage() == 50 * PAGE
    assert shared.probe() == set(range(1, 100, 2))
    assert not any(shared.content(4))


def test_a_decommit_that_the_host_refuses_is_an_error(shared):
    shared.touch(1)
    shared_fd, shared.file.fd = shared.file.fd, os.open(f"/proc/self/fd/{shared.fd}", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="PUNCH_HOLE"):
            shared.decommit(shared.pages(1, 2))
    finally:
        os.close(shared.file.fd)
        shared.file.fd = shared_fd


def test_closing_closes_the_descriptor():
    with opened(InDirectory(), None, SIZE) as hooked:
        fd = hooked.fd
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_the_defaults_bring_every_hook_but_those_of_the_author():
    implemented = {name for name in dir(default) if name.startswith("memplat_")}
    assert implemented == {
        "memplat_check",
        "memplat_close_file",
        "memplat_decommit",
        "memplat_grow",
        "memplat_mapped",
        "memplat_probe_committed",
        "memplat_probe_reserved",
        "memplat_reserve",
        "memplat_storage",
    }
