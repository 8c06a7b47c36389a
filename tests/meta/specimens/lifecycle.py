"""Backends that break in their lifecycle."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from memplat.hookspecs import hookimpl
from memplat.types import Availability, BackendInfo, BackingFile, Capability, Storage
from tests.meta.specimens.base import PAGE, PROT_READ, InDirectory, Specimen, available, protect, punch, whole


class InfoIsADictionary(Specimen):
    fails = ("LIFE-01",)

    def info(self) -> Any:
        return {"name": "specimen"} if self.broken else super().info()


class BuiltForAFutureLevel(Specimen):
    fails = ("LIFE-01",)

    def info(self) -> Any:
        level = 99 if self.broken else 1
        return BackendInfo(name="specimen", version="1.0", contract_level=level, capabilities=self.capabilities)


class CheckLeavesADescriptorOpen(Specimen):
    fails = ("LIFE-02",)

    @hookimpl
    def memplat_check(self) -> Availability:
        fd = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        os.read(fd, 100)
        if not self.broken:
            os.close(fd)
        return available()


class CheckSaysYes(Specimen):
    fails = ("LIFE-02",)

    @hookimpl
    def memplat_check(self) -> Any:
        return True if self.broken else available()


class FileWithAHeader(Specimen):
    fails = ("LIFE-03",)

    def create(self) -> int:
        fd = super().create()
        if self.broken:
            os.write(fd, b"specimen, format 1")
        return fd


class PageSizeIsNoPowerOfTwo(Specimen):
    fails = ("LIFE-03",)

    @hookimpl
    def memplat_create_file(self) -> BackingFile:
        return BackingFile(fd=self.create(), page_size=3 * PAGE if self.broken else PAGE, backend="specimen")


class FileIsReadOnly(Specimen):
    fails = ("LIFE-04",)

    def create(self) -> int:
        fd = super().create()
        own = os.open(f"/proc/self/fd/{fd}", (os.O_RDONLY if self.broken else os.O_RDWR) | os.O_CLOEXEC)
        os.close(fd)
        return own


class MappingIsReadOnly(Specimen):
    fails = ("LIFE-04",)

    @hookimpl
    def memplat_mapped(self, file: BackingFile, start: int, end: int) -> bool:
        assert file.address is not None
        if self.broken:
            protect(file.address + start, end - start, PROT_READ)
        return True


class CloseDoesNotClose(Specimen):
    fails = ("LIFE-05",)

    @hookimpl
    def memplat_close_file(self, file: BackingFile) -> bool:
        if not self.broken:
            os.close(file.fd)
        return True


class EachGrowthLeavesADescriptorOpen(Specimen):
    fails = ("LIFE-06",)

    @hookimpl
    def memplat_grow(self, file: BackingFile, size: int) -> bool:
        watch = os.eventfd(0, os.EFD_CLOEXEC)
        if os.fstat(file.fd).st_size < size:
            os.ftruncate(file.fd, size)
        if not self.broken:
            os.close(watch)
        return True


class HooksWorkOnTheLastFile(Specimen):
    """State in the plugin in place of the file."""

    fails = ("LIFE-07",)

    def create(self) -> int:
        self.created.append(super().create())
        return self.created[-1]

    @hookimpl
    def memplat_decommit(self, file: BackingFile, ranges: list[Any]) -> bool:
        for start, end in whole(ranges):
            punch(self.created[-1] if self.broken and self.created else file.fd, start, end - start)
        return True


class CloseTruncates(Specimen):
    fails = ("LIFE-08",)

    @hookimpl
    def memplat_close_file(self, file: BackingFile) -> bool:
        if self.broken:
            os.ftruncate(file.fd, 0)
        os.close(file.fd)
        return True


class LockFileStaysBehind(Specimen):
    fails = ("LIFE-09",)

    @hookimpl
    def memplat_create_file(self) -> BackingFile:
        lock, path = tempfile.mkstemp(prefix="specimen-", dir=self.directory)
        if not self.broken:
            os.unlink(path)
        try:
            fd = self.create()
        except OSError:
            os.close(lock)
            raise
        return BackingFile(fd=fd, page_size=PAGE, backend="specimen", state=(lock, path))

    @hookimpl
    def memplat_close_file(self, file: BackingFile) -> bool:
        if file.state is not None:
            os.close(file.state[0])
            if self.broken:
                os.unlink(file.state[1])
        os.close(file.fd)
        return True


class RelyOnTheStateOfTheFile(Specimen):
    fails = ("LIFE-10",)

    @hookimpl
    def memplat_create_file(self) -> BackingFile:
        return BackingFile(fd=self.create(), page_size=PAGE, backend="specimen", state={"block": 512})

    @hookimpl
    def memplat_storage(self, file: BackingFile) -> Storage:
        block = file.state["block"] if self.broken or file.state else 512
        return Storage(total=os.fstat(file.fd).st_blocks * block)


class FlushWithoutADisk(Specimen):
    fails = ("LIFE-11",)

    def info(self) -> Any:
        more = {Capability.FLUSH} if self.broken else set()
        return BackendInfo(name="specimen", version="1.0", capabilities=self.capabilities | more)


class FileHasAName(InDirectory):
    """Removed in close: a name to open it by, and a file that stays when the process is killed."""

    fails = ("SEC-01", "LIFE-09")

    @hookimpl
    def memplat_create_file(self) -> BackingFile:
        fd, path = tempfile.mkstemp(prefix="specimen-", dir=self.directory)
        if not self.broken:
            os.unlink(path)
        return BackingFile(fd=fd, page_size=PAGE, backend="specimen", state=path)

    @hookimpl
    def memplat_close_file(self, file: BackingFile) -> bool:
        if self.broken and file.state is not None:
            os.unlink(file.state)
        os.close(file.fd)
        return True
