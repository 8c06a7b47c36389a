"""What the guarantee table promises, done by a process that a signal would kill. Run by ``test_sigbus.py``::

    python -m tests.guarantees.scenarios SCENARIO BACKEND MODE OPTIONS-AS-JSON

A scenario that returns has kept its promise; it prints what it did as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import memplat
from memplat import FileRange
from memplat.linux import filesystems
from memplat.memory import Memory

MIB = 1 << 20
#: A full btrfs takes 14 ms and more for each first write to a page.
MOST_TOUCHED = {"btrfs": 100}


def expect_the_default_signal() -> None:
    """SIGBUS kills this process: it is neither caught, blocked nor ignored (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for mask in ("SigCgt", "SigBlk", "SigIgn"):
        assert not int(status[mask], 16) >> (signal.SIGBUS - 1) & 1, f"SIGBUS is in {mask}"


def nested(backend: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a backend as ``open`` takes them."""
    return {backend: options}


def pages_of(memory: Memory, taken: FileRange) -> range:
    return range(taken.start, taken.end, memory.page_size)


def sampled(memory: Memory, pieces: list[FileRange]) -> list[int]:
    """Pages of all pieces, the first and the last one among them."""
    every = [start for piece in pieces for start in pages_of(memory, piece)]
    most = MOST_TOUCHED.get(filesystems.name_of(filesystems.filesystem_magic(memory.fileno())), 4_000)
    return sorted({*every[:: -(-len(every) // most)], every[0], every[-1]})


def stamp(start: int, generation: int) -> bytes:
    return b"%d/%d." % (start, generation)


def touch(memory: Memory, pages: list[int], generation: int = 1) -> None:
    """Store to the first and the last bytes of each page, through the mapping: where the host is short, a signal."""
    for start in pages:
        with memory.view(FileRange(start, start + memory.page_size), pin=False) as view:
            mark = stamp(start, generation)
            view[: len(mark)] = mark
            view[-len(mark) :] = mark


def lost(memory: Memory, pages: list[int], generation: int = 1) -> list[int]:
    """The pages that do not hold their stamps, by load and, where the file can be read, by system call."""
    found = []
    for start in pages:
        mark = stamp(start, generation)
        with memory.view(FileRange(start, start + memory.page_size), writable=False, pin=False) as view:
            good = bytes(view[: len(mark)]) == mark == bytes(view[-len(mark) :])
        if not good or memory.read(FileRange(start, start + len(mark))) != mark:
            found.append(start)
    return found


def take_all(memory: Memory, mode: str) -> list[FileRange]:
    """Allocate until the host has no more, in pieces that get smaller."""
    length = max(memory.page_size, MIB)
    taken: list[FileRange] = []
    while length >= memory.page_size:
        try:
            taken.append(memory.allocate(length, mode=mode, kind="tmpfs", owner=3))
        except memplat.OutOfMemory:
            length = length // 4 // memory.page_size * memory.page_size
    return taken


def expect_exact(memory: Memory, committed: int | None) -> None:
    """The figures are proven, add up, and are those of the kernel.

    :param committed: what the kind and the owner of :func:`take_all` have to have, ``None`` where that is not known
    """
    usage = memory.update_usage()
    blocks = os.fstat(memory.fileno()).st_blocks * 512
    assert usage.exact, usage
    assert usage.total == memory.total_usage() == blocks, (usage.total, blocks)
    assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total
    if committed is not None:
        assert usage.committed["tmpfs"] == committed, (usage.committed, committed)
        assert usage.committed_by_owner[3]["tmpfs"] == committed


@contextlib.contextmanager
def host_filled(backend: str, options: dict[str, Any]) -> Iterator[int]:
    """Somebody else takes all that the host has left; how much that was."""
    if backend == "hugetlb":
        code = (
            "import mmap, os, sys\n"
            "fd, size = os.memfd_create('other', 4 | 21 << 26), 0\n"  # MFD_HUGETLB | MFD_HUGE_2MB
            "try:\n"
            "    while True: os.posix_fallocate(fd, size, 2 << 20); size += 2 << 20\n"
            "except OSError: print(size, flush=True); sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            yield int(other.stdout.readline())
        return
    path = Path(options["directory"], "ballast")
    size = 0
    with path.open("wb", buffering=0) as file:
        for step in (MIB, 64 << 10, 4 << 10, 512):
            with contextlib.suppress(OSError):
                while written := file.write(bytes(step)):
                    size += written
            with contextlib.suppress(OSError):  # what the page cache took may still not fit
                os.fsync(file.fileno())
    try:
        yield size
    finally:
        path.unlink()


# ---- scenarios ------------------------------------------------------------------------------------------------------


def exhaust(backend: str, mode: str, options: dict[str, Any]) -> dict[str, object]:
    """All that the host has is allocated, all of it touched; then some of it freed, and allocated again."""
    with memplat.open(backend, max_size=1 << 30, reclaim="manual", **nested(backend, options)) as memory:
        pieces = take_all(memory, mode)
        total = sum(piece.length for piece in pieces)
        pages = sampled(memory, pieces)
        touch(memory, pages)
        for wanted in ("reserved", "committed", mode):
            for length in (memory.page_size, 64 * MIB):
                try:
                    memory.allocate(length, mode=wanted)
                except memplat.OutOfMemory:
                    continue
                raise AssertionError(f"{length} bytes more could be allocated, {wanted}")
        assert lost(memory, pages) == []
        expect_exact(memory, total)
        half = pieces[::2]
        for piece in half:
            memory.decref(piece)
        memory.reclaim()
        again = take_all(memory, mode)
        regained, freed = (sum(piece.length for piece in some) for some in (again, half))
        assert regained >= freed * 3 // 4, f"{freed} bytes were freed, and {regained} could be allocated again"
        fresh = sampled(memory, again)
        assert all(
            memory.read(FileRange(start, start + memory.page_size)) == bytes(memory.page_size) for start in fresh
        )
        touch(memory, fresh, 2)
        kept = {start for piece in pieces[1::2] for start in pages_of(memory, piece)}
        assert lost(memory, [start for start in pages if start in kept]) == []
        assert lost(memory, fresh, 2) == []
        expect_exact(memory, None)
        for piece in (*again, *pieces[1::2]):
            memory.decref(piece)
        memory.reclaim()
        return {"allocated": total, "regained": regained}


def fill_later(backend: str, mode: str, options: dict[str, Any]) -> dict[str, object]:
    """The host is filled up by somebody else after the allocation; the pages are touched only then, twice."""
    with memplat.open(backend, max_size=1 << 30, reclaim="manual", **nested(backend, options)) as memory:
        length = 4 * MIB
        half = length // 2
        promised = memory.allocate(length, mode=mode, kind="tmpfs", owner=3)
        with host_filled(backend, options) as ballast:
            pages = sampled(memory, [promised])
            touch(memory, pages[: len(pages) // 2])
            os.fsync(memory.fileno())
            touch(memory, pages)
            touch(memory, pages, 2)
            assert lost(memory, pages, 2) == []
            expect_exact(memory, length)
            try:
                memory.allocate(4 * length, mode=mode)
            except memplat.OutOfMemory:
                assert lost(memory, pages, 2) == []
            else:
                raise AssertionError("the host was not full")
            memory.decref(FileRange(promised.start, promised.start + half))
            memory.reclaim()
        again = memory.allocate(half, mode=mode, kind="tmpfs", owner=3)
        fresh = sampled(memory, [again])
        touch(memory, fresh, 3)
        assert lost(memory, fresh, 3) == []
        assert lost(memory, [start for start in pages if start >= promised.start + half], 2) == []
        expect_exact(memory, length)
        memory.decref(again)
        memory.decref(FileRange(promised.start + half, promised.end))
        return {"ballast": ballast}


def touch_uncommitted(backend: str, mode: str, options: dict[str, Any]) -> dict[str, object]:
    """Pages that nobody has reserved are touched on a full host: by system call that is an error, by store a signal."""
    with memplat.open(backend, max_size=1 << 30, **nested(backend, options)) as memory:
        pages = memory.allocate(64 * MIB, mode=mode)
        with host_filled(backend, options):
            try:
                for start in pages_of(memory, pages):
                    memory.write(FileRange(start, start + memory.page_size), b"x" * memory.page_size)
                    os.fsync(memory.fileno())  # btrfs takes more than it has until it writes it
            except (memplat.HostError, OSError):
                print("write: refused", flush=True)
            print("read:", len(memory.read(pages)), flush=True)
            touch(memory, list(pages_of(memory, pages)))
    raise AssertionError("the host had room for all of it")


def release_and_drain(backend: str, mode: str, options: dict[str, Any]) -> dict[str, object]:
    """hugetlb: pages that were given back with ``release=True`` may be gone when they are touched."""
    with memplat.open(backend, max_size=1 << 30, **nested(backend, options)) as memory:
        pages = memory.allocate(4 * MIB, mode=mode)
        memory.decommit(pages)
        with host_filled(backend, options):
            touch(memory, list(pages_of(memory, pages)))
            print("decommit: kept", flush=True)
        assert memory.decommit(pages, release=True) == 4 * MIB
        with host_filled(backend, options):
            touch(memory, list(pages_of(memory, pages)))
    raise AssertionError("the pool had them all the same")


def ask_for_too_much(backend: str, mode: str, options: dict[str, Any]) -> dict[str, object]:
    """More than host and cgroup have: refused before anything is taken. Uncommitted it costs nothing."""
    limit = int(options.pop("limit"))
    with memplat.open(backend, max_size=4 * limit, reclaim="manual", **nested(backend, options)) as memory:
        held = memory.allocate(MIB, mode="committed", fill=b"held")
        with memory.block(2 * limit, mode="uncommitted"):
            assert memory.total_usage() == MIB
        try:
            memory.allocate(limit + 64 * MIB, mode=mode)
        except memplat.OutOfMemory as error:
            told = str(error)
        else:
            raise AssertionError(f"{limit + 64 * MIB} bytes of {limit} could be allocated")
        assert memory.read(FileRange(held.start, held.start + 4)) == b"held"
        assert memory.total_usage() == MIB
        memory.decref(memory.allocate(MIB, mode=mode))
        memory.decref(held)
        return {"told": told}


SCENARIOS: dict[str, Callable[[str, str, dict[str, Any]], dict[str, object]]] = {
    one.__name__: one for one in (exhaust, fill_later, touch_uncommitted, release_and_drain, ask_for_too_much)
}


def main(name: str, backend: str, mode: str, options: str) -> None:
    expect_the_default_signal()
    done = SCENARIOS[name](backend, mode, json.loads(options))
    expect_the_default_signal()
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
