"""Arguments that break naive checks: integers of too many digits, arrays, fractions, half characters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import memplat
from memplat import FileRange, Numa
from memplat.memory import Memory
from memplat.wording import shown
from tests.oracle import PAGE

#: More digits than Python converts to text.
HUGE: Any = 10**5000
ARRAY: Any = np.array([1, 2])


@pytest.fixture
def memory() -> Iterator[Memory]:
    with memplat.open("memfd", max_size=16 << 20, reclaim="manual") as opened:
        yield opened


def test_values_are_shown_on_one_short_line_whatever_they_are() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise KeyError

    assert shown("a") == "'a'"
    assert shown(HUGE) == "<integer of 16610 bits>"
    assert shown(-HUGE) == "<negative integer of 16610 bits>"
    assert shown([HUGE]) == "<list>"
    assert shown(Rude()) == "<Rude>"
    assert shown(b"x" * 1000) == "b'" + "x" * 198 + "…"
    assert "\n" not in shown(np.zeros((3, 3)))


CALLS: list[Callable[[Memory, Any], object]] = [
    lambda memory, value: memory.allocate(value),
    lambda memory, value: memory.block(value),
    lambda memory, value: memory.round_up(value),
    lambda memory, value: memory.allocate(PAGE, kind=value),
    lambda memory, value: memory.allocate(PAGE, owner=value),
    lambda memory, value: memory.allocate(PAGE, mode=value),
    lambda memory, value: memory.allocate(PAGE, direction=value),
    lambda memory, value: memory.raise_max_size(value),
    lambda memory, value: memory.incref(value),
    lambda memory, value: memory.incref(FileRange(0, value)),
    lambda memory, value: memory.decref(FileRange(value, value)),
    lambda memory, value: memory.view(FileRange(value, 0)),
    lambda memory, value: memory.read(FileRange(0, value)),
    lambda memory, value: memory.transfer(FileRange(0, PAGE), value),
    lambda memory, value: memory.inspect(value),
    lambda memory, value: memory.map_into(value, 0, FileRange(0, PAGE), "read"),
    lambda memory, value: memory.map_into(memory, value, FileRange(0, PAGE), "read"),  # type: ignore[arg-type]
    lambda memory, value: memory.set_limit(value, allocated=0),
    lambda memory, value: memory.set_limit(1, allocated=value),
    lambda memory, value: memory.account_external(value),
    lambda memory, value: memory.usage(owner=value),
    lambda memory, value: memory.update_usage(owner=value),
    lambda _, value: memplat.attach(value),
    lambda _, value: memplat.adopt(value),
    lambda _, value: memplat.adopt(0, backend=[value]),
    lambda _, value: memplat.adopt(0, backend=value),
    lambda _, value: memplat.Handle.from_fd(value),
    lambda _, value: FileRange(0, PAGE).part(value, 1),
    lambda _, value: Numa("bind", value),
    lambda _, value: Numa("bind", (value,)),
    lambda _, value: memplat.open(value),
    lambda _, value: memplat.open([value]),
    lambda _, value: memplat.open("memfd", config=value),
    lambda _, value: memplat.open("memfd", profile=value),
    lambda _, value: memplat.open("memfd", max_size=value),
    lambda _, value: memplat.open("memfd", keep=value),
    lambda _, value: memplat.open("memfd", prealloc=value),
    lambda _, value: memplat.open("memfd", prealloc_threads=value),
    lambda _, value: memplat.open("memfd", reclaim_delay=value),
    lambda _, value: memplat.open("memfd", default_mode=value),
    lambda _, value: memplat.open("memfd", numa=value),
    lambda _, value: memplat.open("memfd", numa={"policy": "bind", "nodes": [value]}),
    lambda _, value: memplat.open("memfd", memfd={"name": value}),
    lambda _, value: memplat.open("memfd", memfd=value),
    lambda _, value: memplat.open("memfd", extensions=value),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
@pytest.mark.parametrize(
    "value", [HUGE, -HUGE, 10**400, ARRAY, object()], ids=["huge", "less", "400", "array", "object"]
)
def test_odd_values_are_refused_with_an_error_of_memplat(memory: Memory, number: int, value: Any) -> None:
    pages = memory.allocate(PAGE)
    with pytest.raises(memplat.MemplatError) as caught:
        CALLS[number](memory, value)
    assert len(str(caught.value)) < 1000
    memory.decref(pages)


@pytest.mark.parametrize(
    "seconds", [10**400, HUGE, 1e10, 1e300, float("inf")], ids=["1e400", "huge", "1e10", "1e300", "inf"]
)
def test_times_that_no_clock_has_are_as_long_as_can_be(memory: Memory, seconds: Any) -> None:
    assert memory.wait_reclaimed(seconds)
    memory.update_usage(max_age=seconds)
    pages = memory.allocate(PAGE)
    handle = memory.share(pages)
    handle.revoke()
    assert handle.wait(seconds)
    memory.decref(pages)


def test_an_array_is_neither_true_nor_false(memory: Memory) -> None:
    pages = memory.allocate(memory.page_size)
    before = memory.usage().allocated
    for call in (
        lambda: memory.allocate(memory.page_size, huge=ARRAY),
        lambda: memory.view(pages, writable=ARRAY),
        lambda: memory.view(pages, pin=ARRAY),
        lambda: memory.share(pages, writable=ARRAY),
        lambda: memory.share(pages, trusted=ARRAY),
        lambda: memory.block(memory.page_size, huge=ARRAY),
        lambda: memory.decommit(pages, release=ARRAY),
    ):
        with pytest.raises(memplat.InvalidArgumentError, match="neither true nor false"):
            call()
    truth: Any = np.True_
    assert memory.view(pages, writable=truth)[0] == 0
    assert memory.usage().allocated == before
    assert memory.inspect(pages.start).refs == 1
    memory.decref(pages)


class _Liar(int):
    """An integer whose arithmetic comes to something else."""

    def __add__(self, other: int) -> int:
        return 1 << 46

    __radd__ = __sub__ = __rsub__ = __and__ = __rand__ = __add__


def test_integers_with_an_arithmetic_of_their_own_are_taken_for_what_they_are(memory: Memory) -> None:
    pages = memory.allocate(memory.page_size, fill=b"0123456789")
    lying = memplat.FileRange(_Liar(pages.start + 2), _Liar(pages.start + 5))
    for pin in (True, False):
        with memory.view(lying, pin=pin) as view:
            assert bytes(view) == b"234"
    assert memory.read(lying) == b"234"
    memory.write(lying, b"xyz")
    assert memory.read(pages)[:6] == b"01xyz5"
    memory.decref(pages)


def test_an_array_is_no_age(memory: Memory) -> None:
    with pytest.raises(memplat.InvalidArgumentError, match=r"max_age array\(\[1, 2\]\) is no time"):
        memory.update_usage(max_age=ARRAY)


def test_sizes_of_any_length_are_shown() -> None:
    assert memplat.format_size(HUGE) == "<integer of 16610 bits> B"
    assert memplat.format_size(1 << 80) == "1099511627776 TiB"


@pytest.mark.parametrize("fd", [True, False, -1, 1 << 40, "x", None, 1.0])
def test_what_is_no_number_of_a_descriptor_is_no_handle(fd: Any) -> None:
    with pytest.raises(memplat.InvalidArgumentError, match=f"fd={fd!r} is no descriptor; allowed is"):
        memplat.Handle.from_fd(fd)


def test_a_descriptor_that_is_not_open_is_an_error_of_the_host() -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(memplat.HostError, match=f"fd={fd} cannot be taken over: Bad file descriptor"):
        memplat.Handle.from_fd(fd)


def test_parts_of_ranges_are_whole_bytes() -> None:
    with pytest.raises(
        memplat.InvalidArgumentError, match=r"offset 1\.5 is no integer; allowed are whole bytes, 0 to 5"
    ):
        FileRange(0, 5).part(1.5, 2)  # type: ignore[arg-type]
    assert FileRange(10, 15).part(1, 2) == (11, 13)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((1, "a"), "'a' is no node: allowed are integers from 0 to 1023"),
        ((True,), "True is no node"),
        ((1024,), "1024 is no node"),
        ("ab", "'a' is no node"),
        (5, r"nodes 5 is no sequence; .* one node is \(0,\)"),
    ],
)
def test_nodes_that_are_none_are_named(nodes: Any, words: str) -> None:
    with pytest.raises(memplat.InvalidArgumentError, match=words):
        Numa("bind", nodes)


@pytest.mark.parametrize("backend", ["memfd", "hugetlb"])
def test_a_name_with_half_a_character_is_named(backend: str) -> None:
    options: dict[str, Any] = {backend: {"name": "\udc80"}}
    with pytest.raises(memplat.ConfigError, match=r"name is '\\udc80', which is no UTF-8: allowed are up to \d+ bytes"):
        memplat.open(backend, **options)
