"""The parent's side of the worker processes: start them, hand over descriptor and ranges, see them end."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import attrs

from memplat.ranges import FileRange

#: The script that a worker process runs.
WORKER_SCRIPT: Final = Path(__file__).with_name("worker.py")


class WorkerError(Exception):
    """A worker process ended before its work was done.

    :ivar owner: the worker's number
    :ivar status: its exit status; negative: the signal that ended it
    """

    def __init__(self, owner: int, status: int, pid: int, told: str) -> None:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        super().__init__(f"worker {owner} (process {pid}) {how} before its work was done{told and f': {told}'}")
        self.owner = owner
        self.status = status


@attrs.frozen
class Job:
    """Pages that a worker is to look at: the first *length* bytes of *pages*, which is empty for an empty file."""

    pages: FileRange
    length: int


@attrs.frozen
class Order:
    """All that one worker gets: its number, its jobs, and the range for its results."""

    owner: int
    jobs: Sequence[Job]
    results: FileRange


def run_workers(fd: int, orders: Sequence[Order], *, script: Path = WORKER_SCRIPT) -> Iterator[int]:
    """Run a process for each order, and yield the owner of each job that is done, as it is done.

    Whatever happens, also when the iterator is closed, no process is left behind.

    :param fd: the descriptor of the backing file; the processes inherit it
    :raises WorkerError: if one of them fails; the others are ended
    """
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for order in orders:
            complaints = stack.enter_context(tempfile.TemporaryFile())
            worker = stack.enter_context(_Worker(fd, order, script, complaints))
            worker.hand_over(fd)
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select():
                running: _Worker = key.data
                done = os.read(key.fd, 4096)
                if not done:
                    selector.unregister(running.stdout)
                    running.finish()
                running.done += len(done)
                for _ in done:
                    yield running.order.owner


class _Worker:
    """A running process; leaving the context ends it."""

    def __init__(self, fd: int, order: Order, script: Path, complaints: IO[bytes]) -> None:
        self.order = order
        self.done = 0
        self._complaints = complaints
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=(fd,),
        )
        assert self._process.stdout is not None
        self.stdout = self._process.stdout

    def hand_over(self, fd: int) -> None:
        """Tell it what to do."""
        jobs = [(job.pages.start, job.pages.length, job.length) for job in self.order.jobs]
        document = {"fd": fd, "jobs": jobs, "results": (self.order.results.start, self.order.results.length)}
        assert self._process.stdin is not None
        # One that dies before it has read all is found out by its status, with a better message than "broken pipe".
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps(document).encode())

    def finish(self) -> None:
        """Wait for the end, which has been announced by the end of the output."""
        status = self._process.wait()
        if status != 0 or self.done != len(self.order.jobs):
            self._complaints.seek(0)
            told = self._complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise WorkerError(self.order.owner, status, self._process.pid, told)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()  # of no effect on one that has ended and was waited for
        self._process.__exit__(exc_type, exc, traceback)
