"""Whose turn it is to scan: callers that could only wait for themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import memplat
from memplat.memory import Memory
from tests.oracle import PAGE

Opener = Callable[..., Memory]


@pytest.fixture
def scanner(open_memory: Opener) -> tuple[Memory, Any]:
    """A memory of which something new is to be found, and its scanner."""
    memory = open_memory()
    memory.update_usage()
    memory.allocate(PAGE, owner=7, fill=b"x")
    return memory, memory._scanner  # type: ignore[attr-defined]


def test_a_finalizer_that_has_interrupted_the_counting_of_scans_is_refused(scanner: tuple[Memory, Any]) -> None:
    memory, turns = scanner
    with turns._lock:
        for owner in (None, 7):
            turns._runner = 1  # whoever: nothing is quick then
            with pytest.raises(memplat.ReentrantCallError):
                memory.update_usage(owner=owner)
            turns._runner = 0
    assert memory.update_usage().total == PAGE


def test_who_keeps_a_scan_from_ending_does_not_wait_for_it(scanner: tuple[Memory, Any]) -> None:
    """A hook that decommits holds the gate, which the scan of another thread may wait for."""
    memory, turns = scanner
    with turns._state.gate:
        turns._runner = 1
        usage = memory.update_usage()
        assert usage.total == 0, "as last known"
        assert usage.allocated["anonymous"] == PAGE
        assert memory.update_usage(owner=7).total == 0
        turns._runner = 0
    assert memory.update_usage().total == PAGE
    assert turns._askers == set()
