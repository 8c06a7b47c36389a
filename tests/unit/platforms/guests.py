"""One guest of each kind: an address space, and code that loads and stores in it, executed by the guest itself."""

from __future__ import annotations

import abc
import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator

from memplat.errors import HostError
from memplat.linux import kvm
from memplat.memory import Memory
from memplat.platforms import HostSpace, KvmSpace, ProcessSpace, Space, UnicornSpace, Vcpu, Window
from memplat.ranges import MIB, Address
from tests.needs import needs

LENGTH = 4 * MIB
NAMES = ("host", "process", "unicorn", "kvm")

#: x86: mov al, [ebx]; out 0x10, al; hlt -- and: mov [ebx], al; hlt. In 64-bit mode, ebx is rbx with a prefix.
LOAD, STORE = bytes.fromhex("8a03e610f4"), bytes.fromhex("8803f4")


class Guest(abc.ABC):
    """Addresses from :attr:`base` on are the test's."""

    space: Space
    base: Address

    @abc.abstractmethod
    def load(self, addr: int) -> int:
        """A byte, loaded by the guest."""

    @abc.abstractmethod
    def store(self, addr: int, value: int) -> None:
        """A byte, stored by the guest."""

    def close(self) -> None:
        self.space.release()


class HostGuest(Guest):
    def __init__(self) -> None:
        self.space = HostSpace(LENGTH)
        self.base = self.space.first

    def load(self, addr: int) -> int:
        return ctypes.c_ubyte.from_address(addr).value

    def store(self, addr: int, value: int) -> None:
        ctypes.c_ubyte.from_address(addr).value = value


def load_there(window: Window, addr: Address) -> int:
    return window.view(addr, 1)[0]


def store_there(window: Window, addr: Address, value: int) -> None:
    window.view(addr, 1, writable=True)[0] = value


class ProcessGuest(Guest):
    space: ProcessSpace

    def __init__(self) -> None:
        self.space = ProcessSpace(LENGTH)
        self.base = self.space.first

    def load(self, addr: int) -> int:
        return self.space.call(load_there, Address(addr))

    def store(self, addr: int, value: int) -> None:
        self.space.call(store_there, Address(addr), value)


class UnicornGuest(Guest):
    space: UnicornSpace
    base = Address(0x40_0000)

    def __init__(self) -> None:
        try:
            self.x86 = importlib.import_module("unicorn.x86_const")
        except ImportError:
            needs("unicorn", "it is not installed")
        self.space = UnicornSpace()
        engine = self.engine = self.space.engine
        engine.mem_map(0x1000, 0x1000)
        engine.mem_write(0x1000, b"\x8a\x03\xf4\x88\x03\xf4")

    def run(self, entry: int, end: int, addr: int, value: int) -> int:
        self.engine.reg_write(self.x86.UC_X86_REG_RBX, addr)
        self.engine.reg_write(self.x86.UC_X86_REG_RAX, value)
        self.engine.emu_start(entry, end)
        return int(self.engine.reg_read(self.x86.UC_X86_REG_AL))

    def load(self, addr: int) -> int:
        return self.run(0x1000, 0x1002, addr, 0)

    def store(self, addr: int, value: int) -> None:
        self.run(0x1003, 0x1005, addr, value)


class KvmGuest(Guest):
    space: KvmSpace
    base = Address(0x40_0000)
    code = Address(0x1000)

    def __init__(self, memory: Memory) -> None:
        try:
            self.space = KvmSpace(dirty_log=True)
        except HostError as error:
            needs("kvm", str(error))
        self.memory = memory
        self.program = memory.allocate(memory.page_size, fill=LOAD + STORE)
        memory.map_into(self.space, self.code, self.program, "read_execute")
        self.cpu = Vcpu(self.space)

    def load(self, addr: int) -> int:
        self.cpu.start_flat(self.code)
        self.cpu.set_registers({"rbx": addr, "rax": 0})
        stop = self.cpu.run()
        assert stop.reason == kvm.EXIT_IO, stop
        assert self.cpu.run().reason == kvm.EXIT_HLT
        return stop.data[0]

    def store(self, addr: int, value: int) -> None:
        self.cpu.start_flat(self.code + len(LOAD))
        self.cpu.set_registers({"rbx": addr, "rax": value})
        stop = self.cpu.run()
        assert stop.reason == kvm.EXIT_HLT, stop

    def close(self) -> None:
        self.cpu.close()
        super().close()
        self.memory.decref(self.program)


@contextlib.contextmanager
def make_guest(name: str, memory: Memory) -> Iterator[Guest]:
    guest: Guest
    if name == "kvm":
        guest = KvmGuest(memory)
    else:
        kinds: dict[str, Callable[[], Guest]] = {"host": HostGuest, "process": ProcessGuest, "unicorn": UnicornGuest}
        guest = kinds[name]()
    try:
        yield guest
    finally:
        guest.close()
