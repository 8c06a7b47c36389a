"""Backends that break on reservations, on secrets, and when the host refuses something."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Any, ClassVar

from memplat.hookspecs import hookimpl
from memplat.types import BackendInfo, BackingFile, Capability
from tests.meta.specimens.base import (
    F_ADD_SEALS,
    F_SEAL_SEAL,
    F_SEAL_SHRINK,
    MIB,
    InDirectory,
    Specimen,
    checked,
    fallocate,
    libc,
    punch,
    whole,
)


def reserve_or_nothing(file: BackingFile, ranges: list[tuple[int, int]]) -> None:
    """In steps; on failure what was added is given back. Holes only, so that content is safe."""
    done = []
    try:
        for start, end in ranges:
            for low in range(start, end, MIB):
                held = os.fstat(file.fd).st_blocks
                fallocate(file.fd, low, min(MIB, end - low))
                if os.fstat(file.fd).st_blocks != held:
                    done.append((low, min(end, low + MIB)))
    except OSError:
        for low, high in done:
            punch(file.fd, low, high - low)
        raise


class ReserveLies(Specimen):
    """It looks whether there is room, and takes none of it."""

    fails = ("EXH-01",)

    @hookimpl
    def memplat_reserve(self, file: BackingFile, ranges: list[Any]) -> bool:
        os.fstatvfs(file.fd)
        if not self.broken:
            reserve_or_nothing(file, whole(ranges))
        return True


class OnAFullHost(InDirectory):
    """Its reservations are broken, which shows only on a host that has little left."""

    requires: ClassVar[str] = "tmpfs"

    def reserve_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        raise NotImplementedError

    @hookimpl
    def memplat_reserve(self, file: BackingFile, ranges: list[Any]) -> bool:
        (self.reserve_wrongly if self.broken else reserve_or_nothing)(file, whole(ranges))
        return True


class ReserveLiesOnAFullHost(OnAFullHost):
    fails = ("EXH-01",)

    def reserve_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        """Nothing: a touch is SIGBUS."""


class ReserveSwallowsTheError(OnAFullHost):
    fails = ("EXH-02",)

    def reserve_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        with contextlib.suppress(OSError):
            reserve_or_nothing(file, ranges)


class ReserveKeepsThePartThatWasDone(OnAFullHost):
    fails = ("EXH-03",)

    def reserve_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            for low in range(start, end, MIB):
                fallocate(file.fd, low, min(MIB, end - low))


class ReserveKeepsATally(OnAFullHost):
    """What was given back is still counted."""

    fails = ("EXH-04",)

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.limits: dict[int, int] = {}

    def reserve_wrongly(self, file: BackingFile, ranges: list[tuple[int, int]]) -> None:
        figures = os.fstatvfs(file.fd)
        left = self.limits.setdefault(file.fd, figures.f_bavail * figures.f_frsize)
        wanted = sum(end - start for start, end in ranges)
        if wanted > left:
            raise OSError(28, "the tally is full")
        reserve_or_nothing(file, ranges)
        self.limits[file.fd] -= wanted


class InterruptedCallsAreNotRepeated(Specimen):
    """It waits for somebody's permission, with a raw call: poll(2) is always interrupted by signals."""

    fails = ("FAULT-02",)

    @hookimpl
    def memplat_reserve(self, file: BackingFile, ranges: list[Any]) -> bool:
        asked = 0
        while libc.poll(None, 0, 10) < 0:
            asked += 1
            if self.broken or asked > 1000:
                checked(-1, "poll")
        for start, end in whole(ranges):
            fallocate(file.fd, start, end - start)
        return True


class FailedOpeningLeavesADescriptorOpen(Specimen):
    fails = ("FAULT-03",)

    def create(self) -> int:
        watch = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = super().create()
        except OSError:
            if not self.broken:
                os.close(watch)
            raise
        os.close(watch)
        return fd


class AnybodyMayOpenTheFile(Specimen):
    """memfd_create makes 0777."""

    fails = ("SEC-02",)

    def create(self) -> int:
        fd = os.memfd_create("specimen", os.MFD_CLOEXEC)
        if not self.broken:
            os.fchmod(fd, 0o600)
        return fd


class ProgramsInheritTheFile(Specimen):
    fails = ("SEC-03",)

    def create(self) -> int:
        fd = os.memfd_create("specimen", 0 if self.broken else os.MFD_CLOEXEC)
        os.fchmod(fd, 0o600)
        return fd


class FileCanBeGivenAName(InDirectory):
    """O_TMPFILE without O_EXCL."""

    fails = ("SEC-04",)

    def create(self) -> int:
        exclusive = 0 if self.broken else os.O_EXCL
        return os.open(self.directory, os.O_TMPFILE | exclusive | os.O_RDWR | os.O_CLOEXEC, 0o600)


class Sealing(Specimen):
    """It declares seals."""

    seals: ClassVar[int] = 0

    def info(self) -> Any:
        return BackendInfo(name="specimen", version="1.0", capabilities=self.capabilities | {Capability.SEAL})

    def create(self) -> int:
        fd = super().create()
        fcntl.fcntl(fd, F_ADD_SEALS, self.seals if self.broken else F_SEAL_SHRINK | F_SEAL_SEAL)
        return fd


class SealIsOnlyDeclared(Sealing):
    fails = ("SEC-05",)
    seals = F_SEAL_SEAL


class PeersCanAddSeals(Sealing):
    fails = ("SEC-06",)
    seals = F_SEAL_SHRINK
