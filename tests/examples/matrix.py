"""The sandbox's matrix: a cell is a program over a file, on one kind of backing file and one engine; and its page."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import memplat
from examples.sandbox.frames import PageCache, page_cache
from examples.sandbox.kernel import Processor, Sandbox
from memplat.memory import Memory
from tests import hostparts
from tests.exactness.hosts import backing_descriptor
from tests.needs import needs

PAGE: Final = Path(__file__).parents[2] / "docs" / "sandbox-matrix.md"
BUSYBOX: Final = "/usr/bin/busybox"
OWNER: Final = 7
MIB: Final = 1 << 20
MEGABYTE: Final = 1_000_000
ENGINES: Final = ("unicorn", "kvm")
SIZES: Final = (1, 5, 20)  # of the file, in megabytes
PROGRAMS: Final[Mapping[str, list[str]]] = {
    "sha256sum": ["sha256sum"],
    "sort": ["sort"],
    "awk": ["awk", "{n += length($0); words += NF} END {print NR, n, words}"],
    "gzip -c": ["gzip", "-c"],
    "wc": ["wc"],
}
_SHMEM_HUGE: Final = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#: A run is looked at after each of its first calls, later after every so many of what it has made.
_SPARSER: Final = 32
#: How often the file may change while it is looked at: a disk's blocks come later than what is written, and khugepaged
#: makes huge pages of small ones whenever it likes.
_MOST_TRIES: Final = 1000


class Cell(NamedTuple):
    """What came of one run that was right in every respect."""

    seconds: float
    host_seconds: float
    calls: int
    faults: int
    peak: int
    """The most that the host has spent at any look, in bytes."""
    looks: int
    """How often the figures were compared."""
    again: int
    """How often they had to be asked for again, because they were not proven at once."""


# -- what the memory stands on -----------------------------------------------------------------------------------------


def _profile(backend: str, **options: str) -> str:
    lines = [f'[profile.guest.memory]\nbackend = "{backend}"', f"[profile.guest.memory.{backend}]"]
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in options.items()), ""])


@contextlib.contextmanager
def _memfd() -> Iterator[str]:
    yield _profile("memfd")


def _huge(setting: str, huge: str) -> Callable[[], contextlib.AbstractContextManager[str]]:
    @contextlib.contextmanager
    def row() -> Iterator[str]:
        if not Path(_SHMEM_HUGE).exists():
            needs("thp", "the kernel has no transparent huge pages")
        with hostparts.setting(_SHMEM_HUGE, setting):
            yield _profile("memfd", huge=huge)

    return row


def _tmpfile(fstype: str) -> Callable[[], contextlib.AbstractContextManager[str]]:
    @contextlib.contextmanager
    def row() -> Iterator[str]:
        size = max(256 * MIB, hostparts.FILE_SYSTEMS.get(fstype, 0))
        mount = hostparts.tmpfs_mount(size) if fstype == "tmpfs" else hostparts.loop_mount(fstype, size)
        with mount as directory:
            yield _profile("tmpfile", directory=str(directory))

    return row


@contextlib.contextmanager
def _hugetlb() -> Iterator[str]:
    with hostparts.hugetlb_pool(64):
        yield _profile("hugetlb", page_size="2MiB")


#: By the name in the table: puts the host so, and yields a memplat.toml whose profile is ``guest``.
BACKENDS: Final[Mapping[str, Callable[[], contextlib.AbstractContextManager[str]]]] = {
    "memfd": _memfd,
    "memfd, huge=advise": _huge("advise", "advise"),
    "memfd, always": _huge("always", "advise"),
    "memfd, within_size": _huge("within_size", "advise"),
    "memfd, always, huge=never": _huge("always", "never"),
    "tmpfile, tmpfs": _tmpfile("tmpfs"),
    "tmpfile, ext4": _tmpfile("ext4"),
    "tmpfile, xfs": _tmpfile("xfs"),
    "tmpfile, btrfs": _tmpfile("btrfs"),
    "hugetlb": _hugetlb,
}


@contextlib.contextmanager
def on_backend(name: str) -> Iterator[Path]:
    """Put the host so, and write the configuration."""
    with BACKENDS[name]() as text, tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
        config = Path(scratch, "memplat.toml")
        config.write_text(text, encoding="utf-8")
        yield config


# -- what runs ---------------------------------------------------------------------------------------------------------


def make_text(path: Path, size: int) -> Path:
    """Lines of words, a little more than *size* bytes, always the same."""
    dice = random.Random(6)
    words = [dice.randbytes(dice.randrange(1, 9)).hex() for _ in range(5000)]
    lines, length = [], 0
    while length <= size:
        lines.append(" ".join(dice.choices(words, k=dice.randrange(1, 12))))
        length += len(lines[-1]) + 1
    path.write_text("\n".join(lines) + "\n")
    return path


def make_cpu(engine: str, memory: Memory, owner: int) -> Processor:
    """A processor; a skip where there is none."""
    try:
        module: Any = importlib.import_module(f"examples.sandbox.cpu_{engine}")
    except ImportError:
        needs("unicorn", "it is not installed")
    try:
        cpu: Processor = (module.KvmCpu if engine == "kvm" else module.UnicornCpu)(memory, owner)
    except memplat.HostError as error:
        needs("kvm", str(error))
    return cpu


@contextlib.contextmanager
def sandbox(
    memory: Memory, cache: PageCache, engine: str, command: list[str], roots: list[str], owner: int = OWNER
) -> Iterator[tuple[Sandbox, io.BytesIO]]:
    """A program that was loaded, and what it writes."""
    output = io.BytesIO()
    cpu = make_cpu(engine, memory, owner)
    box = Sandbox(memory, cache, cpu, owner=owner, roots=roots, stdout=output, stderr=io.BytesIO())
    try:
        box.load(command[0], command, {"LC_ALL": "C"})
        yield box, output
    finally:
        box.close()


def on_host(command: Sequence[str]) -> bytes:
    """The host's own result."""
    return subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C"}).stdout


