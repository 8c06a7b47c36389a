"""What the kernel takes for the name of a memfd."""

from __future__ import annotations

from typing import Final, Protocol

from memplat.wording import shown

#: memfd_create(2): names are limited to 249 bytes, because the kernel shows them as "memfd:NAME".
MAX_NAME_BYTES: Final = 249


class _Named(Protocol):
    @property
    def name(self) -> str:
        """What the value is for."""


def check_name(_: object, option: _Named, value: object) -> None:
    """For options classes: whether a memfd can be named so.

    :raises ValueError: it cannot
    """
    allowed = f"allowed are up to {MAX_NAME_BYTES} bytes without NUL"
    try:
        fits = isinstance(value, str) and "\0" not in value and len(value.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        raise ValueError(f"{option.name} is {shown(value)}, which is no UTF-8: {allowed}") from None
    if not fits:
        raise ValueError(f"{option.name} is {shown(value)}: {allowed}")


__all__ = ["MAX_NAME_BYTES", "check_name"]
