"""A kernel that lacks something: a thread of its own whose system calls are refused as an older kernel would.

seccomp(2): a filter of one thread, which that thread cannot get rid of. It is no simulation in Python: what the code
under test calls does fail.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeVar

T = TypeVar("T")

_X86 = platform.machine() == "x86_64"
_IOCTL = 16 if _X86 else 29
#: What can be missing: system calls by number, ioctls by request.
_CALLS = {"cachestat": 451, "userfaultfd": 323 if _X86 else 282}
_IOCTLS = {"pagemap_scan": 0xC0606610, "fiemap": 0xC020660B}
_ERRORS = {"cachestat": errno.ENOSYS, "userfaultfd": errno.EPERM, "pagemap_scan": errno.ENOTTY}

# <linux/filter.h>, <linux/seccomp.h>, <linux/prctl.h>
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_NUMBER_AT, _SECOND_ARGUMENT_AT = 0, 24

_libc = ctypes.CDLL(None, use_errno=True)


def _statement(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse_if(value: int, code: int) -> bytes:
    return _statement(_JUMP_IF_EQUAL, value, 0, 1) + _statement(_RETURN, _ERRNO | code)


def _program(missing: Collection[str]) -> bytes:
    program = _statement(_LOAD, _NUMBER_AT)
    for name in sorted(missing & _CALLS.keys()):
        program += _refuse_if(_CALLS[name], _ERRORS[name])
    program += _statement(_JUMP_IF_EQUAL, _IOCTL, 1, 0) + _statement(_RETURN, _ALLOW)
    program += _statement(_LOAD, _SECOND_ARGUMENT_AT)
    for name in sorted(missing & _IOCTLS.keys()):
        program += _refuse_if(_IOCTLS[name], _ERRORS.get(name, errno.EOPNOTSUPP))
    return program + _statement(_RETURN, _ALLOW)


def _give_up(missing: Collection[str]) -> None:
    """Let this thread, and no other, do without what is *missing* from now on."""
    program = ctypes.create_string_buffer(_program(missing))
    header = struct.pack("=H6xQ", len(_program(missing)) // 8, ctypes.addressof(program))
    zero = ctypes.c_ulong(0)
    for option, value, more in (
        (_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero),
        (_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.c_char_p(header)),
    ):
        if _libc.prctl(option, value, more, zero, zero):
            raise OSError(ctypes.get_errno(), "prctl")


def without(missing: Collection[str], call: Callable[[], T]) -> T:
    """The result of *call*, made where *missing* ("cachestat", "pagemap_scan", "fiemap", "userfaultfd") is refused."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _give_up(frozenset(missing))
            outcome.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    result: T = outcome[0]
    return result
