"""What an owner may have: judged when pages are charged to him, and when a scan has found what he has committed.

Only what an owner uses is charged: pages that are waste, recycled for nobody yet, retained or kept belong to no limit.
Functions ending in ``_locked`` need the memory's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Final

import attrs

from memplat.engine.pages import PageTable
from memplat.errors import OutOfMemory
from memplat.ranges import format_size
from memplat.types import MemoryKind

_KINDS: Final = tuple(str(kind) for kind in MemoryKind)


@attrs.define
class Limit:
    """The limits of one owner in bytes, ``None`` for no limit."""

    allocated: int | None = None
    committed: int | None = None
    found: int = 0
    """What the last scan found committed for this owner."""


#: The owners that have limits.
Limits = dict[int, Limit]


def allocated_of(table: PageTable, owner: int) -> int:
    """The bytes in use by *owner*, whatever the kind."""
    allocated = table.allocated
    return sum(allocated.get((kind, owner), 0) for kind in _KINDS)


def over_limit_locked(limits: Limits, table: PageTable, owner: int, length: int, what: str) -> OutOfMemory | None:
    """The error of charging *length* more bytes to *owner*, or ``None`` if his limits allow it.

    :param what: the beginning of the message
    """
    limit = limits.get(owner)
    if limit is None:
        return None
    used = allocated_of(table, owner)
    if limit.allocated is not None and used + length > limit.allocated:
        size = format_size(limit.allocated)
        has = f"has {used} of {limit.allocated} bytes ({size}) allocated; free pages of that owner"
        return _error(what, owner, has, length, limit.allocated, used)
    if limit.committed is not None and limit.found > limit.committed:
        has = (
            f"had {limit.found} bytes committed at the last scan, of {limit.committed} "
            f"({format_size(limit.committed)}); free or decommit pages of that owner, then update_usage()"
        )
        return _error(what, owner, has, length, limit.committed, limit.found)
    return None


def _error(what: str, owner: int, has: str, requested: int, limit: int, used: int) -> OutOfMemory:
    message = f"{what}: owner {owner} {has}, or raise the limit with set_limit"
    return OutOfMemory(message, requested=requested, limit=limit, used=used, owner=owner)


def set_limit_locked(
    limits: Limits, owner: int, allocated: int | EllipsisType | None, committed: int | EllipsisType | None, found: int
) -> None:
    """Set what is not an ellipsis; an owner without limits is none of the table's business.

    :param found: what the last scan found committed for *owner*
    """
    limit = limits.get(owner) or Limit(found=found)
    if allocated is not ...:
        limit.allocated = allocated
    if committed is not ...:
        limit.committed = committed
    if limit.allocated is limit.committed is None:
        limits.pop(owner, None)
    else:
        limits[owner] = limit


def check_transfer_locked(limits: Limits, table: PageTable, start: int, end: int, owner: int) -> None:
    """Refuse to charge those pages of ``[start, end)`` to *owner* that he does not pay for yet.

    :raises OutOfMemory: if a limit forbids it
    :raises NotAllocatedError: if a page has no reference
    """
    table.require(start, end, "transfer")
    length = sum(last - first for first, last, value in table.runs(start, end) if value[4] != owner)
    error = over_limit_locked(limits, table, owner, length, f"cannot transfer {length} bytes") if length else None
    if error is not None:
        raise error


def note_scan_locked(limits: Limits, committed_of: Mapping[int | None, int]) -> None:
    """Let every limit know what a scan has found, by owner."""
    for owner, limit in limits.items():
        limit.found = committed_of.get(owner, 0)
