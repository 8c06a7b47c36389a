"""The seam between the engine and the compiled core: what calls per page depend on, in Python or compiled.

The classes here are those of the Python core. With the compiled core they are its twins, whose fields are read without
a look into a dictionary, so that a call that needs nothing out of the ordinary runs no Python code at all.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from memplat import _core
from memplat.engine.limits import Limits
from memplat.engine.pages import PageTable
from memplat.errors import MemplatError
from memplat.linux import exporter
from memplat.ranges import FileRange
from memplat.types import Usage

#: Owner, kind and committed bytes of what is used; the bytes of waste; the committed parts of free runs, as extents.
Charged: TypeAlias = "tuple[list[tuple[int, str, int]], int, array[int]]"


class PythonHotState:
    """What of a memory's state decides how a call goes on: the same in every call that is made often.

    :ivar table: guarded by ``lock``
    :ivar lock: re-entrant only so that it knows its owner
    :ivar refuse: makes the error that every call gets; ``None`` while the memory is open
    :ivar dropped: ranges of views that died and are still to be unpinned; with True, of references to be dropped
    :ivar exposed: somebody may write to free pages: an unpinned view, an address or the descriptor was handed out
    :ivar limits: what owners may have; guarded by ``lock``
    :ivar counters: events
    :ivar gate: held while a hook decommits, re-entrant
    :ivar decommitted: what was decommitted since the scanner last looked, ``None`` if too much to tell
    :ivar peers: somebody else may punch or truncate: the descriptor was handed out
    :ivar may_prove: the file is shmem, and may be probed without the hooks; see :attr:`BackingFile.is_shmem`
    :ivar keep: bytes of free pages that may stay committed
    :ivar reserves_always: pages are reserved in every mode, because what is not may be gone when it is touched
    :ivar stays_reserved: what was reserved, or is committed, need not be reserved again until it is decommitted
    """

    table: PageTable
    lock: Any
    refuse: Callable[[], MemplatError] | None
    dropped: deque[tuple[int, int, bool]]
    exposed: bool
    limits: Limits
    counters: Counter[str]
    gate: Any
    decommitted: list[FileRange] | None
    peers: bool
    may_prove: bool
    keep: int
    reserves_always: bool
    stays_reserved: bool


class PythonHotReclaimer:
    """What of the reclaimer they depend on.

    :ivar needs_thread: whether there should be a thread and is none
    :ivar wake_at: how much waste calls for the reclaimer
    """

    needs_thread: bool
    wake_at: int


class PythonHotScanner:
    """What of the scanner they depend on.

    :ivar last: the last figures
    :ivar _runner: the thread that scans, 0 if none does
    :ivar _known: what is committed, as extents of *_known_total* bytes; ``None`` if that is not known for certain
    :ivar _seen_changes: the changes of the page table when the last scan charged the pages
    :ivar _whole_ns: what the last scan of the whole file took
    """

    last: Usage | None
    _runner: int
    _known: array[int] | None
    _known_total: int
    _seen_changes: int
    _whole_ns: int


if TYPE_CHECKING or _core.MODULE is None:
    HotState = PythonHotState
    HotReclaimer = PythonHotReclaimer
    HotScanner = PythonHotScanner
else:
    HotState = _core.MODULE.HotState
    HotReclaimer = _core.MODULE.HotReclaimer
    HotScanner = _core.MODULE.HotScanner


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


def charge(table: PageTable, extents: array[int]) -> Charged | None:
    """Whose the pages of *extents* are, with the compiled core; ``None`` with the one in Python. Under the lock."""
    if _core.MODULE is None or not isinstance(table, _core.MODULE.PageTable):
        return None
    charged: Charged = _core.MODULE.charge(table, extents)
    return charged
