"""The memory of a guest in the Unicorn CPU emulator (https://www.unicorn-engine.org), by ``uc_mem_map_ptr``."""

from __future__ import annotations

import importlib
from typing import Any, Final

from memplat.errors import AddressSpaceError
from memplat.platforms.space import Mapped, PiecewiseSpace
from memplat.types import Access

# <unicorn/unicorn.h>, enum uc_prot
_PERMISSIONS: Final = {
    Access.READ: 1,
    Access.READ_WRITE: 1 | 2,
    Access.READ_EXECUTE: 1 | 4,
    Access.READ_WRITE_EXECUTE: 1 | 2 | 4,
}


class UnicornSpace(PiecewiseSpace):
    """The memory of *engine*, a ``unicorn.Uc``, which the caller made and runs; a new one for x86-64 without it.

    Guest and host use the same mapping: what the guest touches is committed, and counted as if touched here. Map and
    unmap between two runs of the engine, not from within its hooks.
    """

    def __init__(self, engine: Any = None, *, write_execute: bool = False) -> None:
        try:
            unicorn = importlib.import_module("unicorn")  # its types are not declared
        except ImportError as error:
            raise AddressSpaceError("the package unicorn is not installed: pip install 'memplat[unicorn]'") from error
        super().__init__(write_execute=write_execute)
        self._failed = unicorn.UcError
        self.engine: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64) if engine is None else engine

    def _put(self, piece: Mapped) -> None:
        try:
            self.engine.mem_map_ptr(piece.start, piece.length, _PERMISSIONS[piece.access], piece.host_address)
        except self._failed as error:
            raise AddressSpaceError(f"Unicorn cannot map [{piece.start:#x}, {piece.end:#x}): {error}") from error

    def _take(self, piece: Mapped) -> None:
        try:
            self.engine.mem_unmap(piece.start, piece.length)
        except self._failed as error:
            raise AddressSpaceError(f"Unicorn cannot unmap [{piece.start:#x}, {piece.end:#x}): {error}") from error


__all__ = ["UnicornSpace"]
