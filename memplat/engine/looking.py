"""What is to be done at which time, and looks which shares guests have let go: the service without its sockets."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from memplat import _core
from memplat.engine.hot import make_lock
from memplat.engine.leases import Owner, Share

_MANY: Final = 1024
#: How long the thread rests between two looks while guests let go, and before its last look, in seconds.
_REST: Final = 0.002
_LAST: Final = 0.02


class PythonLooking:
    """What share() looks at.

    :ivar lock: guards the times, and what ``memplat/engine/service.py`` says
    :ivar numbers: of shares
    :ivar address: of the socket that peers connect to
    :ivar _times: what is to be done when, as a heap, with what tells those of one time apart
    :ivar _tidy_at: how many of them are too many
    :ivar _next_time: when the thread will look at them by itself
    """

    lock: Any
    numbers: itertools.count[int]
    address: bytes
    _times: list[tuple[float, int, Share | Callable[[], None]]]
    _order: itertools.count[int]
    _tidy_at: int
    _next_time: float


if TYPE_CHECKING or _core.MODULE is None:  # noqa: SIM108 -- mypy has to see a class
    HotLooking = PythonLooking
else:
    HotLooking = _core.MODULE.HotLooking


class Looking(HotLooking):
    """The times, and the looks."""

    def __init__(self) -> None:
        self.lock = make_lock()
        self.numbers = itertools.count(1)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._times = []
        self._order = itertools.count()
        self._tidy_at = _MANY
        self._next_time = float("inf")

    def at(self, when: float, what: Share | Callable[[], None]) -> None:
        """Do that, or end this share unless it is attached, at a time of the monotonic clock. With the lock held."""
        while self._times and isinstance(share := self._times[0][2], Share) and share.is_over:
            heapq.heappop(self._times)
        if len(self._times) >= self._tidy_at:  # shares that have ended are forgotten
            self._times = [item for item in self._times if not isinstance(item[2], Share) or not item[2].is_over]
            heapq.heapify(self._times)
            self._tidy_at = max(_MANY, 2 * len(self._times))
        heapq.heappush(self._times, (when, next(self._order), what))
        if when < self._next_time:
            self._next_time = when
            os.eventfd_write(self._wake, 1)

    @contextlib.contextmanager
    def hurrying(self, shares: Owner | None) -> Iterator[None]:
        """While somebody waits for the end of a share, each guest that lets go tells so at once."""
        slots = None
        with self.lock:
            if shares is not None and shares.slots is not None:
                slots = shares.slots
                slots.waiting += 1
                slots.want_word()
        if shares is not None:
            self.look(shares)
            self.look_later(shares)
        try:
            yield
        finally:
            if slots is not None:
                with self.lock:
                    slots.waiting -= 1

    def _time_left(self) -> float | None:
        """How long the thread may sleep, in seconds."""
        with self.lock:
            self._next_time = self._times[0][0] if self._times else float("inf")
            # At most a day, because epoll_wait(2) takes milliseconds that fit into an int: 24 days.
            return min(86_400.0, max(0.0, self._next_time - time.monotonic())) if self._times else None

    def _take_due(self) -> list[Share | Callable[[], None]]:
        """What is to be done by now."""
        now = time.monotonic()
        due = []
        with self.lock:
            while self._times and self._times[0][0] <= now:
                due.append(heapq.heappop(self._times)[2])
        return due

    # -- looking which shares have ended ------------------------------------------------------------------------------

    def look(self, shares: Owner, *, thoroughly: bool = False) -> bool:
        """End the shares that guests have let go; *thoroughly*: also of those that died. Whether there were any."""
        with self.lock:
            slots = shares.slots
            found = [] if slots is None else slots.collect_all() if thoroughly else slots.collect()
        if found:
            shares.ended(found)
        return bool(found)

    def _look_again(self, reference: weakref.ref[Owner], *, thoroughly: bool = False) -> None:
        shares = reference()
        if shares is not None:
            self.look(shares, thoroughly=thoroughly)

    def look_later(self, shares: Owner) -> None:
        """Have the thread look by itself for a while."""
        with self.lock:
            if shares.slots is not None and not shares.slots.is_looking:
                shares.slots.is_looking = True
                self.at(time.monotonic() + _REST, partial(self._go_on_looking, weakref.ref(shares)))

    def _go_on_looking(self, reference: weakref.ref[Owner]) -> None:
        """Look, and look again soon; when there was nothing, want word; and when there was nothing again, rest."""
        shares = reference()
        if shares is None:
            return
        found = self.look(shares)
        with self.lock:
            slots = shares.slots
            if slots is None:
                return
            again = _REST
            if not found:
                again, slots.is_looking = _LAST, slots.want_word()
            if slots.is_looking:
                self.at(time.monotonic() + again, partial(self._go_on_looking, reference))
        if not found:
            self.look(shares)


__all__ = ["Looking"]
