"""Views of raw memory that tell when their last user is gone."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memplat.linux import exporter, files, memory
from tests.hostparts import MIB
from tests.needs import needs


@pytest.fixture
def fd() -> Iterator[int]:
    made = files.memfd("exported")
    os.ftruncate(made, MIB)
    yield made
    os.close(made)


@pytest.fixture
def mapped(fd: int) -> Iterator[int]:
    address = memory.reserve_address_space(MIB)
    memory.map_shared(address, MIB, fd, 0)
    yield address
    memory.unmap(address, MIB)


class Ends:
    """Counts how often it was told."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_an_exported_view_is_exactly_the_range(mapped: int, fd: int) -> None:
    view = exporter.export(mapped + 100, 50, writable=True)
    assert (view.nbytes, view.format, view.readonly, view.contiguous) == (50, "B", False, True)
    view[0] = 7
    view[-1] = 9
    assert os.pread(fd, 52, 99) == b"\0\x07" + bytes(48) + b"\x09\0"


def test_a_read_only_view_gives_no_way_to_write(mapped: int) -> None:
    view = exporter.export(mapped, 50, writable=False)
    assert view.readonly
    for way in (view, memoryview(view), memoryview(view.obj), view[1:], view.cast("H")):
        with pytest.raises(TypeError):
            way[0] = 1
    for source in (view, view.obj):
        with pytest.raises((TypeError, BufferError, SystemError)):
            (ctypes.c_char * 50).from_buffer(source)
    assert bytes(view) == bytes(50)


def test_the_object_of_a_view_knows_no_more_than_the_range(mapped: int) -> None:
    view = exporter.export(mapped, 50, writable=True)
    again = memoryview(view.obj)
    assert (again.nbytes, again.readonly) == (50, False)
    with pytest.raises(AttributeError):
        view.obj.address = 1  # type: ignore[attr-defined]


def test_the_end_is_told_once_the_last_derived_view_is_gone(mapped: int) -> None:
    ends = Ends()
    view = exporter.export(mapped, 4096, writable=True, release=ends)
    derived: list[Any] = [view[100:200], view.cast("Q"), memoryview(view), view[::2], view.obj, memoryview(view.obj)]
    del view
    while derived:
        gc.collect()
        assert ends.count == 0
        derived.pop()
    assert ends.count == 1


def test_an_array_keeps_the_memory(mapped: int) -> None:
    try:
        import numpy as np
    except ImportError:
        needs("numpy", "not installed")
    ends = Ends()
    array = np.frombuffer(exporter.export(mapped, 4096, writable=True, release=ends), dtype="u4")[3:]
    gc.collect()
    assert ends.count == 0
    array[0] = 0x01020304
    assert memory.copy_from(mapped + 12, 4) == b"\x04\x03\x02\x01"
    del array
    assert ends.count == 1


def test_a_finalizer_in_a_cycle_still_sees_the_memory(mapped: int) -> None:
    ends = Ends()
    seen: list[tuple[int, bytes]] = []

    class Looks:
        def __init__(self) -> None:
            self.me = self
            self.view = exporter.export(mapped, 16, writable=True, release=ends)
            self.part = self.view[8:]

        def __del__(self) -> None:
            seen.append((ends.count, bytes(self.part)))

    gc.disable()  # all in one collection: every finalizer before any clearing
    try:
        for _ in range(100):
            Looks()
        gc.collect()
    finally:
        gc.enable()
    assert seen == [(0, bytes(8))] * 100
    assert ends.count == 100


def test_views_in_cycles_die_in_the_garbage_collector_without_a_word(
    mapped: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = Ends()
    for _ in range(200):
        cycle: list[Any] = [exporter.export(mapped, 16, writable=True, release=ends)]
        cycle.append(cycle)
        cycle.append(cycle[0][1:])
        del cycle
    gc.collect()
    assert ends.count == 200
    assert capsys.readouterr().err == ""


def test_a_view_that_dies_while_an_exception_is_under_way_leaves_it_alone(mapped: int) -> None:
    ends = Ends()

    def fails() -> None:
        view = exporter.export(mapped, 16, writable=True, release=ends)
        part = view[1:]
        raise LookupError(len(part))

    for _ in range(50):
        with pytest.raises(LookupError, match="15"):
            fails()
    assert ends.count == 50


def test_views_can_be_made_and_dropped_in_many_threads(mapped: int) -> None:
    ends: list[int] = []

    def churn() -> None:
        for _ in range(1000):
            view = exporter.export(mapped, 64, writable=True, release=lambda: ends.append(1))
            view[0] = 1

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 4000


def test_views_work_the_same_in_other_interpreters_if_there_are_any() -> None:
    code = (
        "import gc, os, sys; sys.path[:0] = sys.argv[1:]\n"
        "from memplat.linux import exporter, files, memory\n"
        "a = memory.reserve_address_space(4096); fd = files.memfd('x'); os.ftruncate(fd, 4096)\n"
        "memory.map_shared(a, 4096, fd, 0); dead = []\n"
        "v = exporter.export(a, 4096, writable=True, release=lambda: dead.append(1))[8:].cast('I')\n"
        "v[0] = 1; assert os.pread(fd, 9, 0)[8] == 1; assert not dead; del v; assert dead\n"
        "c = [exporter.export(a, 8, writable=False, release=lambda: dead.append(1))]; c.append(c)\n"
        "assert c[0].readonly and memoryview(c[0].obj).readonly; del c; gc.collect(); assert len(dead) == 2\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "MEMPLAT_CORE"
    }  # built for this one only
    for python in Path("~/.pyenv/versions").expanduser().glob("3.1[1-9]*/bin/python"):
        done = subprocess.run(
            [python, "-I", "-c", code, os.getcwd()], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
