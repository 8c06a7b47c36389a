"""Half-open byte ranges, alignment, and sizes as people write them. Pure: no state, no system call."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NewType

from memplat.errors import InvalidArgumentError
from memplat.wording import shown

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

#: The size of a transparent huge page on x86-64 and (4 KiB granule) arm64: the unit that large allocations align to.
HUGE_PAGE_SIZE: Final = 2 * MIB

#: Sizes as people write them. A regular expression in the dialect that Python and JSON schemas share.
SIZE_PATTERN: Final = r"[ \t\r\n]*([0-9]+(?:\.[0-9]+)?)[ \t]*([kKmMgGtTpPeE]?)[iI]?[bB]?[ \t\r\n]*"

#: Where something is mapped in an address space. Offsets in the file are another matter: type checkers tell them apart.
Address = NewType("Address", int)
#: Where something stands in the backing file, in bytes.
Offset = NewType("Offset", int)

_SIZE = re.compile(SIZE_PATTERN)
_PREFIXES: Final = "kmgtpe"
_MOST_DIGITS: Final = 100  # Python refuses to convert some thousands of them
_MOST_SHOWN: Final = 1 << 1000  # a float holds no more
_UNITS: Final = (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB))


class FileRange(NamedTuple):
    """The half-open range ``[start, end)`` of offsets in the backing file, in bytes.

    >>> FileRange(0, 8192).length
    8192
    """

    start: int
    end: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.end - self.start

    def contains(self, offset: int) -> bool:
        """Whether *offset* lies in the range."""
        return self.start <= offset < self.end

    def overlaps(self, other: FileRange) -> bool:
        """Whether the two ranges have a byte in common."""
        return self.start < other.end and other.start < self.end

    def part(self, offset: int, length: int) -> FileRange:
        """The sub-range of *length* bytes that begins *offset* bytes into this one.

        :raises InvalidArgumentError: if it would not lie within this range, or a number is no integer
        """
        for name, value in (("offset", offset), ("length", length)):
            if type(value) is not int:
                raise InvalidArgumentError(
                    f"part(): {name} {shown(value)} is no integer; allowed are whole bytes, 0 to {self.length}"
                )
        if offset < 0 or length < 0 or self.start + offset + length > self.end:
            raise InvalidArgumentError(
                f"part({shown(offset)}, {shown(length)}) of {self} ends outside of it: allowed are 0 to "
                f"{self.length} bytes"
            )
        return FileRange(self.start + offset, self.start + offset + length)

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x})"


def align_up(value: int, alignment: int) -> int:
    """The least multiple of *alignment* that is not below *value*."""
    return -(-value // alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    """The greatest multiple of *alignment* that is not above *value*."""
    return value // alignment * alignment


def parse_size(text: str | int) -> int:
    """Bytes from an integer or from text such as ``"4GiB"``, ``"64KiB"``, ``"2M"``; every prefix is a power of 1024.

    :raises InvalidArgumentError: if the text is no size, or no whole number of bytes
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidArgumentError(f'{shown(text)} is no size: write bytes as an integer, or "64KiB", "2M", "4GiB"')
    number, prefix = match.groups()
    if len(number) > _MOST_DIGITS:
        raise InvalidArgumentError(f"a size of {len(number)} digits is more than any host has")
    scale = 1024 ** (_PREFIXES.index(prefix.lower()) + 1) if prefix else 1
    size = float(number) * scale if "." in number else int(number) * scale
    if size != int(size):
        raise InvalidArgumentError(f"{text!r} is no whole number of bytes")
    return int(size)


def format_size(nbytes: int) -> str:
    """A size for people, exact where it is a whole number of a unit: ``64 KiB``, ``1.5 GiB``, ``123 B``."""
    if abs(nbytes) >= _MOST_SHOWN:
        return f"{shown(nbytes)} B"
    for unit, scale in _UNITS:
        if abs(nbytes) >= scale:
            return f"{nbytes // scale} {unit}" if nbytes % scale == 0 else f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"


__all__ = [
    "GIB",
    "HUGE_PAGE_SIZE",
    "KIB",
    "MIB",
    "SIZE_PATTERN",
    "TIB",
    "Address",
    "FileRange",
    "Offset",
    "align_down",
    "align_up",
    "format_size",
    "parse_size",
]
