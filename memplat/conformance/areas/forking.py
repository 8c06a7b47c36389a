"""Fork: a child may look at the parent's pages, and cannot do any harm by ending."""

from __future__ import annotations

import warnings
from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.others import run_in_child
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect

_CHILD_SECONDS: Final = 20.0


@check("FORK-01", rule="13.1", after="VIEW-01")
def a_forked_child_sees_the_pages(case: Case) -> None:
    """memplat_mapped must not keep the mapping from children (MADV_DONTFORK, MADV_WIPEONFORK)."""
    memory = case.open()
    pages = case.allocate(memory, 2)
    case.fill(memory, pages)
    wanted = memory.read(pages)
    seen = run_in_child(lambda: bytes(memory.view(pages, writable=False, pin=False)), _CHILD_SECONDS)
    expect(not seen.error, f"a forked child that looks at the pages: {seen.error}")
    expect(seen.value == wanted, "a forked child sees something else than its parent has written")


@check("FORK-02", rule="13.2", after="LIFE-04 LIFE-08")
def a_child_that_ends_leaves_its_parents_pages_alone(case: Case) -> None:
    """Nothing that the backend does when a process forks, closes or ends may touch what is the parent's."""
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, case.pages(memory, 4, 1))
    case.fill(memory, pages)
    size, spent = observer.stat().st_size, observer.data_bytes()

    def close_in_child() -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            memory.close()
        return True

    ended = run_in_child(close_in_child, _CHILD_SECONDS)
    expect(not ended.error, f"a forked child that closes its copy of the memory: {ended.error}")
    expect(observer.stat().st_size == size, "a child that closed its copy changed the size of the parent's file")
    expect(case.filled(memory, pages), "a child that closed its copy changed the parent's pages")
    now = observer.data_bytes()
    expect(now == spent, f"a child that closed its copy changed what the file costs from {spent} to {now} bytes")
    memory.decref(pages)
    case.give_back(memory)
    left = observer.data_bytes()
    expect(left == 0, f"after a child closed its copy the parent cannot give its pages back: {left} bytes are left")
