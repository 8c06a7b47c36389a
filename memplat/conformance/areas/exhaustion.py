"""Exhaustion: a host that has no more says so when pages are reserved, never when they are touched.

To be exhausted, the host has to be small: a file system or a pool of at most 512 MiB free. Everything else would take
other people's memory.
"""

from __future__ import annotations

import os
from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.observer import HUGETLB
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.errors import OutOfMemory
from memplat.memory import Memory
from memplat.ranges import MIB, FileRange, align_down, align_up, format_size
from memplat.types import AllocationMode, Capability

_MOST: Final = 512 * MIB
#: What is left for the memory under test when another one holds the rest.
_SCARCE: Final = 6 * MIB
_SAMPLED: Final = 200


@check("EXH-01", rule="11.1", needs=Capability.RESERVE, after="LIFE-04 GROW-02", forms="memplat_reserve")
def reserved_pages_are_held_when_allocate_returns(case: Case) -> None:
    """memplat_reserve has to allocate the storage (fallocate(2), or a hugetlb reservation), not only to look whether
    there is enough.
    """
    memory = case.open()
    observer = case.observer(memory)
    count = case.pages(memory, 16, 2)
    first = case.allocate(memory, count // 2, mode=AllocationMode.RESERVED)
    before, free = observer.data_bytes(), observer.capacity() or 0
    expect(before >= first.length or observer.kind == HUGETLB, _missing(first.length, before))
    second = memory.allocate(count // 2 * memory.page_size, mode=AllocationMode.RESERVED)
    held = observer.data_bytes() - before
    if observer.kind == HUGETLB:
        held += free - (observer.capacity() or 0)
    expect(held >= second.length, _missing(second.length, held))
    expect(observer.is_zero(second.start, second.length), "reserved pages are not zero")


def _missing(wanted: int, held: int) -> str:
    return f"{wanted} bytes were reserved, and the host holds {held} of them"


@check("EXH-02", rule="11.2", needs=Capability.RESERVE, after="EXH-01")
def an_exhausted_host_is_out_of_memory_and_never_a_signal(case: Case) -> None:
    """memplat_reserve has to raise OSError (ENOSPC, ENOMEM) when the host has no more; whatever it promised before can
    be touched.
    """
    memory = _open_on_scarce_host(case)
    pages = _sample(memory, _take_all(case, memory))
    for page in pages:
        case.fill(memory, page)
    lost = [page for page in pages if not case.filled(memory, page)]
    expect(not lost, f"of {len(pages)} reserved pages {len(lost)} do not hold what was written: {lost[:4]}")


@check("EXH-03", rule="11.3", needs=Capability.RESERVE, after="EXH-01 EXH-02")
def a_reservation_that_fails_leaves_nothing_reserved(case: Case) -> None:
    """Some file systems keep the part that was done when fallocate(2) fails: memplat_reserve has to give it back."""
    memory = _open_on_scarce_host(case)
    observer = case.observer(memory)
    case.fill(memory, held := case.allocate(memory, 1, mode=AllocationMode.RESERVED))
    spent, free = observer.data_bytes(), observer.capacity() or 0
    try:
        memory.allocate(align_up(4 * free + 16 * MIB, memory.page_size), mode=AllocationMode.RESERVED)
    except OutOfMemory:
        now = observer.data_bytes()
        expect(now <= spent, f"a reservation that failed left {now - spent} bytes behind")
        expect(case.filled(memory, held), "a reservation that failed changed pages that were reserved before")
        return
    case.fail(f"more was reserved than the host has: {4 * free + 16 * MIB} of {free} bytes")


@check("EXH-04", rule="11.4", needs=Capability.RESERVE, after="EXH-02 EXH-03 DECOM-02")
def what_was_freed_can_be_reserved_again(case: Case) -> None:
    """After something was given back there is room again: memplat_reserve has to ask the host, and not to keep a tally
    of its own.
    """
    memory = _open_on_scarce_host(case)
    pieces = _take_all(case, memory)
    for piece in pieces:
        memory.decref(piece)
    case.reclaim(memory)
    again = _take_all(case, memory)
    had, got = (sum(piece.length for piece in taken) for taken in (pieces, again))
    expect(got >= had * 3 // 4, f"{had} bytes could be reserved, and only {got} again after they were freed")
    pages = _sample(memory, again)
    for page in pages:
        case.fill(memory, page, 2)
    lost = [page for page in pages if not case.filled(memory, page, 2)]
    expect(not lost, f"of {len(pages)} pages that were reserved again {len(lost)} lost their content")


@check("EXH-05", rule="11.5", needs=Capability.RESERVE, after="EXH-01 EXH-02")
def reserved_pages_can_be_touched_when_the_host_fills_up_later(case: Case) -> None:
    """Room that was there when the pages were reserved may be gone when they are touched: it has to be taken
    at once.
    """
    memory = case.open(max_size=_MOST * 2)
    _room_on_scarce_host(case, memory)
    count = max(2, 2 * MIB // memory.page_size)
    promised = case.allocate(memory, count, mode=AllocationMode.RESERVED)
    _take_all(case, case.open(max_size=_MOST * 2))
    case.fill(memory, promised)
    expect(case.filled(memory, promised), "reserved pages do not hold what was written on a full host")


def _room_on_scarce_host(case: Case, memory: Memory) -> int:
    """What the host has left.

    :raises NotApplicableError: if it is too large to be exhausted, or too small to be used
    """
    observer = case.observer(memory)
    free = observer.capacity()
    if free is None:
        case.skip("neither a file system nor a pool bounds the file: all of the host would have to be used up")
    if free > _MOST:
        case.skip(f"the host has {format_size(free)} free here, and a check uses up at most {format_size(_MOST)}")
    least = _least(memory)
    if free < least:
        os.sync()  # btrfs gives the space of a deleted file back with its next transaction
        free = observer.capacity() or 0
    if free < least:
        case.skip(f"needs {format_size(least)}, and the host has {format_size(free)} free here")
    return free


def _least(memory: Memory) -> int:
    return align_up(max(_SCARCE, 4 * memory.page_size), memory.page_size)


def _open_on_scarce_host(case: Case) -> Memory:
    """A memory on a host that has little left, because another memory holds the rest.

    :raises NotApplicableError: as above
    """
    ballast, memory = (case.open(max_size=_MOST * 2) for _ in range(2))
    most = _room_on_scarce_host(case, ballast)
    observer, least, page = case.observer(ballast), _least(memory), memory.page_size
    held: list[FileRange] = []
    while (surplus := align_down(min(most, ((observer.capacity() or 0) - least) // 2), page)) > MIB:
        try:
            held.append(ballast.allocate(surplus, mode=AllocationMode.RESERVED))
        except OutOfMemory:  # the free space was not all to be had
            most = surplus // 2
    while held:
        try:
            memory.decref(memory.allocate(least // 2, mode=AllocationMode.RESERVED))
            break
        except OutOfMemory:  # nor is what is left
            ballast.decref(held.pop())
            case.reclaim(ballast)
    case.reclaim(memory)
    return memory


def _sample(memory: Memory, pieces: list[FileRange]) -> list[FileRange]:
    """Single pages of all pieces, the first and the last among them. Not all: btrfs takes 14 ms for each when full."""
    page = memory.page_size
    every = [start for piece in pieces for start in range(*piece, page)]
    chosen = {*every[:: -(-len(every) // _SAMPLED)], every[-1], *(piece.start for piece in pieces)}
    return [FileRange(start, start + page) for start in sorted(chosen)]


def _take_all(case: Case, memory: Memory) -> list[FileRange]:
    """Reserve all that the host has left, in pieces that get smaller."""
    page = memory.page_size
    observer = case.observer(memory)
    limit = 4 * (observer.capacity() or 0) + 16 * MIB
    length = align_up(MIB, page)
    taken: list[FileRange] = []
    while length >= page:
        try:
            taken.append(memory.allocate(length, mode=AllocationMode.RESERVED))
        except OutOfMemory:
            length = align_down(length // 4, page)
        if sum(piece.length for piece in taken) > limit:
            case.fail(f"{limit} bytes were reserved on a host that had a quarter of that")
    expect(bool(taken), "nothing at all could be reserved, though the host has room")
    return taken
