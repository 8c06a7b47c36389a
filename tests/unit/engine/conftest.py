"""Memories for the engine's tests: real memfds, small, closed and checked when the test is over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import memplat
from memplat.memory import Memory
from tests.oracle import Observer
from tests.unit.engine.helpers import MIB, check, close_with_leftovers, within


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No configuration of the machine or of the user has a say in these tests."""
    for name in ("MEMPLAT_CONFIG", "MEMPLAT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def open_memory(own_configuration: None) -> Iterator[Callable[..., Memory]]:
    """Opens memfd memories: 64 MiB at most and reclaimed by hand, unless the test says otherwise.

    Afterwards each one that the test left open has to pass its own check, and is closed.
    """
    opened: list[Memory] = []

    def opener(**options: Any) -> Memory:
        memory = memplat.open("memfd", **{"max_size": 64 * MIB, "reclaim": "manual", **options})
        opened.append(memory)
        return memory

    yield opener
    try:
        for memory in opened:
            with contextlib.suppress(memplat.ClosedError):
                within(partial(check, memory))
    finally:
        for memory in opened:
            within(partial(close_with_leftovers, memory))
        opened.clear()


@pytest.fixture
def memory(open_memory: Callable[..., Memory]) -> Memory:
    """A memfd memory of 64 MiB at most, reclaimed by hand."""
    return open_memory()


@pytest.fixture
def observer(memory: Memory) -> Iterator[Observer]:
    """A second look at the backing file of ``memory``."""
    with Observer(memory.fileno()) as found:
        yield found
