"""The demo's work without its looks: load files as pages, let processes look at them, check, and give it all back.

Nothing is taken on trust: the figures of the memory are compared with the sizes of the files and with fstat(2), and
what the processes found out with hashlib on the files themselves. What does not add up is collected, not raised, so
that the memory is given back, and that is checked, too.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import attrs

from memplat.cli.demo import page_map
from memplat.cli.demo.worker import RECORD, RECORD_STRIDE
from memplat.cli.demo.workers import WORKER_SCRIPT, Job, Order, WorkerError, run_workers
from memplat.errors import MemplatError
from memplat.memory import Memory
from memplat.ranges import FileRange
from memplat.types import AllocationMode, MemoryKind, Usage

PAGE_CACHE: Final = MemoryKind.PAGE_CACHE
ANONYMOUS: Final = MemoryKind.ANONYMOUS
_NO_PAGES: Final = FileRange(0, 0)
_CHUNK: Final = 1 << 20
#: How long the background may take to give everything back before the demo does it itself, in seconds.
_PATIENCE: Final = 10.0


class DemoError(Exception):
    """Something that ends the demo early: a file that cannot be loaded as it is."""


@attrs.frozen
class Source:
    """A file to load."""

    path: Path
    length: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """Look at a file.

        :raises OSError: if it is not there
        :raises DemoError: if it is no regular file
        """
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DemoError(f"{path} is no regular file")
        return cls(path, found.st_size)


@attrs.frozen
class Moment:
    """The usage at one moment, and what fstat(2) says of the descriptor right after it."""

    name: str
    usage: Usage
    fstat_bytes: int

    @property
    def in_file(self) -> int:
        """The total without the memory that was reported with ``account_external``."""
        return self.usage.total - self.usage.committed.get(MemoryKind.MAPPED, 0)


@attrs.frozen
class Finding:
    """What a worker process found out about a file."""

    path: Path
    owner: int
    length: int
    sha256: str
    words: int
    process: int


@attrs.define
class Report:
    """All that happened."""

    workers: int
    moments: list[Moment] = attrs.field(factory=list)
    findings: list[Finding] = attrs.field(factory=list)
    pages: page_map.PageMap | None = None
    problems: list[str] = attrs.field(factory=list)
    """What does not add up; empty if everything does."""


@attrs.frozen
class _Loaded:
    source: Source
    owner: int
    pages: FileRange
    signature: tuple[int, ...]
    """What changes when the file does."""


#: Called with the name of a stage (``load``, ``work``, ``check``) and how much further it is: bytes, files, bytes.
Observe = Callable[[str, int], None]


def _observe_nothing(_stage: str, _amount: int) -> None:
    pass


def run_demo(
    memory: Memory,
    sources: Sequence[Source],
    workers: int,
    observe: Observe | None = None,
    *,
    may_keep: int = 0,
    script: Path = WORKER_SCRIPT,
) -> Report:
    """Do the whole job on *memory*, which nobody else uses meanwhile.

    :param workers: how many processes to share the files out to
    :param may_keep: how many bytes the configuration allows the memory to keep committed when all is free
    :param script: what the processes run
    """
    report = Report(workers=min(workers, len(sources)))
    run = _Run(memory, report, observe or _observe_nothing, script)
    run.measure("opened")
    try:
        run.load(sources)
        run.work()
        run.check()
    except (DemoError, WorkerError, MemplatError, OSError) as error:
        report.problems.append(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error))
    finally:
        run.give_back()
    run.check_given_back(may_keep)
    return report


class _Run:
    def __init__(self, memory: Memory, report: Report, observe: Observe, script: Path) -> None:
        self.memory = memory
        self.report = report
        self.observe = observe
        self.script = script
        self.loaded: list[_Loaded] = []
        self.orders: list[Order] = []
        self.held: list[FileRange] = []
        """A range for each reference that is ours to drop."""

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self, name: str) -> Moment:
        usage = self.memory.update_usage()
        moment = Moment(name, usage, os.fstat(self.memory.fileno()).st_blocks * 512)
        self.report.moments.append(moment)
        return moment

    def expect(self, moment: Moment, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.report.problems.append(f"{moment.name}: {what} is {found}, and should be {expected}")

    def expect_exact(self, moment: Moment) -> None:
        """The figures add up, to what the host says. Only where no process writes at the same time."""
        usage = moment.usage
        self.expect(moment, "the usage's claim to be exact", usage.exact, True)
        by_kind = sum(usage.committed.values()) + usage.overhead + usage.foreign
        self.expect(moment, "the sum by kind", by_kind, usage.total)
        self.expect(moment, "the total", moment.in_file, moment.fstat_bytes)

    # -- the stages ---------------------------------------------------------------------------------------------------

    def load(self, sources: Sequence[Source]) -> None:
        """Copy each file into pages that are charged to the worker that will get it."""
        for owner, share in enumerate(_share_out(sources, self.report.workers), 1):
            ours = [self._load(source, owner) for source in share]
            results = self._allocate(len(ours) * RECORD_STRIDE, ANONYMOUS, owner)
            self.loaded += ours
            self.orders.append(Order(owner, [Job(each.pages, each.source.length) for each in ours], results))
        moment = self.measure("loaded")
        self.expect_exact(moment)
        self._expect_committed(moment, PAGE_CACHE, self._file_pages)
        self.report.pages = page_map.draw(self.memory)

    def work(self) -> None:
        """Let the processes look at the pages. Each holds references of its own for as long as it has them mapped."""
        for order in self.orders:
            for pages in _ranges(order):
                self.memory.incref(pages)
                self.held.append(pages)
        for count, _ in enumerate(run_workers(self.memory.fileno(), self.orders, script=self.script)):
            self.observe("work", 1)
            if count == 0:
                # The results come in meanwhile: of these figures only those of the files are settled.
                self._expect_committed(self.measure("working"), PAGE_CACHE, self._file_pages)
        for order in self.orders:
            for pages in _ranges(order):
                self.memory.decref(pages)
                self.held.remove(pages)
        moment = self.measure("worked")
        self.expect_exact(moment)
        self._expect_committed(moment, PAGE_CACHE, self._file_pages)
        self._expect_committed(moment, ANONYMOUS, lambda order: order.results.length)

    def check(self) -> None:
        """Compare what the processes found out with hashlib on the files as they are now."""
        mine = iter(self.loaded)
        for order in self.orders:
            records = self.memory.read(order.results)
            for index in range(len(order.jobs)):
                digest, length, words, process = RECORD.unpack_from(records, index * RECORD_STRIDE)
                loaded = next(mine)
                path = loaded.source.path
                self.report.findings.append(Finding(path, order.owner, length, digest.hex(), words, process))
                with path.open("rb", buffering=0) as file:
                    if (digest, words) != self._digest_and_count(file):
                        same = _signature(file) == loaded.signature
                        why = "the pages or the worker are wrong" if same else "it was changed while the demo ran"
                        self.report.problems.append(f"{path}: SHA-256 and words are not those of the file: {why}")

    def give_back(self) -> None:
        """Drop every reference, and wait until the host has its memory back."""
        while self.held:
            self.memory.decref(self.held.pop())
        if not self.memory.wait_reclaimed(_PATIENCE):
            self.memory.reclaim()  # the configuration may leave it to us

    def check_given_back(self, may_keep: int) -> None:
        """Nothing may be left but what the configuration asks to keep."""
        moment = self.measure("freed")
        usage = moment.usage
        self.expect_exact(moment)
        self.expect(moment, "the allocated memory", sum(usage.allocated.values()), 0)
        self.expect(moment, "the waste", usage.waste, 0)
        kept = usage.free_committed if usage.free_committed <= may_keep else 0
        self.expect(moment, "what the host still spends", self.memory.total_usage() - usage.overhead, kept)

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _allocate(self, length: int, kind: MemoryKind, owner: int, fill: IO[bytes] | None = None) -> FileRange:
        """Pages for *length* bytes. Files are loaded into reserved pages: a host that is too small says so at once."""
        mode = None if fill is None else AllocationMode.RESERVED
        pages = self.memory.allocate(self.memory.round_up(length), kind=kind, owner=owner, mode=mode, fill=fill)
        self.held.append(pages)
        return pages

    def _load(self, source: Source, owner: int) -> _Loaded:
        with source.path.open("rb", buffering=0) as file:
            reader = _CountingReader(file, lambda amount: self.observe("load", amount))
            signature = _signature(file)
            pages = _NO_PAGES
            if source.length:
                pages = self._allocate(source.length, PAGE_CACHE, owner, reader)  # type: ignore[arg-type]  # reads only
            reader.read(1)  # more than there was: the file has grown, or is one whose size the kernel does not tell
            if reader.count != source.length:
                found = f"at least {reader.count}" if reader.count > source.length else str(reader.count)
                raise DemoError(f"{source.path} is {source.length} bytes long by its size, but {found} when it is read")
        return _Loaded(source, owner, pages, signature)

    def _file_pages(self, order: Order) -> int:
        return sum(job.pages.length for job in order.jobs)

    def _expect_committed(self, moment: Moment, kind: MemoryKind, expected: Callable[[Order], int]) -> None:
        """What is committed for *kind*, in all and by owner, is what we asked for."""
        usage = moment.usage
        self.expect(moment, f"{kind}", usage.committed.get(kind, 0), sum(map(expected, self.orders)))
        for order in self.orders:
            found = usage.committed_by_owner.get(order.owner, {}).get(kind, 0)
            self.expect(moment, f"{kind} of owner {order.owner}", found, expected(order))

    def _digest_and_count(self, file: IO[bytes]) -> tuple[bytes, int]:
        """SHA-256 and words by hashlib and :meth:`bytes.split`, from the file itself."""
        digest, words, rest = hashlib.sha256(), 0, b""
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            self.observe("check", len(chunk))
            parts = (rest + chunk).split()
            rest = parts.pop() if parts and not chunk[-1:].isspace() else b""
            words += len(parts)
        return digest.digest(), words + bool(rest)


class _CountingReader:
    """A binary reader that tells how much has been read."""

    def __init__(self, file: IO[bytes], observe: Callable[[int], None]) -> None:
        self._file = file
        self._observe = observe
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.count += len(data)
        self._observe(len(data))
        return data


def _share_out(sources: Sequence[Source], workers: int) -> list[list[Source]]:
    """The files for each worker: the largest first, each to whoever has least so far."""
    shares: list[list[Source]] = [[] for _ in range(workers)]
    heap = [(0, 0, worker) for worker in range(workers)]
    for source in sorted(sources, key=lambda source: (-source.length, source.path)):
        nbytes, files, worker = heap[0]
        shares[worker].append(source)
        heapq.heapreplace(heap, (nbytes + source.length, files + 1, worker))
    return shares


def _ranges(order: Order) -> Iterator[FileRange]:
    """All that the worker maps."""
    yield from (job.pages for job in order.jobs if job.length)
    yield order.results


def _signature(file: IO[bytes]) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
