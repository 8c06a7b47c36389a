"""The seam between the engine and the compiled core: what calls per page depend on, in Python or compiled.

The classes here are those of the Python core. With the compiled core they are its twins, whose fields are read without
a look into a dictionary, so that a call that needs nothing out of the ordinary runs no Python code at all.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memplat import _core
from memplat.engine.limits import Limits
from memplat.engine.pages import PageTable
from memplat.errors import MemplatError
from memplat.linux import exporter
from memplat.types import Usage


class PythonHotState:
    """What of a memory's state decides how a call goes on: the same in every call that is made often.

    :ivar table: guarded by ``lock``
    :ivar lock: re-entrant only so that it knows its owner
    :ivar refuse: makes the error that every call gets; ``None`` while the memory is open
    :ivar dropped: ranges of views that died and are still to be unpinned; with True, of references to be dropped
    :ivar exposed: somebody may write to free pages: an unpinned view, an address or the descriptor was handed out
    :ivar limits: what owners may have; guarded by ``lock``
    :ivar counters: events
    """

    table: PageTable
    lock: Any
    refuse: Callable[[], MemplatError] | None
    dropped: deque[tuple[int, int, bool]]
    exposed: bool
    limits: Limits
    counters: Counter[str]


class PythonHotReclaimer:
    """What of the reclaimer they depend on.

    :ivar needs_thread: whether there should be a thread and is none
    :ivar wake_at: how much waste calls for the reclaimer
    """

    needs_thread: bool
    wake_at: int


class PythonHotScanner:
    """What of the scanner decides whether the host has to be probed.

    :ivar last: the last figures
    """

    last: Usage | None
    _runner: int
    _known: array[int] | None
    _known_total: int
    _seen_changes: int


if TYPE_CHECKING or _core.MODULE is None:
    HotState = PythonHotState
    HotReclaimer = PythonHotReclaimer
    HotScanner = PythonHotScanner
else:
    HotState = _core.MODULE.HotState
    HotReclaimer = _core.MODULE.HotReclaimer
    HotScanner = PythonHotScanner


def make_table(page_size: int) -> PageTable:
    """An empty page table."""
    made: PageTable = _core.MODULE.PageTable(page_size) if _core.MODULE is not None else PageTable(page_size)
    return made


def make_lock() -> Any:
    """A re-entrant lock with ``_is_owned``, as :class:`threading.RLock` is."""
    return _core.MODULE.Lock() if _core.MODULE is not None else threading.RLock()


def export(address: int, length: int, *, writable: bool, release: Callable[[], None] | None = None) -> memoryview:
    """As :func:`memplat.linux.exporter.export`."""
    make = exporter.export if _core.MODULE is None else _core.MODULE.export
    return make(address, length, writable=writable, release=release)


def make_leases() -> set[int]:
    """What counts live views by their numbers."""
    made: set[int] = _core.MODULE.Leases() if _core.MODULE is not None else set()
    return made
