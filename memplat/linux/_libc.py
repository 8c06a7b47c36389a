"""The C library, called with the GIL released or held, and its errors.

A call through :data:`RELEASED` lets other Python threads run meanwhile, and has to wait up to a switch interval (5 ms)
to get the GIL back if one of them is busy. A call through :data:`HELD` never waits: right for what takes microseconds
and is done thousands of times in a row.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

if ctypes.sizeof(ctypes.c_void_p) != 8:  # pragma: no cover -- off_t and size_t are taken to be 64 bits wide everywhere
    raise ImportError("memplat needs a 64-bit interpreter: it reserves more address space than 32 bits can hold")

RELEASED: Final = ctypes.CDLL(None, use_errno=True)
HELD: Final = ctypes.PyDLL(None, use_errno=True)

#: A system call's result, an offset or a length.
LONG: Final = ctypes.c_int64


def function(
    library: ctypes.CDLL, name: str, result: type[Any] | None, arguments: Sequence[type[Any]] | None
) -> Callable[..., Any]:
    """The C function *name* with its prototype: without one, ctypes takes every result for a 32-bit int.

    :param arguments: ``None``: each call has to bring what is more than an int as an object of ctypes, which takes half
        the time of having it converted
    """
    found = library[name]  # [] makes a new function object; attribute access would share prototypes between users
    found.restype = result
    if arguments is not None:
        found.argtypes = list(arguments)
    return found


#: ioctl(2) without Python's own copy of the argument: that one is lost on errors, or keeps the GIL, by its length.
ioctl_released = function(RELEASED, "ioctl", ctypes.c_int, (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p))
ioctl_held = function(HELD, "ioctl", ctypes.c_int, (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p))

_close_held = function(HELD, "close", ctypes.c_int, (ctypes.c_int,))


class Descriptor(ctypes.c_int):
    """What open(2) returned, -1 included. It is closed also if an exception from outside comes before anybody has got
    hold of it.
    """

    def close(self) -> None:
        """Once."""
        fd = self.value
        self.value = -1  # before the call, after which CPython lets signal handlers in
        if fd >= 0:
            _close_held(fd)

    __del__ = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: open(2) of what is looked at on the fly (/proc), for those who must not be interrupted in between.
open_held: Callable[..., Descriptor] = function(HELD, "open", Descriptor, (ctypes.c_char_p, ctypes.c_int))


def error(call: str) -> OSError:
    """The :class:`OSError` for the ``errno`` that this thread's last failed call left behind."""
    return error_of(call, ctypes.get_errno())


def error_of(call: str, code: int) -> OSError:
    """The :class:`OSError` of a call that failed with this ``errno``."""
    return OSError(code, f"{call}: {os.strerror(code)}")


def last_errno() -> int:
    """The ``errno`` of this thread's last failed call."""
    return ctypes.get_errno()
