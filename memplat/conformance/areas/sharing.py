"""Sharing between processes: who has the descriptor sees the same pages, now and later."""

from __future__ import annotations

import os
from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.types import Capability

_PAGES: Final = 300


@check("SHARE-01", rule="12.1", needs=Capability.SHARE, after="VIEW-01 VIEW-02")
def another_process_sees_the_pages_and_writes_to_them(case: Case) -> None:
    """The capability ``share`` says that the descriptor can be passed on and mapped, for reading and writing."""
    memory = case.open()
    page = memory.page_size
    pages = case.allocate(memory, case.pages(memory, _PAGES, 2))
    first, last = pages.part(0, page), pages.part(pages.length - page, page)
    theirs = case.share(memory)
    for one in (first, last):
        case.fill(memory, one)
        with memory.view(one) as view:
            mine = bytes(view[:32])
            try:
                seen = theirs.peek(one.start, page)
                theirs.poke(one.start, page, "from another process ")
            except OSError as error:
                case.fail(f"another process cannot map the file: {error}")
            got = bytes(view[:12])
        expect(seen == mine, f"{one} begins with {mine!r}, another process sees {seen!r}")
        expect(got == b"from another", f"another process wrote b'from another' to {one}, the view shows {got!r}")
    theirs.drop()


@check("SHARE-02", rule="12.2", needs=Capability.SHARE, after="SHARE-01 GROW-01 VIEW-02 VIEW-04")
def a_descriptor_that_was_passed_on_stays_good_when_the_file_grows(case: Case) -> None:
    """memplat_grow must not replace the file: whoever has the descriptor would be cut off."""
    memory = case.open()
    theirs = case.share(memory)
    first = case.allocate(memory, 1)
    later = case.allocate(memory, memory.total_size() // memory.page_size + 1)
    page = memory.page_size
    last = later.part(later.length - page, page)
    for pages in (first, last):
        case.fill(memory, pages)
        try:
            seen = theirs.peek(pages.start, pages.length)
        except (OSError, ValueError) as error:
            case.fail(f"a process that got the descriptor before the file grew cannot map {pages}: {error}")
        wanted = memory.read(pages)[:32]
        expect(seen == wanted, f"a process that got the descriptor before the file grew sees {seen!r}, not {wanted!r}")
    theirs.drop()


@check("SHARE-03", rule="12.3", after="LIFE-04")
def the_offset_of_the_descriptor_is_left_alone(case: Case) -> None:
    """Descriptors that were passed on or dup'ed share one offset: a probe that seeks has to use a descriptor of its own
    (/proc/self/fd), or to put the offset back.
    """
    memory = case.open()
    observer = case.observer(memory)
    page = memory.page_size
    pages = case.allocate(memory, case.pages(memory, 8, 4))
    case.fill(memory, pages.part(2 * page, page))
    os.lseek(observer.fd, page, os.SEEK_SET)
    memory.update_usage()
    memory.fileno()
    memory.update_usage()
    memory.decommit(pages.part(2 * page, page), release=True)
    memory.decref(pages)
    case.reclaim(memory)
    now = os.lseek(observer.fd, 0, os.SEEK_CUR)
    expect(now == page, f"the offset of the shared descriptor was {page}, and is {now} after probing and decommitting")
