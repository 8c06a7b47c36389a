"""Backends whose decommit is broken."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Any

from memplat.hookspecs import hookimpl
from memplat.types import BackingFile
from tests.meta.specimens.base import (
    KIB,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MIB,
    PAGE,
    Specimen,
    data_of,
    held_of,
    map_over,
    punch,
    whole,
)


def punch_all(file: BackingFile, ranges: list[tuple[int, int]]) -> None:
    for start, end in ranges:
        punch(file.fd, start, end - start)


class Decommitting(Specimen):
    """Its decommit is what is broken."""

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        raise NotImplementedError

    @hookimpl
    def memplat_decommit(self, file: BackingFile, ranges: list[Any]) -> bool:
        (self.decommit_wrongly if self.broken else punch_all)(file, whole(ranges))
        return True


class DecommitDoesNothing(Decommitting):
    fails = ("DECOM-01",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        """Neither zeros nor storage."""


class DecommitOnlyWritesZeros(Decommitting):
    fails = ("DECOM-02",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            os.pwrite(file.fd, bytes(end - start), start)


class DecommitIsRefused(Decommitting):
    """The engine then zeroes by hand: nothing leaks, but nothing is given back."""

    fails = ("DECOM-02",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        raise OSError(errno.EOPNOTSUPP, "cannot punch")


class DecommitRaisesAfterDoingHalf(Decommitting):
    fails = ("DECOM-02",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        start, end = ranges[0]
        punch(file.fd, start, max(PAGE, (end - start) // 2 // PAGE * PAGE))
        if end - start > PAGE or len(ranges) > 1:
            raise OSError(errno.EIO, "gave up halfway")


class DecommitRepeatsItselfLater(Decommitting):
    """What is done again with the next call may meet somebody else's pages."""

    fails = ("ALLOC-03",)

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.pending: dict[int, list[tuple[int, int]]] = {}

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, ranges)
        self.pending[file.fd] = ranges

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self, file: BackingFile) -> Any:
        punch_all(file, self.pending.pop(file.fd, []))
        return (yield)


class DecommitRoundsDown(Decommitting):
    fails = ("DECOM-04",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, [(start // (16 * KIB) * (16 * KIB), end) for start, end in ranges])


class DecommitJoinsItsRanges(Decommitting):
    fails = ("REF-01",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, [(min(ranges)[0], max(ranges)[1])])


class DecommitKnowsOnlyTheFirstRange(Decommitting):
    fails = ("DECOM-05",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, ranges[:1])


class DecommitStopsAfter4Mib(Decommitting):
    fails = ("DECOM-06",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, [(start, min(end, start + 4 * MIB)) for start, end in ranges])


class DecommitForgetsTheRestOfChunks(Decommitting):
    """Long ranges are done in chunks of five pages, and what is left over is not done at all."""

    fails = ("DECOM-06",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        chunk = 5 * PAGE
        for start, end in ranges:
            if end - start in (MIB * 2, 2 * chunk) or end - start <= 2 * chunk:
                punch(file.fd, start, end - start)
                continue
            punch(file.fd, start, (end - start) // chunk * chunk)


class DecommitPutsOtherMemoryThere(Decommitting):
    fails = ("DECOM-07",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, ranges)
        assert file.address is not None
        for start, end in ranges:
            map_over(file.address + start, end - start, MAP_PRIVATE | MAP_ANONYMOUS)


class HugePagesAreGivenBackOnlyAsAWhole(Decommitting):
    fails = ("DECOM-08",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            region = start // (2 * MIB) * (2 * MIB), -(-end // (2 * MIB)) * (2 * MIB)
            partial = region != (start, end)
            if partial and data_of(file.fd, *region) == [region]:
                os.pwrite(file.fd, bytes(end - start), start)
            else:
                punch(file.fd, start, end - start)


class DecommitWritesToHoles(Decommitting):
    fails = ("DECOM-09",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            committed = data_of(file.fd, start, end)
            os.pwrite(file.fd, bytes(end - start), start)
            punch_all(file, committed)


class TheLastPageIsKept(Decommitting):
    """A trailer of its own, where the user's pages are."""

    fails = ("ACCT-05",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        last = os.fstat(file.fd).st_size - PAGE
        punch_all(file, [(start, min(end, last)) for start, end in ranges if start < last])


class DecommitBelongsToOneThread(Decommitting):
    fails = ("RECL-01",)

    def create(self) -> int:
        self.thread = threading.get_ident()
        return super().create()

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError("wrong thread")
        punch_all(file, ranges)


class DecommitTakes1000Ranges(Decommitting):
    """A buffer of its own, in place of a loop."""

    fails = ("RECL-02",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, ranges[:1000])


class DecommitCopiesBlocks(Decommitting):
    """Blocks of 64 KiB are read, punched and written back without the pages that go: right, if nobody writes there."""

    fails = ("CONC-01",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        block = 64 * KIB
        for start, end in ranges:
            around = start // block * block, min(-(-end // block) * block, os.fstat(file.fd).st_size)
            keep = [part for part in ((around[0], start), (end, around[1])) if part[0] < part[1]]
            keep = [extent for part in keep for extent in held_of(file.fd, *part)]
            saved = [(low, os.pread(file.fd, high - low, low)) for low, high in keep]
            time.sleep(0.0005)
            punch(file.fd, around[0], around[1] - around[0])
            for low, data in saved:
                os.pwrite(file.fd, data, low)


class DecommitForgetsFivePages(Decommitting):
    """A bug at one odd length."""

    fails = ("MODEL-01",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, [(start, end) for start, end in ranges if end - start != 5 * PAGE])


class SealedAgainstWriting(Decommitting):
    """A zero page is mapped in place of what was given back, shared: it looks right, and is another file's."""

    fails = ("DECOM-07",)

    def decommit_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        punch_all(file, ranges)
        assert file.address is not None
        for start, end in ranges:
            other = os.memfd_create("other", os.MFD_CLOEXEC)
            os.ftruncate(other, end - start)
            map_over(file.address + start, end - start, MAP_SHARED, other)
            os.close(other)
