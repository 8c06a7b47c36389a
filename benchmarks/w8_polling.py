"""W8: polling the figures beside an allocator that churns."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

import memplat
from benchmarks.calibrators import PAGE
from benchmarks.harness import Case, check
from benchmarks.memories import OWNERS, Stopwatch, allocate_many, open_watched, touch
from memplat import Usage
from memplat.ranges import MIB

TITLE: Final = "W8: figures that are polled"
NOTE: Final = (
    "Pairs of free and allocate as in W1 among 1,000 live allocations, every 16th of which is touched; beside it, "
    "threads that ask `update_usage()`, a thousand times a second each where nothing else is said. What they are told "
    "of an owner whose pages never change has to be right each time, to the byte, the figures have to add up, and in "
    "the end their total has to be what fstat says. *Oldest*: the age of the oldest figures that any poll got. Threads "
    "that *wake up and ask nothing* show what the interpreter takes for ten thousand wake-ups a second, whatever is "
    "called then. Exact polls (max_age=0) of several threads share scans, which leave each other room to breathe. From "
    "one run to the next all this differs by a tenth: so there are five times as many as elsewhere, shorter ones, and "
    "a quotient is that of two that followed one another, on the same memory. Each begins with figures that are too "
    "old."
)
#: So many times as many runs as of other groups: where threads take turns, nothing less tells a hundredth.
TIMES: Final = 5

_LIVE: Final = 1_000
_PAIRS: Final[Mapping[str, int]] = {"full": 20_000, "quick": 8_000, "tiny": 200}
#: So many times as many pairs with the compiled core.
_FASTER: Final = 10
_TOUCHED: Final = 16
_PERIOD: Final = 1e-3
#: An owner that takes no part in the churn, and what it has committed.
_STABLE: Final = OWNERS
_STABLE_BYTES: Final = 16 * MIB


class Poller(threading.Thread):
    """Asks for figures once in each period (seconds), as far as it gets to run, and checks them."""

    def __init__(self, ask: Callable[[], Usage], period: float, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._period = period
        self._over = stop
        self.polls = 0
        self.seconds = 0.0
        self.oldest = 0.0
        self.wrong = ""

    def run(self) -> None:
        ask, period, clock = self._ask, self._period, time.monotonic
        checked: Usage | None = None
        due = clock()
        while not self._over.is_set():
            began = clock()
            usage = ask()
            now = clock()
            self.seconds += now - began
            self.polls += 1
            if usage is not checked:
                self.wrong = self.wrong or _fault(usage)
                checked = usage
            self.oldest = max(self.oldest, now - usage.as_of)
            due = max(due + period, now)
            time.sleep(due - now)


def _fault(usage: Usage) -> str:
    """What is wrong with the figures, as far as can be known while others change."""
    stable = usage.committed_by_owner.get(_STABLE, {}).get("anonymous")
    if stable != _STABLE_BYTES:
        return f"{stable} bytes committed by the owner that has {_STABLE_BYTES}"
    if sum(usage.committed.values()) + usage.overhead + usage.foreign != usage.total:
        return f"the figures do not add up: {usage}"
    return ""


class Churn:
    """The allocator that churns: one for all cases, because two of them differ by more than what is to be found out."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self._random = random.Random(8)
        self._is_set_up = False

    def set_up(self, stack: ExitStack) -> None:
        """Open the memory, the first time."""
        if self._is_set_up:
            return
        self._is_set_up = True
        self.memory, self._descriptor = memory, _ = open_watched(stack)
        touch(memory, memory.allocate(_STABLE_BYTES, owner=_STABLE))
        self._live = allocate_many(memory, [self._length() for _ in range(_LIVE)])

    def _length(self) -> int:
        return self._random.randint(1, 16) * PAGE

    def plan(self) -> None:
        """Make up what is freed and allocated."""
        self._plan = [
            (self._random.randrange(_LIVE), self._length(), self._random.randrange(OWNERS)) for _ in range(self.pairs)
        ]

    def run(self) -> float:
        """Free and allocate as planned; seconds."""
        live, memory = self._live, self.memory
        watch = Stopwatch()
        for turn, (index, length, owner) in enumerate(self._plan):
            memory.decref(live[index])
            live[index] = memory.allocate(length, owner=owner)
            if not turn % _TOUCHED:
                memory.view(live[index])[0] = 1
        return watch.seconds()

    def check(self, name: str) -> None:
        """Refuse figures that are not the host's."""
        self.memory.reclaim()
        self.memory.wait_reclaimed()
        usage = self.memory.update_usage()
        total = os.fstat(self._descriptor).st_blocks * 512
        check(usage.exact and usage.total == total, f"{name}: told {usage.total}, the host spends {total}")


class Polled(Case):
    """Pairs of decref and allocate, with so many threads that poll.

    :ivar threads: how many poll
    :ivar max_age: what they allow; ``None``: they wake up and ask nothing
    :ivar period: the time between two polls of one thread, in seconds
    """

    unit = "pair"

    def __init__(self, name: str, threads: int, max_age: float | None, churn: Churn, period: float = _PERIOD) -> None:
        self.name = name
        self.threads = threads
        self.max_age = max_age
        self.period = period
        self._churn = churn

    def unit_of(self, figure: str) -> str:
        """Most figures are of polls, not of pairs."""
        return "poll" if figure else self.unit

    def set_up(self, stack: ExitStack) -> None:
        self._churn.set_up(stack)

    def prepare(self) -> None:
        self._churn.plan()

    def measure(self) -> Mapping[str, float]:
        over = threading.Event()
        ask = self._ask()
        pollers = [Poller(ask, self.period, over) for _ in range(self.threads)]
        for poller in pollers:
            poller.start()
        seconds = self._churn.run()
        over.set()
        for poller in pollers:
            poller.join()
        for poller in pollers:
            check(not poller.wrong, f"{self.name}: {poller.wrong}")
        self._churn.check(self.name)
        figures = {"": seconds / self._churn.pairs}
        polls = sum(poller.polls for poller in pollers)
        if polls and self.max_age is not None:
            figures["a call, waiting for the interpreter included"] = sum(p.seconds for p in pollers) / polls
            figures["time between two polls"] = seconds / polls
            figures["oldest"] = max(poller.oldest for poller in pollers)
        return figures

    def _ask(self) -> Callable[[], Usage]:
        if self.max_age is not None:
            return partial(self._churn.memory.update_usage, max_age=self.max_age)
        usage = self._churn.memory.update_usage()
        return lambda: usage


def cases(size: str) -> list[Case]:
    """All of W8."""
    # As long a run with either core: within 20 ms the reclaimer, which lets waste rest for 50, would work in some only.
    churn = Churn(_PAIRS[size] * (_FASTER if memplat.core == "native" and size == "full" else 1))
    return [
        Polled("nobody polls", 0, 0.0, churn),
        Polled("ten threads poll, max_age=0.1", 10, 0.1, churn),
        Polled("ten threads wake up and ask nothing", 10, None, churn),
        Polled("ten threads poll a thousand times a second together, max_age=0.1", 10, 0.1, churn, 10 * _PERIOD),
        Polled("one thread polls, max_age=0", 1, 0.0, churn),
        Polled("ten threads poll, max_age=0", 10, 0.0, churn),
    ]
