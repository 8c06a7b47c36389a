"""The backend tmpfile, on every file system that it is made for, and on some that it has to refuse."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplat.backends import tmpfile
from memplat.backends.tmpfile import TmpfileOptions, unnamed
from memplat.backends.tmpfile.overhead import tree_of
from memplat.linux import files, filesystems, memory
from memplat.types import AllocationMode, Availability, BackingFile
from tests.hostparts import FILE_SYSTEMS, GIB, MIB, loop_mount, mounted, tmpfs_mount, touch_elsewhere
from tests.unit.backends.hooked import Hooked, hooks_of, opened

PAGE = 4096
SIZE = 64 * MIB
PAGES = SIZE // PAGE

everywhere = pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs", "tmpfs"], indirect=True)
on_disks = pytest.mark.parametrize("any_disk_directory", ["ext4", "xfs", "btrfs"], indirect=True)


def in_directory(path: Path | str) -> TmpfileOptions:
    return TmpfileOptions(directory=str(path))


@pytest.fixture
def file(any_disk_directory: Path) -> Iterator[Hooked]:
    with opened(tmpfile, in_directory(any_disk_directory), SIZE) as hooked:
        yield hooked


def check(path: Path | str | None) -> Availability:
    availability = hooks_of(tmpfile).memplat_check(options=None if path is None else in_directory(path))
    assert availability is not None
    return availability


def test_it_says_who_it_is():
    info = hooks_of(tmpfile).memplat_backend_info()
    assert info is not None
    assert (info.name, info.default_mode, info.options) == ("tmpfile", AllocationMode.RESERVED, TmpfileOptions)
    assert info.decommit_releases


# ---- availability ----------------------------------------------------------------------------------------------------


@everywhere
def test_a_good_directory_is_available_and_left_as_it_was(any_disk_directory):
    before = sorted(os.listdir(any_disk_directory))
    availability = check(any_disk_directory)
    assert availability.available
    assert str(any_disk_directory) in availability.reason
    assert "free" in availability.reason
    assert sorted(os.listdir(any_disk_directory)) == before


def test_the_default_directory_is_that_of_temporary_files(tmpfs_directory, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmpfs_directory))
    assert check(None).reason.startswith(f"{tmpfs_directory} is on tmpfs")
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_blocks_smaller_than_a_page_are_refused_with_the_remedy():
    for fstype, size, arguments in (("ext4", 32 * MIB, ("-b", "1024")), ("xfs", 300 * MIB, ("-b", "size=1024"))):
        with loop_mount(fstype, size, ["-q", *arguments]) as path:
            availability = check(path)
        assert not availability.available
        assert f"is on {fstype} with blocks of 1 KiB" in availability.reason
        assert "-b 4096" in availability.remedy


def test_clusters_larger_than_a_page_are_refused():
    with loop_mount("ext4", 64 * MIB, ["-q", "-b", "4096", "-O", "bigalloc", "-C", "65536"]) as path:
        assert check(path).reason.endswith("allocates 64 KiB for one page")


def test_a_file_system_that_cannot_reserve_is_refused():
    with loop_mount("ext3", 32 * MIB, ["-q", "-b", "4096"]) as path:
        assert check(path).reason.endswith("cannot reserve blocks (fallocate)")


def test_a_file_system_that_cannot_punch_is_refused_with_the_remedy():
    with mounted("ramfs") as path:
        availability = check(path)
    assert availability.reason.endswith("is on ramfs, which cannot punch holes")
    assert "ext4, xfs, btrfs" in availability.remedy


def test_a_directory_of_huge_pages_is_refused_and_names_the_backend_for_it():
    with mounted("hugetlbfs", "pagesize=2M") as path:
        assert check(path).remedy == f'backend = "hugetlb", mount = "{path}"'


def test_a_btrfs_whose_data_may_take_the_room_of_metadata_is_refused():
    with loop_mount("btrfs", 64 * MIB, ("-q", "--mixed")) as path:
        availability = check(path)
        assert "is on btrfs with mixed block groups" in availability.reason
        assert availability.remedy == "mkfs.btrfs without --mixed"
    with loop_mount("btrfs") as path:
        assert check(path).available


def test_a_full_file_system_is_refused():
    with tmpfs_mount(MIB) as path:
        (path / "full").write_bytes(bytes(MIB))
        assert check(path).reason.endswith("which is full")


@pytest.mark.parametrize(
    ("path", "reason", "remedy"),
    [
        ("/nonexistent/x", "does not exist", "mkdir -p /nonexistent/x"),
        ("/dev/null", "is no directory", "directory ="),
        ("/proc/self", "no file can be made|not writable", "directory ="),
    ],
)
def test_what_is_no_place_for_files_is_unavailable(path, reason, remedy):
    availability = check(path)
    assert not availability.available
    assert any(words in availability.reason for words in reason.split("|"))
    assert availability.remedy.startswith(remedy)


@pytest.mark.parametrize("wrong", ["", "a\0b", 5, b"/tmp"])
def test_wrong_options_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        TmpfileOptions(directory=wrong)


def test_a_path_object_is_a_directory_too(tmp_path):
    assert TmpfileOptions(directory=tmp_path).directory == str(tmp_path)


# ---- the file --------------------------------------------------------------------------------------------------------


def check_unnamed(fd: int, directory: Path) -> None:
    status = os.fstat(fd)
    assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_size, status.st_blocks) == (0, 0o600, 0, 0)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    assert not list(directory.glob("*memplat*"))
    here = os.open(directory, os.O_RDONLY)
    try:
        with pytest.raises(FileNotFoundError):  # with a directory's descriptor, Python calls linkat(2) and follows
            os.link(f"/proc/self/fd/{fd}", directory / "named", src_dir_fd=here, follow_symlinks=True)
    finally:
        os.close(here)


@everywhere
def test_the_file_is_empty_private_and_cannot_get_a_name(any_disk_directory):
    fd = unnamed.create(str(any_disk_directory))
    try:
        check_unnamed(fd, any_disk_directory)
    finally:
        os.close(fd)


@everywhere
def test_without_o_tmpfile_the_file_is_the_same(any_disk_directory, monkeypatch):
    refuse_o_tmpfile(monkeypatch)
    fd = unnamed.create(str(any_disk_directory))
    try:
        check_unnamed(fd, any_disk_directory)
    finally:
        os.close(fd)


def refuse_o_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def old(path: str, flags: int, mode: int = 0o777, **rest: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, **rest)

    monkeypatch.setattr(os, "open", old)


def test_what_a_killed_process_left_behind_is_removed_and_nothing_else(tmp_path, monkeypatch):
    fd, left = tempfile.mkstemp(prefix=".memplat-unnamed-", dir=tmp_path)
    os.close(fd)
    (tmp_path / "precious").write_text("kept")
    refuse_o_tmpfile(monkeypatch)
    os.close(unnamed.create(str(tmp_path)))
    assert os.listdir(tmp_path) == ["precious"]
    assert not os.path.exists(left)


def test_no_copy_is_made_on_write_on_btrfs(btrfs_directory):
    with opened(tmpfile, in_directory(btrfs_directory), SIZE) as hooked:
        assert filesystems.get_flags(hooked.fd) & filesystems.FS_NOCOW_FL


def test_a_directory_that_is_missing_is_an_error():
    with pytest.raises(FileNotFoundError):
        hooks_of(tmpfile).memplat_create_file(options=in_directory("/nonexistent"))


def wait_until_free(directory: Path, wanted: int) -> int:
    """The free blocks of a file system, as soon as there are *wanted*: xfs gives back in the background what was
    unlinked, and asking it makes it hurry.
    """
    deadline = time.monotonic() + 30
    while (free := os.statvfs(directory).f_bfree) < wanted and time.monotonic() < deadline:
        os.sync()
    return free


@everywhere
def test_closing_gives_the_disk_back(any_disk_directory):
    os.sync()
    before = os.statvfs(any_disk_directory).f_bfree
    with opened(tmpfile, in_directory(any_disk_directory), SIZE) as hooked:
        hooked.reserve(hooked.pages(0, 4096))
        hooked.touch(*range(0, 4096, 7))
        os.sync()
        assert before - os.statvfs(any_disk_directory).f_bfree >= 4000
    assert wait_until_free(any_disk_directory, before - 64) >= before - 64  # btrfs counts its metadata


@everywhere
def test_a_killed_process_leaves_no_file(any_disk_directory):
    os.sync()
    free = os.statvfs(any_disk_directory).f_bfree
    code = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        from memplat.backends import default, tmpfile
        from memplat.ranges import FileRange
        file = tmpfile.memplat_create_file(options=tmpfile.TmpfileOptions(directory=sys.argv[2]))
        os.ftruncate(file.fd, 16 << 20)
        default.memplat_reserve(file=file, ranges=[FileRange(0, 8 << 20)])
        print("reserved", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), os.getcwd(), str(any_disk_directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("reserved", -signal.SIGKILL), done.stderr
    assert set(os.listdir(any_disk_directory)) <= {"lost+found"}
    assert wait_until_free(any_disk_directory, free - 64) >= free - 64


# ---- exactness -------------------------------------------------------------------------------------------------------


@everywhere
def test_a_touch_commits_one_page(file):
    rng = random.Random(1)
    touched: set[int] = set()
    for number in rng.sample(range(PAGES), 300):
        file.touch(number)
        touched.add(number)
    assert file.probe() == touched
    os.fsync(file.fd)
    assert file.probe() == touched


@everywhere
def test_every_way_of_committing_is_seen_and_every_way_of_giving_back(file):
    rng = random.Random(2)
    expected: set[int] = set()
    for _ in range(6):
        numbers = rng.sample(range(PAGES), 120)
        file.touch(*numbers[:40])
        for number in numbers[40:80]:
            os.pwrite(file.fd, b"x", number * PAGE)
        start = rng.randrange(PAGES - 64)
        file.reserve(file.pages(start, start + 64))
        expected |= {*numbers[:80], *range(start, start + 64)}
        if rng.random() < 0.5:
            os.fsync(file.fd)
        gone = [number for number in numbers[20:60] if number in expected]
        file.decommit(*(file.pages(number, number + 1) for number in gone))
        expected -= set(gone)
        found = file.probe()
        unseen = expected - found
        found |= (
            file.probe_reserved(*(file.pages(number, number + 1) for number in sorted(unseen))) if unseen else set()
        )
        assert found == expected
    assert {number for number in range(PAGES) if file.content(number)[:1] == b"x"} <= expected


@on_disks
def test_what_other_processes_touch_is_seen(file):
    numbers = [3, 500, 9000]
    touch_elsewhere(file.fd, [number * PAGE for number in numbers], SIZE)
    found = file.probe()
    assert found >= set(numbers)  # their page cache may take more at once: that is what the disk spends, too
    os.fsync(file.fd)
    assert len(file.probe()) * PAGE == file.storage() - overhead(file)


@on_disks
def test_a_read_commits_nothing_on_a_disk(file):
    touch_elsewhere(file.fd, [0, 100 * PAGE], SIZE, write=False)
    memory.copy_from(file.address + 200 * PAGE, PAGE)
    assert file.probe() == set()
    assert file.storage() == 0


@everywhere
def test_a_part_is_probed_as_the_whole_is(file):
    file.touch(*range(100, 200), *range(1000, 1200, 2))
    assert file.probe(150, 1011) == {*range(150, 200), *range(1000, 1011, 2)}
    assert file.probe(200, 1000) == set()


@everywhere
def test_the_method_is_named(file):
    file.touch(5)
    file.probe()
    on_tmpfs = filesystems.filesystem_magic(file.fd) == filesystems.TMPFS_MAGIC
    assert (file.file.probe_method == "fiemap") is not on_tmpfs


@everywhere
def test_an_adopted_file_is_treated_the_same(any_disk_directory):
    fd = unnamed.create(str(any_disk_directory))
    adopted = Hooked(hooks_of(tmpfile), BackingFile(fd=fd, page_size=PAGE, backend="tmpfile"), SIZE)
    adopted.touch(1, 7)
    assert adopted.probe() == {1, 7}
    assert adopted.storage() == 2 * PAGE
    adopted.close()


# ---- overhead --------------------------------------------------------------------------------------------------------


def overhead(file: Hooked) -> int:
    file.probe()
    found = file.hooks.memplat_storage(file=file.file)
    assert found is not None
    assert found.total == file.storage()
    return found.overhead


@pytest.mark.parametrize("count", [0, 1, 4, 5, 21, 22, 340, 341, 2000, 8000])
@everywhere
def test_overhead_is_the_truth_where_extents_came_in_order(file, count):
    for number in range(0, 2 * count, 2):
        files.fallocate(file.fd, 0, number * PAGE, PAGE)
    assert overhead(file) == file.storage() - count * PAGE


@pytest.mark.parametrize("count", [100, 2000])
@everywhere
def test_overhead_is_close_where_extents_came_in_any_order(file, count):
    numbers = random.Random(count).sample(range(0, PAGES, 2), count)
    for number in numbers:
        files.fallocate(file.fd, 0, number * PAGE, PAGE)
    assert abs(overhead(file) - (file.storage() - count * PAGE)) <= 17 * PAGE


@everywhere
def test_overhead_of_dirty_pages_comes_when_they_reach_the_disk(file):
    file.touch(*range(0, 4000, 2))
    assert overhead(file) == file.storage() - 2000 * PAGE
    os.fsync(file.fd)
    assert overhead(file) == file.storage() - 2000 * PAGE
    file.decommit(file.pages(0, PAGES))
    assert overhead(file) == file.storage() == 0


@everywhere
def test_a_tree_that_has_shrunk_or_was_split_is_within_the_slack(file):
    """ext4 keeps the block of a tree whose extents would fit into the inode again."""
    numbers = random.Random(5).sample(range(0, PAGES, 2), 3000)
    for count in (3000, 1500, 40, 4, 1):
        for number in numbers[:count] if count == 3000 else ():
            files.fallocate(file.fd, 0, number * PAGE, PAGE)
        file.decommit(*(file.pages(number, number + 1) for number in numbers[count:]))
        numbers = numbers[:count]
        file.probe()
        storage = file.hooks.memplat_storage(file=file.file)
        rest = storage.total - storage.overhead - count * PAGE
        assert 0 <= rest <= storage.overhead_slack < 40 * PAGE


def test_the_tree_grows_a_level_when_the_one_above_is_full():
    tree = tree_of(filesystems.EXT4_MAGIC)
    assert tree is not None
    assert [tree.blocks(count) for count in (4, 5, 340, 341, 4 * 340, 4 * 340 + 1)] == [0, 1, 1, 2, 4, 6]
    assert tree_of(filesystems.BTRFS_MAGIC) is None
    assert tree_of(filesystems.TMPFS_MAGIC) is None


# ---- full disks ------------------------------------------------------------------------------------------------------


def in_a_child(work: object) -> int:
    """Run *work* in a forked child with SIGBUS as the kernel delivers it; its wait status."""
    child = os.fork()
    if not child:  # pragma: no cover
        status = 1
        try:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            work()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def fill_up(path: Path) -> None:
    """Take every block that is left."""
    with open(path / "ballast", "wb", buffering=0) as ballast:
        for size in (MIB, 64 * 1024, PAGE):
            while True:
                try:
                    ballast.write(os.urandom(size))
                    os.fsync(ballast.fileno())
                except OSError as reason:
                    if reason.errno != errno.ENOSPC:
                        raise
                    break


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_reserved_pages_can_be_touched_when_the_disk_is_full(fstype):
    mount = tmpfs_mount(24 * MIB) if fstype == "tmpfs" else loop_mount(fstype, FILE_SYSTEMS[fstype])
    with mount as path, opened(tmpfile, in_directory(path), SIZE) as hooked:
        reserved = [hooked.pages(start, start + 64) for start in range(0, 4096, 512)]
        for pages in reserved:
            hooked.reserve(pages)
        fill_up(path)

        def touch() -> None:
            for _ in range(3):
                for pages in reserved:
                    hooked.touch(*range(pages.start // PAGE, pages.end // PAGE))
                os.fsync(hooked.fd)

        assert in_a_child(touch) == 0
        assert hooked.content(513)[:1] == b"x"
        assert in_a_child(lambda: hooked.touch(*range(8192, 16384))) == signal.SIGBUS
        with pytest.raises(OSError, match="fallocate") as caught:
            hooked.reserve(hooked.pages(8192, 16384))
        assert caught.value.errno == errno.ENOSPC
        assert {number for pages in reserved for number in range(pages.start // PAGE, pages.end // PAGE)} <= (
            hooked.probe() | hooked.probe_reserved(*reserved)
        )


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_a_reservation_that_fails_leaves_content_and_accounting(fstype):
    mount = tmpfs_mount(24 * MIB) if fstype == "tmpfs" else loop_mount(fstype, FILE_SYSTEMS[fstype])
    with mount as path, opened(tmpfile, in_directory(path), GIB) as hooked:
        hooked.reserve(hooked.pages(100, 200))
        hooked.touch(100, 5000)
        os.fsync(hooked.fd)
        with pytest.raises(OSError, match="fallocate") as caught:
            hooked.reserve(hooked.pages(0, 150), hooked.pages(4096, 200_000))
        assert caught.value.errno == errno.ENOSPC
        committed = hooked.probe() | hooked.probe_reserved(hooked.pages(100, 200))
        assert committed == {*range(100, 200), 5000}
        assert (hooked.content(100)[:1], hooked.content(5000)[:1]) == (b"x", b"x")
        hooked.reserve(hooked.pages(4096, 4196))