class Looks:
    """Compare the figures with what fstat(2) says, while the guest stands still in a system call."""

    def __init__(self, memory: Memory, fd: int) -> None:
        self.memory, self.fd = memory, fd
        self.made = self.again = self.calls = self._next = 0
        self.seconds = 0.0

    def on_call(self) -> None:
        """After each system call."""
        self.calls += 1
        if self.calls >= self._next:
            self._next = self.calls + max(1, self.calls // _SPARSER)
            start = time.monotonic()
            self.look()
            self.seconds += time.monotonic() - start

    def look(self) -> None:
        """All figures, to the byte. What cannot be proven is asked again: the kernel may be at it right now."""
        usage = self._at_rest()
        for _ in range(_MOST_TRIES):
            if usage.exact:
                break
            self.again += 1
            usage = self._at_rest()
        assert usage.exact, usage
        by_kind = dict.fromkeys(usage.committed, 0)
        for figures in usage.committed_by_owner.values():
            for kind, nbytes in figures.items():
                by_kind[kind] += nbytes
        assert by_kind == dict(usage.committed), usage
        assert set(usage.committed_by_owner.get(OWNER, {})) <= {"anonymous", "system"}, usage
        self.made += 1

    def _at_rest(self) -> memplat.Usage:
        """The figures while the file was as it is now; their sum is right, proven or not."""
        for _ in range(_MOST_TRIES):
            before = self._blocks()
            usage = self.memory.update_usage()
            if self._blocks() == before:
                assert usage.total == before, f"{usage.total} instead of {before}"
                assert sum(usage.committed.values()) + usage.overhead + usage.foreign == usage.total, usage
                return usage
        raise AssertionError("the file does not come to rest")

    def _blocks(self) -> int:
        return os.fstat(self.fd).st_blocks * 512


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def run_cell(config: Path, engine: str, program: str, text: Path) -> Cell:
    """Run *program* over *text*, here and there.

    :raises AssertionError: if the result is not the host's, a figure is wrong, or anything stays behind
    """
    command = [BUSYBOX, *PROGRAMS[program], str(text)]
    start = time.monotonic()
    expected = on_host(command)
    host_seconds = time.monotonic() - start
    before = _descriptors()
    with memplat.open(config=config, profile="guest") as memory:
        looks = Looks(memory, backing_descriptor(before))
        with (
            page_cache(memory) as cache,
            sandbox(memory, cache, engine, command, [str(text.parent)]) as (box, output),
        ):
            start = time.monotonic()
            outcome = box.run(on_call=looks.on_call)
            seconds = time.monotonic() - start - looks.seconds
            looks.look()
            assert (outcome.status, outcome.killed_by) == (0, "")
            assert output.getvalue() == expected, "not what the host makes of it"
            assert outcome.shared_pages > 50
            assert 0 < outcome.copied_pages < 20
        _check_nothing_is_left(memory, looks)
        peak = memory.usage().peak_committed
        return Cell(seconds, host_seconds, outcome.calls, outcome.faults, peak, looks.made, looks.again)


def _check_nothing_is_left(memory: Memory, looks: Looks) -> None:
    memory.reclaim()
    assert memory.wait_reclaimed(60)
    assert memory.total_usage() == 0, f"{memory.total_usage()} bytes are left:\n{memory.dump()}"
    assert os.fstat(looks.fd).st_blocks == 0
    usage = memory.update_usage()
    assert sum(usage.allocated.values()) == usage.total == 0, usage


# -- the page ----------------------------------------------------------------------------------------------------------

Cells = Mapping[tuple[str, str, int, str], Cell]

INTRODUCTION: Final = """\
# The sandbox, program by program

Generated by `python -m tests.examples`, as root; do not edit. It runs for minutes; `--seconds 80` ends it sooner, and
the next one goes on. The tests run a part of it each time: each backend and engine with 1 MB, and one run with 20 MB.

Busybox, unmodified, runs in [examples/sandbox](../examples/sandbox) over text files of 1, 5 and 20 MB, on memory that a
profile of a `memplat.toml` chooses. In every cell of these tables

- what the program wrote is, byte for byte, what the same program wrote on the host;
- while it ran, after each of its first system calls and later each time that it had made a 32nd part more, the total of
  `update_usage()` was equal to `st_blocks` of the file, asked without memplat, and to the sums by kind, owner and both;
- and it was `exact`. Where khugepaged is at work (`always`, `within_size`) a look may come in the middle of a collapse,
  whose storage the host has already counted and nobody can see: such a look says so, and is repeated until it is exact;
- after it had ended, `total_usage()` and `st_blocks` were 0: everything was back with the host.

The page is not written if a cell is not so. `always` and `within_size` are what the host's `shmem_enabled` was set to.
On hugetlb the guest's pages of 4 KiB are packed into huge pages. Seconds were taken on a machine with two processors
that did other things as well: where one stands out, that is why. They are without the looks.
"""


def as_text(cells: Cells) -> str:
    """The whole page."""
    looks = [cell.looks for cell in cells.values()]
    again = sum(cell.again for cell in cells.values())
    told = (
        f"{len(looks)} runs, {sum(looks):,} comparisons, at least {min(looks)} in a run; {again} had to be repeated.\n"
    )
    parts = [INTRODUCTION, told]
    for engine in ENGINES:
        parts += [f"## {engine}: seconds, and beside them those of the host\n", *_table(cells, engine, _seconds), ""]
        parts += [f"## {engine}: the most that the host has spent, in MiB\n", *_table(cells, engine, _peak), ""]
    return "\n".join(parts)


def _seconds(row: Sequence[Cell]) -> tuple[str, list[str]]:
    return f"{min(cell.host_seconds for cell in row):.2f}", [f"{cell.seconds:.2f}" for cell in row]


def _peak(row: Sequence[Cell]) -> tuple[str, list[str]]:
    return f"{row[0].calls:,}", [f"{cell.peak / MIB:.1f}" for cell in row]


def _table(cells: Cells, engine: str, shown: Callable[[Sequence[Cell]], tuple[str, list[str]]]) -> Iterator[str]:
    first = "host" if shown is _seconds else "system calls"
    yield f"| program | MB | {first} | {' | '.join(BACKENDS)} |"
    yield "|---|---|---" + "|---" * len(BACKENDS) + "|"
    for program in PROGRAMS:
        for size in SIZES:
            beside, found = shown([cells[backend, engine, size, program] for backend in BACKENDS])
            yield f"| {program} | {size} | {beside} | {' | '.join(found)} |"
