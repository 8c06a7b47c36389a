"""Backends that break in allocating, growing and mapping."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Any

from memplat.hookspecs import hookimpl
from memplat.types import BackendInfo, BackingFile, Capability
from tests.meta.specimens.base import (
    KIB,
    MAP_PRIVATE,
    MAP_SHARED,
    MIB,
    PAGE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    InDirectory,
    Specimen,
    data_of,
    fallocate,
    madvise,
    map_over,
    protect,
    punch,
    whole,
)

_MADV_DONTFORK = 10
_MADV_DODUMP, _MADV_DONTDUMP = 17, 16
_MADV_POPULATE_WRITE = 23
_MADV_RANDOM = 1


def extend(file: BackingFile, size: int) -> None:
    if os.fstat(file.fd).st_size < size:
        os.ftruncate(file.fd, size)


class Growing(Specimen):
    """Its growth is what is broken."""

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        raise NotImplementedError

    @hookimpl
    def memplat_grow(self, file: BackingFile, size: int) -> bool:
        (self.grow_wrongly if self.broken else extend)(file, size)
        return True


class Mapped(Specimen):
    """What it does to a new part of the mapping is what is broken."""

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        raise NotImplementedError

    @hookimpl
    def memplat_mapped(self, file: BackingFile, start: int, end: int) -> bool:
        assert file.address is not None
        if self.broken:
            self.advise(file, file.address + start, start, end)
        else:
            madvise(file.address + start, end - start, _MADV_RANDOM)
        return True


class HostTakesBack64KibAtLeast(Specimen):
    """The page size is too small for the host: less than 64 KiB is zeroed and not given back."""

    fails = ("ALLOC-01",)

    @hookimpl
    def memplat_decommit(self, file: BackingFile, ranges: list[Any]) -> bool:
        unit = 64 * KIB if self.broken else PAGE
        for start, end in whole(ranges):
            first, last = -(-start // unit) * unit, end // unit * unit
            for low, high in data_of(file.fd, start, end):
                os.pwrite(file.fd, bytes(high - low), low)
            if first < last:
                punch(file.fd, first, last - first)
        return True


class SmallPagesOfAHugeFile(Specimen):
    """A file of huge pages, said to have small ones."""

    fails = ("ALLOC-01",)
    requires = "hugetlb"
    capabilities = frozenset()

    def create(self) -> int:
        if not self.broken:
            return super().create()
        return os.memfd_create("specimen", os.MFD_CLOEXEC | os.MFD_HUGETLB)


class NewPartsArePopulated(Mapped):
    fails = ("GROW-02",)

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        madvise(address, end - start, _MADV_POPULATE_WRITE)


class GrowthAllocates(Growing):
    fails = ("GROW-02",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        before = os.fstat(file.fd).st_size
        if before < size:
            fallocate(file.fd, before, size - before)


class HugePagesAreNotHuge(Specimen):
    fails = ("ALLOC-04",)

    def info(self) -> Any:
        more = {Capability.HUGE_PAGES} if self.broken else set()
        return BackendInfo(name="specimen", version="1.0", capabilities=self.capabilities | more)


class GrowthTruncatesFirst(Growing):
    fails = ("GROW-01",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        os.ftruncate(file.fd, 0)
        os.ftruncate(file.fd, size)


class GrowthShrinksWhatAPeerHasGrown(Growing):
    fails = ("GROW-03",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        os.ftruncate(file.fd, size)


class GrowthIsGenerous(Growing):
    fails = ("GROW-04",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        extend(file, size + 8 * MIB)


class GrowthRoundsDown(Growing):
    fails = ("GROW-05",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        extend(file, size // MIB * MIB)


class GrowthStopsHalfway(Growing):
    """In steps, and where one fails the others stay."""

    fails = ("FAULT-01",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        for reached in range(os.fstat(file.fd).st_size, size, 256 * KIB):
            os.ftruncate(file.fd, min(size, reached + 256 * KIB))


class GrowthSwallowsTheError(Growing):
    fails = ("FAULT-01",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        with contextlib.suppress(OSError):
            extend(file, size)


class GrowthCopies(Growing):
    """Another file takes the place of the first one. The mapping stays that of the old one."""

    fails = ("VIEW-04",)
    remaps = False

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        old = os.fstat(file.fd).st_size
        if old >= size:
            return
        new = self.create()
        try:
            os.ftruncate(new, size)
            for start, end in data_of(file.fd, 0, old):
                os.pwrite(new, os.pread(file.fd, end - start, start), start)
            if old and self.remaps:
                assert file.address is not None
                map_over(file.address, old, MAP_SHARED, new)
                madvise(file.address, old, _MADV_DONTDUMP)
            os.dup2(new, file.fd, inheritable=False)
        finally:
            os.close(new)


class GrowthCopiesAndCutsPeersOff(GrowthCopies):
    fails = ("SHARE-02",)
    remaps = True


class NewPagesAreDirty(Growing):
    fails = ("ZERO-01",)

    def grow_wrongly(self, file: BackingFile, size: int) -> None:
        before = os.fstat(file.fd).st_size
        extend(file, size)
        os.pwrite(file.fd, b"\xcc" * PAGE, before)


class MappingIsPrivate(Mapped):
    fails = ("VIEW-01",)

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        map_over(address, end - start, MAP_PRIVATE, file.fd, start)


class MappingIsPrivateInPlaces(Mapped):
    """Neither the file nor other processes see what is written there."""

    fails = ("VIEW-02",)

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        if start == 0:
            map_over(address + MIB, MIB, MAP_PRIVATE, file.fd, MIB)


class LaterPartsShowTheFirst(Mapped):
    fails = ("VIEW-02",)

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        if start:
            map_over(address, end - start, MAP_SHARED, file.fd, 0)


class FileIsInAppendMode(Specimen):
    fails = ("VIEW-03",)

    def create(self) -> int:
        fd = super().create()
        if self.broken:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        return fd


class FileIsOnANoexecMount(InDirectory):
    fails = ("VIEW-05",)
    requires = "noexec"

    def info(self) -> Any:
        more = {Capability.EXECUTE} if self.broken else set()
        return BackendInfo(name="specimen", version="1.0", capabilities=self.capabilities | more)


class MappingIsNotInherited(Mapped):
    fails = ("FORK-01",)

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        madvise(address, end - start, _MADV_DONTFORK)


class ChildrenMarkTheFile(Specimen):
    """A handler that runs in forked children works on the file, which is the parent's."""

    fails = ("FORK-02",)

    def create(self) -> int:
        fd = super().create()
        if not self.created:
            os.register_at_fork(after_in_child=self.mark)
        self.created.append(fd)
        return fd

    def mark(self) -> None:
        for fd in self.created:
            if self.broken:
                os.ftruncate(fd, os.fstat(fd).st_size + PAGE)

    @hookimpl
    def memplat_close_file(self, file: BackingFile) -> bool:
        if file.fd in self.created:
            self.created.remove(file.fd)
        os.close(file.fd)
        return True


class MappingIsDumped(Mapped):
    fails = ("SEC-07",)

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        madvise(address, end - start, _MADV_DODUMP)


class MappingIsExecutable(Mapped):
    fails = ("SEC-08",)

    def advise(self, file: BackingFile, address: int, start: int, end: int) -> None:
        protect(address, end - start, PROT_READ | PROT_WRITE | PROT_EXEC)
