"""Calibrators: what the host takes for one step of the work, and what a Python user would take instead of memplat.

Those of the host are timed in C where there is a compiler (``cc``), as the published figures of the Go allocators were;
otherwise through Python, which adds the cost of a call to each.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from memplat.linux import files
from memplat.ranges import GIB, KIB

PAGE: Final = 4096
BLOCK: Final = 64 * KIB
#: One byte for each page of a block: what a touch writes.
STAMP: Final = b"\1" * (BLOCK // PAGE)

_COMPILER: Final = "cc"
_ARENA_PAGES: Final = 1024
_EXTENTS: Final = 65_536
_EXTENT_GAP: Final = 4 * GIB // _EXTENTS

#: How often each is done in one measurement: a few milliseconds' worth, but for the walk.
_REPEATS: Final[Mapping[str, int]] = {
    "getppid": 10_000,
    "fstat": 5_000,
    "memset 64 KiB": 2_000,
    "first-touch fault": _ARENA_PAGES,
    "punch": _ARENA_PAGES,
    "punch, random": _ARENA_PAGES,
    "SEEK_DATA walk": 1,
    "memoryview slice": 20_000,
    "mmap + close": 300,
    "memfd + mmap + close": 200,
    "SharedMemory": 40,
}

MEANINGS: Final[Mapping[str, str]] = {
    "getppid": "the cheapest system call",
    "fstat": "of a memfd",
    "memset 64 KiB": "hot",
    "first-touch fault": "of one page of a memfd",
    "punch": "fallocate(PUNCH_HOLE) of one touched page, ascending",
    "punch, random": "the same in random order",
    "SEEK_DATA walk": "over 65,536 one-page extents in 4 GiB",
    "memoryview slice": "made and dropped, in Python",
    "mmap + close": "`mmap.mmap(-1, 64 KiB)` and close, in Python, untouched",
    "memfd + mmap + close": "`os.memfd_create`, truncate, `mmap.mmap`, close, in Python, untouched",
    "SharedMemory": "`multiprocessing.shared_memory`: create, close, unlink, in Python, untouched",
}


class _Host(Protocol):
    """The steps that are the host's; each returns nanoseconds for all repeats."""

    def getppid(self, n: int) -> int: ...
    def fstat(self, fd: int, n: int) -> int: ...
    def memset(self, address: int, length: int, n: int) -> int: ...
    def faults(self, address: int, n: int) -> int: ...
    def punches(self, fd: int, order: array[int]) -> int: ...
    def seek_walk(self, fd: int, size: int) -> int: ...


class _Compiled:
    """The steps in C."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("getppid", "fstat", "memset", "faults", "punches", "seek_walk"):
            library[f"time_{name}"].restype = ctypes.c_long
        self._call: Callable[..., int] = lambda name, *arguments: int(getattr(library, f"time_{name}")(*arguments))

    def getppid(self, n: int) -> int:
        return self._call("getppid", ctypes.c_long(n))

    def fstat(self, fd: int, n: int) -> int:
        return self._call("fstat", fd, ctypes.c_long(n))

    def memset(self, address: int, length: int, n: int) -> int:
        return self._call("memset", ctypes.c_void_p(address), ctypes.c_long(length), ctypes.c_long(n))

    def faults(self, address: int, n: int) -> int:
        return self._call("faults", ctypes.c_void_p(address), ctypes.c_long(n))

    def punches(self, fd: int, order: array[int]) -> int:
        where, count = order.buffer_info()
        taken = self._call("punches", fd, ctypes.c_void_p(where), ctypes.c_long(count))
        if taken < 0:
            raise OSError("the host refuses to punch a hole into a memfd")
        return taken

    def seek_walk(self, fd: int, size: int) -> int:
        return self._call("seek_walk", fd, ctypes.c_long(size))


class _ThroughPython:
    """The steps without a compiler: a Python call for each."""

    def getppid(self, n: int) -> int:
        return _timed(os.getppid, n)

    def fstat(self, fd: int, n: int) -> int:
        return _timed(lambda: os.fstat(fd), n)

    def memset(self, address: int, length: int, n: int) -> int:
        return _timed(lambda: ctypes.memset(address, 0, length), n)

    def faults(self, address: int, n: int) -> int:
        byte = ctypes.c_char.from_address
        started = time.perf_counter_ns()
        for page in range(n):
            byte(address + page * PAGE).value = b"\1"
        return time.perf_counter_ns() - started

    def punches(self, fd: int, order: array[int]) -> int:
        started = time.perf_counter_ns()
        for page in order:
            files.punch_hole(fd, page * PAGE, PAGE)
        return time.perf_counter_ns() - started

    def seek_walk(self, fd: int, size: int) -> int:
        return _timed(lambda: files.seek_extents(fd, 0, size), 1)


def _timed(step: Callable[[], object], n: int) -> int:
    started = time.perf_counter_ns()
    for _ in range(n):
        step()
    return time.perf_counter_ns() - started


def is_compiled() -> bool:
    """Whether the host's steps are timed in C here."""
    return shutil.which(_COMPILER) is not None


