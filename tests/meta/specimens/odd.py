"""Backends that are odd, and right: the suite must not take exception to them."""

from __future__ import annotations

import errno
import os
import time
from array import array
from collections.abc import Sequence
from typing import Any

from memplat.hookspecs import hookimpl
from memplat.types import BackingFile, Capability
from tests.meta.specimens.base import KIB, MIB, InDirectory, Specimen, data_of, fallocate, flat, held_of, whole


class SixteenKibPages(Specimen):
    """A unit of its own, as on machines with larger pages or file systems with larger blocks."""

    page_size = 16 * KIB
    capabilities = Specimen.capabilities - {Capability.SUB_PAGE_DECOMMIT}

    def _rounded(self, file: BackingFile, found: Sequence[tuple[int, int]], start: int, end: int) -> array[int]:
        unit = file.page_size
        return flat([(max(start, low // unit * unit), min(end, -(-high // unit) * unit)) for low, high in found])

    @hookimpl
    def memplat_probe_committed(self, file: BackingFile, start: int, end: int) -> Sequence[int]:
        return self._rounded(file, data_of(file.fd, start, end), start, end)

    @hookimpl
    def memplat_probe_reserved(self, file: BackingFile, ranges: list[Any]) -> Sequence[int]:
        parts = [
            edge for low, high in whole(ranges) for edge in self._rounded(file, held_of(file.fd, low, high), low, high)
        ]
        return flat(list(zip(parts[0::2], parts[1::2], strict=True)))


class Slow(Specimen):
    """A host at the other end of a network."""

    @hookimpl(wrapper=True)
    def memplat_probe_committed(self) -> Any:
        time.sleep(0.002)
        return (yield)

    @hookimpl(wrapper=True)
    def memplat_decommit(self) -> Any:
        time.sleep(0.002)
        return (yield)

    @hookimpl(wrapper=True)
    def memplat_grow(self) -> Any:
        time.sleep(0.02)
        return (yield)


class SmallHost(InDirectory):
    """Eight megabytes."""

    requires = "tiny"


class SmallQuota(Specimen):
    """At most four megabytes can be reserved in one file."""

    @hookimpl
    def memplat_reserve(self, file: BackingFile, ranges: list[Any]) -> bool:
        wanted = sum(end - start for start, end in whole(ranges))
        if os.fstat(file.fd).st_blocks * 512 + wanted > 4 * MIB:
            raise OSError(errno.EDQUOT, "over quota")
        for start, end in whole(ranges):
            fallocate(file.fd, start, end - start)
        return True


class Modest(Specimen):
    """It declares nothing of what it can do."""

    capabilities = frozenset()


ODD: tuple[type[Specimen], ...] = (SixteenKibPages, Slow, SmallHost, SmallQuota, Modest)
