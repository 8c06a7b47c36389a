"""A processor of a KVM guest: enough of one to run code in what a :class:`KvmSpace` has mapped. x86-64 only."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Final, NamedTuple, Self

from memplat.errors import AddressSpaceError, HostError
from memplat.linux import kvm
from memplat.platforms.kvm import KvmSpace

#: The order of struct kvm_regs.
REGISTERS: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
)
_REGS: Final = struct.Struct("<18Q")
_SEGMENT: Final = struct.Struct("<QIH10B")
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLE: Final = struct.Struct("<QH6x")  # struct kvm_dtable
_CONTROLS: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
_CONTROLS_AT: Final = len(_SEGMENTS) * 24 + 2 * _TABLE.size
_EXIT: Final = struct.Struct("<I")  # at 8 of struct kvm_run; the union begins at 32
_IO: Final = struct.Struct("<BBHIQ")
_MMIO: Final = struct.Struct("<Q8sIB")


class Exit(NamedTuple):
    """Why the guest has stopped."""

    reason: int
    """KVM_EXIT_HLT, KVM_EXIT_IO, KVM_EXIT_MMIO …, as in <linux/kvm.h>."""
    port: int = 0
    """The port of an ``out`` or ``in`` instruction."""
    data: bytes = b""
    """What it writes."""
    address: int = 0
    """Of an access to memory that is not there, or not writable."""
    is_write: bool = False


class Vcpu:
    """A processor of *space*'s machine. To be used by one thread at a time, and closed before the space."""

    def __init__(self, space: KvmSpace, number: int = 0) -> None:
        try:
            self._fd, size = kvm.create_vcpu(space.vm, number)
            self._run = mmap.mmap(self._fd, size)
        except OSError as error:
            raise HostError(error.errno, f"no processor can be made: {error}") from error

    @property
    def registers(self) -> dict[str, int]:
        """The general registers."""
        return dict(zip(REGISTERS, _REGS.unpack(kvm.get_regs(self._fd)), strict=True))

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set some general registers."""
        kvm.set_regs(self._fd, _REGS.pack(*{**self.registers, **values}.values()))

    @property
    def controls(self) -> dict[str, int]:
        """The control registers."""
        found = struct.unpack_from("<7Q", kvm.get_sregs(self._fd), _CONTROLS_AT)
        return dict(zip(_CONTROLS, found, strict=True))

    def set_system(
        self,
        *,
        segments: Mapping[str, tuple[int, int, int, int, int]] | None = None,
        tables: Mapping[str, tuple[int, int]] | None = None,
        controls: Mapping[str, int] | None = None,
    ) -> None:
        """Set system registers.

        :param segments: selector, base, type, privilege, bits (16, 32 or 64; 0 for a system segment); flat
        :param tables: ``gdt`` and ``idt``: base and limit
        """
        sregs = bytearray(kvm.get_sregs(self._fd))
        for name, (selector, base, kind, privilege, bits) in (segments or {}).items():
            flags = (kind, 1, privilege, bits == 32, bits != 0, bits == 64, bits != 0, 0, 0, 0)
            limit = 0xFFFFFFFF if bits else 0x67
            _SEGMENT.pack_into(sregs, _SEGMENTS.index(name) * 24, base, limit, selector, *flags)
        for name, (base, limit) in (tables or {}).items():
            at = len(_SEGMENTS) * 24 + (_TABLE.size if name == "idt" else 0)
            _TABLE.pack_into(sregs, at, base, limit)
        for name, value in (controls or {}).items():
            struct.pack_into("<Q", sregs, _CONTROLS_AT + 8 * _CONTROLS.index(name), value)
        kvm.set_sregs(self._fd, bytes(sregs))

    def set_model_specific(self, values: Mapping[int, int]) -> None:
        """Set model specific registers, by number."""
        kvm.set_msrs(self._fd, dict(values))

    def start_flat(self, entry: int) -> None:
        """Begin at *entry* in 32-bit protected mode, without paging: linear addresses are guest-physical."""
        code, data = (8, 0, 11, 0, 32), (16, 0, 3, 0, 32)
        others = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data)
        self.set_system(segments={"cs": code, **others}, controls={"cr0": 0x11})
        self.set_registers({"rip": entry, "rflags": 2})

    def run(self) -> Exit:
        """Run until the guest needs something.

        :raises AddressSpaceError: if it cannot go on: an invalid state, a triple fault
        """
        kvm.run(self._fd)
        (reason,) = _EXIT.unpack_from(self._run, 8)
        if reason == kvm.EXIT_IO:
            _, size, port, count, at = _IO.unpack_from(self._run, 32)
            return Exit(reason, port=port, data=self._run[at : at + size * count])
        if reason == kvm.EXIT_MMIO:
            address, data, length, is_write = _MMIO.unpack_from(self._run, 32)
            return Exit(reason, data=data[:length], address=address, is_write=bool(is_write))
        if reason == kvm.EXIT_HLT:
            return Exit(reason)
        raise AddressSpaceError(f"the guest cannot go on: exit {reason} at {self.registers['rip']:#x}")

    def answer(self, data: bytes) -> None:
        """What an ``in`` instruction or a load from nowhere is to get, before the next :meth:`run`."""
        (reason,) = _EXIT.unpack_from(self._run, 8)
        at = 40 if reason == kvm.EXIT_MMIO else _IO.unpack_from(self._run, 32)[4]
        self._run[at : at + len(data)] = data

    def close(self) -> None:
        """Take the processor down; idempotent."""
        if not self._run.closed:
            self._run.close()
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["REGISTERS", "Exit", "Vcpu"]
