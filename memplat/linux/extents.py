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
from typing import Final

from memplat import _core
from memplat.ranges import FileRange

#: Up to so many extents, loops are quicker than what is done to all of them at once.
_FEW: Final = 16


def empty() -> array[int]:
    """No extents."""
    return array("q")


def ranges(extents: Sequence[int]) -> list[FileRange]:
    """The extents one by one."""
    return list(map(FileRange, extents[0::2], extents[1::2]))


def total(extents: Sequence[int]) -> int:
    """The bytes in all extents."""
    if len(extents) == 2:
        return extents[1] - extents[0]  # by far the most frequent case
    if _core.PROBING is not None and type(extents) is array:
        return _core.PROBING.total(extents)  # type: ignore[no-any-return]  # an integer
    return sum(extents[1::2]) - sum(extents[0::2])


def lengths(extents: array[int]) -> array[int]:
    """The length of each extent."""
    return _from_lanes(_lanes(extents[1::2]) - _lanes(extents[0::2]), len(extents) // 2)


def from_starts_and_ends(starts: array[int], ends: array[int]) -> array[int]:
    """Sorted ranges, given as two arrays ``"q"`` and possibly touching or overlapping, as extents."""
    if any(map(ge, ends, islice(starts, 1, None))):
        return _merged(starts, sorted(ends))
    return interleaved(starts, ends)


def interleaved(starts: Iterable[int], ends: Iterable[int]) -> array[int]:
    """Extents from their starts and their ends."""
    first = starts if isinstance(starts, array) else array("q", starts)
    second = ends if isinstance(ends, array) else array("q", ends)
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
    if _core.PROBING is not None and (found := _core.PROBING.combine(a, b, True)) is not None:
        return found  # type: ignore[no-any-return]  # extents
    return _merged(sorted(a[0::2] + b[0::2]), sorted(a[1::2] + b[1::2]))


def intersection(a: array[int], b: array[int]) -> array[int]:
    """What is in both *a* and *b*."""
    if _core.PROBING is not None and (found := _core.PROBING.combine(a, b, False)) is not None:
        return found  # type: ignore[no-any-return]  # extents
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
    if len(b) <= _FEW:
        result = a[:]
        for start, end in zip(b[0::2], b[1::2], strict=True):
            remove(result, start, end)
        return result
    return intersection(a, complement(b, a[0], a[-1]))


def add(extents: array[int], start: int, end: int) -> None:
    """Put ``[start, end)`` into *extents*, in place. O(log n), and a memmove."""
    low, high = bisect_left(extents, start), bisect_right(extents, end)
    edges = empty()
    if not low % 2:  # else start lies within an extent, or where one ends
        edges.append(start)
    if not high % 2:
        edges.append(end)
    extents[low:high] = edges


def remove(extents: array[int], start: int, end: int) -> int:
    """Take ``[start, end)`` out of *extents*, in place; returns how much of it was there. O(log n), and a memmove."""
    low, high = bisect_left(extents, start), bisect_right(extents, end)
    gone = extents[low:high]
    if not low % 2 and not high % 2:  # by far the most frequent case
        del extents[low:high]
        return total(gone)
    edges = empty()
    if low % 2:  # start lies within an extent, or where one ends
        gone.insert(0, start)
        edges.append(start)
    if high % 2:
        gone.append(end)
        edges.append(end)
    extents[low:high] = edges
    return total(gone)


def moved_pairs(starts: array[int], ends: array[int], distance: int) -> tuple[array[int], int]:
    """Extents from their starts and their ends, with *distance* added to every offset; and the bytes in all of them."""
    count = len(starts)
    if count <= _FEW:
        extents = array("q", [edge + distance for pair in zip(starts, ends, strict=True) for edge in pair])
        return extents, sum(ends) - sum(starts)
    low, high = _lanes(starts), _lanes(ends)
    shift = _repeated(1, count) * distance
    return interleaved(_from_lanes(low + shift, count), _from_lanes(high + shift, count)), _sum_of_lanes(
        high - low, count
    )


def moved(extents: array[int], distance: int) -> array[int]:
    """*extents* with *distance* added to every offset; no offset may become negative."""
    if not extents or not distance:
        return extents[:]
    count = len(extents)
    if count <= _FEW:
        return array("q", [offset + distance for offset in extents])
    return _from_lanes(_lanes(extents) + _repeated(1, count) * distance, count)


def _lanes(extents: array[int]) -> int:
    """All offsets as one long integer, 64 bits each, the first one lowest. Arithmetic on it takes a sixth of the time
    of a loop in C over Python integers. Offsets are below 2**63: no lane carries into or borrows from the next.
    """
    return int.from_bytes(extents.tobytes(), "little")


def _from_lanes(lanes: int, count: int) -> array[int]:
    result = empty()
    result.frombytes(lanes.to_bytes(8 * count, "little"))
    return result


def _repeated(value: int, count: int, bits: int = 64) -> int:
    """*value* in each of so many lanes. By doubling, which takes a fifth of the time of reading as many bytes."""
    result = done = 0
    width = 1
    while True:
        if count & width:
            result |= value << bits * done
            done += width
        width *= 2
        if width > count:
            return result
        value |= value << bits * (width // 2)


def _sum_of_lanes(lanes: int, count: int) -> int:
    """The sum of all lanes, which has to fit into one: the upper half is added to the lower one until one is left."""
    while count > 1:
        half = (count + 1) // 2
        lanes = (lanes >> 64 * half) + (lanes & ~(-1 << 64 * half))
        count = half
    return lanes


def validate(extents: Sequence[int], start: int, end: int, page_size: int) -> str | None:
    """Why *extents* is no proper answer of a probe of ``[start, end)``, or ``None`` if it is one.

    :param page_size: a power of two
    """
    measured = measure(extents, start, end, page_size)
    return measured if isinstance(measured, str) else None


def measure(extents: Sequence[int], start: int, end: int, page_size: int) -> int | str:
    """The bytes in all extents; or why they are no proper answer of a probe of ``[start, end)``.

    :param page_size: a power of two
    """
    try:
        flat = extents if isinstance(extents, array) and extents.typecode == "q" else array("q", extents)
    except (TypeError, OverflowError) as reason:
        return f"not a flat sequence of 64-bit integers: {reason}"
    count = len(flat)
    if count % 2:
        return f"{count} offsets: a start without an end"
    if not flat:
        return 0
    if count == 2 and 0 <= start <= flat[0] < flat[1] <= end and not (flat[0] | flat[1]) & (page_size - 1):
        return flat[1] - flat[0]  # the most frequent answer about a small part
    if _core.PROBING is not None and (proper := _core.PROBING.measure(flat, start, end, page_size)) >= 0:
        return proper  # type: ignore[no-any-return]  # an integer
    lanes = _lanes(flat)
    fault = _fault(flat, lanes, start, end, page_size)
    if fault is not None:
        return fault
    every_second = _repeated((1 << 64) - 1, count // 2, 128)
    return _sum_of_lanes((lanes >> 64 & every_second) - (lanes & every_second), count)


def _fault(flat: array[int], lanes: int, start: int, end: int, page_size: int) -> str | None:
    ones = _repeated(1, len(flat))
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
