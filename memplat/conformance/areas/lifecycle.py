"""Lifecycle: introducing oneself, opening, closing, and leaving nothing behind, however the process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from memplat.conformance.case import Case
from memplat.conformance.observer import HUGETLB, SHMEM, descriptors, free_huge_pages, mappings_of
from memplat.conformance.others import stopped_child
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.types import CONTRACT_LEVEL, Availability, BackendInfo, Capability

_OPENINGS: Final = 12
_KILLS: Final = 3


@check("LIFE-01", rule="1.1", smoke=True, forms="memplat_backend_info")
def a_backend_introduces_itself(case: Case) -> None:
    """memplat_backend_info has to return a BackendInfo whose name is that of the entry point, with a version and a
    contract level that this memplat has.
    """
    info = case.info
    expect(isinstance(info, BackendInfo), f"memplat_backend_info returned {info!r}")
    expect(bool(info.version), "BackendInfo.version is empty: reports and bug reports need it")
    expect(1 <= info.contract_level <= CONTRACT_LEVEL, f"contract level {info.contract_level} does not exist here")


@check("LIFE-02", rule="1.2", smoke=True, after="LIFE-01", forms="memplat_check")
def the_check_says_whether_the_backend_can_be_used_and_leaves_nothing_behind(case: Case) -> None:
    """memplat_check has to return an Availability, with a reason where it is not available, and to close what it
    opens.
    """
    case.subject.own_options()  # what is imported for it stays open
    before = descriptors()
    for _ in range(3):
        said = case.subject.availability()
        expect(isinstance(said, Availability), f"memplat_check returned {said!r}, which is no Availability")
        assert said is not None, "the line above has said so"
        expect(
            said.available, f"not available here: {said.reason}" + (f"; remedy: {said.remedy}" if said.remedy else "")
        )
    left = {fd: target for fd, target in descriptors().items() if before.get(fd) != target}
    expect(not left, f"memplat_check left descriptors open: {left}")


@check("LIFE-03", rule="1.3", smoke=True, after="LIFE-02", forms="memplat_create_file")
def opening_gives_an_empty_file(case: Case) -> None:
    """memplat_create_file has to return a file of size 0 that costs nothing: no header, no preallocation."""
    observer = case.observer(case.open())
    size, spent = observer.stat().st_size, observer.total()
    expect(size == 0, f"the file is {size} bytes long before anything was allocated")
    expect(spent == 0, f"the file costs {spent} bytes before anything was allocated")


@check("LIFE-04", rule="1.4", smoke=True, after="LIFE-03")
def a_page_can_be_allocated_written_read_and_freed(case: Case) -> None:
    """The file has to be open for reading and writing, and memplat_mapped must leave the mapping readable and
    writable.
    """
    memory = case.open()
    pages = memory.allocate(memory.page_size)
    with memory.view(pages) as view:
        view[:4] = b"page"
        view[-4:] = b"last"
    with memory.view(pages, writable=False) as view:
        got = bytes(view[:4]), bytes(view[-4:])
    expect(got == (b"page", b"last"), f"wrote b'page' and b'last', read {got}")
    memory.decref(pages)
    case.reclaim(memory)


@check("LIFE-05", rule="1.5", after="LIFE-04")
def closing_closes_the_file(case: Case) -> None:
    """memplat_close_file has to close every descriptor of the file, and to unmap what the backend mapped itself."""
    memory = case.open()
    observer = case.observer(memory)
    memory.decref(memory.allocate(memory.page_size))
    inode, link, status = observer.inode, observer.link, observer.stat()
    memory.close()
    left = [fd for fd in descriptors() if _is_same(fd, status)]
    expect(not left, f"descriptors {left} of the file ({link}) are open after close")
    mapped = mappings_of(inode, link)
    expect(not mapped, f"the file is still mapped after close: {mapped}")


def _is_same(fd: int, status: os.stat_result) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


@check("LIFE-06", rule="1.6", after="LIFE-02 LIFE-05")
def opening_and_closing_again_and_again_leaves_nothing_behind(case: Case) -> None:
    """Some hook opens a descriptor, starts a thread or maps something each time, and memplat_close_file does not undo
    it.
    """
    _use_once(case)  # what is opened once and kept for good is no leak
    fds, threads, mapped = _holdings()
    for _ in range(_OPENINGS):
        _use_once(case)
    now = _holdings()
    new = {fd: target for fd, target in now[0].items() if fds.get(fd) != target}
    expect(len(now[0]) <= len(fds), f"{_OPENINGS} openings left {len(now[0]) - len(fds)} descriptors open: {new}")
    expect(now[1] <= threads, f"{_OPENINGS} openings left {now[1] - threads} threads running")
    expect(now[2] <= mapped, f"{_OPENINGS} openings left {now[2] - mapped} mappings of files")


def _use_once(case: Case) -> None:
    memory = case.open()
    pages = memory.allocate(memory.page_size)
    memory.write(pages, b"x")
    memory.decref(pages)
    case.reclaim(memory)
    memory.close()


def _holdings() -> tuple[dict[int, str], int, int]:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = [line for line in maps if line.split()[4] != "0"]
    return descriptors(), threading.active_count(), len(files)


@check("LIFE-07", rule="1.7", after="LIFE-04 DECOM-02")
def two_memories_have_nothing_in_common(case: Case) -> None:
    """Every hook has to work on the file that it is given, and memplat_create_file has to make a new one each time:
    nothing of one memory may live in a module or in the plugin.
    """
    first, second = case.open(), case.open()
    one, two = case.observer(first), case.observer(second)
    expect(one.inode != two.inode, "two memories use the same file")
    mine, theirs = case.allocate(first, 2), case.allocate(second, 2)
    case.fill(first, mine, 1)
    case.fill(second, theirs, 2)
    first.decref(mine)
    case.give_back(first)
    expect(case.filled(second, theirs, 2), "giving pages of one memory back changed the pages of another one")
    spent = one.data_bytes()
    expect(spent == 0, f"pages that one memory gave back still cost {spent} bytes while another memory is open")
    got = (first.total_usage(), second.total_usage())
    expect(got == (one.total(), two.total()), f"total_usage says {got}, fstat {(one.total(), two.total())}")


@check("LIFE-08", rule="1.8", after="LIFE-04")
def a_view_outlives_its_memory(case: Case) -> None:
    """memplat_close_file must not truncate or punch the file: live views still show it. The host takes it all back
    when the last of them is gone.
    """
    memory = case.open()
    pages = case.allocate(memory, 2)
    case.fill(memory, pages)
    before = memory.read(pages)
    observer = case.observer(memory)
    inode, link = observer.inode, observer.link
    view = memory.view(pages)
    case.close_all()
    expect(bytes(view) == before, "a view shows something else after the memory was closed")
    view[0] = 1
    expect(view[0] == 1, "a view cannot be written after the memory was closed")
    del view
    mapped = mappings_of(inode, link)
    expect(not mapped, f"the file is still mapped after the last view is gone: {mapped}")


@check("LIFE-09", rule="1.9", after="LIFE-04")
def a_killed_process_leaves_nothing_behind(case: Case) -> None:
    """The file needs to be without a name from the start (O_TMPFILE, memfd_create, or unlinked before anything else is
    done): what is removed in memplat_close_file stays when the process is killed.
    """
    left = [_kill_a_user(case) for _ in range(_KILLS)]
    files = [name for one in left for name in one.files]
    expect(not files, f"a process that was killed left files behind: {files}")
    # Others on this host mount and reserve, too: what does not happen every time was somebody else's.
    expect(not all(one.mounts for one in left), f"a process that was killed left mounts behind: {left[-1].mounts}")
    kept = min(one.huge_pages for one in left)
    expect(kept <= 0, f"a process that was killed left {kept} huge pages reserved")


class _Left(NamedTuple):
    """What is there that was not there before."""

    files: list[str]
    mounts: set[str]
    huge_pages: int


def _kill_a_user(case: Case) -> _Left:
    """Have a process use a memory, kill it, and look for what it had open."""

    def use_memory() -> dict[str, Any]:
        memory = case.open()
        case.fill(memory, case.allocate(memory, 1))
        observer = case.observer(memory)
        block = os.fstatvfs(observer.fd).f_bsize if observer.kind == HUGETLB else 0
        return {"link": observer.link, "block": block, "files": _open_files(), "free": free_huge_pages(block)}

    mounts, ours = _mounts(), _open_files()
    with stopped_child(use_memory) as (pid, used):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    held = free_huge_pages(used["block"]) - used["free"]
    directories = {os.path.dirname(used["link"]), "/dev/shm", tempfile.gettempdir()} - {"/"}  # noqa: S108 -- looked at
    files = [path for directory in directories for path in _paths_of(directory, used["files"] - ours)]
    return _Left(files, _mounts() - mounts, 1 - held if used["block"] else 0)


def _open_files() -> set[tuple[int, int]]:
    """Device and inode of each regular file that this process has open."""
    found = set()
    for fd in descriptors():
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                found.add((status.st_dev, status.st_ino))
    return found


def _paths_of(directory: str, inodes: Collection[tuple[int, int]]) -> Iterator[str]:
    """The files in a directory that are among *inodes*."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if (status.st_dev, status.st_ino) in inodes:
                    yield entry.path


