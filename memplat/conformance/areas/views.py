"""Views and mapping: one contiguous window on the file, the same for everybody."""

from __future__ import annotations

import mmap

from memplat.conformance.case import Case
from memplat.conformance.observer import Observer
from memplat.conformance.registry import check
from memplat.conformance.verdict import expect
from memplat.types import Capability


@check("VIEW-01", rule="4.1", smoke=True, after="LIFE-04")
def a_view_and_the_file_show_the_same(case: Case) -> None:
    """memplat_mapped must leave the engine's mapping shared and of this very file: no MAP_PRIVATE, no other mapping on
    top of it.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, 2)
    with memory.view(pages) as view:
        view[-5:] = b"first"
        got = observer.read(pages.end - 5, 5)
        expect(got == b"first", f"wrote b'first' through a view, pread sees {got!r}")
        observer.write(pages.start, b"second")
        got = bytes(view[:6])
        expect(got == b"second", f"pwrite wrote b'second', the view shows {got!r}")


@check("VIEW-02", rule="4.2", after="VIEW-01")
def offset_n_stands_at_base_plus_n_after_every_growth(case: Case) -> None:
    """memplat_mapped must not move or re-map parts of the mapping, whichever growth they come from."""
    memory = case.open()
    observer = case.observer(memory)
    case.allocate(memory, 1)
    _check_layout(observer)
    first_size = memory.total_size()
    case.allocate(memory, first_size // memory.page_size + 1)
    _check_layout(observer)
    at = case.allocate(memory, 1, direction="down")
    case.fill(memory, at)
    expect(case.filled(memory, at), f"what was written to {at} through a view is elsewhere in the file")


def _check_layout(observer: Observer) -> None:
    lines = observer.mappings()
    expect(bool(lines), "the file is not mapped, though pages were allocated from it")
    base = lines[0].start - lines[0].offset
    for line in lines:
        at = line.start - base
        expect(at == line.offset, f"offset {line.offset:#x} of the file is mapped where {at:#x} should be")
        expect(line.permissions[3] == "s", f"offset {line.offset:#x} is mapped {line.permissions}: not shared")


@check("VIEW-03", rule="4.3", after="VIEW-01")
def read_and_write_go_where_they_say(case: Case) -> None:
    """The descriptor must not be in append mode: pwrite(2) would ignore its offset. Not every file knows write(2): then
    it has to say EINVAL or EOPNOTSUPP.
    """
    memory = case.open()
    observer = case.observer(memory)
    pages = case.allocate(memory, 4)
    case.fill(memory, pages)
    size = observer.stat().st_size
    middle = pages.part(memory.page_size + 100, memory.page_size)
    memory.write(middle, b"between")
    got = observer.read(middle.start, 7)
    expect(got == b"between", f"memory.write wrote b'between' at {middle.start}, pread sees {got!r}")
    expect(memory.read(middle)[:7] == b"between", "memory.read does not see what memory.write wrote")
    now = observer.stat().st_size
    expect(now == size, f"memory.write changed the size of the file from {size} to {now}")


@check("VIEW-04", rule="4.4", after="VIEW-01 GROW-01")
def a_view_from_before_the_file_grew_shows_the_same_pages(case: Case) -> None:
    """memplat_grow must keep the inode, and memplat_mapped the parts that were mapped before: there are views of
    them.
    """
    memory = case.open()
    pages = case.allocate(memory, 2)
    with memory.view(pages) as view:
        view[:3] = b"one"
        case.allocate(memory, memory.total_size() // memory.page_size + 1)
        got = case.observer(memory).read(pages.start, 3)
        expect(got == b"one", f"the file lost what a view from before it grew had written: {got!r}")
        view[:3] = b"two"
        got = case.observer(memory).read(pages.start, 3)
        expect(got == b"two", f"wrote b'two' through a view from before the file grew, pread sees {got!r}")


@check("VIEW-05", rule="4.5", needs=Capability.EXECUTE, after="VIEW-01")
def the_file_can_be_mapped_executable(case: Case) -> None:
    """The capability ``execute`` says that the pages can hold code. Files on a file system that is mounted noexec
    cannot.
    """
    memory = case.open()
    pages = case.allocate(memory, 1)
    case.fill(memory, pages)
    with case.observer(memory).opened() as own:
        try:
            window = mmap.mmap(
                own, pages.length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_EXEC, offset=pages.start
            )
        except OSError as error:
            case.fail(f"execute is declared, but mmap(PROT_EXEC) of the file says {error}")
        got = window[:16]
        window.close()
    expect(got == case.observer(memory).read(pages.start, 16), "an executable mapping does not show the file")
