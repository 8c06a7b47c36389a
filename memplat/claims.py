"""The claims table: which shares of a memory are offered, attached and over, in pages that owner and peers map.

One table a memory, a memfd with a *slot* for each share. What is written in it is hearsay: any peer could write
anything. What counts is the **lock** of a slot's byte (:mod:`memplat.linux.locks`): a peer has attached the share for
as long as its open file description holds the lock, and the kernel lets go of it when the peer dies. So the owner gives
a slot up only if nobody holds its lock, and whoever writes nonsense ends none but shares that nobody has attached.

======== ============================================ =====================
state    means                                        who writes it
======== ============================================ =====================
FREE     nobody's                                     the owner
OFFERED  to be attached by whoever locks it first     the owner
ATTACHED by whoever holds the lock                    a peer, with the lock
ENDED    let go; the owner may look                   a peer, with the lock
LEASED   to a peer that asked; the owner has the lock the owner
======== ============================================ =====================

A slot's number of the share tells one that was given up from its successor. It is written before the state.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final

from memplat import _core
from memplat.linux import files, locks
from memplat.ranges import KIB

FREE: Final = 0
OFFERED: Final = 1
ATTACHED: Final = 2
ENDED: Final = 3
LEASED: Final = 4

#: Shares of one memory that have a slot at a time.
SLOTS: Final = 1 << 15
#: Where the states begin, a byte each; the byte of a state is also the one that is locked.
STATES: Final = 4 * KIB
_NUMBERS: Final = STATES + SLOTS
SIZE: Final = _NUMBERS + 8 * SLOTS
_ENDED: Final = bytes([ENDED])


class PythonClaims:
    """What of the table is looked at in calls that are made often; compiled, it knows where the table is mapped.

    :ivar fd: the open file description that locks; the mapping is of another one, which keeps no lock alive
    """

    __slots__ = ("fd",)

    fd: int

    def _adopt(self, whole: memoryview, states: int, numbers: int) -> None:
        """The table is mapped: where the states and the numbers begin."""

    def _leave(self) -> None:
        """It is about to be unmapped."""


if TYPE_CHECKING or _core.MODULE is None:  # noqa: SIM108 -- mypy has to see a class
    HotClaims = PythonClaims
else:
    HotClaims = _core.MODULE.HotClaims


class Claims(HotClaims):
    """The table, mapped.

    :ivar states: by slot
    :ivar numbers: of shares, by slot
    :ivar wanted: ``wanted[0]`` is not 0 if the owner wants to be told when a share has ended
    """

    __slots__ = ("_map", "_whole", "numbers", "states", "wanted")

    def __init__(self, fd: int, mapped: int) -> None:
        """Take *fd* over; *mapped* is only mapped.

        :raises OSError, ValueError: if the host refuses, or it is no table; *fd* is still the caller's
        """
        self._map = mmap.mmap(mapped, SIZE)
        self._whole = memoryview(self._map)
        self.wanted = self._whole[:8].cast("Q")
        self.states = self._whole[STATES:_NUMBERS]
        self.numbers = self._whole[_NUMBERS:].cast("Q")
        self._adopt(self._whole, STATES, _NUMBERS)
        self.fd = fd

    def try_lock(self, slot: int, *, shared: bool = False) -> bool:
        """See :func:`memplat.linux.locks.try_lock`."""
        return locks.try_lock(self.fd, STATES + slot, shared=shared)

    def unlock(self, slot: int) -> None:
        """See :func:`memplat.linux.locks.unlock`."""
        locks.unlock(self.fd, STATES + slot)

    def is_locked(self, slot: int) -> bool:
        """Whether somebody else holds the slot."""
        return locks.is_locked(self.fd, STATES + slot)

    def find_ended(self, first: int, end: int) -> int:
        """The first slot from *first* on, below *end*, that is said to be ENDED; -1 if there is none."""
        found = self._map.find(_ENDED, STATES + first, STATES + end)
        return found - STATES if found >= 0 else -1

    def close(self) -> None:
        """Unmap; :attr:`fd` is closed by whoever gave it."""
        self._leave()
        for view in (self.wanted, self.states, self.numbers, self._whole):
            view.release()
        self._map.close()


def make_file() -> int:
    """The file of a new table. Peers can neither shrink it (that would be SIGBUS here) nor grow it.

    :raises OSError: if the host refuses
    """
    fd = files.memfd("memplat-claims")
    try:
        os.ftruncate(fd, SIZE)
        files.add_seals(fd, files.F_SEAL_SHRINK | files.F_SEAL_GROW | files.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


__all__ = ["ATTACHED", "ENDED", "FREE", "LEASED", "OFFERED", "SIZE", "SLOTS", "STATES", "Claims", "make_file"]
