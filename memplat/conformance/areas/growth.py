"""Growth and limits: the file gets as large as asked, keeps what it holds, and costs nothing by it."""

from __future__ import annotations

from memplat.conformance.case import Case
from memplat.conformance.observer import BASE_PAGE
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.errors import OutOfMemory
from memplat.memory import Memory
from memplat.ranges import MIB, FileRange, align_up


@check("GROW-01", rule="3.1", smoke=True, after="LIFE-04 VIEW-01", forms="memplat_grow")
def growing_keeps_what_the_file_holds(case: Case) -> None:
    """memplat_grow has to extend the file to the size that it is given: never to make it shorter on the way, and never
    to replace it.
    """
    memory = case.open()
    pages = case.allocate(memory, 1)
    case.fill(memory, pages)
    size = case.observer(memory).stat().st_size
    _grow_beyond(case, memory, size)
    now = case.observer(memory).stat().st_size
    expect(now > size, f"the file had {size} bytes before it grew, and has {now} now")
    expect(case.filled(memory, pages), "growing the file lost what was in it")


def _grow_beyond(case: Case, memory: Memory, size: int) -> FileRange:
    """Allocate what does not fit into a file of that size."""
    return case.allocate(memory, size // memory.page_size + 1)


@check("GROW-02", rule="3.2", after="LIFE-03")
def growing_costs_nothing(case: Case) -> None:
    """memplat_grow has to leave holes: ftruncate(2), not fallocate(2) or writing."""
    memory = case.open()
    memory.decref(case.allocate(memory, 1))
    observer = case.observer(memory)
    spent, size = observer.data_bytes(), observer.stat().st_size
    expect(spent == 0, f"a file of {size} bytes costs {spent} bytes after it grew, though nothing was touched")


@check("GROW-03", rule="3.3", after="GROW-01 VIEW-04 SHARE-02")
def a_file_that_a_peer_has_grown_is_not_shrunk(case: Case) -> None:
    """memplat_grow has to look at the size first: a file that is that large already is success. ftruncate(2) with a
    smaller size would take a peer's pages away, and is EPERM where the file is sealed.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, 1)
    larger = align_up(8 * observer.stat().st_size, memory.page_size)  # the memory grows by doubling
    theirs = case.share(memory)
    theirs.truncate(larger)
    _grow_beyond(case, memory, memory.total_size())
    size = observer.stat().st_size
    expect(size >= larger, f"a peer had grown the file to {larger} bytes; now it has {size}")
    case.fill(memory, pages)
    expect(case.filled(memory, pages), "pages cannot be used after a peer has grown the file")
    theirs.drop()


@check("GROW-04", rule="3.4", after="GROW-01")
def the_file_is_as_large_as_asked_and_no_larger(case: Case) -> None:
    """memplat_grow has to extend the file to the size that it is given, not beyond: what lies there is nobody's, and
    max_size is the user's limit.
    """
    memory = case.open()
    case.allocate(memory, 1)
    told, size = memory.total_size(), case.observer(memory).stat().st_size
    expect(size == told, f"the memory has grown its file to {told} bytes, fstat says {size}")


@check("GROW-05", rule="3.5", after="GROW-01 GROW-04")
def the_last_page_below_the_limit_can_be_used(case: Case) -> None:
    """memplat_grow has to take every multiple of the page size, also one that is no multiple of anything larger."""
    size = case.page_size or BASE_PAGE
    pages = max(2 * MIB, 2 * size) // size + 3
    memory = case.open(max_size=pages * size)
    try:
        whole = case.allocate(memory, pages)
    except OutOfMemory as error:
        case.fail(f"the file cannot grow to its limit, {pages} pages of {size} bytes: {error}")
    last = FileRange(whole.end - size, whole.end)
    case.fill(memory, last)
    expect(case.filled(memory, last), f"the last page of a file of {whole.end} bytes does not hold what was written")
