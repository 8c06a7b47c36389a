"""A reference that an object owns."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, SupportsIndex

from memplat.errors import ClosedError, MemplatError
from memplat.ranges import FileRange

if TYPE_CHECKING:
    from memplat.engine.memoryfile import MemoryFile


class MemoryBlock:
    """One reference to a range, bound to its memory; see :class:`memplat.memory.Block`."""

    __slots__ = ("__weakref__", "_memory", "_once", "_pages")

    def __init__(self, memory: MemoryFile, pages: FileRange) -> None:
        self._memory = memory
        self._pages = pages
        self._once = threading.Lock()  # taken by whoever drops the reference

    @property
    def pages(self) -> FileRange:
        """The range.

        :raises ClosedError: the block was closed
        """
        if self._once.locked():
            raise ClosedError(f"the block of {self._pages} is closed; its pages may be somebody else's by now")
        return self._pages

    @property
    def memory(self) -> MemoryFile:
        """The memory that the range belongs to."""
        return self._memory

    @property
    def view(self) -> memoryview:
        """A writable, pinned view of the whole range; a new one each time."""
        return self._memory.view(self.pages)

    @property
    def address(self) -> int:
        """The host address of the range."""
        return self._memory.address(self.pages)

    def close(self) -> None:
        """Drop the reference; idempotent. After the memory was closed there is nothing left to drop."""
        if self._once.acquire(blocking=False):
            try:
                self._memory.decref(self._pages)
            except ClosedError:
                pass
            except MemplatError:
                self._once.release()
                raise

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Dropped without close: the reference goes with the block. At the interpreter's end everything goes, and a
        # daemon thread that will never go on may have the lock.
        if not is_finalizing() and self._once.acquire(blocking=False):
            with contextlib.suppress(MemplatError):
                self._memory.decref(self._pages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Also what :func:`copy.copy` calls: two blocks would drop the one reference."""
        raise TypeError(
            "a block is one reference and cannot be copied or pickled: take another with memory.incref(block), or send "
            "memory.share(block) to another process"
        )

    def __repr__(self) -> str:
        return f"<block {self._pages} {'closed' if self._once.locked() else 'open'}>"
