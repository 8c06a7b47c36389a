"""Asking for memory only where there is some: what is asked of host and memory cgroup beyond their limits is answered
with SIGKILL, not with an error.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from memplat.linux.system import commit_headroom
from memplat.ranges import MIB, format_size

#: Looking takes longer than committing a few pages: so much may be asked for between two looks.
_UNCHECKED_BYTES: Final = 4 * MIB


class _Unchecked:
    """How much was asked for since the head-room was last looked at; updates that threads lose only delay a check."""

    nbytes = 0


def require_headroom(nbytes: int) -> None:
    """Refuse what would have the kernel kill this process, as far as can be known before.

    :raises OSError: ENOMEM
    """
    _Unchecked.nbytes += nbytes
    if _Unchecked.nbytes < _UNCHECKED_BYTES:
        return
    _Unchecked.nbytes = 0
    room = commit_headroom()
    if room is not None and nbytes > room:
        raise OSError(
            errno.ENOMEM,
            f"{os.strerror(errno.ENOMEM)}: {format_size(nbytes)} wanted, host and cgroup have {format_size(room)}",
        )


__all__ = ["require_headroom"]
