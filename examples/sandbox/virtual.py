"""The guest's virtual memory: areas that were mapped, and pages that exist once they are touched."""

from __future__ import annotations

import bisect
import signal
from collections.abc import Iterator

import attrs

from examples.sandbox.frames import FRAME, CachedFile, Frames, physical
from memplat import FileRange, Memory
from memplat.platforms import Space
from memplat.ranges import Address, align_down, align_up

READ, WRITE, EXECUTE = 1, 2, 4
TOP = 0x7FFF_FFFF_F000
_LONGEST_STRING = 4096
_MMAP_TOP = 0x7FFF_0000_0000


class GuestKilled(Exception):  # noqa: N818 -- a signal, not a mistake of ours
    """The guest is ended by a signal."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {why}")
        self.number = number


class BadAddressError(Exception):
    """A system call got an address that the guest has not mapped: EFAULT."""


@attrs.define
class Area:
    """A part of the address space with one meaning, like a line of /proc/PID/maps."""

    start: int
    end: int
    access: int
    file: CachedFile | None = None
    offset: int = 0
    """Of *start*, in the file."""
    shared: bool = False

    def tail(self, at: int) -> Area:
        """Cut the area at an address; returns what is behind it."""
        rest = attrs.evolve(self, start=at, offset=self.offset + at - self.start)
        self.end = at
        return rest


@attrs.define
class Page:
    """A page that exists: a frame, or a page of the page cache until it is written to."""

    offset: int
    """In the backing file of the memory."""
    own: bool
    writable: bool


class VirtualMemory:
    """Areas and pages of one guest. The processor asks :meth:`resolve` for what it does not know, and is told through
    *forget* what it must not believe any longer.
    """

    def __init__(self, memory: Memory, space: Space, frames: Frames) -> None:
        self._memory, self._space, self.frames = memory, space, frames
        self._areas: list[Area] = []
        self._pages: dict[int, Page] = {}
        self._mapped_files: dict[int, CachedFile] = {}
        self.changed: list[int] = []  # addresses of pages that the processor may know wrongly
        self.faults = self.copies = self.shared = self.taken_over = 0

    # -- areas --------------------------------------------------------------------------------------------------------

    def map(self, start: int, length: int, access: int, file: CachedFile | None = None, offset: int = 0) -> None:
        """Map an area, over whatever was there. Nothing is touched yet.

        :raises BadAddressError: if it would not lie within the guest's half of the address space
        """
        end = start + align_up(length, FRAME)
        if not FRAME <= start < end <= TOP:
            raise BadAddressError(f"[{start:#x}, {end:#x}) cannot be mapped")
        self.unmap(start, end - start)
        bisect.insort(self._areas, Area(start, end, access, file, offset), key=lambda area: area.start)
        if file is not None:
            self._share(file)

    def _share(self, file: CachedFile) -> None:
        """The guest's machine gets the pages of the file, by reference."""
        if file.pages is not None and file.pages.start not in self._mapped_files:
            self._mapped_files[file.pages.start] = file
            # Also for writing: a page that nobody else refers to is written in place. Until then nobody may.
            self._memory.map_into(self._space, physical(file.pages.start), file.pages, "read_write_execute")

    def find_room(self, length: int) -> int:
        """The highest gap below the stack that is long enough."""
        end = _MMAP_TOP
        for area in reversed(self._areas):
            if area.end <= end and end - area.end >= length:
                return end - length
            end = min(end, area.start)
        return end - length

    def is_free(self, start: int, end: int) -> bool:
        """Whether nothing is mapped there."""
        return not list(self._within(start, end))

    def unmap(self, start: int, length: int) -> None:
        """Unmap, and give the pages back."""
        end = start + align_up(length, FRAME)
        self._cut(start, end)
        self._areas = [area for area in self._areas if not start <= area.start < end]
        self.discard(start, end)

    def protect(self, start: int, length: int, access: int) -> bool:
        """Change access; False if part of it is not mapped."""
        end = start + align_up(length, FRAME)
        self._cut(start, end)
        found = list(self._within(start, end))
        if sum(area.end - area.start for area in found) != end - start:
            return False
        for area in found:
            area.access = access
        for address in self._existing(start, end):
            self.changed.append(address)
        return True

    def discard(self, start: int, end: int) -> None:
        """Let pages be as if they had never been touched."""
        for address in self._existing(start, end):
            page = self._pages.pop(address)
            self.changed.append(address)
            if page.own:
                self.frames.give_back(page.offset)

    def dont_need(self, start: int, length: int) -> None:
        """madvise(2), MADV_DONTNEED: frames stay, their storage goes back to the host; copies of file pages go."""
        for address in self._existing(start, start + length):
            page = self._pages[address]
            area = self.area_at(address)
            if page.own and area is not None and area.file is None:
                self.frames.empty(page.offset)
            else:
                self.discard(address, address + FRAME)

    def area_at(self, address: int) -> Area | None:
        """The area that an address is in."""
        index = bisect.bisect_right(self._areas, address, key=lambda area: area.start) - 1
        if index >= 0 and address < self._areas[index].end:
            return self._areas[index]
        return None

    def _within(self, start: int, end: int) -> Iterator[Area]:
        return (area for area in self._areas if area.start < end and area.end > start)

    def _cut(self, *edges: int) -> None:
        for edge in edges:
            area = self.area_at(edge)
            if area is not None and area.start < edge:
                bisect.insort(self._areas, area.tail(edge), key=lambda area: area.start)

    def _existing(self, start: int, end: int) -> list[int]:
        if (end - start) // FRAME <= len(self._pages):
            return [address for address in range(start, end, FRAME) if address in self._pages]
        return sorted(address for address in self._pages if start <= address < end)

    # -- pages --------------------------------------------------------------------------------------------------------

    def resolve(self, address: int, wanted: int) -> tuple[int, int]:
        """The physical address of the page around *address*, and what may be done with it now.

        :raises GuestKilled: SIGSEGV, if the guest may not do that there
        """
        area = self.area_at(address)
        if area is None or not area.access & wanted:
            how = {READ: "load", WRITE: "store", EXECUTE: "fetch"}[wanted]
            raise GuestKilled(signal.SIGSEGV, f"a {how} at {address:#x}")
        at = align_down(address, FRAME)
        page = self._pages.get(at)
        if page is None:
            page = self._pages[at] = self._touch(area, at, wanted)
        elif wanted == WRITE and not page.writable:
            self._copy_on_write(page, at)
        return physical(page.offset), area.access if page.writable else area.access & ~WRITE

    def _touch(self, area: Area, at: int, wanted: int) -> Page:
        self.faults += 1
        offset = area.offset + at - area.start
        if area.file is None or area.file.pages is None or offset >= area.file.size:
            return Page(self.frames.take(), own=True, writable=True)
        page = Page(area.file.pages.start + offset, own=False, writable=False)
        self.shared += 1
        if wanted == WRITE:
            self._copy_on_write(page, at)
        return page

    def _copy_on_write(self, page: Page, at: int) -> None:
        """The guest gets a frame of its own, unless it is the only one left that uses this page."""
        whole = FileRange(page.offset, page.offset + FRAME)
        if self._memory.page_size == FRAME and self._memory.has_unique_ref(whole):
            page.writable = True
            self.frames.adopt(whole)
            self.taken_over += 1
        else:
            frame = self.frames.take()
            self._memory.write(FileRange(frame, frame + FRAME), self._memory.read(whole))
            page.offset, page.own, page.writable = frame, True, True
            self.copies += 1
        self.changed.append(at)

    # -- what system calls see ----------------------------------------------------------------------------------------

    def _parts(self, address: int, length: int, wanted: int) -> Iterator[tuple[int, int]]:
        """Offsets in the backing file and lengths, page by page."""
        while length > 0:
            inside = address % FRAME
            step = min(length, FRAME - inside)
            try:
                found, _ = self.resolve(address, wanted)
            except GuestKilled as error:
                raise BadAddressError(str(error)) from error
            yield found - physical(0) + inside, step
            address, length = address + step, length - step

    def read(self, address: int, length: int) -> bytes:
        """Bytes of the guest.

        :raises BadAddressError: if it has not mapped them
        """
        return b"".join(self._memory.read(FileRange(at, at + n)) for at, n in self._runs(address, length, READ))

    def write(self, address: int, data: bytes) -> None:
        """Store for the guest."""
        done = 0
        for at, length in self._runs(address, len(data), WRITE):
            self._memory.write(FileRange(at, at + length), data[done : done + length])
            done += length

    def _runs(self, address: int, length: int, wanted: int) -> Iterator[tuple[int, int]]:
        """As :meth:`_parts`, what is in one piece as one."""
        start = size = 0
        for at, step in self._parts(address, length, wanted):
            if size and at == start + size:
                size += step
            else:
                if size:
                    yield start, size
                start, size = at, step
        if size:
            yield start, size

    def read_string(self, address: int) -> bytes:
        """Up to the zero byte."""
        text = b""
        while b"\0" not in text:
            if len(text) > _LONGEST_STRING:
                raise BadAddressError("a string without an end")
            text += self.read(address + len(text), FRAME - (address + len(text)) % FRAME)
        return text.partition(b"\0")[0]

    def close(self) -> None:
        """Give everything back."""
        self._pages.clear()
        self._areas.clear()
        self.frames.close()
        for file_start, file in self._mapped_files.items():
            length = align_up(max(file.size, 1), self._memory.page_size)
            self._space.unmap(Address(physical(file_start)), length)
        self._mapped_files.clear()


__all__ = ["EXECUTE", "READ", "TOP", "WRITE", "BadAddressError", "GuestKilled", "VirtualMemory"]
