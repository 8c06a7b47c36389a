"""References: what somebody still holds is nobody's to give back."""

from __future__ import annotations

from memplat.conformance.case import Case
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect


@check("REF-01", rule="8.1", after="DECOM-04")
def referenced_pages_survive_the_freeing_of_their_neighbours(case: Case) -> None:
    """memplat_decommit must not join its ranges: the pages between them are in use."""
    memory = case.open()
    page = memory.page_size
    count = case.pages(memory, 40, 8)
    used = case.allocate(memory, count)
    case.fill(memory, used)
    freed = [number for number in range(count) if number % 4 in (1, 2)]
    for number in freed:
        memory.decref(used.part(number * page, page))
    case.reclaim(memory)
    kept = [used.part(number * page, page) for number in range(count) if number not in freed]
    lost = [part for part in kept if not case.filled(memory, part)]
    expect(not lost, f"{len(lost)} of {len(kept)} pages that are still referenced lost their content: {lost[:4]}")


@check("REF-02", rule="8.2", after="DECOM-04 REF-01")
def pages_under_a_view_survive_their_last_reference(case: Case) -> None:
    """A view is a reference. Its pages are in no batch that memplat_decommit gets, and must not be touched by it."""
    memory = case.open()
    page = memory.page_size
    count = case.pages(memory, 12, 6)
    used = case.allocate(memory, count)
    case.fill(memory, used)
    looked_at = used.part(2 * page, 2 * page)
    view = memory.view(looked_at)
    before = bytes(view)
    memory.decref(used)
    case.reclaim(memory)
    expect(bytes(view) == before, "pages that a view looks at changed when their last reference was dropped")
    view[:] = bytes(len(view))
    other = case.allocate(memory, count - 4)
    case.fill(memory, other)
    expect(not any(view), "pages that a view looks at were handed out to somebody else")
