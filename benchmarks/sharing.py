"""Arrays for a worker: memplat beside ``multiprocessing.shared_memory``. ``python -m benchmarks.sharing [BACKEND]``.

A round is what sharing an array takes, from nothing to nothing: create (allocate and view), share, ``bytes(handle)``;
attach in a process that is there already, let go; release and free. SharedMemory's round is create, its name, attach by
name, close; close and unlink, with what it tells its resource tracker. Both send plain values in a tuple that is
pickled. *Slices* is the recipe for small arrays: one share of a block for all of them, and a round sends offsets.

The array stays *untouched*, or *one page* of it is written here and read there, or it is *filled* and all of its pages
are looked at. *Net* is the time spent in these steps in both processes, *gross* the whole round with two messages
through a pipe and the wake-ups of both processes. A round of the pipe alone has the same messages, and nothing in them:
without its net time, net is what sharing itself takes. Ways take turns, so that what drifts drifts for all.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import pickle
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from typing import Any, Final

import memplat
from memplat.ranges import KIB, MIB, format_size
from tests.hostparts import hugetlb_pool

SIZES: Final = (64 * KIB, MIB, 16 * MIB, 64 * MIB)
CONTENTS: Final = ("untouched", "one page", "filled")
_KEEP: Final = 256 * MIB
#: Arrays up to this length are made of what was just freed, zeroed in the way (``will_commit``): zeroing takes less
#: than page faults do.
_RECYCLED: Final = {"filled": 2 * MIB}
_STEP: Final = 4 * KIB
_FILL: Final = bytes(range(256)) * 4096
_WARM: Final = 5

Clock = Callable[[], float]
clock: Final[Clock] = time.perf_counter


def fill(view: memoryview, content: str) -> None:
    """What the creator does to the array."""
    if content == "one page":
        view[0] = 1
    elif content == "filled":
        for at in range(0, len(view), len(_FILL)):
            end = min(len(view), at + len(_FILL))
            view[at:end] = _FILL[: end - at]


def look(view: memoryview, content: str) -> int:
    """What the worker does."""
    if content == "one page":
        return view[0]
    return sum(view[::_STEP]) if content == "filled" else 0


def attach(order: Any, length: int, content: str, kept: dict[str, memoryview]) -> int:
    """One array in the worker, from attaching it to letting go."""
    if isinstance(order, str):
        shared = shared_memory.SharedMemory(order)
        assert shared.buf is not None
        found = look(shared.buf[:length], content)
        shared.close()
        return found
    if isinstance(order, (bytes, memplat.Handle)):
        view = memplat.attach(order)
        return look(view[:length], content)
    if isinstance(order, tuple):
        handle, offset = order
        if handle is not None:
            kept["block"] = memplat.attach(handle)
        return look(kept["block"][offset : offset + length], content)
    if order is None:
        kept.clear()
    return 0


def serve(connection: Connection[Any, Any]) -> None:
    """The worker."""
    kept: dict[str, memoryview] = {}
    while True:
        message = connection.recv_bytes()
        began = clock()
        order, length, content = pickle.loads(message)
        if content == "end":
            return
        found = attach(order, length, content, kept)
        connection.send((found, clock() - began))


class Way:
    """A way to share; a round takes its array, and gives back what the round took: net and gross seconds."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    def _ask(self, order: Any, length: int, content: str) -> tuple[float, float]:
        """Seconds of pickling here, and in the worker."""
        began = clock()
        message = pickle.dumps((order, length, content))
        ready = clock()
        self._connection.send_bytes(message)
        found, there = self._connection.recv()
        assert content != "one page" or order in (0, None) or found == 1
        return ready - began, there

    def round(self, length: int, content: str) -> tuple[float, float]:
        """One array."""
        self.prepare(length, content)
        began = clock()
        order = self.create(length, content)
        created = clock()
        here, there = self._ask(order, length, content)
        answered = clock()
        self.free()
        ended = clock()
        return created - began + here + there + ended - answered, ended - began

    def prepare(self, length: int, content: str) -> None:
        """Decide how to create."""

    def create(self, length: int, content: str) -> Any:  # noqa: ARG002 -- what the ways differ in
        """Create and share."""
        return 0

    def free(self) -> None:
        """Release and free."""


class InSharedMemory(Way):
    """``multiprocessing.shared_memory``."""

    _shared: shared_memory.SharedMemory

    def create(self, length: int, content: str) -> Any:
        self._shared = shared_memory.SharedMemory(create=True, size=length)
        assert self._shared.buf is not None
        fill(self._shared.buf[:length], content)
        return self._shared.name

    def free(self) -> None:
        self._shared.close()
        self._shared.unlink()


