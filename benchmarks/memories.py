"""Memories to measure, and what the benchmarks need to know of them."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import memplat
from benchmarks.calibrators import PAGE
from benchmarks.harness import check
from memplat import FileRange, Memory

#: Neighbours never have the same owner, or they would merge into one segment: owners go round in this circle. After
#: allocations at random places equal neighbours are as rare as one in so many.
OWNERS = 1021

#: Nobody waits longer for the reclaimer: something is wrong then.
_PATIENCE = 300.0


def open_memory(stack: ExitStack, *, reclaim: str = "background", max_size: int | None = None) -> Memory:
    """A memory of the backend memfd, as it is by default but for what the workload needs."""
    options = {"reclaim": reclaim} if max_size is None else {"reclaim": reclaim, "max_size": max_size}
    memory = memplat.open("memfd", **options)
    stack.callback(close, memory)
    return memory


def open_watched(stack: ExitStack) -> tuple[Memory, int]:
    """As :func:`open_memory`, and the descriptor of the backing file. A memory that is asked for it takes itself as
    shared from then on, and looks at every page that it hands out.
    """
    before = _memfds()
    memory = open_memory(stack)
    new = [fd for fd, link in _memfds().items() if before.get(fd) != link]
    check(len(new) == 1, f"{len(new)} new descriptors of memfds instead of one")
    return memory, new[0]


def _memfds() -> dict[int, str]:
    """The descriptors of memfds that this process has."""
    links: dict[int, str] = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # that of the directory is closed by now
            links[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return {fd: link for fd, link in links.items() if link.startswith("/memfd:")}


def close(memory: Memory) -> None:
    """Close, whatever is still referenced: freeing it piece by piece would take longer than the benchmark."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        memory.close()


def allocate_many(memory: Memory, lengths: Sequence[int]) -> list[FileRange]:
    """One allocation for each of *lengths*, each with another owner than its neighbours."""
    return [memory.allocate(length, owner=index % OWNERS) for index, length in enumerate(lengths)]


def alternate_owners(memory: Memory, pages: FileRange) -> None:
    """Make each page of one allocation a segment of its own, by handing every other one to another owner."""
    for start in range(pages.start, pages.end, 2 * PAGE):
        memory.transfer(FileRange(start, start + PAGE), 1)


def touch(memory: Memory, pages: FileRange, step: int = PAGE) -> None:
    """Write one byte every *step* bytes, through a view."""
    memory.view(pages)[::step] = b"\1" * -(-pages.length // step)


def wait_reclaimed(memory: Memory) -> None:
    """Wait until all waste has gone back to the host.

    :raises BenchmarkError: if that does not happen
    """
    check(memory.wait_reclaimed(_PATIENCE), "waste was left that the reclaimer does not take")


def count_segments(memory: Memory) -> int:
    """The segments of the page table, as :meth:`Memory.dump` says in its first line."""
    found = re.search(r"(\d+) segments", memory.dump().partition("\n")[0])
    assert found is not None, "dump no longer says how many segments there are"
    return int(found[1])


class Stopwatch:
    """Measures the seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter_ns()

    def seconds(self) -> float:
        """Seconds since it was made."""
        return (time.perf_counter_ns() - self._started) / 1e9
