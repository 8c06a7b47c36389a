"""Shares: references that are held for other processes until they detach or die.

Who waits for these processes is the service (``memplat/engine/service.py``), whose lock guards what is said to be.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from memplat import _core, wire
from memplat.claims import LEASED
from memplat.engine.arguments import check_timeout
from memplat.engine.refusals import forked
from memplat.engine.slots import Slots
from memplat.ranges import FileRange

if TYPE_CHECKING:
    from memplat.engine.service import Service


class Owner(Protocol):
    """Whose pages are shared: all shares of one memory.

    :ivar slots: guarded by the service's lock; ``None`` if there are none, or the memory is closed
    :ivar living: shares that have not ended, by number; whoever takes one out drops its reference
    :ivar guests: connections of peers that claim slots; guarded by the service's lock
    """

    slots: Slots | None
    living: dict[int, Share]
    guests: set[socket.socket]

    def open_file(self, share: Share) -> tuple[bytes, int]:
        """See :meth:`Share.open_file`."""

    def welcome(self, writable: bool) -> tuple[bytes, int]:
        """What a guest gets to know, and the descriptor of the file that it gets."""

    def ended(self, shares: Iterable[Share]) -> None:
        """Drop the references of shares that have ended, whose slots are free again."""

    def give_up(self, share: Share) -> None:
        """Have the slot of a share back."""


class PythonShare:
    """The fields of a share.

    :ivar pages: what is shared
    :ivar number: which share of this process it is
    :ivar slot: in the claims table; -1 if it has none
    :ivar taken: whether it was redeemed, by token or as a ticket: its slot is ours; guarded by the service's lock
    :ivar late: whether its time was over while somebody had it
    :ivar lease: our end of a ticket's lease, ``None`` otherwise
    :ivar _done: made when somebody waits
    """

    __slots__ = (
        "_done",
        "_ended",
        "_service",
        "_shares",
        "late",
        "lease",
        "number",
        "pages",
        "slot",
        "taken",
        "writable",
    )

    _service: Service
    _shares: weakref.ref[Owner]
    _done: threading.Event | None
    _ended: bool
    number: int
    pages: FileRange
    writable: bool
    slot: int
    taken: bool
    late: bool
    lease: socket.socket | None


if TYPE_CHECKING or _core.MODULE is None:  # noqa: SIM108 -- mypy has to see a class
    HotShare = PythonShare
else:
    HotShare = _core.MODULE.HotShare


class Share(HotShare):
    """One reference, held for a peer."""

    __slots__ = ()

    def __init__(
        self, service_: Service, shares: weakref.ref[Owner], number: int, pages: FileRange, writable: bool
    ) -> None:
        self._service = service_
        self._shares = shares
        self._done = None
        self._ended = False
        self.number = number
        self.pages = pages
        self.writable = writable
        self.slot = -1
        self.taken = self.late = False
        self.lease = None

    def end(self) -> bool:
        """Drop the reference, once; whether it was there."""
        shares = self._shares()
        if shares is None or self.number not in shares.living:
            self.has_ended()
            return False
        shares.give_up(self)
        shares.ended((self,))
        return True

    def has_ended(self) -> None:
        """Tell who waits."""
        self._ended = True
        done = self._done  # whoever has made one after this line has seen that it is over
        if done is not None:
            done.set()

    @property
    def is_over(self) -> bool:
        """Whether the reference was dropped."""
        shares = self._shares()
        return shares is None or self.number not in shares.living

    def take(self, state: int = LEASED) -> bool | None:
        """Have it for ourselves, so that nobody can claim it any more; under the service's lock. As
        :meth:`~memplat.engine.slots.Slots.take`; ``None`` if it is over.
        """
        shares = self._shares()
        if shares is None or self.is_over:
            return None
        taken = False if self.taken else True if self.slot < 0 else None
        if taken is None and shares.slots is not None:
            taken = shares.slots.take(self, state)
        self.taken = self.taken or (bool(taken) and state == LEASED)
        return taken

    def give_back(self) -> None:
        """Undo :meth:`take`, under the service's lock."""
        shares = self._shares()
        if self.slot >= 0 and shares is not None and shares.slots is not None:
            shares.slots.offer_again(self)
        self.taken = False

    def open_file(self) -> tuple[bytes, int]:
        """What a peer gets to know, and the descriptor that it gets; under the service's lock.

        :raises OSError, LookupError: if the memory is gone or the host refuses
        """
        shares = self._shares()
        if shares is None or self.is_over:
            raise LookupError
        return shares.open_file(self)

    def make_ticket(self) -> int:
        """See :meth:`memplat.sharing.Shared.make_ticket`."""
        return self._running().make_ticket(self)

    def revoke(self) -> bool:
        """See :meth:`memplat.sharing.Shared.revoke`."""
        return self._running().revoke(self)

    def wait(self, timeout: float | None) -> bool:
        """See :meth:`memplat.sharing.Shared.wait`."""
        running_ = self._running()
        seconds = None if timeout is None else check_timeout(timeout, "timeout")
        wire.check_may_wait("wait for the end of a share")
        with running_.lock:
            done = self._done = self._done or threading.Event()
        with running_.hurrying(self._shares()):
            return self._ended or done.wait(seconds)

    def _running(self) -> Service:
        if self._service.is_parents:
            raise forked()
        return self._service


if _core.MODULE is not None:
    _core.MODULE.install_shares(Share)

__all__ = ["Owner", "Share"]