class InMemory(Way):
    """A share for each array."""

    def __init__(self, connection: Connection[Any, Any], memory: memplat.Memory, *, pickled: bool) -> None:
        super().__init__(connection)
        self._memory = memory
        self._pickled = pickled

    def prepare(self, length: int, content: str) -> None:
        memory = self._memory
        # A pool has no pages to spare for what was just freed and rests: huge=True takes it again at once.
        self._again = memory.page_size >= 2 * MIB and length >= memory.page_size
        self._mode = "will_commit" if memory.page_size < length <= _RECYCLED.get(content, 0) else None

    def create(self, length: int, content: str) -> Any:
        memory = self._memory
        self._pages = memory.allocate(memory.round_up(length), huge=self._again, mode=self._mode)
        self._view = memory.view(self._pages)
        fill(self._view[:length], content)
        handle = memory.share(self._pages)
        return handle if self._pickled else bytes(handle)

    def free(self) -> None:
        del self._view
        self._memory.decref(self._pages)


class InSlices(Way):
    """A block that is shared once, and whose parts are handed out in turn."""

    def __init__(self, connection: Connection[Any, Any], memory: memplat.Memory) -> None:
        super().__init__(connection)
        self._pages = memory.allocate(2 * max(memory.page_size, SIZES[-1]), mode="committed")
        self._view = memory.view(self._pages)
        self._handle: memplat.Handle | None = memory.share(self._pages)
        self._memory = memory
        self._next = 0

    def create(self, length: int, content: str) -> Any:
        if self._next + length > len(self._view):
            self._next = 0
        offset, self._next = self._next, self._next + length
        part = self._view[offset : offset + length]
        if content == "one page":
            part[0] = 0
        fill(part, content)
        handle, self._handle = self._handle, None
        return handle, offset

    def end(self) -> None:
        """Give the block back."""
        self._ask(None, 0, "untouched")
        del self._view
        self._memory.decref(self._pages)


@contextlib.contextmanager
def worker() -> Iterator[Connection[Any, Any]]:
    """A process that attaches arrays."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    yield ours
    ours.send_bytes(pickle.dumps((None, 0, "end")))
    process.join()


Figures = dict[str, list[tuple[float, float]]]


def measure(backend: str, rounds: int, only: str, *, pickled: bool = False) -> Iterator[tuple[int, str, Figures]]:
    """Net and gross microseconds of each way, by size and content."""
    with worker() as connection, memplat.open(backend, config={}, keep=_KEEP) as memory:
        ways = {
            "pipe": Way(connection),
            "SharedMemory": InSharedMemory(connection),
            "memplat": InMemory(connection, memory, pickled=pickled),
        }
        slices = InSlices(connection, memory)
        ways["slices"] = slices
        for length in SIZES:
            for content in CONTENTS:
                if only not in f"{length} {content}":
                    continue
                taken: Figures = {name: [] for name in ways}
                many = max(10, rounds // max(1, length // MIB)) if content == "filled" else rounds
                for number in range(many + _WARM):
                    for name, way in ways.items():
                        net, gross = way.round(length, content)
                        if number >= _WARM:
                            taken[name].append((net * 1e6, gross * 1e6))
                memory.wait_reclaimed(10)
                yield length, content, taken
        slices.end()
        memory.wait_reclaimed(10)


def _spread(values: list[float]) -> str:
    """The median, and half of the figures around it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"**{_short(middle)}** ({_short(low)}-{_short(high)})"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def line(length: int, content: str, taken: Figures) -> str:
    """A line of the table."""
    net = {name: [figure[0] for figure in figures] for name, figures in taken.items()}
    gross = {name: statistics.median(figure[1] for figure in figures) for name, figures in taken.items()}
    shm, mine, slices = (statistics.median(net[name]) for name in ("SharedMemory", "memplat", "slices"))
    pipe = statistics.median(net["pipe"])
    both = f"{_short(gross['SharedMemory'])} / {_short(gross['memplat'])}"
    cells = (
        format_size(length),
        content,
        _spread(net["SharedMemory"]),
        _spread(net["memplat"]),
        f"{shm / mine:.1f} ({(shm - pipe) / (mine - pipe):.1f})",
        f"{both} = {gross['SharedMemory'] / gross['memplat']:.1f}",
        f"{_short(slices)}: {shm / slices:.1f}",
    )
    return f"| {' | '.join(cells)} |"


HEAD: Final = """\
| array | | `SharedMemory`, net us | memplat, net us | times as fast (without the messages) | \
gross, both: times | slices, net: times |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print the table of a backend, as it stands in docs/sharing.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("backend", nargs="?", default="memfd", choices=("memfd", "hugetlb"))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--only", default="", help="only sizes (in bytes) and contents with this text")
    parser.add_argument("--pickled", action="store_true", help="send handles as pickles, not as bytes")
    options = parser.parse_args()
    pool = hugetlb_pool((4 * SIZES[-1] + 2 * _KEEP) // (2 * MIB)) if options.backend == "hugetlb" else None
    with pool or contextlib.nullcontext():
        print(f"{options.backend}, medians (and quartiles) of {options.rounds} rounds, fewer of large filled arrays")
        print(HEAD)
        for figures in measure(options.backend, options.rounds, options.only, pickled=options.pickled):
            print(line(*figures), flush=True)


if __name__ == "__main__":
    main()
