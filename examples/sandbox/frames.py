"""Guest-physical memory: 4 KiB frames out of chunks of a memory, and the pages of files that all sandboxes share.

A frame's guest-physical address is :data:`PHYSICAL` plus its offset in the backing file, whatever the backend's page.
So on hugetlb the frames of a guest are packed into whole huge pages, and nothing else has to know.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from memplat import FileRange, Memory
from memplat.platforms import Space
from memplat.ranges import MIB, Address, align_up

FRAME = 4096
#: Above what a processor wants for itself below 4 GiB.
PHYSICAL = 1 << 32
_CHUNK = 2 * MIB


def physical(offset: int) -> int:
    """The guest-physical address of an offset of the backing file."""
    return PHYSICAL + offset


class Frames:
    """The frames of one sandbox, all of one kind; its owner pays for them."""

    def __init__(self, memory: Memory, space: Space, owner: int, kind: str) -> None:
        self._memory, self._space, self._owner, self._kind = memory, space, owner, kind
        self._size = max(_CHUNK, memory.page_size)
        self._free: dict[int, list[int]] = {}  # by chunk
        self._dirty: set[int] = set()  # free frames that are not known to be zero

    def take(self) -> int:
        """The offset of a frame of zeros.

        :raises memplat.OutOfMemory: if the host or the owner's limit does not allow another chunk
        """
        for free in self._free.values():
            if free:
                return self._zeroed(free.pop())
        pages = self._memory.allocate(self._size, kind=self._kind, owner=self._owner)
        try:
            self._memory.map_into(self._space, physical(pages.start), pages, "read_write_execute")
        finally:
            self._memory.decref(pages)  # the mapping has the only reference
        # From the top, so that pop() takes the lowest.
        self._free[pages.start] = list(range(pages.end - FRAME, pages.start, -FRAME))
        return pages.start

    def _zeroed(self, offset: int) -> int:
        if offset in self._dirty:
            self._dirty.discard(offset)
            self._memory.write(FileRange(offset, offset + FRAME), bytes(FRAME))
        return offset

    def give_back(self, offset: int) -> None:
        """A frame that nobody uses any more. Its storage goes back to the host at once; so does a chunk, as a whole."""
        chunk = offset - offset % self._size  # allocations of 2 MiB and more are aligned to 2 MiB
        free = self._free[chunk]
        free.append(offset)
        if len(free) == self._size // FRAME:
            del self._free[chunk]
            self._dirty.difference_update(free)
            self._space.unmap(Address(physical(chunk)), self._size)
        elif self._memory.page_size == FRAME:
            self._memory.decommit(FileRange(offset, offset + FRAME))
        else:
            self._dirty.add(offset)

    def adopt(self, pages: FileRange) -> None:
        """Pages of a file that nobody else refers to: the owner pays for them from now on."""
        self._memory.transfer(pages, self._owner)

    def empty(self, offset: int) -> None:
        """Make a frame zero, and give its storage back: madvise(2), MADV_DONTNEED."""
        if self._memory.page_size == FRAME:
            self._memory.decommit(FileRange(offset, offset + FRAME))
        else:
            self._memory.write(FileRange(offset, offset + FRAME), bytes(FRAME))

    def close(self) -> None:
        """Give everything back."""
        for chunk in list(self._free):
            self._space.unmap(Address(physical(chunk)), self._size)
        self._free.clear()


class CachedFile:
    """A file's content as pages of kind ``page_cache``; nobody in particular pays for what all use."""

    def __init__(self, memory: Memory, path: str) -> None:
        with open(path, "rb") as file:
            self.stat = os.fstat(file.fileno())
            self.size = self.stat.st_size
            self.pages: FileRange | None = None
            if self.size:
                length = memory.round_up(align_up(self.size, FRAME))
                self.pages = memory.allocate(length, kind="page_cache", mode="reserved", fill=file)
        self.path = path
        self._memory = memory
        self._closed = False

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        end = min(offset + length, self.size)
        if self.pages is None or offset >= end:
            return b""
        return self._memory.read(FileRange(self.pages.start + offset, self.pages.start + end))

    def close(self) -> None:
        """Drop the cache's own reference; sandboxes that map the pages keep theirs."""
        if self.pages is not None and not self._closed:
            self._closed = True
            self._memory.decref(self.pages)


class PageCache:
    """Files by path, loaded once for all sandboxes of a memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._files: dict[str, CachedFile] = {}
        self._lock = threading.Lock()

    def open(self, path: str) -> CachedFile:
        """The file at *path*, which was resolved and allowed before."""
        with self._lock:
            if path not in self._files:
                self._files[path] = CachedFile(self._memory, path)
            return self._files[path]

    def close(self) -> None:
        """Forget all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


@contextmanager
def page_cache(memory: Memory) -> Iterator[PageCache]:
    """A page cache that is emptied in the end."""
    cache = PageCache(memory)
    try:
        yield cache
    finally:
        cache.close()