def _compile(directory: str) -> _Compiled | None:
    if not is_compiled():
        return None
    library = Path(directory) / "calibrators.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([_COMPILER, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return _Compiled(ctypes.CDLL(str(library)))


class Calibrators:
    """All calibrators of one process. A context manager.

    :ivar through: ``C`` or ``Python``: what stands between the clock and the host
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        compiled = _compile(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._host: _Host = compiled or _ThroughPython()
        self.through = "C" if compiled else "Python"
        self._fd = self._file(_ARENA_PAGES * PAGE)
        # Never released: the address that ctypes takes of it counts as a view.
        self._arena = mmap.mmap(self._fd, _ARENA_PAGES * PAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._arena))
        self._scattered: int | None = None
        self._ascending = array("q", range(_ARENA_PAGES))
        self._shuffled = array("q", random.Random(0).sample(range(_ARENA_PAGES), _ARENA_PAGES))
        self._view = memoryview(bytearray(BLOCK))
        self._steps: Mapping[str, Callable[[int], int]] = {
            "getppid": self._host.getppid,
            "fstat": lambda n: self._host.fstat(self._fd, n),
            "memset 64 KiB": self._memset,
            "first-touch fault": lambda _: self._faults_and_punches(self._ascending)[0],
            "punch": lambda _: self._faults_and_punches(self._ascending)[1],
            "punch, random": lambda _: self._faults_and_punches(self._shuffled)[1],
            "SEEK_DATA walk": lambda _: self._walk(),
            "memoryview slice": self._slice,
            "mmap + close": lambda n: _timed(lambda: mmap.mmap(-1, BLOCK).close(), n),
            "memfd + mmap + close": lambda n: _timed(_memfd_and_mmap, n),
            "SharedMemory": lambda n: _timed(_shared_memory, n),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def measure(self, name: str) -> float:
        """Seconds for one step, now: the median of three, because another process may have the processor meanwhile."""
        repeats = _REPEATS[name]
        return statistics.median(self._steps[name](repeats) for _ in range(3)) / repeats / 1e9

    def _file(self, size: int) -> int:
        fd = os.memfd_create("calibrator")
        self._stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        return fd

    def _memset(self, n: int) -> int:
        self._host.faults(self._address, BLOCK // PAGE)
        try:
            return self._host.memset(self._address, BLOCK, n)
        finally:
            files.punch_hole(self._fd, 0, BLOCK)

    def _faults_and_punches(self, order: array[int]) -> tuple[int, int]:
        return self._host.faults(self._address, len(order)), self._host.punches(self._fd, order)

    def _walk(self) -> int:
        if self._scattered is None:
            self._scattered = self._file(_EXTENTS * _EXTENT_GAP)
            for extent in range(_EXTENTS):
                os.pwrite(self._scattered, b"\1", extent * _EXTENT_GAP)
        return self._host.seek_walk(self._scattered, _EXTENTS * _EXTENT_GAP)

    def _slice(self, n: int) -> int:
        view = self._view
        started = time.perf_counter_ns()
        for _ in range(n):
            _ = view[0:BLOCK]
        return time.perf_counter_ns() - started


def _memfd_and_mmap() -> None:
    fd = os.memfd_create("alternative")
    os.ftruncate(fd, BLOCK)
    mapped = mmap.mmap(fd, BLOCK)
    os.close(fd)
    mapped.close()


def _shared_memory() -> None:
    shared = SharedMemory(create=True, size=BLOCK)
    shared.close()
    shared.unlink()
