"""The guest's processor as a virtual one of KVM: the program runs in ring 3, and a few bytes of ring 0 tell us about
system calls and faults with an ``out`` instruction. Page tables are memory of the sandbox, of kind ``system``.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, chapters 4 (paging), 5.8.8 (SYSCALL), 6, 7.
"""

from __future__ import annotations

import struct

from examples.sandbox.frames import FRAME, Frames, physical
from examples.sandbox.virtual import EXECUTE, READ, WRITE, GuestKilled, VirtualMemory
from memplat import FileRange, Memory
from memplat.linux import kvm
from memplat.platforms import KvmSpace, Vcpu
from memplat.ranges import Address, align_down

_PRESENT, _WRITABLE, _USER, _NO_EXECUTE = 1, 2, 4, 1 << 63
_ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
_KERNEL = 0xFFFF_8000_0000_0000
_CODE, _TABLES, _STACK = _KERNEL, _KERNEL + FRAME, _KERNEL + 2 * FRAME
_IDT, _TSS = _TABLES + 0x100, _TABLES + 0x400
_CALL_PORT, _FAULT_PORT, _FLUSH_PORT = 1, 2, 3
_AFTER_CALL, _FLUSH, _AFTER_FAULT, _VECTORS = _CODE + 2, _CODE + 0x10, _CODE + 0x42, _CODE + 0x100
_SPARE = Address(0xC000_0000)  # guest-physical, where nothing else is
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_PAGE_FAULT = 14
_SIGNALS = {0: 8, 6: 4, 13: 11, 16: 8, 19: 8}
_STAR, _LSTAR, _SFMASK = 0xC000_0081, 0xC000_0082, 0xC000_0084
_KERNEL_CS, _USER_SS, _USER_CS, _TSS_SELECTOR = 0x08, 0x2B, 0x33, 0x38


def _kernel_code() -> bytes:
    code = bytearray(FRAME)
    code[0:5] = bytes.fromhex("e601 480f07")  # out 1, al; sysretq
    code[0x10:0x19] = bytes.fromhex("0f20d8 0f22d8 e603 f4")  # mov rax, cr3; mov cr3, rax; out 3, al; hlt
    common = 0x40
    code[common : common + 8] = bytes.fromhex("e602 4883c410 48cf")  # out 2, al; add rsp, 16; iretq
    for vector in range(32):
        at = 0x100 + 16 * vector
        push = b"" if vector in _WITH_ERROR_CODE else b"\x6a\x00"
        push += bytes([0x6A, vector])
        jump = at + len(push) + 5
        code[at:jump] = push + b"\xe9" + struct.pack("<i", common - jump)
    return bytes(code)


def _kernel_tables() -> bytes:
    def segment(kind: int) -> int:
        return kind << 40 | 0xFFFF | 0xF << 48 | 1 << 55 | (1 << 53 if kind & 8 else 0)

    tss = 0x67 | (_TSS & 0xFFFFFF) << 16 | 0x8B << 40 | (_TSS >> 24 & 0xFF) << 56
    tables = bytearray(FRAME)
    gdt = (0, segment(0x9B), segment(0x93), 0, 0, segment(0xF3), segment(0xFB), tss, _TSS >> 32)
    struct.pack_into("<9Q", tables, 0, *gdt)
    for vector in range(32):
        entry = _VECTORS + 16 * vector
        gate = (entry & 0xFFFF, _KERNEL_CS, 0, 0x8E, entry >> 16 & 0xFFFF, entry >> 32, 0)
        struct.pack_into("<HHBBHII", tables, 0x100 + 16 * vector, *gate)
    struct.pack_into("<Q", tables, 0x404, _STACK + FRAME)  # rsp0
    return bytes(tables)


