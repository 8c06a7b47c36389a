"""One contiguous mapping of the backing file, and the views of it.

Address space is reserved once (``PROT_NONE``, it costs nothing) and the file is mapped over it as it grows, so that the
page at offset *n* always stands at ``base + n`` and no view has to be stitched together.

A view outlives everything: the mapping goes when it was closed *and* its last view has died. Views die wherever the
garbage collector pleases, in any thread and at any moment, so what happens then takes no lock.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from memplat.engine.hot import export, make_leases
from memplat.engine.placement import Placement
from memplat.errors import HostError
from memplat.linux import memory as host
from memplat.linux import system
from memplat.ranges import GIB, HUGE_PAGE_SIZE, align_down, align_up, format_size

log = logging.getLogger("memplat")

_LEAST_DEFAULT: Final = 64 * GIB
#: How many times larger than the ``max_size`` that was asked for it may become.
_RAISES: Final = 16
#: Below this a reservation is of no use to anybody: give up and say so.
_LEAST_RESERVATION: Final = 1 << 20


class Mapping:
    """The reservation, what of it is mapped, and who looks at it.

    :ivar base: the host address of offset 0
    :ivar length: the bytes that are reserved
    :ivar limit: what ``max_size`` came to; :attr:`length` is more where it may be raised later
    :ivar placement: where the pages are to lie
    :ivar leases: the live views
    :ivar owner: the user who owns the file, where it is shmem; -1 where it is not
    :ivar notes: what turned out otherwise than asked
    """

    __slots__ = (
        "__weakref__",
        "_numbers",
        "_unmapped",
        "base",
        "closed",
        "leases",
        "length",
        "limit",
        "notes",
        "owner",
        "placement",
    )

    def __init__(self, max_size: int | None, page_size: int, placement: Placement, owner: int) -> None:
        self.leases = make_leases()
        self._numbers = itertools.count()
        self.owner = owner
        self.closed = False
        self.placement = placement
        self.notes = placement.notes
        self._unmapped = threading.Lock()  # taken once, without waiting, by whoever unmaps
        # Offsets and addresses must be congruent modulo the huge page, or the kernel cannot use any.
        self.limit, self.length, self.base = self._reserve(max_size, page_size, max(HUGE_PAGE_SIZE, page_size))

    def _reserve(self, max_size: int | None, page_size: int, alignment: int) -> tuple[int, int, int]:
        """What the file may grow to, what is reserved for it, and where."""
        ram = system.host_memory()
        usual = max(_LEAST_DEFAULT, 4 * (ram.ram + ram.swap))
        length = asked = max(page_size, align_down(max_size or usual, page_size))
        if max_size is not None and system.address_space_limit() is None:
            # A mapping cannot be moved, and what is beside it belongs to somebody else: there has to be room from the
            # start for a limit that is raised. Not more, because a process has 128 TiB for all its memories.
            length = max(asked, align_down(min(usual, _RAISES * asked), page_size))
        address = None
        while address is None:
            try:
                address = host.reserve_address_space(length, alignment)
            except OSError as error:
                smaller = align_down(length // 2, page_size)
                if length > asked:
                    length = asked
                    continue
                if max_size is not None or smaller < max(_LEAST_RESERVATION, page_size):
                    raise HostError(
                        error.errno,
                        f"cannot reserve {format_size(length)} of address space for max_size ({error.strerror}); "
                        f"{_room()[1]} or set a smaller max_size",
                    ) from error
                length = smaller
        if length < asked:
            note = f"max_size is {format_size(length)} instead of {format_size(asked)}: {_room()[0]}"
            self.notes = (*self.notes, note)
            log.warning("%s", note)
        return min(asked, length), length, address

    def map_part(self, fd: int, start: int, end: int) -> None:
        """Map ``[start, end)`` of the file to its place."""
        host.map_shared(self.base + start, end - start, fd, start)
        self.placement.place(self.base + start, end - start)

    def view(self, start: int, end: int, *, writable: bool, release: Callable[[], None] | None = None) -> memoryview:
        """A view of ``[start, end)``, which must be mapped. *release* is called when the last view derived from it has
        died: in any thread, at any moment, locks held or not.
        """
        number = next(self._numbers)
        self.leases.add(number)
        ended = partial(self._lease_ended, number, release)
        return export(self.base + start, end - start, writable=writable, release=ended)

    def _lease_ended(self, number: int, release: Callable[[], None] | None) -> None:
        self.leases.discard(number)
        if release is not None:
            release()
        if self.closed and not self.leases:
            self.unmap()

    def exclude_from_core_dumps(self, start: int, end: int) -> None:
        """Keep a mapped part out of this process's core dumps."""
        host.madvise(self.base + start, end - start, host.MADV_DONTDUMP)

    def populate(self, start: int, end: int) -> None:
        """Make pages present and writable: an OSError (EFAULT) instead of a later signal."""
        host.populate_write(self.base + start, end - start)

    def zero(self, start: int, end: int) -> None:
        """Zero pages that are committed. They are made present first, so that it cannot signal."""
        self.zero_all((start, end))

    def zero_all(self, extents: Sequence[int]) -> None:
        """As :meth:`zero`, for many parts at once."""
        host.zero_present(self.base, extents, self.owner)

    def store(self, start: int, data: memoryview) -> None:
        """Copy *data* to *start*, for files that cannot be written with a system call."""
        page = system.PAGE_SIZE
        host.populate_write(
            self.base + align_down(start, page), align_up(start + len(data), page) - align_down(start, page)
        )
        host.copy_to(self.base + start, data)

    def close(self) -> None:
        """Unmap as soon as no view is left."""
        self.closed = True
        if not self.leases:
            self.unmap()

    def unmap(self) -> None:
        """Unmap now, once. Only for :meth:`close` and the last lease."""
        if self._unmapped.acquire(blocking=False):
            host.unmap(self.base, self.length)


def _room() -> tuple[str, str]:
    """What keeps a reservation from being larger, and what would help."""
    if system.address_space_limit() is None:
        return "the process has no room for more in its address space", "close memories that are not used"
    return "RLIMIT_AS allows no more", "raise RLIMIT_AS (ulimit -v)"
