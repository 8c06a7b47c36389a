"""Backends whose probes and figures are broken."""

from __future__ import annotations

import os
import struct
import time
from array import array
from collections.abc import Sequence
from typing import Any

from memplat.hookspecs import hookimpl
from memplat.types import BackingFile, Storage
from tests.meta.specimens.base import PAGE, Specimen, data_of, flat, held_of, seek


class Probing(Specimen):
    """Its probe is what is broken. The engine asks memplat_probe_reserved about whatever the probe left out, so this
    one answers for pages that were really reserved, and for no other.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.reserved: dict[int, list[tuple[int, int]]] = {}

    @hookimpl(wrapper=True)
    def memplat_reserve(self, file: BackingFile, ranges: list[Any]) -> Any:
        result = yield
        self.reserved.setdefault(file.fd, []).extend((one.start, one.end) for one in ranges)
        return result

    @hookimpl
    def memplat_probe_reserved(self, file: BackingFile, ranges: list[Any]) -> Sequence[int]:
        asked = [
            (max(low, one.start), min(high, one.end)) for low, high in self.reserved.get(file.fd, []) for one in ranges
        ]
        held = [held_of(file.fd, low, high) for low, high in asked if low < high]
        return flat([extent for part in held for extent in part])

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        raise NotImplementedError

    @hookimpl
    def memplat_probe_committed(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        if self.broken:
            return self.probe_wrongly(file, start, end)
        return flat(data_of(file.fd, start, end))


class ProbeForgetsTheLastExtent(Probing):
    fails = ("PROBE-01",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return flat(data_of(file.fd, start, end)[:-1])


class ProbeRoundsUp(Probing):
    fails = ("PROBE-02",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        found = data_of(file.fd, start, end)
        return flat([(low, min(end, -(-high // (2 * PAGE)) * 2 * PAGE)) for low, high in found])


class ProbeKnowsOnlyTheWholeFile(Probing):
    """Stale pages are handed on: the engine zeroes what the probe of a part says."""

    fails = ("DECOM-03", "ZERO-03")

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return flat(data_of(file.fd, start, end)) if start == 0 and end >= file.size else array("q")


class ProbeSeesOnlyThisMapping(Probing):
    """/proc/self/pagemap: neither other processes, nor other mappings, nor system calls."""

    fails = ("PROBE-03", "PROBE-04")

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        end = min(end, file.size)
        if file.address is None or start >= end:
            return array("q")
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            raw = os.pread(pagemap.fileno(), (end - start) // PAGE * 8, (file.address + start) // PAGE * 8)
        entries = struct.unpack(f"<{len(raw) // 8}Q", raw)
        present = [start + number * PAGE for number, entry in enumerate(entries) if entry >> 62]
        return flat([(offset, offset + PAGE) for offset in present])


class ProbeLooksAtTheContent(Probing):
    fails = ("PROBE-05",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        offsets = [page for low, high in data_of(file.fd, start, end) for page in range(low, high, PAGE)]
        return flat([(page, page + PAGE) for page in offsets if any(os.pread(file.fd, PAGE, page))])


class ProbeForgetsSwappedPages(Probing):
    """cachestat(2), and only what it says of the cache."""

    fails = ("PROBE-06",)
    requires = "swap"

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return flat(held_of(file.fd, start, end, swapped=False))


class ProbeRemembersForEver(Probing):
    """What was committed once, and not decommitted by ourselves, is taken to be still there."""

    fails = ("PROBE-07",)

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.known: dict[int, set[int]] = {}

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        known = self.known.setdefault(file.fd, set())
        known.update(page for low, high in data_of(file.fd, start, end) for page in range(low, high, PAGE))
        return flat([(page, page + PAGE) for page in known if start <= page < end])

    @hookimpl(wrapper=True)
    def memplat_decommit(self, file: BackingFile, ranges: list[Any]) -> Any:
        known = self.known.setdefault(file.fd, set())
        for one in ranges:
            known.difference_update(range(one.start, one.end, PAGE))
        return (yield)


class ProbeIsUnsorted(Probing):
    fails = ("PROBE-08",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return array("q", [edge for extent in reversed(data_of(file.fd, start, end)) for edge in extent])


class ProbeReturnsPages(Probing):
    """Extents that touch each other."""

    fails = ("PROBE-08",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        offsets = [page for low, high in data_of(file.fd, start, end) for page in range(low, high, PAGE)]
        return array("q", [edge for page in offsets for edge in (page, page + PAGE)])


class ProbeReturnsPairs(Probing):
    fails = ("PROBE-08",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Any:
        return data_of(file.fd, start, end)


class ProbeDoesNotClip(Probing):
    fails = ("PROBE-08",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        found = data_of(file.fd, 0, os.fstat(file.fd).st_size)
        return flat([one for one in found if one[0] < end and one[1] > start])


class ProbeHas32BitOffsets(Probing):
    fails = ("PROBE-09",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return flat([one for one in data_of(file.fd, start, end) if one[1] < 1 << 32])


class ProbeHasASmallBuffer(Probing):
    fails = ("PROBE-10",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return flat(data_of(file.fd, start, end)[:1000])


class ProbeGuessesWhenThereIsMuch(Probing):
    """Small gaps are closed when the list gets long."""

    fails = ("PROBE-10", "ACCT-04")

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        found = data_of(file.fd, start, end)
        if len(found) <= 50:
            return flat(found)
        return flat([(low, min(end, high + PAGE)) for low, high in found])


class ReservedPagesAreForgotten(Specimen):
    fails = ("PROBE-11",)

    @hookimpl
    def memplat_probe_reserved(self, file: BackingFile, ranges: list[Any]) -> Sequence[int]:
        held = [(one.start, one.end) for one in ranges]
        return array("q") if self.broken else flat(held)


class ProbeStopsAtOurEnd(Probing):
    fails = ("PROBE-12",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return flat(data_of(file.fd, start, min(end, file.size)))


class ProbeSeeksTheSharedOffset(Probing):
    fails = ("SHARE-03",)

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return flat(seek(file.fd, start, end))


class ProbesShareABuffer(Probing):
    fails = ("CONC-02",)

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.buffer = array("q")

    def probe_wrongly(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        del self.buffer[:]
        for low, high in data_of(file.fd, start, end):
            self.buffer.append(low)
            time.sleep(0.0002)
            self.buffer.append(high)
        return array("q", self.buffer)


class StorageIsTheSizeOfTheFile(Specimen):
    fails = ("ACCT-01",)

    @hookimpl
    def memplat_storage(self, file: BackingFile) -> Storage:
        status = os.fstat(file.fd)
        return Storage(total=status.st_size if self.broken else status.st_blocks * 512)


class StorageIsANumber(Specimen):
    fails = ("ACCT-01",)

    @hookimpl
    def memplat_storage(self, file: BackingFile) -> Any:
        total = os.fstat(file.fd).st_blocks * 512
        return total if self.broken else Storage(total=total)


class OverheadIsInvented(Specimen):
    fails = ("ACCT-02",)

    @hookimpl
    def memplat_storage(self, file: BackingFile) -> Storage:
        total = os.fstat(file.fd).st_blocks * 512
        return Storage(total=total, overhead=PAGE if self.broken and total else 0)
