"""What a test believes without asking memplat: the kernel's own word on a backing file, and a naive model of a memory.

Nothing here uses a helper of memplat. :class:`Observer` looks at a file through a descriptor of its own, in several
ways that do not share their blind spots:

- ``lseek(SEEK_DATA)`` (lseek(2)): exact for shmem but for pages that were ``fallocate``d and never touched;
- ``cachestat(2)``: counts page-cache and swapped-out pages, the fallocated ones included; halving ranges finds which;
- ``st_blocks`` (stat(2)): the exact sum, and no word on which;
- ``mincore(2)`` on a fresh mapping: resident pages only, so what it misses of the others is swapped out;
- ``/proc/self/pagemap`` (proc_pid_pagemap(5)): what one particular mapping touched.

:class:`NaiveModel` keeps one record a page, and works out every figure page by page.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

PAGE = 4096
KINDS = ("system", "anonymous", "page_cache", "tmpfs", "ramdiskfs")

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_MADV_DONTNEED = 4
_MADV_PAGEOUT = 21
_SYS_CACHESTAT = 451
_PAGEMAP_PRESENT = 1 << 63
_PAGEMAP_SWAPPED = 1 << 62

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


class _CachestatRange(ctypes.Structure):
    _fields_ = [("off", ctypes.c_uint64), ("len", ctypes.c_uint64)]


class _Cachestat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def _check(result: int, what: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


class RawMapping:
    """A mapping of a file made by mmap(2) directly, at an address of the kernel's choice."""

    def __init__(self, fd: int, offset: int, length: int, *, writable: bool = True, shared: bool = True) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        address = _libc.mmap(None, length, protection, flags, fd, offset)
        if address in (None, _MAP_FAILED):
            code = ctypes.get_errno()
            raise OSError(code, f"mmap: {os.strerror(code)}")
        self.address: int = address
        self.length = length

    def touch_read(self, offset: int) -> int:
        """Load one byte."""
        return ctypes.c_ubyte.from_address(self.address + offset).value

    def touch_write(self, offset: int, data: bytes) -> None:
        """Store *data*."""
        ctypes.memmove(self.address + offset, data, len(data))

    def page_out(self, pages: Iterable[int]) -> None:
        """Ask the kernel to swap *pages* out (madvise(2), MADV_PAGEOUT). It takes only pages that this mapping maps and
        no other one does, so they are touched first; they must be committed, or touching would commit them.
        """
        for page in pages:
            self.touch_read(page * PAGE)
        _check(_libc.madvise(self.address, self.length, _MADV_PAGEOUT), "MADV_PAGEOUT")

    def resident(self) -> set[int]:
        """The pages of the mapping that are in the page cache, by mincore(2)."""
        count = -(-self.length // PAGE)
        vector = (ctypes.c_ubyte * count)()
        _check(_libc.mincore(self.address, self.length, ctypes.addressof(vector)), "mincore")
        return {page for page in range(count) if vector[page] & 1}

    def touched(self) -> set[int]:
        """The pages that were touched through this mapping: /proc/self/pagemap says present or swapped."""
        return touched_pages(self.address, self.length)

    def close(self) -> None:
        """Unmap; idempotent."""
        if self.address:
            _check(_libc.munmap(self.address, self.length), "munmap")
            self.address = 0


def forget(address: int, length: int) -> None:
    """Empty the page tables of a shared mapping (MADV_DONTNEED), which drops no page of the file."""
    _check(_libc.madvise(address, length, _MADV_DONTNEED), "MADV_DONTNEED")


def touched_pages(address: int, length: int) -> set[int]:
    """The pages of ``[address, address + length)``, counted from its start, that this process's page tables know."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        raw = os.pread(pagemap.fileno(), length // PAGE * 8, address // PAGE * 8)
    entries = struct.unpack(f"<{len(raw) // 8}Q", raw)
    return {page for page, entry in enumerate(entries) if entry & (_PAGEMAP_PRESENT | _PAGEMAP_SWAPPED)}


class Observer:
    """A second look at a file, through a descriptor that shares nothing with the first one, not even the offset."""

    def __init__(self, fd: int) -> None:
        self.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def size(self) -> int:
        """The size that the file has now, in bytes."""
        return os.fstat(self.fd).st_size

    @property
    def blocks(self) -> int:
        """What the host spends on the file, in bytes."""
        return os.fstat(self.fd).st_blocks * 512

    @property
    def inode(self) -> int:
        """The inode number, to find the file's mappings in /proc/self/maps."""
        return os.fstat(self.fd).st_ino

    def data_pages(self) -> set[int]:
        """The pages that SEEK_DATA calls data."""
        pages: set[int] = set()
        position, size = 0, self.size
        while position < size:
            try:
                start = os.lseek(self.fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            position = os.lseek(self.fd, start, os.SEEK_HOLE)
            pages.update(range(start // PAGE, -(-position // PAGE)))
        return pages

    def cachestat(self, start: int, length: int) -> tuple[int, int]:
        """How many pages of the range are in the page cache, and how many are swapped out."""
        result, where = _Cachestat(), _CachestatRange(start, length)
        _check(
            _libc.syscall(_SYS_CACHESTAT, self.fd, ctypes.byref(where), ctypes.byref(result), 0),
            "cachestat",
        )
        return int(result.cache), int(result.evicted)

    def swapped_pages(self) -> set[int]:
        """The pages whose content is in swap and nowhere else, by cachestat's count of evicted pages."""
        return self._counted(0, -(-self.size // PAGE), lambda cache, evicted: evicted)

    def committed_pages(self) -> set[int]:
        """The pages that the host spends storage on. Found by cachestat; SEEK_DATA and st_blocks have to agree."""
        pages = self._counted(0, -(-self.size // PAGE), lambda cache, evicted: cache + evicted)
        data = self.data_pages()
        assert data <= pages, f"SEEK_DATA sees pages that cachestat does not: {runs(data - pages)}"
        assert len(pages) * PAGE == self.blocks, (
            f"the oracle itself is wrong: {len(pages)} pages found, st_blocks says {self.blocks // PAGE}"
        )
        return pages

    def _counted(self, first: int, last: int, count: Callable[[int, int], int]) -> set[int]:
        """The pages in ``[first, last)`` that *count* counts, by halving."""
        if first >= last:
            return set()
        found = count(*self.cachestat(first * PAGE, (last - first) * PAGE))
        if found == 0:
            return set()
        if found == last - first:
            return set(range(first, last))
        middle = (first + last) // 2
        return self._counted(first, middle, count) | self._counted(middle, last, count)

    def resident_pages(self) -> set[int]:
        """The pages that are in the page cache, by mincore on a fresh mapping that touches nothing."""
        if self.size == 0:
            return set()
        mapping = RawMapping(self.fd, 0, self.size, writable=False)
        try:
            return mapping.resident()
        finally:
            mapping.close()

    def map(self, start: int, length: int, *, writable: bool = True, shared: bool = True) -> RawMapping:
        """A second mapping of a part of the file."""
        return RawMapping(self.fd, start, length, writable=writable, shared=shared)

    def read(self, start: int, length: int) -> bytes:
        """The content, by pread(2), which commits nothing."""
        return os.pread(self.fd, length, start)

    def write(self, start: int, data: bytes) -> None:
        """Store by pwrite(2)."""
        assert os.pwrite(self.fd, data, start) == len(data)

    def punch(self, start: int, length: int) -> None:
        """Punch a hole, as a peer would."""
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        _check(_libc.fallocate(self.fd, mode, start, length), "fallocate(PUNCH_HOLE)")

    def reserve(self, start: int, length: int) -> None:
        """Reserve by fallocate(2), as a peer would."""
        _check(_libc.fallocate(self.fd, 0, start, length), "fallocate(0)")

    def is_zero(self, start: int, length: int) -> bool:
        """Whether the range reads as zero."""
        return not any(self.read(start, length))

    def nonzero_pages(self, pages: Iterable[int]) -> list[int]:
        """Those of *pages* that do not read as zero."""
        return [page for page in pages if any(self.read(page * PAGE, PAGE))]


def has_cachestat() -> bool:
    """Whether the kernel has cachestat(2) (Linux 6.5)."""
    fd = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        with Observer(fd) as observer:
            observer.cachestat(0, PAGE)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted half-open runs of page numbers, for messages and for walking."""
    result: list[tuple[int, int]] = []
    for page in sorted(pages):
        if result and result[-1][1] == page:
            result[-1] = (result[-1][0], page + 1)
        else:
            result.append((page, page + 1))
    return result


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, and what they lead to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the directory's own descriptor
    return found


def backing_descriptor(before: dict[int, str]) -> int:
    """The one memfd that was opened since *before*: found without asking the memory, which would call it shared."""
    new = [fd for fd, target in descriptors().items() if target.startswith("/memfd:") and before.get(fd) != target]
    assert len(new) == 1, f"expected one new memfd, found {new}"
    return new[0]


def mappings_of(inode: int) -> list[str]:
    """The lines of /proc/self/maps that map the memfd with that inode number."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        return [line for line in maps if "memfd:" in line and int(line.split()[4]) == inode]


def tasks() -> int:
    """The number of threads of this process, as the kernel counts them."""
    return len(os.listdir("/proc/self/task"))


class ModelError(Exception):
    """The operation is one that a memory has to refuse; nothing was changed."""


@dataclass
class Page:
    """One page that somebody holds, by reference or by pinned view."""

    kind: str
    owner: int
    refs: int = 1
    views: int = 0
    content: bytes | None = None
    """The page's bytes, ``None`` for zeros."""
    committed: bool | None = None
    """What the model expects; ``None`` where the contract leaves it open."""

    @property
    def look(self) -> tuple[str, int, int, int]:
        """What a memory tells of it."""
        return (self.kind, self.owner, self.refs, self.views)


@dataclass
class Expected:
    """What every figure of ``Usage`` has to be that a page-by-page count can say."""

    committed: dict[str, int] = field(default_factory=dict)
    by_owner: dict[int, dict[str, int]] = field(default_factory=dict)
    allocated: dict[str, int] = field(default_factory=dict)
    idle: int = 0
    """Committed bytes of pages that nobody holds: waste + retained + free_committed."""
    foreign: int = 0
    total: int = 0


class NaiveModel:
    """A memory as a dictionary of pages. Slow, and too simple to be wrong in the same way as an engine."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}
        self.external: dict[int, int] = {}

    # -- what the operations do ----------------------------------------------------------------------------------

    def span(self, start: int, end: int) -> range:
        """The numbers of the pages that ``[start, end)`` touches."""
        return range(start // PAGE, -(-end // PAGE))

    def held(self, start: int, end: int, *, by_refs: bool) -> list[Page]:
        """The pages of the range; refuses if one of them is not held."""
        found = [self.pages.get(number) for number in self.span(start, end)]
        if any(page is None or (by_refs and page.refs == 0) for page in found):
            raise ModelError(f"not all of [{start:#x}, {end:#x}) is held")
        return [page for page in found if page is not None]

    def allocate(self, start: int, end: int, kind: str, owner: int, *, committed: bool | None) -> None:
        """New pages. That they were free is checked here: nobody may get pages that somebody holds."""
        for number in self.span(start, end):
            assert number not in self.pages, f"page {number} was handed out although it is held: {self.pages[number]}"
        for number in self.span(start, end):
            self.pages[number] = Page(kind, owner, committed=committed)

    def incref(self, start: int, end: int) -> None:
        """One more reference to each page."""
        for page in self.held(start, end, by_refs=True):
            page.refs += 1

    def decref(self, start: int, end: int) -> None:
        """One reference fewer to each page."""
        for page in self.held(start, end, by_refs=True):
            page.refs -= 1
        self._forget(self.span(start, end))

    def pin(self, start: int, end: int) -> None:
        """A pinned view of any byte range opens."""
        for page in self.held(start, end, by_refs=False):
            page.views += 1

    def unpin(self, start: int, end: int) -> None:
        """That view goes away."""
        for page in self.held(start, end, by_refs=False):
            page.views -= 1
        self._forget(self.span(start, end))

    def _forget(self, numbers: range) -> None:
        for number in numbers:
            if self.pages[number].refs == 0 and self.pages[number].views == 0:
                del self.pages[number]

    def transfer(self, start: int, end: int, owner: int) -> None:
        """Another owner."""
        for page in self.held(start, end, by_refs=True):
            page.owner = owner

    def write(self, offset: int, data: bytes) -> None:
        """Somebody stores *data* into held pages."""
        end = offset + len(data)
        for number in self.span(offset, end):
            page = self.pages[number]
            content = bytearray(page.content or bytes(PAGE))
            low, high = max(offset, number * PAGE), min(end, (number + 1) * PAGE)
            content[low - number * PAGE : high - number * PAGE] = data[low - offset : high - offset]
            page.content = bytes(content)
            page.committed = True

    def touch(self, start: int, end: int) -> None:
        """Somebody loads from held pages through a shared mapping, which commits them."""
        for number in self.span(start, end):
            self.pages[number].committed = True

    def clear(self, start: int, end: int) -> None:
        """The pages were decommitted or punched."""
        for page in self.held(start, end, by_refs=False):
            page.content = None
            page.committed = False

    def read(self, start: int, end: int) -> bytes:
        """What the range has to read as."""
        parts = []
        for number in self.span(start, end):
            content = self.pages[number].content or bytes(PAGE)
            low, high = max(start, number * PAGE), min(end, (number + 1) * PAGE)
            parts.append(content[low - number * PAGE : high - number * PAGE])
        return b"".join(parts)

    # -- what can be asked ---------------------------------------------------------------------------------------

    def unique(self, start: int, end: int) -> bool:
        """Whether each page has exactly one reference, live views included."""
        return all(page.refs + page.views == 1 for page in self.held(start, end, by_refs=True))

    def first_shared(self, start: int, end: int) -> tuple[int, int] | None:
        """The first run of pages with more than one reference, views included."""
        shared = [n for n in self.span(start, end) if self.pages[n].refs + self.pages[n].views > 1]
        for first, last in runs(shared):
            return first * PAGE, last * PAGE
        return None

    def used_runs(self, *, by_refs: bool = True) -> list[tuple[int, int]]:
        """Runs of held pages, as byte ranges."""
        held = (number for number, page in self.pages.items() if page.refs or not by_refs)
        return [(first * PAGE, last * PAGE) for first, last in runs(held)]

    def alike_runs(self, pages: int) -> Iterator[tuple[int, int, Page | None]]:
        """All of a file of so many *pages*, in runs of pages of which a memory tells the same."""
        start = 0
        while start < pages:
            first = self.pages.get(start)
            end = start + 1
            while end < pages and self._alike(first, self.pages.get(end)):
                end += 1
            yield start * PAGE, end * PAGE, first
            start = end

    @staticmethod
    def _alike(one: Page | None, other: Page | None) -> bool:
        if one is None or other is None:
            return one is other
        return one.look == other.look

    def expected(self, committed: set[int], file_size: int) -> Expected:
        """Every figure, from the pages that the host was *seen* to spend storage on."""
        figures = Expected()
        for number in committed:
            page = self.pages.get(number)
            if page is not None:
                self._add(figures, page.owner, page.kind, PAGE)
            elif number * PAGE >= file_size:
                figures.foreign += PAGE
            else:
                self._add(figures, 0, "system", PAGE)
                figures.idle += PAGE
        for owner, nbytes in self.external.items():
            self._add(figures, owner, "mapped", nbytes)
        for page in self.pages.values():
            figures.allocated[page.kind] = figures.allocated.get(page.kind, 0) + PAGE
        figures.total = len(committed) * PAGE + sum(self.external.values())
        return figures

    @staticmethod
    def _add(figures: Expected, owner: int, kind: str, nbytes: int) -> None:
        if nbytes == 0:
            return
        figures.committed[kind] = figures.committed.get(kind, 0) + nbytes
        mine = figures.by_owner.setdefault(owner, {})
        mine[kind] = mine.get(kind, 0) + nbytes

    def prediction_errors(self, committed: set[int]) -> list[str]:
        """Held pages whose state on the host is not what the operations should have made it."""
        return [
            f"page {number} should be {'committed' if page.committed else 'uncommitted'}: {page.look}"
            for number, page in sorted(self.pages.items())
            if page.committed is not None and page.committed != (number in committed)
        ]


def positive(figures: Mapping[str, int]) -> dict[str, int]:
    """A mapping of figures without its zeros: whether a kind without bytes is listed says nothing."""
    return {str(key): value for key, value in figures.items() if value}


class UsageLike(Protocol):
    """The figures of a ``Usage`` that can be counted page by page."""

    @property
    def committed(self) -> Mapping[str, int]: ...
    @property
    def committed_by_owner(self) -> Mapping[int, Mapping[str, int]]: ...
    @property
    def allocated(self) -> Mapping[str, int]: ...
    @property
    def waste(self) -> int: ...
    @property
    def retained(self) -> int: ...
    @property
    def free_committed(self) -> int: ...
    @property
    def overhead(self) -> int: ...
    @property
    def foreign(self) -> int: ...
    @property
    def total(self) -> int: ...


def usage_errors(usage: UsageLike, expected: Expected) -> list[str]:
    """Where a ``Usage`` differs from what was counted page by page; empty if it is exact."""
    by_owner = {owner: positive(kinds) for owner, kinds in usage.committed_by_owner.items()}
    allocated = {kind: value for kind, value in positive(usage.allocated).items() if kind != "mapped"}
    pairs: list[tuple[str, object, object]] = [
        ("committed", positive(usage.committed), expected.committed),
        ("committed_by_owner", {owner: kinds for owner, kinds in by_owner.items() if kinds}, expected.by_owner),
        ("allocated", allocated, expected.allocated),
        ("waste + retained + free_committed", usage.waste + usage.retained + usage.free_committed, expected.idle),
        ("foreign", usage.foreign, expected.foreign),
        ("total", usage.total, expected.total),
        (
            "sum(committed) + overhead + foreign, against total",
            sum(usage.committed.values()) + usage.overhead + usage.foreign,
            usage.total,
        ),
    ]
    return [f"{what}: {mine!r}, but counted {theirs!r}" for what, mine, theirs in pairs if mine != theirs]
