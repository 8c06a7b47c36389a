"""A memory for each test; a guest of each kind for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import memplat
from memplat.memory import Memory
from tests.unit.platforms.guests import LENGTH, NAMES, Guest, make_guest


@pytest.fixture(scope="module")
def guests_memory() -> Iterator[Memory]:
    with memplat.open("memfd", config={}, max_size=64 << 20, reclaim="manual") as opened:
        yield opened


@pytest.fixture(scope="module", params=NAMES)
def module_guest(request: pytest.FixtureRequest, guests_memory: Memory) -> Iterator[Guest]:
    with make_guest(request.param, guests_memory) as made:
        yield made


@pytest.fixture
def guest(module_guest: Guest, memory: Memory) -> Iterator[Guest]:
    """Everything is unmapped before the memory is closed."""
    assert memory.total_usage() == 0
    yield module_guest
    module_guest.space.unmap(module_guest.base, LENGTH)


@pytest.fixture
def memory() -> Iterator[Memory]:
    with memplat.open("memfd", config={}, max_size=64 << 20, reclaim="manual") as opened:
        yield opened
