"""Arrays for a worker: memplat beside ``multiprocessing.shared_memory``. ``python -m benchmarks.sharing``.

Each round makes an array, fills it, hands it to a process that is there already, which attaches it, looks at every
page, lets go and answers; then the array is given back. Rounds alternate between the ways. A round without an array is
what the pipe and the two processes cost by themselves: *net of the pipe* leaves that out.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from typing import Any, Final

import memplat
from memplat.ranges import KIB, MIB, format_size

_SIZES: Final = (64 * KIB, MIB, 16 * MIB, 64 * MIB)
_STEP: Final = 4 * KIB
_FILL: Final = bytes(range(256)) * 4096


def _look(view: memoryview) -> int:
    return sum(view[::_STEP])


def serve(connection: Connection[Any, Any]) -> None:
    """The worker."""
    while True:
        order = connection.recv()
        if order is None:
            return
        if isinstance(order, str):
            shared = shared_memory.SharedMemory(order)
            assert shared.buf is not None
            found = _look(shared.buf)
            shared.close()
        elif isinstance(order, memplat.Handle):
            view = memplat.attach(order)
            found = _look(view)
            del view
        else:
            found = 0
        connection.send(found)


def _fill(view: memoryview, length: int) -> None:
    for at in range(0, length, len(_FILL)):
        end = min(length, at + len(_FILL))
        view[at:end] = _FILL[: end - at]


def round_of_nothing(connection: Connection[Any, Any], _length: int) -> None:
    """What the pipe costs."""
    connection.send(0)
    connection.recv()


def round_of_shared_memory(connection: Connection[Any, Any], length: int) -> None:
    """One array in /dev/shm."""
    shared = shared_memory.SharedMemory(create=True, size=length)
    assert shared.buf is not None
    _fill(shared.buf, length)
    connection.send(shared.name)
    connection.recv()
    shared.close()
    shared.unlink()


def rounds_of(memory: memplat.Memory) -> Callable[[Connection[Any, Any], int], None]:
    """One array in a memory."""

    def one_round(connection: Connection[Any, Any], length: int) -> None:
        pages = memory.allocate(memory.round_up(length), huge=length >= 2 * MIB)
        view = memory.view(pages)
        _fill(view, length)
        connection.send(memory.share(pages))
        connection.recv()
        del view
        memory.decref(pages)

    return one_round


def measure(rounds: int, backend: str) -> None:
    """Print a line for each size: medians in microseconds, and how many times quicker."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=serve, args=(theirs,), daemon=True)
    worker.start()
    with memplat.open(backend, config={}, keep=128 * MIB) as memory:
        ways = {"pipe": round_of_nothing, "SharedMemory": round_of_shared_memory, "memplat": rounds_of(memory)}
        print(f"{backend}, medians of {rounds} rounds, microseconds")
        for length in _SIZES:
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds + 3):
                for name, way in ways.items():
                    began = time.perf_counter()
                    way(ours, length)
                    if number >= 3:
                        taken[name].append((time.perf_counter() - began) * 1e6)
            pipe, shm, mine = (statistics.median(figures) for figures in taken.values())
            print(
                f"{format_size(length):>8}  pipe {pipe:6.0f}  SharedMemory {shm:9.0f}  memplat {mine:9.0f}  "
                f"{shm / mine:5.1f} times; net of the pipe {(shm - pipe) / max(1.0, mine - pipe):5.1f} times"
            )
        memory.wait_reclaimed(10)
    ours.send(None)
    worker.join()


if __name__ == "__main__":
    measure(int(sys.argv[2]) if len(sys.argv) > 2 else 30, sys.argv[1] if len(sys.argv) > 1 else "memfd")
