"""Real parts of the host for tests: file systems on loop devices, tmpfs, huge pages, swap, another process.

Each is a context manager that puts everything back, also after a failure. What the host does not have, or only root may
do, is a skip with the reason (:mod:`tests.needs`). The fixtures at the end are to be imported by a conftest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.needs import need_root, needs

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: mkfs programs and the least image that they agree to; xfs refuses less than 300 MiB.
FILE_SYSTEMS = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 128 * MIB}
_FEATURES = {"tmpfs": "tmpfs", "hugetlbfs": "hugetlb"}
_MKFS = {"ext4": ("-q", "-b", "4096"), "xfs": ("-q",), "btrfs": ("-q",)}


def run(*command: str) -> str:
    """Run a program of the host, and return what it printed; a failure shows what it complained about."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def _unmount(path: Path) -> None:
    """Unmount; what a failed test still has open is let go when it is closed, but the failure is told."""
    try:
        run("umount", str(path))
    except RuntimeError:
        run("umount", "--lazy", str(path))
        raise


@contextlib.contextmanager
def loop_mount(fstype: str, size: int | None = None, mkfs_args: Sequence[str] | None = None) -> Iterator[Path]:
    """A new file system *fstype* in an image of *size* bytes, mounted; yields the mount point."""
    need_root(f"mounting {fstype}")
    if shutil.which(f"mkfs.{fstype}") is None:
        needs(fstype, f"mkfs.{fstype} is not installed")
    if not Path("/dev/loop-control").exists():
        needs("loop", "there is no /dev/loop-control")
    with tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
        image, target = Path(scratch, "image"), Path(scratch, "mounted")
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(FILE_SYSTEMS.get(fstype, 64 * MIB) if size is None else size)
        run(f"mkfs.{fstype}", *(_MKFS.get(fstype, ()) if mkfs_args is None else mkfs_args), str(image))
        try:
            run("mount", "-o", "loop", "-t", fstype, str(image), str(target))
        except RuntimeError as reason:
            needs(fstype, str(reason))
        try:
            yield target
        finally:
            _unmount(target)


@contextlib.contextmanager
def mounted(fstype: str, *options: str) -> Iterator[Path]:
    """A file system without a device (tmpfs, ramfs, hugetlbfs), mounted; yields the mount point."""
    need_root(f"mounting {fstype}")
    with tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
        try:
            run("mount", "-t", fstype, *(["-o", ",".join(options)] if options else []), "memplat-test", scratch)
        except RuntimeError as reason:
            if fstype in _FEATURES:
                needs(_FEATURES[fstype], str(reason))
            raise
        try:
            yield Path(scratch)
        finally:
            _unmount(Path(scratch))


@contextlib.contextmanager
def tmpfs_mount(size: int) -> Iterator[Path]:
    """A tmpfs that holds *size* bytes."""
    with mounted("tmpfs", f"size={size}") as path:
        yield path


_PROC_SYS, _MM = Path("/proc/sys/vm"), Path("/sys/kernel/mm")
#: Settings that mean the same thing, each with what is locked for all of them: any file or directory that is there.
_FAMILIES = {
    _MM / "hugepages": (_MM / "hugepages", _PROC_SYS / "nr_hugepages", _PROC_SYS / "nr_overcommit_hugepages"),
    _MM / "transparent_hugepage": (_MM / "transparent_hugepage",),
}
SWAPS = Path("/proc/swaps")
#: How long other runs on this host are waited for, and how soon it is looked again, in seconds.
_PATIENCE, _LOOK_AGAIN = 120.0, 0.01
_held: set[Path] = set()