class KvmCpu:
    """One processor and its machine."""

    name = "kvm"

    def __init__(self, memory: Memory, owner: int) -> None:
        self.space = KvmSpace(write_execute=True)  # what the guest may do is up to its page tables
        self._memory = memory
        self._vcpu = Vcpu(self.space)
        self._frames = Frames(memory, self.space, owner, "system")
        self._root = self._frames.take()
        self._tables: dict[tuple[int, int], int] = {}
        self._present: set[int] = set()
        self._virtual: VirtualMemory | None = None
        self._running = False
        self._resume_at = 0
        for address, content, access in (
            (_CODE, _kernel_code(), EXECUTE),
            (_TABLES, _kernel_tables(), WRITE),
            (_STACK, b"", WRITE),
        ):
            frame = self._frames.take()
            memory.write(FileRange(frame, frame + FRAME), content or bytes(FRAME))
            self._set_page(address, physical(frame), access, user=False)
            if address == _STACK:
                self._stack = frame

    def start(self, virtual: VirtualMemory, entry: int, stack: int) -> None:
        """Begin at *entry*, in ring 3."""
        self._virtual = virtual
        user = (_USER_SS, 0, 3, 3, 32)
        self._vcpu.set_system(
            segments={
                "cs": (_USER_CS, 0, 11, 3, 64),
                **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), user),
                "tr": (_TSS_SELECTOR, _TSS, 11, 0, 0),
            },
            tables={"gdt": (_TABLES, 0x4F), "idt": (_IDT, 0x1FF)},
            controls={"cr0": 0x8001_0023, "cr3": physical(self._root), "cr4": 0x620, "efer": 0xD01},
        )
        self._vcpu.set_model_specific({_STAR: 0x0023_0008 << 32, _LSTAR: _CODE, _SFMASK: 0x4_7700})
        self._vcpu.set_registers({"rip": entry, "rsp": stack, "rflags": 2, "rdx": 0})

    def run(self) -> tuple[int, list[int]]:
        """Run up to the next system call; its number and arguments.

        :raises GuestKilled: if the guest does what it must not
        """
        if self._forget_changed() and self._running:
            self._flush()
        self._running = True
        while True:
            stop = self._vcpu.run()
            if stop.reason != kvm.EXIT_IO:
                raise GuestKilled(4, f"the processor has stopped: exit {stop.reason} at {stop.address:#x}")
            found = self._vcpu.registers
            self._resume_at = _AFTER_CALL if stop.port == _CALL_PORT else _AFTER_FAULT
            if stop.port == _CALL_PORT or self._is_call(found):
                return found["rax"], [found[name] for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9")]
            self._fault(found)

    def answer(self, value: int) -> None:
        """The result of the system call."""
        self._vcpu.set_registers({"rax": value & 0xFFFF_FFFF_FFFF_FFFF})

    def set_thread_pointer(self, value: int) -> None:
        """arch_prctl(2), ARCH_SET_FS."""
        self._vcpu.set_system(segments={"fs": (_USER_SS, value, 3, 3, 32)})

    def close(self) -> None:
        """Take the machine down."""
        self._vcpu.close()
        self._frames.close()
        self.space.release()

    def _is_call(self, found: dict[str, int]) -> bool:
        """Some hypervisors (kvm_pvm) carry out SYSCALL without leaving ring 3: the fetch of our entry fails there. What
        the call would return with is made into what the fault returns with.
        """
        at = self._frame_of_fault(found)
        vector, _, rip, selector = struct.unpack("<4Q", self._memory.read(FileRange(at, at + 32)))
        if (vector, rip, selector) != (_PAGE_FAULT, _CODE, _USER_CS):
            return False
        self._memory.write(FileRange(at + 16, at + 24), struct.pack("<Q", found["rcx"]))
        self._memory.write(FileRange(at + 32, at + 40), struct.pack("<Q", found["r11"]))
        return True

    def _frame_of_fault(self, found: dict[str, int]) -> int:
        return self._stack + found["rsp"] - _STACK

    def _fault(self, found_registers: dict[str, int]) -> None:
        assert self._virtual is not None
        at = self._frame_of_fault(found_registers)
        vector, error, rip = struct.unpack("<3Q", self._memory.read(FileRange(at, at + 24)))
        if vector != _PAGE_FAULT:
            raise GuestKilled(_SIGNALS.get(vector, 11), f"exception {vector} at {rip:#x}")
        wanted = EXECUTE if error & 16 else WRITE if error & 2 else READ
        address = self._vcpu.controls["cr2"]
        found, access = self._virtual.resolve(address, wanted)
        self._forget_changed()  # of this page alone, and the processor has just forgotten it, too
        self._set_page(align_down(address, FRAME), found, access, user=True)

    def _forget_changed(self) -> bool:
        assert self._virtual is not None
        known = self._present.intersection(self._virtual.changed)
        self._virtual.changed.clear()
        for address in known:
            self._put_entry(self._tables[1, address >> 21], address >> 12, 0)
            self._present.discard(address)
        return bool(known)

    def _flush(self) -> None:
        """Have the processor forget what it remembers of page tables: only ring 0 can. A hypervisor without nested
        paging has also shadows of the tables, and does not notice that we have written to them: it drops its shadows
        when a memory slot goes.
        """
        start = align_down(self._root, self._memory.page_size)
        self._memory.map_into(self.space, _SPARE, FileRange(start, start + self._memory.page_size), "read")
        self.space.unmap(_SPARE, self._memory.page_size)
        kept = self._vcpu.registers
        self._vcpu.set_registers({"rip": _FLUSH})
        stop = self._vcpu.run()
        assert stop.port == _FLUSH_PORT, stop
        self._vcpu.set_registers({**kept, "rip": self._resume_at})

    def _set_page(self, address: int, found: int, access: int, *, user: bool) -> None:
        table = self._root
        for level in (3, 2, 1):
            key = level, address >> (12 + 9 * level)
            if key not in self._tables:
                self._tables[key] = self._frames.take()
                self._put_entry(
                    table, address >> (12 + 9 * level), physical(self._tables[key]) | _PRESENT | _WRITABLE | _USER
                )
            table = self._tables[key]
        entry = (found & _ADDRESS_MASK) | _PRESENT
        entry |= _USER * user | _WRITABLE * bool(access & WRITE) | _NO_EXECUTE * (not access & EXECUTE)
        self._put_entry(table, address >> 12, entry)
        if user:
            self._present.add(address)

    def _put_entry(self, table: int, index: int, entry: int) -> None:
        at = table + 8 * (index & 511)
        self._memory.write(FileRange(at, at + 8), struct.pack("<Q", entry))
