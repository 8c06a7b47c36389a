"""Extents against sets of pages, which are slow and obviously right."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplat.linux import extents as flat

LAST = 40
pages = st.frozensets(st.integers(0, LAST))
bound = st.integers(0, LAST + 1)


def extents_of(numbers: frozenset[int] | set[int]) -> array[int]:
    """The extents of a set of page numbers, with pages of one byte."""
    result = array("q")
    for number in sorted(numbers):
        if result and result[-1] == number:
            result[-1] = number + 1
        else:
            result.extend((number, number + 1))
    return result


@given(pages)
def test_total_counts_pages(a):
    assert flat.total(extents_of(a)) == len(a)


@given(pages, pages)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_union_intersection_and_difference_are_those_of_sets_with_either_core(choose_probing, a, b):
    for core in ("python", "native"):
        choose_probing(core)
        assert flat.union(extents_of(a), extents_of(b)) == extents_of(a | b)
        assert flat.intersection(extents_of(a), extents_of(b)) == extents_of(a & b)
        assert flat.subtract(extents_of(a), extents_of(b)) == extents_of(a - b)
        assert flat.total(extents_of(a)) == len(a)


@given(pages, pages)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_compiled_combines_extents_as_sets_are_and_changes_neither(choose_probing, a, b):
    compiled = choose_probing("native")
    first, second = extents_of(a), extents_of(b)
    assert compiled.combine(first, second, True) == extents_of(a | b)
    assert compiled.combine(first, second, False) == extents_of(a & b)
    assert (first, second) == (extents_of(a), extents_of(b))


@pytest.mark.parametrize("wrong", [[1, 1], [3, 2], [0, 4, 4, 5], [0, 4, 3, 5], [7]])
@pytest.mark.parametrize("either", [True, False])
def test_what_is_not_sorted_or_has_no_end_is_not_combined_by_what_is_compiled(choose_probing, wrong, either):
    compiled = choose_probing("native")
    proper, improper = array("q", [0, 10]), array("q", wrong)
    assert compiled.combine(proper, improper, either) is None
    assert compiled.combine(improper, proper, either) is None
    assert improper == array("q", wrong)


@pytest.mark.parametrize("typecode", ["i", "Q", "d"])
def test_other_arrays_than_of_offsets_are_not_combined_by_what_is_compiled(choose_probing, typecode):
    compiled = choose_probing("native")
    proper, other = array("q", [0, 10]), array(typecode, [0, 10])
    assert compiled.combine(proper, other, True) is None
    assert compiled.combine(other, proper, False) is None


def test_the_greatest_offsets_are_combined_right(choose_probing):
    last = 2**63 - 1
    for core in ("python", "native"):
        choose_probing(core)
        both = array("q", [0, 1, last - 2, last]), array("q", [1, last - 1])
        assert flat.union(*both) == array("q", [0, last])
        assert flat.intersection(*both) == array("q", [last - 2, last - 1])


@given(pages, bound, bound)
def test_a_range_is_put_in_and_taken_out_in_place(a, start, end):
    if start < end:
        extents, window = extents_of(a), set(range(start, end))
        flat.add(extents, start, end)
        assert extents == extents_of(a | window)
        extents = extents_of(a)
        assert flat.remove(extents, start, end) == len(a & window)
        assert extents == extents_of(a - window)


@given(pages)
def test_lengths_are_those_of_each_extent(a):
    extents = extents_of(a)
    assert list(flat.lengths(extents)) == [end - start for start, end in zip(extents[::2], extents[1::2], strict=True)]


@pytest.mark.parametrize("distance", [0, 1, 1 << 40])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 33, 64, 100, 127])
def test_many_extents_are_measured_and_moved_as_few_are(count, distance):
    a = frozenset(random.Random(count).sample(range(400), 3 * count))
    extents = extents_of(a)
    assert flat.measure(extents, 0, 401, 1) == len(a) == flat.total(extents)
    wanted = [offset + distance for offset in extents]
    assert flat.moved_pairs(extents[0::2], extents[1::2], distance) == (array("q", wanted), len(a))


@given(pages, bound, bound)
def test_clipping_and_gaps_are_those_of_sets(a, start, end):
    window = set(range(start, end))
    assert flat.intersect(extents_of(a), start, end) == extents_of(a & window)
    assert flat.complement(extents_of(a), start, end) == extents_of(window - a)


@given(pages, pages, bound)
def test_no_argument_is_changed(a, b, start):
    first, second = extents_of(a), extents_of(b)
    for operation in (flat.union, flat.intersection, flat.subtract):
        result = operation(first, second)
        result.append(0)
    flat.intersect(first, start, LAST).append(0)
    flat.complement(first, start, LAST).append(0)
    flat.moved(first, 0).append(0)
    assert (first, second) == (extents_of(a), extents_of(b))


@given(st.lists(st.tuples(bound, st.integers(1, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))))
def test_touching_and_overlapping_ranges_become_extents(ranges):
    ranges = sorted(ranges)
    covered = {number for start, end in ranges for number in range(start, end)}
    starts = array("q", [start for start, _ in ranges])
    ends = array("q", [end for _, end in ranges])
    assert flat.from_starts_and_ends(starts, ends) == extents_of(covered)


@given(pages, st.integers(0, 2**62))
def test_moving_there_and_back_changes_nothing(a, distance):
    extents = extents_of(a)
    there = flat.moved(extents, distance)
    assert list(there) == [offset + distance for offset in extents]
    assert flat.moved(there, -distance) == extents


@given(st.lists(st.integers(-3, LAST), max_size=8), bound, bound)
def test_validate_accepts_exactly_what_a_probe_may_return(offsets, start, end):
    proper = (
        len(offsets) % 2 == 0
        and all(low < high for low, high in pairwise(offsets))
        and all(start <= offset <= end and offset >= 0 for offset in offsets)
        and all(offset % 2 == 0 for offset in offsets)
    )
    assert (flat.validate(array("q", offsets), start, end, 2) is None) == proper
    assert (flat.validate(offsets, start, end, 2) is None) == proper


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([0], "a start without an end"),
        ([0, 4096, 4096, 8192], "overlaps or touches"),
        ([4096, 0], "ends before it starts"),
        ([4096, 8192, 0, 4096], "overlaps or touches"),
        ([0, 100], "no multiple of the page size"),
        ([0, 1 << 20], "outside"),
        ([-4096, 4096], "negative"),
        (["a", "b"], "64-bit integers"),
        ([0, 2**63], "64-bit integers"),
        (None, "64-bit integers"),
        ([0.0, 4096.0], "64-bit integers"),
    ],
)
def test_a_wrong_answer_is_named(wrong, reason):
    message = flat.validate(wrong, 0, 16384, 4096)
    assert message is not None
    assert reason in message


def test_the_greatest_offsets_are_compared_right():
    top = 2**63 - 1
    assert flat.validate([0, top - 1, top, top], 0, top, 1) is not None
    assert flat.validate([0, 1, top - 1, top], 0, top, 1) is None
