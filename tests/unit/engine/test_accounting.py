"""Charging committed extents to the users of the pages, against a count page by page, whichever way is taken."""

from __future__ import annotations

import importlib
import random
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplat import _core
from memplat.engine import accounting, hot, pages
from memplat.engine.accounting import attribute, attribute_at_once, lay_out
from memplat.engine.pages import PageTable
from memplat.linux import extents as flat
from memplat.ranges import MIB, FileRange
from tests.needs import needs

PAGE = 4096


def table_of(chance: random.Random, size: int, users: int, make: Callable[[int], PageTable] = PageTable) -> PageTable:
    """A table of *size* pages in which users of three kinds and owners, waste, free and flagged pages alternate."""
    table = make(PAGE)
    table.extend(size * PAGE, huge=False)
    taken = []
    for _ in range(users):
        found = table.allocate(chance.randint(1, 3) * PAGE, chance.choice(("tmpfs", "system")), chance.randrange(3))
        if found is not None:
            taken.append(found)
    for found in chance.sample(taken, len(taken) // 2):
        table.decref(*found)
        if chance.random() < 0.7:
            parts = [FileRange(*found)]
            table.release(table.take_waste(1 << 40))
            if chance.random() < 0.5:
                table.flag(*parts[0], chance.choice((pages.RETAINED, pages.KEPT)))
    return table


def committed_of(chance: random.Random, size: int, share: float) -> array[int]:
    """Random extents."""
    chosen = sorted(chance.sample(range(size), int(share * size)))
    starts, ends = array("q", [p * PAGE for p in chosen]), array("q", [(p + 1) * PAGE for p in chosen])
    return flat.from_starts_and_ends(starts, ends)


def counted(extents: array[int], table: PageTable) -> tuple[dict[tuple[int, str], int], int, int, int, set[int]]:
    """By owner and kind; waste, retained, free_committed; and the pages that nobody wanted committed."""
    charged: dict[tuple[int, str], int] = {}
    waste = retained = free = 0
    strays = set()
    flags = {
        flag: {page for part in flat.ranges(table.flagged(flag)) for page in range(*part, PAGE)}
        for flag in (pages.RETAINED, pages.KEPT)
    }
    for start, end in zip(extents[0::2], extents[1::2], strict=True):
        for page in range(start, end, PAGE):
            info = table.inspect(page)
            key = (info.owner, str(info.kind)) if info.kind else (0, "system")
            charged[key] = charged.get(key, 0) + PAGE
            if info.state == "free":
                retained += PAGE * (page in flags[pages.RETAINED])
                free += PAGE * (page not in flags[pages.RETAINED])
                if page not in flags[pages.RETAINED] | flags[pages.KEPT]:
                    strays.add(page)
            elif info.state != "used":
                waste += PAGE
    return charged, waste, retained, free, strays


@pytest.mark.parametrize("way", ["one by one", "few runs", "all at once"])
@pytest.mark.parametrize("seed", range(8))
def test_every_way_of_charging_equals_a_count_page_by_page(
    monkeypatch: pytest.MonkeyPatch, way: str, seed: int
) -> None:
    monkeypatch.setattr(accounting, "_FEW_RUNS", 1 << 20 if way == "few runs" else 0)
    monkeypatch.setattr(accounting, "_FEW_EDGES", 0)
    monkeypatch.setattr(accounting, "_MANY_RUNS", 0 if way == "one by one" else 1 << 20)
    chance = random.Random(seed)
    size = chance.choice((8, 60, 300))
    table = table_of(chance, size, chance.choice((0, 3, 40)))
    extents = committed_of(chance, size, chance.choice((0.0, 0.05, 0.5, 1.0)))
    layout = lay_out(extents, flat.total(extents), table)
    assert (layout.runs is None) == (way == "all at once" and len(extents) > 0)
    found = attribute(layout)
    charged = {(owner, kind): n for owner, kinds in found.by_owner.items() for kind, n in kinds.items()}
    strays = {page for part in found.strays for page in range(*part, PAGE)}
    assert (charged, found.waste, found.retained, found.free_committed, strays) == counted(extents, table)


@pytest.mark.parametrize("count", [0, 1, 2, 16])
@pytest.mark.parametrize("seed", range(8))
def test_charging_at_once_equals_taking_a_layout_first(count: int, seed: int) -> None:
    chance = random.Random(seed)
    table = table_of(chance, 120, 60)
    extents = committed_of(chance, 120, count / 120)
    total = flat.total(extents)
    found, wanted = attribute_at_once(extents, total, table), attribute(lay_out(extents, total, table))
    assert found == wanted
    kinds, owners = found.sums()
    assert sum(kinds.values()) == sum(owners.values()) == total
    assert owners == {owner: sum(by_kind.values()) for owner, by_kind in wanted.by_owner.items()}


@pytest.mark.parametrize("seed", range(4))
def test_a_single_extent_is_charged_as_a_count_page_by_page_says(seed: int) -> None:
    chance = random.Random(seed)
    table = table_of(chance, 60, 20)
    for length in (1, 2, 7, 60):
        for first in range(61 - length):
            extents = array("q", [first * PAGE, (first + length) * PAGE])
            found = attribute(lay_out(extents, length * PAGE, table))
            charged = {(owner, kind): n for owner, kinds in found.by_owner.items() for kind, n in kinds.items()}
            strays = {page for part in found.strays for page in range(*part, PAGE)}
            assert (charged, found.waste, found.retained, found.free_committed, strays) == counted(extents, table)


@pytest.fixture
def compiled() -> Any:
    """The compiled core, whichever is chosen."""
    try:
        return importlib.import_module("memplat._native.core")
    except ImportError as error:
        needs("compiler", str(error))


@given(st.integers(0, 1 << 32), st.sampled_from((8, 60, 300)), st.sampled_from((0, 3, 40)), st.floats(0, 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_compiled_charges_as_a_count_page_by_page_does(
    compiled: Any, seed: int, size: int, users: int, share: float
) -> None:
    chance = random.Random(seed)
    table = table_of(chance, size, users, compiled.PageTable)
    extents = committed_of(chance, size, share)
    used: dict[tuple[int, str], int] = {}
    idle, free = 0, set()
    for start, end in zip(extents[0::2], extents[1::2], strict=True):
        for page in range(start, end, PAGE):
            info = table.inspect(page)
            if info.state == "used":
                key = info.owner, str(info.kind)
                used[key] = used.get(key, 0) + PAGE
            elif info.state == "free":
                free.add(page)
            else:
                idle += PAGE
    before = extents[:]
    sums, found_idle, parts = compiled.charge(table, extents)
    assert {(owner, kind): nbytes for owner, kind, nbytes in sums} == used
    assert len(sums) == len(used), "each owner and kind once"
    assert (found_idle, extents) == (idle, before)
    assert {page for low, high in zip(parts[0::2], parts[1::2], strict=True) for page in range(low, high, PAGE)} == free
    assert flat.validate(parts, 0, table.size, PAGE) is None


def test_what_is_compiled_charges_the_free_parts_of_both_pools_as_one(compiled: Any) -> None:
    table = compiled.PageTable(PAGE)
    table.extend(4 * MIB, huge=False)
    table.extend(6 * MIB, huge=True)
    assert compiled.charge(table, array("q", [MIB, 6 * MIB])) == ([], 0, array("q", [MIB, 6 * MIB]))


@pytest.mark.parametrize("wrong", [array("q", [0]), array("Q", [0, PAGE]), array("i", [0, PAGE])])
def test_what_is_compiled_refuses_what_are_no_extents(compiled: Any, wrong: array[int]) -> None:
    table = table_of(random.Random(0), 8, 3, compiled.PageTable)
    with pytest.raises(TypeError, match="no extents"):
        compiled.charge(table, wrong)


@pytest.mark.parametrize("wrong", [[-PAGE, PAGE], [0, 9 * PAGE], [8 * PAGE, 9 * PAGE], [PAGE, PAGE]])
def test_what_is_compiled_refuses_extents_outside_of_the_table(compiled: Any, wrong: list[int]) -> None:
    table = table_of(random.Random(0), 8, 3, compiled.PageTable)
    with pytest.raises(IndexError, match="not within the page table"):
        compiled.charge(table, array("q", wrong))
    assert compiled.charge(table, array("q")) == ([], 0, array("q"))


def test_a_table_in_python_is_charged_in_python(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "MODULE", compiled)
    table = PageTable(PAGE)
    table.extend(8 * PAGE, huge=False)
    assert hot.charge(table, array("q", [0, PAGE])) is None
    monkeypatch.setattr(_core, "MODULE", None)
    assert hot.charge(table_of(random.Random(0), 8, 3, compiled.PageTable), array("q")) is None


@pytest.mark.parametrize("seed", range(6))
def test_what_an_owner_uses_is_kept_up_to_date_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    table = PageTable(PAGE)
    table.extend(200 * PAGE, huge=False)
    taken: list[FileRange] = []
    for turn in range(200):
        what = chance.random()
        if what < 0.5 or not taken:
            found = table.allocate(chance.randint(1, 4) * PAGE, "tmpfs", chance.randrange(4))
            taken += [found] if found is not None else []
        elif what < 0.7:
            table.transfer(*chance.choice(taken), chance.randrange(4))
        elif what < 0.8:
            held = chance.choice(taken)
            table.pin(*held, "view")
            table.decref(*held)
            taken.remove(held)
            table.unpin(*held)
        else:
            table.decref(*taken.pop(chance.randrange(len(taken))))
        if turn % 20 == 0:
            table.ranges_of(chance.randrange(4))
        if turn % 10 == 0:
            table._check()
    table._check()
    assert table.watched


def test_of_many_owners_only_those_asked_for_last_are_watched() -> None:
    table = PageTable(PAGE)
    table.extend(100 * PAGE, huge=False)
    for owner in range(1, 100):
        table.allocate(PAGE, "tmpfs", owner)
    for owner in range(1, 100):
        assert list(table.ranges_of(owner)) == [(owner - 1) * PAGE, owner * PAGE]
    assert list(table.watched) == list(range(36, 100))
    table._check()
