"""Every open memory of this process, and what they cost together. Holds them weakly: being listed keeps none alive."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final
from weakref import ref

from memplat.errors import ClosedError
from memplat.memory import Memory
from memplat.types import MemoryKind, Usage

#: By id, in the order in which they were opened. Not a WeakValueDictionary: to go through that while another thread
#: opens or closes a memory is an error.
_memories: Final[dict[int, ref[Memory]]] = {}


def register(memory: Memory) -> None:
    """Add a memory that was opened."""
    _memories[id(memory)] = ref(memory, partial(_dropped, id(memory)))


def _dropped(number: int, reference: ref[Memory]) -> None:
    if _memories.get(number) is reference:
        _memories.pop(number, None)


def forget(memory: Memory) -> None:
    """Take out a memory that is being closed."""
    _memories.pop(id(memory), None)


def memories() -> list[Memory]:
    """The open memories of this process, the oldest first. A forked child begins with none: they are its parent's."""
    living = [reference() for reference in [*_memories.values()]]  # the list is made in one go
    return [memory for memory in living if memory is not None]


def accounting(*, max_age: float | None = None) -> Usage:
    """The figures of all open memories of this process, added up.

    ``as_of`` is that of the oldest figures, ``exact`` says that all are, ``largest_free`` is the greatest one; the
    peaks are sums of peaks that the memories may have had at different times.

    :param max_age: as in :meth:`Memory.update_usage`; ``None``: what is known, as :meth:`Memory.usage` tells it
    :raises HostError: if the host cannot be asked
    """
    usages: list[Usage] = []
    for memory in memories():
        with contextlib.suppress(ClosedError):  # it was closed meanwhile
            usages.append(memory.usage() if max_age is None else memory.update_usage(max_age=max_age))
    free, largest = sum(u.free for u in usages), max((u.largest_free for u in usages), default=0)
    owners = sorted({owner for usage in usages for owner in usage.committed_by_owner})
    return Usage(
        as_of=min((usage.as_of for usage in usages), default=time.monotonic()),
        method="sum",
        exact=all(usage.exact for usage in usages),
        committed=_sum([dict.fromkeys(map(str, MemoryKind), 0), *(usage.committed for usage in usages)]),
        committed_by_owner={
            owner: _sum([usage.committed_by_owner.get(owner, {}) for usage in usages]) for owner in owners
        },
        allocated=_sum([dict.fromkeys(map(str, MemoryKind), 0), *(usage.allocated for usage in usages)]),
        waste=sum(usage.waste for usage in usages),
        retained=sum(usage.retained for usage in usages),
        free_committed=sum(usage.free_committed for usage in usages),
        reserved=sum(usage.reserved for usage in usages),
        overhead=sum(usage.overhead for usage in usages),
        foreign=sum(usage.foreign for usage in usages),
        total=sum(usage.total for usage in usages),
        file_size=sum(usage.file_size for usage in usages),
        free=free,
        largest_free=largest,
        fragmentation=1 - largest / free if free else 0.0,
        peak_committed=sum(usage.peak_committed for usage in usages),
        peak_allocated=sum(usage.peak_allocated for usage in usages),
        counters=_sum([usage.counters for usage in usages]),
    )


def _sum(figures: Sequence[Mapping[str, int]]) -> dict[str, int]:
    result: dict[str, int] = {}
    for figure in figures:
        for name, value in figure.items():
            result[name] = result.get(name, 0) + value
    return result


os.register_at_fork(after_in_child=_memories.clear)

__all__ = ["accounting", "memories"]
