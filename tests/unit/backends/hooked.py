"""A backend with the defaults behind it, called as the engine calls it, and the file that it made."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pluggy

from memplat import hookspecs
from memplat.backends import default
from memplat.hookspecs import BackendHooks
from memplat.linux import extents as flat
from memplat.linux import memory
from memplat.ranges import FileRange
from memplat.types import BackingFile


def hooks_of(*plugins: object) -> BackendHooks:
    """The hooks of *plugins*, the most special one first, with the defaults behind them."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(default)
    for plugin in reversed(plugins):
        manager.register(plugin)
    manager.check_pending()
    return cast(BackendHooks, manager.hook)


class Hooked:
    """A backing file, mapped as the engine maps it, and short words for what tests do with it."""

    def __init__(self, hooks: BackendHooks, file: BackingFile, size: int) -> None:
        self.hooks = hooks
        self.file = file
        self.page = file.page_size
        self.size = size
        self.fd = file.fd
        hooks.memplat_grow(file=file, size=size)
        self.address = memory.reserve_address_space(size, max(self.page, 2 << 20))
        memory.map_shared(self.address, size, file.fd, 0)
        file.address, file.size = self.address, size
        hooks.memplat_mapped(file=file, start=0, end=size)

    def pages(self, start: int, end: int) -> FileRange:
        """The range of the pages from number *start* up to and without *end*."""
        return FileRange(start * self.page, end * self.page)

    def touch(self, *numbers: int) -> None:
        for number in numbers:
            memory.copy_to(self.address + number * self.page, b"x")

    def reserve(self, *ranges: FileRange) -> None:
        assert self.hooks.memplat_reserve(file=self.file, ranges=ranges) is True

    def decommit(self, *ranges: FileRange) -> None:
        assert self.hooks.memplat_decommit(file=self.file, ranges=ranges) is True

    def probe(self, start: int = 0, end: int | None = None) -> set[int]:
        """The numbers of the committed pages of a range of page numbers."""
        low, high = start * self.page, self.size if end is None else end * self.page
        found = self.hooks.memplat_probe_committed(file=self.file, start=low, end=high)
        assert found is not None
        assert flat.validate(found, low, high, self.page) is None
        return self.numbers(found)

    def probe_reserved(self, *ranges: FileRange) -> set[int]:
        found = self.hooks.memplat_probe_reserved(file=self.file, ranges=ranges)
        assert found is not None
        assert flat.validate(found, 0, self.size, self.page) is None
        return self.numbers(found)

    def numbers(self, extents: Sequence[int]) -> set[int]:
        bounds = zip(extents[0::2], extents[1::2], strict=True)
        return {number for low, high in bounds for number in range(low // self.page, high // self.page)}

    def storage(self) -> int:
        """What the host says: ``st_blocks``."""
        return os.fstat(self.fd).st_blocks * 512

    def content(self, number: int) -> bytes:
        return os.pread(self.fd, self.page, number * self.page)

    def close(self) -> None:
        memory.unmap(self.address, self.size)
        assert self.hooks.memplat_close_file(file=self.file) is True


@contextlib.contextmanager
def opened(plugin: object, options: Any, size: int) -> Iterator[Hooked]:
    """A file of a backend, grown to *size* bytes and mapped."""
    hooks = hooks_of(plugin)
    file = hooks.memplat_create_file(options=options)
    assert file is not None
    hooked = Hooked(hooks, file, size)
    try:
        yield hooked
    finally:
        hooked.close()


def extents(*bounds: int) -> array[int]:
    return array("q", bounds)
