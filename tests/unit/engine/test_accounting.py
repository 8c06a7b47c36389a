"""Charging committed extents to the users of the pages, against a count page by page, whichever way is taken."""

from __future__ import annotations

import random
from array import array

import pytest

from memplat.engine import accounting, pages
from memplat.engine.accounting import attribute, lay_out
from memplat.engine.pages import PageTable
from memplat.linux import extents as flat
from memplat.ranges import FileRange

PAGE = 4096


def table_of(chance: random.Random, size: int, users: int) -> PageTable:
    """A table of *size* pages in which users of three kinds and owners, waste, free and flagged pages alternate."""
    table = PageTable(PAGE)
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
