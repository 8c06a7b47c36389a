"""Checking what callers pass: everything that can be judged without the state of the pages."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Mapping
from typing import Final, NoReturn, TypeVar

from memplat.errors import (
    InvalidArgumentError,
    InvalidKindError,
    InvalidLengthError,
    InvalidOwnerError,
    InvalidRangeError,
    MisalignedRangeError,
)
from memplat.ranges import FileRange, align_up, format_size
from memplat.types import MAX_OWNER, Access, AllocationMode, Direction, MemoryKind
from memplat.wording import shown

T = TypeVar("T")

#: The greatest length and offset: that of off_t.
MAX_OFFSET: Final = (1 << 63) - 1

#: Kinds that allocate takes, each with its canonical name.
KINDS: Final[Mapping[str, str]] = {str(kind): str(kind) for kind in MemoryKind if kind is not MemoryKind.MAPPED}
MEMBERS: Final[Mapping[str, MemoryKind]] = {str(kind): kind for kind in MemoryKind}
MODES: Final[Mapping[str, AllocationMode]] = {str(mode): mode for mode in AllocationMode}
DIRECTIONS: Final[Mapping[str, Direction]] = {str(direction): direction for direction in Direction}
ACCESSES: Final[Mapping[str, Access]] = {str(access): access for access in Access}


def choose(choices: Mapping[str, T], value: object, what: str) -> T:
    """The choice that *value* names.

    :raises InvalidArgumentError: naming the choices, and the nearest one
    """
    try:
        return choices[value]  # type: ignore[index]  # whatever cannot be looked up is refused below
    except (KeyError, TypeError):
        raise InvalidArgumentError(f"{what} {shown(value)} does not exist; {_allowed(choices, value)}") from None


def check_truth(value: object, what: str) -> bool:
    """Whether *value* is true, as Python has it.

    :raises InvalidArgumentError: for what is neither true nor false: an array of several elements
    """
    try:
        return bool(value)
    except Exception as error:
        raise InvalidArgumentError(f"{what} {shown(value)} is neither true nor false ({error})") from error


def refuse_kind(kind: object) -> NoReturn:
    """Raise the error for a kind that cannot be allocated."""
    if isinstance(kind, str) and kind == MemoryKind.MAPPED:
        raise InvalidKindError(
            "kind 'mapped' is memory outside of the backing file and cannot be allocated from it; "
            f"report it with account_external, or use one of {', '.join(KINDS)}"
        )
    raise InvalidKindError(f"kind {shown(kind)} does not exist; {_allowed(KINDS, kind)}")


def _allowed(choices: Mapping[str, object], value: object) -> str:
    near = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"allowed are {', '.join(repr(name) for name in map(str, choices))}{hint}"


def check_raise(max_size: object, now: int, most: int, page_size: int) -> None:
    """Judge a new ``max_size``.

    :raises InvalidArgumentError: no multiple of the page, less than *now*, more than *most*
    """
    why = ""
    if type(max_size) is not int or max_size % page_size:
        why = f"allowed are integers, multiples of {page_size}"
    elif max_size < now:
        why = f"it is {now} ({format_size(now)}), and can only be raised"
    elif max_size > most:
        why = (
            f"it can be raised to at most {most} ({format_size(most)}), for which address space was reserved when the "
            "memory was opened; open it with a larger max_size"
        )
    if why:
        raise InvalidArgumentError(f"max_size {shown(max_size)} is not possible: {why}")


def is_int(value: object) -> bool:
    """Whether *value* is a whole number that somebody meant as one: a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def refuse_length(length: object, page_size: int) -> NoReturn:
    """Raise the error for a length that cannot be allocated."""
    if not isinstance(length, int) or isinstance(length, bool):
        raise InvalidLengthError(
            f"length {shown(length)} is no integer; allowed are multiples of the page size {page_size}"
        )
    if length <= 0:
        raise InvalidLengthError(f"length {shown(length)} is not positive; the least is one page, {page_size} bytes")
    if length > MAX_OFFSET - page_size:
        raise InvalidLengthError(f"length {shown(length)} is beyond the greatest file size, {MAX_OFFSET} bytes")
    raise InvalidLengthError(
        f"length {length} is no multiple of the page size {page_size}; "
        f"round_up({length}) is {align_up(length, page_size)}"
    )


def refuse_owner(owner: object) -> NoReturn:
    """Raise the error for an owner that cannot be one."""
    raise InvalidOwnerError(
        f"owner {shown(owner)} is no owner; allowed are integers from 0 to {MAX_OWNER}, 0 being nobody"
    )


def refuse_range(pages: object, size: int, page_size: int) -> NoReturn:
    """Raise the error for a range that is not page-aligned within the file; *page_size* 1 asks for no alignment."""
    if not isinstance(pages, FileRange) or tuple.__len__(pages) != 2:
        told = shown(tuple(tuple.__iter__(pages)) if isinstance(pages, FileRange) else pages)
        raise InvalidArgumentError(f"{told} is no range; allowed are a FileRange or a block of this memory")
    start, end = pages
    told = f"FileRange({shown(start)}, {shown(end)})"
    if not is_int(start) or not is_int(end):
        raise InvalidRangeError(f"{told} has an end that is no integer; offsets are whole bytes")
    if start >= end:
        fault = "is empty" if start == end else "is reversed"
        raise InvalidRangeError(f"{told} {fault}; allowed is start < end")
    if start < 0 or end > size:
        raise InvalidRangeError(f"{told} is outside of the file; allowed is within 0 and {size}")
    raise MisalignedRangeError(
        f"{told} does not start and end on pages of {page_size} bytes; the pages around it are "
        f"FileRange({start // page_size * page_size}, {align_up(end, page_size)})"
    )


def check_timeout(timeout: object, what: str) -> float:
    """A number of seconds that is not negative, and not more than a thread can be made to wait: some hundred years.

    :raises InvalidArgumentError: if it is none
    """
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0:
        return min(timeout, threading.TIMEOUT_MAX)
    raise InvalidArgumentError(f"{what} {shown(timeout)} is no time; allowed are seconds from 0 on")
