"""Reading the program headers of a static x86-64 executable. elf(5)."""

from __future__ import annotations

import struct
from typing import NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_LOAD, _INTERP = 1, 3
_PAGE = 4096
_EXEC, _DYN, _X86_64 = 2, 3, 62


class NotExecutableError(Exception):
    """Not a program that can be run here."""


class Segment(NamedTuple):
    """A part of the file, and where it is to be mapped."""

    address: int
    memory_size: int
    offset: int
    file_size: int
    readable: bool
    writable: bool
    executable: bool


class Program(NamedTuple):
    """What the kernel has to know of an executable."""

    entry: int
    segments: tuple[Segment, ...]
    headers: int
    """Where the program headers stand in memory."""
    header_count: int
    header_size: int


def parse(data: bytes, base: int) -> Program:
    """The program in *data*, the front of the file; one that can be anywhere is put at *base*."""
    if len(data) < _HEADER.size or data[:7] != b"\x7fELF\x02\x01\x01":
        raise NotExecutableError("no 64-bit ELF file")
    _, kind, machine, _, entry, headers_at, _, _, _, size, count, *_ = _HEADER.unpack_from(data)
    if machine != _X86_64 or kind not in (_EXEC, _DYN):
        raise NotExecutableError("no executable for x86-64")
    slide = base if kind == _DYN else 0
    segments, headers = [], 0
    for number in range(count):
        at = headers_at + number * size
        if at + _PROGRAM.size > len(data):
            raise NotExecutableError("its program headers are not in its first page")
        segment_kind, flags, offset, address, _, file_size, memory_size, _ = _PROGRAM.unpack_from(data, at)
        if segment_kind == _INTERP:
            raise NotExecutableError("dynamically linked: only static programs are run")
        if segment_kind == _LOAD:
            if (address - offset) % _PAGE or memory_size < file_size or flags & 3 == 3:
                raise NotExecutableError("it has a segment that cannot be mapped")
            modes = bool(flags & 4), bool(flags & 2), bool(flags & 1)
            segments.append(Segment(address + slide, memory_size, offset, file_size, *modes))
            if offset <= headers_at < offset + file_size:
                headers = address + slide + headers_at - offset
    if not segments:
        raise NotExecutableError("it has nothing to be loaded")
    return Program(entry + slide, tuple(segments), headers, count, size)
