"""The guest-physical memory of a virtual machine of /dev/kvm: each mapping is a memory slot."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from memplat.errors import AddressSpaceError, HostError, InvalidArgumentError, TooManyMappingsError
from memplat.linux import kvm, system
from memplat.memory import MappableFile
from memplat.platforms.space import Mapped, PiecewiseSpace
from memplat.ranges import Address, FileRange
from memplat.wording import shown

_LEAST_BITS: Final = 36


class KvmSpace(PiecewiseSpace):
    """The memory of a virtual machine, which it makes; :attr:`vm` is its descriptor.

    A mapping that is not writable is a read-only slot: a store of the guest ends its run as if it were to a device. KVM
    knows no "not executable": that is for the guest's own page tables.

    :param dirty_log: note which pages the guest writes to, for :meth:`dirty`
    :param max_slots: allow so many mappings at most; by default as many as the kernel has slots
    """

    def __init__(self, *, write_execute: bool = False, dirty_log: bool = False, max_slots: int | None = None) -> None:
        super().__init__(write_execute=write_execute)
        if max_slots is not None and type(max_slots) is not int:
            raise InvalidArgumentError(f"max_slots {shown(max_slots)} is no integer")
        try:
            self.vm = kvm.create_vm()
        except OSError as error:
            raise HostError(error.errno, f"no virtual machine can be made here: {error}") from error
        self.last = Address((1 << _physical_bits()) - 1)
        limit = kvm.check_extension(self.vm, kvm.CAP_NR_MEMSLOTS)
        if max_slots is not None and not 0 < max_slots <= limit:
            os.close(self.vm)
            raise InvalidArgumentError(f"max_slots {shown(max_slots)} is not possible; allowed are 1 to {limit}")
        self.max_slots = max_slots or limit
        self._dirty_log = dirty_log
        self._slots: dict[Address, int] = {}
        self._free: list[int] = []
        self._written: list[tuple[MappableFile, FileRange]] = []

    def dirty(self) -> list[tuple[MappableFile, FileRange]]:
        """The pages that the guest has written to since the last call, sorted, by file. What the host writes is not
        among them. Without ``dirty_log`` there are none.
        """
        with self._lock:
            self._check_open()
            for piece in self._mapped:
                self._collect(piece)
            written, self._written = self._written, []
        return list(_merged(written))

    def _put(self, piece: Mapped) -> None:
        if len(self._slots) >= self.max_slots:
            raise TooManyMappingsError(f"all {self.max_slots} memory slots of the virtual machine are in use")
        slot = heapq.heappop(self._free) if self._free else len(self._slots)
        flags = kvm.MEM_READONLY if not piece.access.writable else kvm.MEM_LOG_DIRTY_PAGES * self._dirty_log
        try:
            kvm.set_memory_region(self.vm, slot, piece.start, piece.length, piece.host_address, flags)
        except OSError as error:
            heapq.heappush(self._free, slot)
            raise AddressSpaceError(f"KVM cannot map [{piece.start:#x}, {piece.end:#x}): {error}") from error
        self._slots[piece.start] = slot

    def _take(self, piece: Mapped) -> None:
        self._collect(piece)
        slot = self._slots[piece.start]
        try:
            kvm.set_memory_region(self.vm, slot, piece.start, 0, 0, 0)
        except OSError as error:
            raise AddressSpaceError(f"KVM cannot unmap [{piece.start:#x}, {piece.end:#x}): {error}") from error
        del self._slots[piece.start]
        heapq.heappush(self._free, slot)

    def _collect(self, piece: Mapped) -> None:
        """Read the log of a slot, which goes with it."""
        if not self._dirty_log or not piece.access.writable:
            return
        page = system.PAGE_SIZE
        bits = int.from_bytes(kvm.get_dirty_log(self.vm, self._slots[piece.start], piece.length // page), "little")
        while bits:
            first = (bits & -bits).bit_length() - 1
            bits >>= first
            count = (~bits & (bits + 1)).bit_length() - 1
            bits >>= count
            bits <<= first + count
            start = piece.offset + first * page
            self._written.append((piece.file, FileRange(start, start + count * page)))

    def _take_down(self) -> None:
        os.close(self.vm)


def _physical_bits() -> int:
    """How wide guest-physical addresses may be. proc_cpuinfo(5), "address sizes"."""
    with contextlib.suppress(OSError):
        found = re.search(
            r"address sizes\s*:\s*(\d+) bits physical", Path("/proc/cpuinfo").read_text("ascii", "replace")
        )
        if found is not None:
            return int(found[1])
    return _LEAST_BITS


def _merged(written: list[tuple[MappableFile, FileRange]]) -> Iterator[tuple[MappableFile, FileRange]]:
    files = {id(file): file for file, _ in written}
    for number, file in files.items():
        start = end = -1
        for part in sorted(pages for other, pages in written if id(other) == number):
            if part.start > end:
                if end > start:
                    yield file, FileRange(start, end)
                start = part.start
            end = max(end, part.end)
        yield file, FileRange(start, end)


__all__ = ["KvmSpace"]
