"""The public edge: ranges and blocks as callers pass them, checked against the file as it is now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memplat.engine.arguments import is_int, refuse_range
from memplat.engine.blocks import MemoryBlock
from memplat.engine.pages import PageTable
from memplat.engine.refusals import reentrant
from memplat.engine.state import EngineState
from memplat.errors import ForeignBlockError
from memplat.ranges import FileRange


class Edge:
    """What the methods of a memory need to make sure of before they do anything."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self.page_size = state.file.page_size
        self._page_mask = self.page_size - 1

    def _pages(self, pages: Any) -> FileRange:
        """A page-aligned range within the file. To be called with the lock held."""
        if type(pages) is not FileRange or len(pages) != 2:
            pages = self._range_of(pages)
        start, end = pages
        size = self._state.table.size
        if type(start) is not int or type(end) is not int or (start | end) & self._page_mask:
            refuse_range(pages, size, self.page_size)
        if not 0 <= start < end <= size:
            refuse_range(pages, size, self.page_size)
        return pages  # type: ignore[no-any-return]  # it is a FileRange by now

    def _bytes(self, range_: Any) -> FileRange:
        """Any byte range within the file. To be called with the lock held."""
        if type(range_) is not FileRange or len(range_) != 2:
            range_ = self._range_of(range_)
        start, end = range_
        size = self._state.table.size
        if type(start) is not int or type(end) is not int:
            if not is_int(start) or not is_int(end):
                refuse_range(range_, size, 1)
            # Of a subclass: its own arithmetic might come to an address that is not ours.
            range_ = start, end = FileRange(int.__index__(start), int.__index__(end))
        if not 0 <= start < end <= size:
            refuse_range(range_, size, 1)
        return range_  # type: ignore[no-any-return]  # as in _pages

    def _around(self, start: int, end: int) -> tuple[int, int]:
        """The pages around a byte range."""
        mask = self._page_mask
        return start & ~mask, (end + mask) & ~mask

    def _range_of(self, pages: Any) -> FileRange:
        if isinstance(pages, MemoryBlock):
            if pages.memory is not self:
                raise ForeignBlockError(f"{pages!r} belongs to another memory, {pages.memory!r}; use its own methods")
            return pages.pages
        if not isinstance(pages, FileRange) or tuple.__len__(pages) != 2:
            refuse_range(pages, self._state.table.size, self.page_size)
        return FileRange._make(
            tuple.__iter__(pages)
        )  # not of a subclass, which might say something else when asked again

    @contextlib.contextmanager
    def _exposing(self) -> Iterator[PageTable]:
        """The lock, to give away what the pages can be written to and removed with: the first time not while pages are
        given back in a way that takes for granted that nobody else can remove any.
        """
        state = self._state
        if state.is_interrupted():
            raise reentrant()
        with state.gate if state.file.is_private else contextlib.nullcontext(), state.locked() as table:
            yield table
            state.exposed = state.peers = True
            state.file.is_private = False

    @contextlib.contextmanager
    def _held(self, range_: Any, what: str, *, page_aligned: bool) -> Iterator[FileRange]:
        """A call that lets go of the lock while it works on *range_*: nobody gets these pages meanwhile."""
        state = self._state
        if state.is_interrupted():
            raise reentrant()
        with state.lock:
            state.check_locked()
            held = self._pages(range_) if page_aligned else self._bytes(range_)
            first, last = self._around(*held)
            state.table.pin(first, last, what)
            state.enter_locked()
        try:
            yield held
        finally:
            with state.lock:
                state.table.unpin(first, last)
                if state.table.waste:
                    state.wake()
            state.leave()