@contextlib.contextmanager
def nobody_else(thing: Path) -> Iterator[None]:
    """Keep other test processes on this host from changing the same part of it meanwhile: flock(2) on *thing* itself.

    May be nested within a process. Two things are locked in the order of their names, or two processes could wait for
    each other.
    """
    if thing in _held:
        yield
        return
    assert all(held < thing for held in _held), f"{thing} is locked after {_held}"
    fd = os.open(thing, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        _held.add(thing)
        try:
            yield
        finally:
            _held.discard(thing)
    finally:
        os.close(fd)


def family(setting: Path) -> Path:
    """What is locked while *setting* is changed."""
    return next((lock for lock, members in _FAMILIES.items() if {setting, *setting.parents} & set(members)), setting)


class Room:
    """Somewhere that many may be in at a time, or one alone. flock(2) on two files, because it lets readers overtake a
    writer: who waits to be alone holds the door, and none comes in. The kernel lets go of the locks of who dies.

    :ivar patience: for how many seconds somebody else is waited for; ``None``: as long as it takes. Who did not get it
        in time goes on without, and waits no more
    """

    def __init__(self, directory: Path, names: tuple[str, str], patience: float | None = None) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC | (0 if directory.is_relative_to("/sys") else os.O_CREAT)
        self._door, self._inside = (os.open(directory / name, flags, 0o600) for name in names)
        self.patience = patience

    def enter(self) -> bool:
        """Be in it with others; False if that could not be had."""
        if not self._lock(self._door, fcntl.LOCK_EX):
            return False
        inside = self._lock(self._inside, fcntl.LOCK_SH)
        fcntl.flock(self._door, fcntl.LOCK_UN)
        return inside

    def enter_alone(self) -> bool:
        """Be in it alone, in place of with others; False if that could not be had."""
        self.leave()
        if not self._lock(self._door, fcntl.LOCK_EX):
            return False
        if self._lock(self._inside, fcntl.LOCK_EX):
            return True
        fcntl.flock(self._door, fcntl.LOCK_UN)
        return False

    def let_others_in(self) -> None:
        """Not alone any more. Nobody gets it alone in between."""
        with contextlib.suppress(BlockingIOError):  # without it, who could not be alone may not be in it at all
            fcntl.flock(self._inside, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(self._door, fcntl.LOCK_UN)

    def leave(self) -> None:
        """Be not in it."""
        fcntl.flock(self._inside, fcntl.LOCK_UN)

    def _lock(self, fd: int, how: int) -> bool:
        if self.patience is None:
            fcntl.flock(fd, how)
            return True
        deadline = time.monotonic() + self.patience
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, how | fcntl.LOCK_NB)
                return True
            if time.monotonic() >= deadline:
                self.patience = 0.0
                return False
            time.sleep(_LOOK_AGAIN)

    def close(self) -> None:
        """In a forked child, which would keep its parent's locks alive."""
        os.close(self._door)
        os.close(self._inside)


class _Quiet:
    """Each test shares the host with all others; one that disturbs them has it alone.

    What disturbs: transparent huge pages for those who have not asked for any, and none for those who have. The other
    processes of the run are waited for as long as it takes. Those of other runs on this host, whoever's, for a while
    only: a soak test there may take hours, and somebody may have stopped a debugger. What is locked for them is two
    files of the host itself, which nobody has to make.
    """

    _HARMLESS = (_MM / "transparent_hugepage" / "shmem_enabled", "advise")
    _HOST = _MM / "transparent_hugepage", ("defrag", "enabled")

    def __init__(self) -> None:
        self._rooms: list[Room] = []  # the host's, and the run's
        self._alone = False
        self._is_open = False

    def open(self, directory: Path | None) -> None:
        """Name the directory that all processes of the run have in common, if there are several."""
        if self._is_open:
            return
        self._is_open = True
        with contextlib.suppress(OSError):  # a kernel without such pages: nobody can switch them
            self._rooms.append(Room(*self._HOST, _PATIENCE))
        if directory is not None:
            self._rooms.append(Room(directory, ("door", "room")))
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        while self._rooms:
            self._rooms.pop().close()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """For as long as a test lasts."""
        for room in reversed(self._rooms):
            room.enter()
        try:
            yield
        finally:
            for room in self._rooms:
                room.leave()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within a test: the others are waited for, and wait. Before anything else is locked."""
        if not self._rooms or self._alone:
            yield
            return
        assert not _held, f"to be alone has to be asked for before {_held} is locked"
        for room in self._rooms:  # the host's, too, before the run's is waited for: two could wait for each other
            room.leave()
        for room in reversed(self._rooms):
            room.enter_alone()
        self._alone = True
        try:
            yield
        finally:
            self._alone = False
            for room in self._rooms:
                room.let_others_in()

    def disturbs(self, file: Path, value: str) -> bool:
        """Whether others have to be kept away while *file* is set to *value*."""
        return "transparent_hugepage" in file.parts and (file, value) != self._HARMLESS


quiet = _Quiet()


@contextlib.contextmanager
def setting(path: str | Path, value: str) -> Iterator[None]:
    """A file of /proc or /sys set to *value*, and back to what it was: the word in brackets where there are any."""
    need_root(f"setting {path}")
    file = Path(path)
    with quiet.alone() if quiet.disturbs(file, value) else contextlib.nullcontext(), nobody_else(family(file)):
        before = file.read_text().strip()
        if "[" in before:
            before = before.partition("[")[2].partition("]")[0]
        try:
            file.write_text(value)
            yield
        finally:
            file.write_text(before)


@contextlib.contextmanager
def hugetlb_pool(pages: int, page_size: int = 2 * MIB) -> Iterator[None]:
    """A pool of exactly *pages* huge pages of *page_size* bytes, all of them free."""
    directory = Path(f"/sys/kernel/mm/hugepages/hugepages-{page_size // KIB}kB")
    if not directory.exists():
        needs("hugetlb", f"the kernel has no huge pages of {page_size // KIB} KiB")
    with setting(directory / "nr_hugepages", str(pages)):
        got = int((directory / "nr_hugepages").read_text())
        if got != pages:
            needs("hugetlb", f"the host gives {got} instead of {pages} huge pages of {page_size // KIB} KiB")
        yield


@contextlib.contextmanager
def swap_file(size: int) -> Iterator[Path]:
    """*size* bytes of swap, in a file. Other test processes wait for theirs: what is switched off comes back to RAM."""
    need_root("adding swap")
    with nobody_else(SWAPS), tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
        path = Path(scratch, "swap")
        path.touch(mode=0o600)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        run("mkswap", str(path))
        try:
            run("swapon", str(path))
        except RuntimeError as reason:
            needs("swap", str(reason))
        try:
            yield path
        finally:
            run("swapoff", str(path))


@contextlib.contextmanager
def memory_cgroup() -> Iterator[Path]:
    """A memory cgroup of its own, v1 or v2, without limits; yields its directory. Whoever is in it has to have ended at
    the end. cgroups(7).
    """
    need_root("making a cgroup")
    for parent in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        directory = parent / f"memplat-test-{os.getpid()}"
        try:
            directory.mkdir()
        except OSError:
            continue
        try:
            if (directory / "memory.stat").exists():
                yield directory
                return
        finally:
            directory.rmdir()
    needs("cgroup", "no memory cgroup can be made")


@contextlib.contextmanager
def limited_cgroup(limit: int) -> Iterator[Path]:
    """A memory cgroup of *limit* bytes, no swap; a process is in it once its number is in the file that it yields."""
    with memory_cgroup() as directory:
        for name, value in (
            ("memory.limit_in_bytes", limit),
            ("memory.swappiness", 0),
            ("memory.max", limit),
            ("memory.swap.max", 0),
        ):
            if (directory / name).exists():
                (directory / name).write_text(str(value))
        yield directory / "cgroup.procs"


def in_another_process(code: str, *arguments: object, fds: Sequence[int] = ()) -> str:
    """Run Python *code* in a new interpreter that knows nothing of memplat; ``sys.argv[1:]`` are *arguments*, *fds* are
    inherited. Returns what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        pass_fds=tuple(fds),
    )
    if done.returncode:
        raise AssertionError(f"the other process ended with {done.returncode}: {done.stderr}")
    return done.stdout


