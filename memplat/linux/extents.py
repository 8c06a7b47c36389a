"""Extents: flat sorted arrays ``start0, end0, start1, end1, …`` of half-open ranges that do not even touch. Pure.

65,536 extents are common, so nothing here loops over them in Python: sorting, slicing, :func:`map` and
:func:`itertools.compress` do. What makes that possible: sort all starts and all ends of two extent lists apart from
each other. At the i-th start (from 0), i ranges have begun before. If the (i-1)-th end is below it, all of them have
ended: a piece of the union begins. If the (i-1)-th end is above it, one other range is open, which ends there: a piece
of the intersection.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import compress, islice
from operator import ge, gt, lt


def empty() -> array[int]:
    """No extents."""
    return array("q")


def total(extents: Sequence[int]) -> int:
    """The bytes in all extents."""
    return sum(extents[1::2]) - sum(extents[0::2])


def from_starts_and_ends(starts: array[int], ends: array[int]) -> array[int]:
    """Sorted ranges, given as two arrays ``"q"`` and possibly touching or overlapping, as extents."""
    if any(map(ge, ends, islice(starts, 1, None))):
        return _merged(starts, sorted(ends))
    return interleaved(starts, ends)


def interleaved(starts: Iterable[int], ends: Iterable[int]) -> array[int]:
    """Extents from their starts and their ends."""
    first, second = array("q", starts), array("q", ends)
    result = first + second
    result[0::2] = first
    result[1::2] = second
    return result


def _merged(starts: Sequence[int], ends: Sequence[int]) -> array[int]:
    """The union of ranges whose starts and ends are sorted apart."""
    if not starts:
        return empty()
    later = list(map(gt, islice(starts, 1, None), ends))
    return interleaved(
        [starts[0], *compress(islice(starts, 1, None), later)],
        [*compress(ends, later), ends[-1]],
    )


def union(a: array[int], b: array[int]) -> array[int]:
    """What is in *a*, in *b*, or in both."""
    return _merged(sorted(a[0::2] + b[0::2]), sorted(a[1::2] + b[1::2]))


def intersection(a: array[int], b: array[int]) -> array[int]:
    """What is in both *a* and *b*."""
    starts = sorted(a[0::2] + b[0::2])
    ends = sorted(a[1::2] + b[1::2])
    both = list(map(lt, islice(starts, 1, None), ends))
    return interleaved(compress(islice(starts, 1, None), both), compress(ends, both))


def intersect(extents: array[int], start: int, end: int) -> array[int]:
    """What of *extents* lies in ``[start, end)``."""
    if start >= end:
        return empty()
    low = bisect_right(extents, start)
    high = bisect_left(extents, end)
    result = extents[low:high]
    if low % 2:  # start lies within an extent
        result.insert(0, start)
    if high % 2:  # so does end
        result.append(end)
    return result


def complement(extents: array[int], start: int, end: int) -> array[int]:
    """The gaps: what of ``[start, end)`` is in none of *extents*."""
    if start >= end:
        return empty()
    result = intersect(extents, start, end)
    if result and result[0] == start:
        del result[0]
    else:
        result.insert(0, start)
    if result[-1] == end:
        del result[-1]
    else:
        result.append(end)
    return result


def subtract(a: array[int], b: array[int]) -> array[int]:
    """What is in *a* but not in *b*."""
    if not a or not b:
        return a[:]
    return intersection(a, complement(b, a[0], a[-1]))


def moved(extents: array[int], distance: int) -> array[int]:
    """*extents* with *distance* added to every offset; no offset may become negative."""
    if not extents or not distance:
        return extents[:]
    count = len(extents)
    lanes = _lanes(extents) + _repeated(1, count) * distance
    result = empty()
    result.frombytes(lanes.to_bytes(8 * count, "little"))
    return result


def _lanes(extents: array[int]) -> int:
    """All offsets as one long integer, 64 bits each, the first one lowest. Arithmetic on it takes a sixth of the time
    of a loop in C over Python integers. Offsets are below 2**63: no lane carries into or borrows from the next.
    """
    return int.from_bytes(extents.tobytes(), "little")


def _repeated(value: int, count: int) -> int:
    return int.from_bytes(value.to_bytes(8, "little") * count, "little")


def validate(extents: Sequence[int], start: int, end: int, page_size: int) -> str | None:
    """Why *extents* is no proper answer of a probe of ``[start, end)``, or ``None`` if it is one.

    :param page_size: a power of two
    """
    try:
        flat = extents if isinstance(extents, array) and extents.typecode == "q" else array("q", extents)
    except (TypeError, OverflowError) as reason:
        return f"not a flat sequence of 64-bit integers: {reason}"
    if len(flat) % 2:
        return f"{len(flat)} offsets: a start without an end"
    if not flat or (
        # the most frequent answer about a small part
        len(flat) == 2 and 0 <= start <= flat[0] < flat[1] <= end and not (flat[0] | flat[1]) & (page_size - 1)
    ):
        return None
    lanes, ones = _lanes(flat), _repeated(1, len(flat))
    if lanes & ones << 63:
        return f"negative: {min(flat)}"
    if not _ascends(lanes, ones, len(flat)):
        return "not strictly ascending: " + _first_descent(flat)
    if flat[0] < start or flat[-1] > end:
        return f"[{flat[0]:#x}, {flat[-1]:#x}) reaches outside of the probed [{start:#x}, {end:#x})"
    if lanes & (ones * (page_size - 1)):
        odd = next(offset for offset in flat if offset % page_size)
        return f"{odd:#x} is no multiple of the page size {page_size}"
    return None


def _ascends(lanes: int, ones: int, count: int) -> bool:
    """Whether each lane is less than the next. With the top bit set in the greater one, the difference less one keeps
    that bit exactly where the greater one really is greater.
    """
    below = ~(-1 << 64 * (count - 1))
    tops = (ones & below) << 63
    return ((lanes >> 64 | tops) - (lanes & below) - (ones & below)) & tops == tops


def _first_descent(flat: Sequence[int]) -> str:
    index = next(i for i in range(1, len(flat)) if flat[i - 1] >= flat[i])
    what = "ends before it starts" if index % 2 else "overlaps or touches the one before"
    return f"extent {index // 2} {what} ({flat[index - 1]:#x}, {flat[index]:#x})"
