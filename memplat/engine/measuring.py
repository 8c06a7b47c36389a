"""The part of the façade that tells figures and sets limits. What every method promises stands in
:class:`memplat.memory.Memory`.
"""

from __future__ import annotations

from time import monotonic
from types import EllipsisType

from memplat.engine.arguments import MAX_OFFSET, check_timeout, is_int, refuse_owner
from memplat.engine.commit import Scanner
from memplat.engine.edge import Edge
from memplat.engine.limits import set_limit_locked
from memplat.engine.state import EngineState, host_error
from memplat.errors import InvalidArgumentError
from memplat.types import MAX_OWNER, Usage
from memplat.wording import shown


class Measuring(Edge):
    """Figures and limits of a memory."""

    def __init__(self, state: EngineState, scanner: Scanner) -> None:
        super().__init__(state)
        self._scanner = scanner

    def update_usage(self, *, owner: int | None = None, max_age: float = 0) -> Usage:
        """See :meth:`Memory.update_usage`."""
        if owner is None and type(max_age) is float:
            # Those who poll often take no lock, and next to no time of those who work.
            last, state = self._scanner.last, self._state
            if (
                last is not None
                and monotonic() - last.as_of <= max_age != 0
                and last.method != "none"
                and state.refuse is None
                and not state.is_interrupted()
            ):
                return last
        if owner is not None:
            _check_owner(owner)
        return self._scanner.update(
            0 if type(max_age) is int and max_age == 0 else check_timeout(max_age, "max_age"), owner
        )

    def usage(self, *, owner: int | None = None) -> Usage:
        """See :meth:`Memory.usage`."""
        if owner is not None:
            _check_owner(owner)
        return self._scanner.usage(owner)

    def reset_peaks(self) -> None:
        """See :meth:`Memory.reset_peaks`."""
        self._scanner.reset_peaks()

    def set_limit(
        self,
        owner: int,
        *,
        allocated: int | EllipsisType | None = ...,
        committed: int | EllipsisType | None = ...,
    ) -> None:
        """See :meth:`Memory.set_limit`."""
        _check_owner(owner)
        for name, value in (("allocated", allocated), ("committed", committed)):
            if value is not None and value is not ... and (not is_int(value) or not 0 <= value <= MAX_OFFSET):
                raise InvalidArgumentError(
                    f"{name} {shown(value)} is no limit; allowed are bytes from 0 on, or None for no limit"
                )
        if allocated is ... and committed is ...:
            raise InvalidArgumentError("set_limit: which one? Name allocated=, committed= or both; None takes it away")
        with self._state.locked():
            found = self._scanner.figures.in_use_locked(self._scanner.last, owner)
            set_limit_locked(self._state.limits, owner, allocated, committed, found)

    def account_external(self, nbytes: int, *, owner: int = 0) -> None:
        """See :meth:`Memory.account_external`."""
        _check_owner(owner)
        if not is_int(nbytes) or abs(nbytes) > MAX_OFFSET:
            raise InvalidArgumentError(f"nbytes {shown(nbytes)} is no number of bytes")
        with self._state.locked():
            if not self._scanner.figures.account_external_locked(owner, nbytes):
                raise InvalidArgumentError(
                    f"account_external({nbytes}) would leave owner {owner} with less than nothing"
                )

    def total_usage(self) -> int:
        """See :meth:`Memory.total_usage`."""
        with self._state.in_flight():
            try:
                return self._state.storage().total
            except OSError as error:
                raise host_error(error, "the host could not be asked") from error


def _check_owner(owner: int) -> None:
    if type(owner) is not int or not 0 <= owner <= MAX_OWNER:
        refuse_owner(owner)
