"""The memory whose pages are shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import memplat
from memplat.memory import Memory
from tests.oracle import PAGE
from tests.unit.sharing.looks import AGAIN, FIRST


@pytest.fixture(params=[FIRST, AGAIN])
def memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    """One that this process has attached nothing of before; or one of which connection, window and slots are there,
    which is when calls are compiled.
    """
    with memplat.open("memfd", max_size=64 << 20, reclaim="manual") as opened:
        if request.param == AGAIN:
            pages = opened.allocate(PAGE)
            handle = opened.share(pages)
            memplat.attach(handle).release()
            assert handle.wait(20)
            opened.decref(pages)
            opened.reclaim()
        yield opened
