"""How a check says what it found."""

from __future__ import annotations


class CheckFailedError(AssertionError):
    """The backend does not do what the check's sentence says."""


class NotApplicableError(Exception):
    """The check says nothing about this backend, here; the message is the reason."""


def expect(condition: bool, message: str) -> None:
    """Fail the check unless *condition* holds.

    :raises CheckFailedError: with *message*, which names what was found and what was expected
    """
    if not condition:
        raise CheckFailedError(message)


__all__ = ["CheckFailedError", "NotApplicableError", "expect"]
