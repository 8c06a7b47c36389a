"""Allocation: what a page is, and what the modes promise."""

from __future__ import annotations

import re
from typing import Final

from memplat.conformance.case import Case
from memplat.conformance.observer import BASE_PAGE, smaps
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.memory import Memory
from memplat.ranges import HUGE_PAGE_SIZE, FileRange
from memplat.types import AllocationMode, Capability

#: Those fields of smaps that count memory that is mapped by huge pages.
_HUGE_FIELDS: Final = ("ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb")


@check("ALLOC-01", rule="2.1", smoke=True, after="LIFE-03 LIFE-04 VIEW-01 DECOM-01 DECOM-02")
def the_page_size_is_what_the_host_gives_and_takes_back(case: Case) -> None:
    """BackingFile.page_size has to be the unit in which the host commits and decommits: the page of the processor on
    shmem, the huge page on hugetlbfs, the block of a file system whose blocks are larger than a page.
    """
    memory = case.open()
    size = memory.page_size
    expect(size >= BASE_PAGE and size & (size - 1) == 0, f"{size} is no power of two from {BASE_PAGE} on")
    observer = case.observer(memory)
    first, second = (case.allocate(memory, 1) for _ in range(2))
    for pages in (first, second):
        case.fill(memory, pages)
    before = observer.data_bytes()
    expect(before >= 2 * size, f"two pages of {size} bytes that were written cost only {before} bytes")
    memory.decommit(first, release=True)
    given = before - observer.data_bytes()
    expect(given == size, f"the host took {given} bytes back for a page that is said to have {size}")
    expect(case.filled(memory, second), "decommitting a page changed the page behind it: the page size is too small")


@check("ALLOC-02", rule="2.2", after="LIFE-03 GROW-02")
def an_uncommitted_page_costs_nothing_until_it_is_touched(case: Case) -> None:
    """memplat_mapped must not populate what it advises, and memplat_grow must not allocate what it adds."""
    memory = case.open()
    pages = case.allocate(memory, case.pages(memory, 8, 2))
    spent = case.observer(memory).data_bytes()
    expect(spent == 0, f"{pages.length} bytes of uncommitted pages cost {spent} bytes before they were touched")
    memory.read(pages)
    spent = case.observer(memory).data_bytes()
    expect(spent == 0, f"reading uncommitted pages by system call committed {spent} bytes")


@check("ALLOC-03", rule="2.3", after="VIEW-01 DECOM-02 DECOM-07")
def a_committed_page_is_there_and_stays_there(case: Case) -> None:
    """Pages of mode COMMITTED are in the file when allocate returns. What was given back before must not be taken away
    again later: memplat_decommit is done when it returns.
    """
    memory = case.open()
    observer = case.observer(memory)
    count = case.pages(memory, 8, 2)
    pages = case.allocate(memory, count)
    case.fill(memory, pages)
    memory.decref(pages)
    case.reclaim(memory)
    again = case.allocate(memory, count, mode=AllocationMode.COMMITTED)
    spent = observer.data_bytes()
    expect(spent >= again.length, f"{again.length} bytes of committed pages cost only {spent} bytes")
    case.fill(memory, again, 1)
    memory.update_usage()
    other = case.allocate(memory, 1)
    memory.decref(other)
    case.reclaim(memory)
    expect(case.filled(memory, again, 1), "committed pages lost their content, though nobody freed or decommitted them")


@check("ALLOC-04", rule="2.4", needs=Capability.HUGE_PAGES, after="ALLOC-03")
def huge_pages_are_huge(case: Case) -> None:
    """The capability ``huge_pages`` says that the host really uses pages larger than the processor's base page, as
    /proc/self/smaps shows. Do not declare it where that depends on the options or on luck.
    """
    memory = case.open()
    length = max(HUGE_PAGE_SIZE, memory.page_size)
    case.pages(memory, length // memory.page_size)
    pages = memory.allocate(length, mode=AllocationMode.COMMITTED, huge=True)
    case.fill(memory, pages)
    line = _mapping_around(case, memory, pages)
    fields = smaps(line)
    unit = _kib(fields.get("KernelPageSize", "0 kB"))
    huge = max(
        _kib(fields.get(name, "0 kB"))
        for name in ("ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb")
    )
    expect(
        unit > BASE_PAGE or huge > 0,
        f"{length} bytes of committed memory consist of pages of {unit} bytes, and none is mapped as a huge page",
    )


def _mapping_around(case: Case, memory: Memory, pages: FileRange) -> int:
    for line in case.observer(memory).mappings():
        if line.offset <= pages.start < line.offset + line.end - line.start:
            return line.start
    return case.fail(f"{pages} is not mapped in this process")


def _kib(text: str) -> int:
    match = re.fullmatch(r"(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0