def _mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines())


@check("LIFE-10", rule="1.10", after="LIFE-04")
def an_open_empty_file_can_be_adopted(case: Case) -> None:
    """A file that was adopted was not made by memplat_create_file: BackingFile.state is None, and every hook has to
    cope with that.
    """
    with case.observer(case.open()).opened() as own:
        fd = os.dup(own)
    case.close_all()
    memory = case.adopt(fd)
    pages = case.allocate(memory, 2)
    case.fill(memory, pages)
    expect(case.filled(memory, pages), "an adopted file does not hold what was written")
    told, spent = memory.total_usage(), case.observer(memory).total()
    expect(told == spent, f"total_usage of an adopted file is {told}, fstat says {spent}")
    memory.update_usage()
    memory.decref(pages)
    case.reclaim(memory)
    got = memory.read(again := case.allocate(memory, 2))
    expect(got == bytes(again.length), "pages of an adopted file are not zero when they are handed out again")


@check("LIFE-11", rule="1.11", needs=Capability.FLUSH, after="LIFE-04")
def flush_writes_to_the_disk(case: Case) -> None:
    """The capability ``flush`` says that there is a disk below the file. Do not declare it where there never is
    one.
    """
    memory = case.open()
    observer = case.observer(memory)
    no_disk = observer.kind in (SHMEM, HUGETLB)
    if no_disk and not observer.link.startswith("/memfd:"):
        case.skip("there is no disk below the directory that was chosen")
    expect(not no_disk, "flush is declared, but a memfd has no disk below it")
    pages = case.allocate(memory, 4)
    case.fill(memory, pages)
    if observer.unwritten(*pages) is None:
        case.skip(f"{observer.kind or 'the file system'} does not tell what has reached the disk (no FIEMAP)")
    memory.flush()
    left = observer.unwritten(*pages)
    expect(left == 0, f"{left} bytes have not reached the disk after flush()")
