"""Reclaim: the engine's thread gives back what nobody holds any more."""

from __future__ import annotations

from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.ranges import FileRange

#: Nobody waits that long: it is how a test calls something a hang.
_HANG_SECONDS: Final = 30.0
_PIECES: Final = 1500


@check("RECL-01", rule="10.1", after="DECOM-02 DECOM-05 DECOM-06")
def freed_pages_go_back_to_the_host_in_the_background(case: Case) -> None:
    """Hooks are called from any thread: memplat_decommit must not depend on the one that opened the memory."""
    memory = case.open(reclaim="background", reclaim_delay=0.0)
    pages = case.allocate(memory, case.pages(memory, 64, 2))
    case.fill(memory, pages)
    memory.decref(pages)
    expect(memory.wait_reclaimed(_HANG_SECONDS), "waste is left, and nobody gives it back")
    left = case.spent(memory, pages)
    expect(left == 0, f"of {pages.length} bytes that were reclaimed in the background {left} are still committed")
    retained = memory.update_usage().retained
    expect(retained == 0, f"the host is said to have refused {retained} bytes")


@check("RECL-02", rule="10.2", after="DECOM-05 DECOM-08 REF-01 VIEW-02")
def thousands_of_pieces_are_reclaimed(case: Case) -> None:
    """A batch may have 1,024 ranges, as many as fit into one system call (IOV_MAX), and another one comes after it."""
    memory = case.open(max_size=case.max_size(2 * _PIECES + 8))
    observer = case.observer(memory)
    page = memory.page_size
    used = case.allocate(memory, case.pages(memory, 2 * _PIECES, 8))
    with memory.view(used) as view:
        for start in range(0, used.length, page):
            view[start : start + page] = bytes(page)
    before = observer.data_bytes()
    pieces = [FileRange(start, start + page) for start in range(used.start, used.end, 2 * page)]
    for piece in pieces:
        memory.decref(piece)
    case.reclaim(memory)
    given = before - observer.data_bytes()
    wanted = len(pieces) * page
    expect(given == wanted, f"{wanted} bytes in {len(pieces)} pieces were freed, and the host has got {given} back")
