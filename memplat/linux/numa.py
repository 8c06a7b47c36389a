"""NUMA: which nodes the host has, and on which ones the pages of a mapping are to be allocated."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from array import array
from collections.abc import Collection
from pathlib import Path
from typing import Final

from memplat.linux import _libc

# <linux/mempolicy.h>
MPOL_PREFERRED: Final = 1
MPOL_BIND: Final = 2
MPOL_INTERLEAVE: Final = 3
MPOL_LOCAL: Final = 4
MPOL_PREFERRED_MANY: Final = 5

#: <asm/unistd.h>; x86-64 has its own numbers, all newer architectures the generic ones. glibc has no wrapper.
_MBIND_NUMBER: Final = 237 if platform.machine() == "x86_64" else 235
_NODES: Final = Path("/sys/devices/system/node/has_memory")

_LONG = ctypes.c_long
_syscall = _libc.function(
    _libc.RELEASED,
    "syscall",
    _LONG,
    (_LONG, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_uint),
)


def nodes_with_memory() -> tuple[int, ...] | None:
    """The nodes that memory can come from, ``None`` where the kernel does not tell.

    Documentation/ABI/stable/sysfs-devices-node: has_memory, "Nodes that have regular or high memory".
    """
    try:
        text = _NODES.read_text(encoding="ascii")
    except OSError:
        return None
    return tuple(parse_list(text))


def parse_list(text: str) -> list[int]:
    """The numbers of a list as cpuset(7) has it, "List format": ``0-3,8`` is 0, 1, 2, 3 and 8."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def mbind(address: int, length: int, mode: int, nodes: Collection[int]) -> None:
    """Say from which *nodes* the pages of a part of a mapping are to be allocated from now on.

    mbind(2). In shared mappings of memfds, of files on tmpfs and of huge pages the policy is the *file's*: it holds for
    other mappings, too, and outlives this one. Ordinary files: "The specified policy will be ignored for any MAP_SHARED
    mappings in the specified memory range", and the call succeeds all the same.

    :raises OSError: EINVAL (a node that does not exist or has no memory), ENOSYS (a kernel without NUMA), EPERM
    """
    words = max(nodes, default=0) // 64 + 1
    mask = array("Q", bytes(8 * words))
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    # The kernel looks at one bit less than it is told.
    if _syscall(_MBIND_NUMBER, address, length, mode, mask.buffer_info()[0] if nodes else None, 64 * words + 1, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"mbind: {os.strerror(code)}")


def is_missing(error: OSError) -> bool:
    """Whether mbind failed because there is no NUMA: in this kernel, or for this process (a sandbox's filter)."""
    return error.errno in (errno.ENOSYS, errno.EPERM)
