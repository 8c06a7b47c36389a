"""The search trees against a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplat.engine.bytetree import ByteTree
from memplat.engine.fittree import FitTree

Tree = type[FitTree] | type[ByteTree]

positions = st.one_of(st.integers(0, 140), st.integers(0, 1 << 36))
weights = st.one_of(st.integers(0, 9), st.integers(253, 257))

both = pytest.mark.parametrize("kind", [FitTree, ByteTree])


@both
@settings(deadline=None)
@given(steps=st.lists(st.tuples(positions, weights), max_size=60), somewhere=positions, wanted=weights.filter(bool))
def test_the_tree_answers_as_a_dictionary_does(
    kind: Tree, steps: list[tuple[int, int]], somewhere: int, wanted: int
) -> None:
    tree, model = kind(), dict[int, int]()
    for position, weight in steps:
        tree.set(position, weight)
        model[position] = weight
        tree._check()
    heavy = sorted(position for position, weight in model.items() if weight >= wanted)
    assert tree.first(wanted) == (heavy[0] if heavy else -1)
    assert tree.last(wanted) == (heavy[-1] if heavy else -1)
    assert tree.next(somewhere, wanted) == next((position for position in heavy if position >= somewhere), -1)
    assert list(tree.positions(wanted)) == heavy
    assert tree.maximum() == max(model.values(), default=0)
    assert tree.get(somewhere) == model.get(somewhere, 0)


@both
@settings(deadline=None)
@given(weighted=st.dictionaries(positions, weights.filter(bool), min_size=1), data=st.data())
def test_a_move_is_taking_out_and_setting(kind: Tree, weighted: dict[int, int], data: st.DataObject) -> None:
    moved, plain = kind(), kind()
    for position, weight in weighted.items():
        moved.set(position, weight)
        plain.set(position, weight)
    old = data.draw(st.sampled_from(sorted(weighted)))
    new = data.draw(st.integers(old + 1, old + 40).filter(lambda place: place not in weighted))
    weight = data.draw(weights)
    moved.move(old, new, weight)
    plain.set(old, 0)
    plain.set(new, weight)
    moved._check()
    assert [*moved.positions(1)] == [*plain.positions(1)]
    assert all(moved.get(position) == plain.get(position) for position in plain.positions(1))


@both
def test_memory_follows_the_number_of_positions_and_not_the_greatest_one(kind: Tree) -> None:
    tree = kind()
    for position in range(0, 1 << 30, 1 << 20):
        tree.set(position, 1)
    for position in range(0, 1 << 30, 1 << 20):
        tree.set(position, 0)
    assert tree.first(1) == -1
    assert not tree._leaves