def touch_elsewhere(fd: int, offsets: Sequence[int], length: int, *, write: bool = True) -> None:
    """Let another process map the file and write to (or read from) one byte at each of *offsets*."""
    in_another_process(
        """
        import mmap, os, sys
        fd, length, write, *offsets = map(int, sys.argv[1:])
        MAP_NORESERVE = 0x4000  # or a map of huge pages wants as many as it is long
        with mmap.mmap(fd, length, flags=mmap.MAP_SHARED | MAP_NORESERVE) as mapping:
            for offset in offsets:
                if write:
                    mapping[offset] = 1
                else:
                    mapping[offset]
        """,
        fd,
        length,
        int(write),
        *offsets,
        fds=[fd],
    )


# ---- fixtures --------------------------------------------------------------------------------------------------------


def _mount_fixture(fstype: str, size: int) -> Iterator[Path]:
    with loop_mount(fstype, size) as path:
        yield path


@pytest.fixture(scope="session")
def ext4_directory() -> Iterator[Path]:
    """256 MiB of ext4 with 4 KiB blocks."""
    yield from _mount_fixture("ext4", 256 * MIB)


@pytest.fixture(scope="session")
def xfs_directory() -> Iterator[Path]:
    """512 MiB of xfs."""
    yield from _mount_fixture("xfs", 512 * MIB)


@pytest.fixture(scope="session")
def btrfs_directory() -> Iterator[Path]:
    """256 MiB of btrfs."""
    yield from _mount_fixture("btrfs", 256 * MIB)


@pytest.fixture(scope="session")
def tmpfs_directory() -> Iterator[Path]:
    """256 MiB of tmpfs."""
    with tmpfs_mount(256 * MIB) as path:
        yield path


@pytest.fixture(scope="session")
def any_disk_directory(request: pytest.FixtureRequest) -> Path:
    """The directory that the parameter names: ext4, xfs, btrfs or tmpfs. For indirect parametrisation."""
    directory: Path = request.getfixturevalue(f"{request.param}_directory")
    return directory
