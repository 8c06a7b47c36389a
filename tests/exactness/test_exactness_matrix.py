"""Every cell of docs/exactness.md is run, and the table says what came of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.exactness.hosts import HOSTS, Host
from tests.exactness.matrix import IMPOSSIBLE, TABLE, expected, run_cell
from tests.exactness.ways import WAYS, Scene
from tests.hostparts import MIB, swap_file
from tests.needs import needs
from tests.oracle import has_cachestat


@pytest.fixture(scope="module")
def swap() -> Iterator[None]:
    """Swap for all rows: it is locked before what the rows lock."""
    with swap_file(64 * MIB):
        yield


@pytest.fixture(scope="module", params=list(HOSTS))
def host(request: pytest.FixtureRequest, swap: None) -> Iterator[tuple[str, Host]]:
    """One row after the other."""
    if not has_cachestat():
        needs("cachestat", "the oracle asks it")
    with HOSTS[request.param]() as found:
        yield request.param, found


@pytest.mark.parametrize("way", WAYS)
def test_every_figure_equals_a_count_page_by_page(host: tuple[str, Host], way: str) -> None:
    name, found = host
    assert f"| {way} |" in TABLE.read_text(encoding="utf-8")
    if (name, way) in IMPOSSIBLE:
        return
    assert run_cell(found, way) == "="


def test_the_table_is_what_these_cells_make_of_it() -> None:
    assert TABLE.read_text(encoding="utf-8") == expected(), "it is out of date: python -m tests.exactness"


def test_a_memory_that_tells_less_than_there_is_fails_its_cell() -> None:
    """A test of the tests: a figure that is off by one page must not pass."""

    class Forgetful(Scene):
        def verify(self, usage: object = None) -> None:
            self.memory.update_usage()
            self.peer.write(min(set(self.pages) - self.touched) * self.page, b"w")
            self.touched.add(min(set(self.pages) - self.touched))
            super().verify(self.memory.usage())

    with HOSTS["memfd"]() as found:
        scene = Forgetful(found, shared=False)
        try:
            with pytest.raises(AssertionError):
                WAYS["written here"][0](scene)
        finally:
            scene.close()
