"""The guest's processor, emulated by Unicorn. Its TLB asks us, so there are no page tables in the guest."""

from __future__ import annotations

import importlib
from typing import Any

from unicorn import unicorn_const as const
from unicorn import x86_const as x86

from examples.sandbox.virtual import EXECUTE, READ, WRITE, GuestKilled, VirtualMemory
from memplat import Memory
from memplat.platforms import UnicornSpace

_WANTED = {const.UC_MEM_READ: READ, const.UC_MEM_WRITE: WRITE, const.UC_MEM_FETCH: EXECUTE}
_REGISTERS = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in ("rax", "rsp", "rip", "rcx", "r11")}
_ARGUMENTS = [getattr(x86, f"UC_X86_REG_{name}") for name in ("RDI", "RSI", "RDX", "R10", "R8", "R9")]


class UnicornCpu:
    """One processor and its machine."""

    name = "unicorn"

    def __init__(self, _memory: Memory, _owner: int) -> None:
        self.space = UnicornSpace(write_execute=True)  # what the guest may do is up to its virtual memory
        engine: Any = self.space.engine
        self._failed: type[Exception] = importlib.import_module("unicorn").UcError  # its types are not declared
        self._engine = engine
        engine.ctl_set_tlb_mode(const.UC_TLB_VIRTUAL)
        engine.hook_add(const.UC_HOOK_TLB_FILL, self._fill)
        engine.hook_add(const.UC_HOOK_INSN, self._syscall, aux1=x86.UC_X86_INS_SYSCALL)
        self._virtual: VirtualMemory | None = None
        self._stopped_by: BaseException | None = None
        self._running = self._in_syscall = self._must_flush = False
        self._at = 0

    def start(self, virtual: VirtualMemory, entry: int, stack: int) -> None:
        """Begin at *entry*."""
        self._virtual = virtual
        self._engine.reg_write(x86.UC_X86_REG_RSP, stack)
        self._at = entry

    def run(self) -> tuple[int, list[int]]:
        """Run up to the next system call; its number and arguments.

        :raises GuestKilled: if the guest does what it must not
        """
        self._flush()
        self._in_syscall = False
        self._running = True
        try:
            self._engine.emu_start(self._at, 0)
        except self._failed as error:
            if self._stopped_by is None:
                at = self._engine.reg_read(x86.UC_X86_REG_RIP)
                raise GuestKilled(4, f"the processor cannot go on at {at:#x}: {error}") from error
        finally:
            self._running = False
        if self._stopped_by is not None:
            raise self._stopped_by
        if not self._in_syscall:
            raise GuestKilled(4, f"the processor has stopped at {self._engine.reg_read(x86.UC_X86_REG_RIP):#x}")
        self._at = self._engine.reg_read(x86.UC_X86_REG_RIP)
        return self._engine.reg_read(x86.UC_X86_REG_RAX), [self._engine.reg_read(number) for number in _ARGUMENTS]

    def answer(self, value: int) -> None:
        """The result of the system call."""
        self._engine.reg_write(x86.UC_X86_REG_RAX, value & 0xFFFF_FFFF_FFFF_FFFF)

    def set_thread_pointer(self, value: int) -> None:
        """arch_prctl(2), ARCH_SET_FS."""
        self._engine.reg_write(x86.UC_X86_REG_FS_BASE, value)

    def close(self) -> None:
        """Take the machine down."""
        self.space.release()

    def _syscall(self, engine: Any, _data: object) -> None:
        self._in_syscall = True
        engine.emu_stop()

    def _fill(self, engine: Any, address: int, access: int, entry: Any, _data: object) -> bool:
        assert self._virtual is not None
        if not self._running:
            # The engine itself asks when memory is unmapped: for the code that it has translated from these physical
            # addresses, which it takes for virtual ones.
            entry.paddr, entry.perms = address, READ | EXECUTE
            self._must_flush = True
            return True
        try:
            found, allowed = self._virtual.resolve(address, _WANTED[access])
        except BaseException as error:  # noqa: BLE001 -- an exception cannot pass through the emulator
            self._stopped_by = error
            engine.emu_stop()
            return False
        entry.paddr = found
        entry.perms = allowed  # UC_PROT_READ, _WRITE and _EXEC are the same bits
        return True

    def _flush(self) -> None:
        assert self._virtual is not None
        if self._virtual.changed or self._must_flush:
            self._virtual.changed.clear()
            self._must_flush = False
            self._engine.ctl(const.UC_CTL_TLB_FLUSH, const.UC_CTL_IO_WRITE)
