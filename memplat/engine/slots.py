"""The owner's side of a claims table: slots for shares, and which of them are over.

See :mod:`memplat.claims`: what the table says is hearsay, and what the owner remembers and the locks tell is not.
Everything here is guarded by the lock of the service that waits for the peers (``memplat/engine/leases.py``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from memplat import _core, claims
from memplat.claims import ATTACHED, FREE, LEASED, OFFERED, Claims
from memplat.linux import locks

if TYPE_CHECKING:
    from memplat.engine.leases import Share


class PythonSlots:
    """What share() and the looks do with the slots.

    :ivar _shares: by slot; ``None`` in those that are free, which ``_free`` has, too
    """

    _claims: Claims
    _shares: list[Share | None]
    _free: list[int]

    def offer(self, share: Share, number: int) -> int:
        """Give the share a slot, for whoever locks it first; -1 if there is none left."""
        slot = self._free.pop() if self._free else self._new_slot()
        if slot >= 0:
            self._shares[slot] = share
            self._claims.numbers[slot] = number
            self._claims.states[slot] = OFFERED
        return slot

    def _new_slot(self) -> int:
        """A slot that was never used, or -1."""
        if len(self._shares) >= claims.SLOTS:
            return -1
        self._shares.append(None)
        return len(self._shares) - 1

    def _vacate(self, slot: int) -> None:
        self._claims.states[slot] = FREE
        self._shares[slot] = None
        self._free.append(slot)

    def collect(self) -> list[Share]:
        """The shares that peers have let go. Nobody has them any more: their slots are free."""
        found: list[Share] = []
        end = len(self._shares)
        slot = self._claims.find_ended(0, end)
        while slot >= 0:
            share = self._shares[slot]
            if share is None or share.taken:
                self._claims.states[slot] = FREE if share is None else LEASED  # a peer has written nonsense
            elif not self._claims.is_locked(slot):
                self._vacate(slot)
                found.append(share)
            slot = self._claims.find_ended(slot + 1, end)
        return found


if TYPE_CHECKING or _core.MODULE is None:
    HotSlots = PythonSlots
else:

    class HotSlots(_core.MODULE.HotSlots, PythonSlots):
        """Those that are compiled come first."""


class Slots(HotSlots):
    """The shares of one memory that have a slot.

    :ivar waiting: how many threads want to know at once when a share has ended
    :ivar is_looking: the service will look again by itself, so that no peer has to tell
    """

    def __init__(self) -> None:
        """:raises OSError: if the host refuses"""
        self._file = claims.make_file()
        try:
            own = locks.reopen(self._file)
            try:
                self._claims = Claims(own, self._file)
            except BaseException:
                os.close(own)
                raise
        except BaseException:
            os.close(self._file)
            raise
        self._shares = []
        self._free = []
        self.waiting = 0
        self.is_looking = False
        self._claims.wanted[0] = 1

    def take(self, share: Share, state: int) -> bool | None:
        """Have the slot of a share, from now on and for good, as *state*: LEASED or FREE.

        True if nobody had attached it. ``None`` if somebody has, and it is over by now; False if he still has it.
        """
        if not self._claims.try_lock(share.slot):
            return False
        offered = self._claims.states[share.slot] == OFFERED or None
        if state == LEASED and offered:
            self._claims.states[share.slot] = LEASED
        else:
            self._vacate(share.slot)
            self._claims.unlock(share.slot)
        return offered

    def offer_again(self, share: Share) -> None:
        """After all, the peer that asked could not have it."""
        self._claims.states[share.slot] = OFFERED
        self._claims.unlock(share.slot)

    def give_up(self, share: Share) -> None:
        """The share is over; whoever has attached its slot may keep that for himself."""
        if share.slot >= 0 and self._shares[share.slot] is share:
            self._vacate(share.slot)
            if share.taken:
                self._claims.unlock(share.slot)

    def collect_all(self) -> list[Share]:
        """The same, also of peers that died and could not say so: all that nobody has and nobody can get any more."""
        found = []
        for slot, share in enumerate(self._shares):
            if share is None or share.taken or (self._claims.states[slot] == OFFERED and not share.late):
                continue
            if not self._claims.is_locked(slot):
                self._vacate(slot)
                found.append(share)
        return found

    def want_word(self) -> bool:
        """Have the next peer that lets go tell so. To be followed by a look, under a lock: a peer first ends its share,
        and then looks whether we want to know. False if that was so before, and nobody has told.
        """
        before = self._claims.wanted[0]
        self._claims.wanted[0] = 1
        return before != 1

    def for_peer(self) -> tuple[int, int]:
        """The table's descriptor, and a description of its own for a peer: to be closed once it was sent.

        :raises OSError: EMFILE
        """
        return self._file, locks.reopen(self._file)

    def close(self) -> None:
        """Nothing is offered any more. What is attached stays so, for the peers themselves."""
        for slot in range(len(self._shares)):
            if self._claims.states[slot] not in (ATTACHED, FREE):
                self._claims.states[slot] = FREE
        self.abandon()

    def abandon(self) -> None:
        """Close what we have of the table, and leave it as it is."""
        self._claims.close()
        os.close(self._claims.fd)
        os.close(self._file)


__all__ = ["Slots"]
