"""Exact polls by several threads leave the processor to others between two scans; a thread alone never waits.

The breath is a fake that says how long it would have been, and does meanwhile what the test wants done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from memplat.hookspecs import hookimpl
from memplat.memory import Memory
from memplat.types import Usage
from tests.oracle import PAGE
from tests.unit.engine.helpers import in_thread, until, waiters, within

Opener = Callable[..., Memory]

#: Later than any breath of any test: it is not over, however slow the machine is.
LATER = 3600.0


class Probes:
    """An extension that counts probes; that it looks on keeps scans from being done the quick way."""

    count = 0

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self) -> Any:
        self.count += 1
        return (yield)


class Polled:
    """A memory of which each scan finds something new, whose breaths are fakes."""

    def __init__(self, opener: Opener) -> None:
        self.probes = Probes()
        self.memory = opener(extensions=[self.probes])
        self.scanner: Any = self.memory._scanner  # type: ignore[attr-defined]
        self.breaths: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.scanner._rest = self._rest

    def _rest(self, seconds: float) -> None:
        self.breaths.append(seconds)
        self.meanwhile()

    def change(self) -> int:
        """One more page is committed; how many bytes that makes."""
        self.memory.allocate(PAGE, fill=b"x")
        return self.memory.total_usage()

    def ask(self) -> Usage:
        """Exact figures of something new, asked for by a thread of its own."""
        total = self.change()
        usage: Usage = within(self.memory.update_usage)
        assert usage.exact
        assert usage.total == total
        return usage

    def tire(self) -> None:
        """The last scan was by another thread, and was so long that its breath is not over."""
        self.ask()
        self.scanner._last_runner = 1  # no thread has that number; that of one that ended may be given out again
        self.scanner._rested_at = time.monotonic() + LATER


@pytest.fixture
def polled(open_memory: Opener) -> Polled:
    """A memory that is polled."""
    return Polled(open_memory)


def test_a_thread_alone_never_waits(polled: Polled) -> None:
    for _ in range(20):
        polled.change()
        polled.memory.update_usage()
        polled.scanner._rested_at = time.monotonic() + LATER
    assert polled.breaths == []


def test_a_scan_right_after_that_of_another_thread_takes_a_breath_that_is_not_long(polled: Polled) -> None:
    polled.tire()
    polled.ask()
    assert polled.breaths == [0.1]


def test_a_breath_that_is_over_is_not_waited_for(polled: Polled) -> None:
    polled.tire()
    polled.scanner._rested_at = time.monotonic()
    polled.ask()
    assert polled.breaths == []


def test_each_scan_calls_for_a_breath(polled: Polled) -> None:
    before = time.monotonic()
    polled.ask()
    assert before < polled.scanner._rested_at


def test_the_scan_starts_after_the_breath_and_all_who_asked_meanwhile_share_it(polled: Polled) -> None:
    polled.tire()
    late: list[Any] = []

    def others_come() -> None:
        polled.change()
        late.extend(in_thread(polled.memory.update_usage) for _ in range(4))
        late.append(in_thread(lambda: polled.memory.update_usage(owner=7)))
        until(lambda: waiters(polled.memory) == 5)

    polled.meanwhile = others_come
    scans, probes = polled.memory.usage().counters["scans"], polled.probes.count
    polled.change()
    usage: Usage = within(polled.memory.update_usage)
    told = []
    for thread, result in late:
        thread.join(30)
        assert not thread.is_alive()
        told += result
    assert len(polled.breaths) == 1
    assert usage.total == polled.memory.total_usage(), "what changed during the breath is in the figures"
    assert all(other is usage for other in told[:4])
    assert told[4].counters["scans"] == usage.counters["scans"] == scans + 1
    assert polled.probes.count == probes + 1


def test_what_is_recent_enough_is_told_without_waiting_for_the_breath(polled: Polled) -> None:
    polled.tire()
    known = polled.scanner.last
    polled.meanwhile = lambda: told.append(within(lambda: polled.memory.update_usage(max_age=LATER)))
    told: list[Usage] = []
    polled.ask()
    assert told == [known]
    assert told[0] is known


def test_an_interrupted_breath_leaves_the_turn_to_others(polled: Polled) -> None:
    polled.tire()

    def interrupt() -> None:
        raise KeyboardInterrupt

    polled.meanwhile = interrupt
    polled.change()
    with pytest.raises(KeyboardInterrupt):
        polled.memory.update_usage()
    polled.meanwhile = lambda: None
    polled.ask()
    assert polled.scanner._askers == set()


def test_figures_of_one_owner_that_are_found_alone_take_no_breath(polled: Polled) -> None:
    polled.memory.allocate(PAGE, owner=7, fill=b"x")
    polled.memory.allocate(64 * PAGE)
    polled.tire()
    polled.scanner._whole_ns = 10**12  # so much that one owner's pages are certainly quicker
    polled.change()
    usage: Usage = within(lambda: polled.memory.update_usage(owner=7))
    assert usage.total == PAGE
    assert polled.memory.usage().counters["owner_scans"] == 1
    assert polled.breaths == []
