"""The system calls. What is not here gets ENOSYS and is listed in the end."""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from collections.abc import Callable
from typing import IO, Protocol

from examples.sandbox import elf
from examples.sandbox.filecalls import FileCalls, OpenFile, Outcome, RefusedError
from examples.sandbox.frames import FRAME, Frames, PageCache
from examples.sandbox.loading import STACK, fill_stack, map_program
from examples.sandbox.virtual import EXECUTE, READ, WRITE, BadAddressError, GuestKilled, VirtualMemory
from memplat import Memory, OutOfMemory
from memplat.platforms import Space
from memplat.ranges import align_up

_PIE_BASE = 0x5555_5555_4000
_MAP_FIXED, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE = 0x10, 0x20, 0x100000
_MADV_DONTNEED, _MREMAP_MAYMOVE = 4, 1
_ARCH_SET_FS = 0x1002


class Processor(Protocol):
    """What runs the guest: see ``cpu_unicorn.py`` and ``cpu_kvm.py``."""

    name: str
    space: Space

    def start(self, virtual: VirtualMemory, entry: int, stack: int) -> None: ...
    def run(self) -> tuple[int, list[int]]: ...
    def answer(self, value: int) -> None: ...
    def set_thread_pointer(self, value: int) -> None: ...
    def close(self) -> None: ...


class _Exit(Exception):  # noqa: N818 -- not an error
    def __init__(self, status: int) -> None:
        self.status = status


class Sandbox(FileCalls):
    """One program, from its start to its end. *roots* are the only directories that it sees, read-only."""

    def __init__(
        self,
        memory: Memory,
        cache: PageCache,
        cpu: Processor,
        *,
        owner: int,
        roots: list[str],
        stdout: IO[bytes],
        stderr: IO[bytes],
        stdin: IO[bytes] | None = None,
    ) -> None:
        self._memory, self._cache, self._cpu, self.owner = memory, cache, cpu, owner
        self._roots = [os.path.realpath(root) for root in roots]
        frames = Frames(memory, cpu.space, owner, "anonymous")
        self.virtual = VirtualMemory(memory, cpu.space, frames)
        self._files: dict[int, OpenFile] = {
            0: OpenFile(stream=stdin),
            1: OpenFile(stream=stdout),
            2: OpenFile(stream=stderr),
        }
        self._break = self._first_break = 0
        self._program = ""
        self.outcome = Outcome(status=-1)

    # -- from start to end --------------------------------------------------------------------------------------------

    def load(self, path: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Map the program at *path*, which the user named, and its stack.

        :raises elf.NotExecutableError: if it cannot be run here
        """
        self._program = os.path.realpath(path)
        file = self._cache.open(self._program)
        program = elf.parse(file.read(0, FRAME), _PIE_BASE)
        try:
            self._break = self._first_break = map_program(self.virtual, file, program)
            stack = fill_stack(self.virtual, program, self._program, arguments, environment)
        except BadAddressError as error:
            raise elf.NotExecutableError(f"it cannot be loaded: {error}") from error
        self._cpu.start(self.virtual, program.entry, stack)

    def run(self, *, on_call: Callable[[], None] = lambda: None) -> Outcome:
        """Run to the end. *on_call* is called after every system call."""
        try:
            while True:
                number, arguments = self._cpu.run()
                self.outcome.calls += 1
                self._cpu.answer(self._call(number, arguments))
                on_call()
        except _Exit as ended:
            self.outcome.status = ended.status
        except GuestKilled as killed:
            self.outcome.status, self.outcome.killed_by = 128 + killed.number, str(killed)
        except OutOfMemory as error:
            self.outcome.status, self.outcome.killed_by = 128 + signal.SIGKILL, f"SIGKILL: out of memory: {error}"
        self.outcome.faults = self.virtual.faults
        self.outcome.shared_pages, self.outcome.copied_pages = self.virtual.shared, self.virtual.copies
        self.outcome.taken_over_pages = self.virtual.taken_over
        return self.outcome

    def close(self) -> None:
        """Give all memory back."""
        self.virtual.close()
        self._cpu.close()

    def _call(self, number: int, arguments: list[int]) -> int:
        handler = _CALLS.get(number)
        if handler is None:
            self.outcome.missing[f"system call {number}"] += 1
            return -errno.ENOSYS
        try:
            return handler(self, *arguments[: handler.__code__.co_argcount - 1])
        except RefusedError as refused:
            return -refused.number
        except BadAddressError:
            return -errno.EFAULT
        except OSError as error:
            return -(error.errno or errno.EIO)

    # -- memory -------------------------------------------------------------------------------------------------------

    def brk(self, wanted: int) -> int:
        if wanted < self._first_break:
            return self._break
        old, new = align_up(self._break, FRAME), align_up(wanted, FRAME)
        if new > old:
            if not self.virtual.is_free(old, new):
                return self._break
            self.virtual.map(old, new - old, READ | WRITE)
        elif new < old:
            self.virtual.unmap(new, old - new)
        self._break = wanted
        return wanted

    def mmap(self, address: int, length: int, access: int, flags: int, fd: int, offset: int) -> int:
        if not length or address % FRAME or offset % FRAME or (access & WRITE and access & EXECUTE):
            raise RefusedError(errno.EINVAL)
        length = align_up(length, FRAME)
        file = None
        if not flags & _MAP_ANONYMOUS:
            file = self._file(fd).file
            if file is None or (flags & 1 and access & WRITE):
                raise RefusedError(errno.EACCES)  # files are read-only
        if not flags & (_MAP_FIXED | _MAP_FIXED_NOREPLACE):
            if not address or not self.virtual.is_free(address, address + length):
                address = self.virtual.find_room(length)
        elif flags & _MAP_FIXED_NOREPLACE and not self.virtual.is_free(address, address + length):
            raise RefusedError(errno.EEXIST)
        self.virtual.map(address, length, access, file, offset)
        return address

    def munmap(self, address: int, length: int) -> int:
        if address % FRAME or not length:
            raise RefusedError(errno.EINVAL)
        self.virtual.unmap(address, length)
        return 0

    def mprotect(self, address: int, length: int, access: int) -> int:
        if address % FRAME or (access & WRITE and access & EXECUTE):
            raise RefusedError(errno.EINVAL)
        if length and not self.virtual.protect(address, length, access & 7):
            raise RefusedError(errno.ENOMEM)
        return 0

    def mremap(self, old: int, old_length: int, length: int, flags: int) -> int:
        old_length, length = align_up(old_length, FRAME), align_up(length, FRAME)
        area = self.virtual.area_at(old)
        if area is None or area.file is not None:
            raise RefusedError(errno.EFAULT)
        if length <= old_length:
            self.virtual.unmap(old + length, old_length - length)
            return old
        if self.virtual.is_free(old + old_length, old + length):
            self.virtual.map(old + old_length, length - old_length, area.access)
            return old
        if not flags & _MREMAP_MAYMOVE:
            raise RefusedError(errno.ENOMEM)
        new = self.virtual.find_room(length)
        self.virtual.map(new, length, area.access)
        self.virtual.write(new, self.virtual.read(old, old_length))
        self.virtual.unmap(old, old_length)
        return new

    def madvise(self, address: int, length: int, advice: int) -> int:
        if advice == _MADV_DONTNEED:
            self.virtual.dont_need(address, align_up(length, FRAME))
        return 0

    # -- the rest -----------------------------------------------------------------------------------------------------

    def arch_prctl(self, code: int, address: int) -> int:
        if code != _ARCH_SET_FS:
            raise RefusedError(errno.EINVAL)
        self._cpu.set_thread_pointer(address)
        return 0

    def exit(self, status: int) -> int:
        raise _Exit(status & 0xFF)

    def kill_self(self, _group: int, _thread: int, number: int) -> int:
        raise GuestKilled(number & 0x7F, "sent by itself")

    def uname(self, buffer: int) -> int:
        fields = (b"Linux", b"sandbox", b"6.1.0", b"memplat", b"x86_64", b"")
        self.virtual.write(buffer, b"".join(field.ljust(65, b"\0") for field in fields))
        return 0

    def prlimit(self, _pid: int, _resource: int, _new: int, old: int) -> int:
        if old:
            self.virtual.write(old, struct.pack("<QQ", STACK, STACK))
        return 0

    def getrandom(self, buffer: int, length: int) -> int:
        self.virtual.write(buffer, os.urandom(min(length, 256)))
        return min(length, 256)

    def clock_gettime(self, clock: int, buffer: int) -> int:
        nanoseconds = time.clock_gettime_ns(clock if clock in (0, 1, 4, 7) else 0)
        self.virtual.write(buffer, struct.pack("<qq", *divmod(nanoseconds, 1_000_000_000)))
        return 0

    def gettimeofday(self, buffer: int) -> int:
        nanoseconds = time.time_ns()
        self.virtual.write(buffer, struct.pack("<qq", nanoseconds // 1_000_000_000, nanoseconds // 1000 % 1_000_000))
        return 0

    def time(self, buffer: int) -> int:
        if buffer:
            self.virtual.write(buffer, struct.pack("<q", int(time.time())))
        return int(time.time())

    def nothing(self) -> int:
        return 0

    def one(self) -> int:
        return 1

    def user(self) -> int:
        return 1000


#: By number; arch/x86/entry/syscalls/syscall_64.tbl.
_CALLS: dict[int, Callable[..., int]] = {
    0: Sandbox.read,
    1: Sandbox.write,
    2: Sandbox.open,
    3: Sandbox.close_descriptor,
    4: Sandbox.stat,
    5: Sandbox.fstat,
    6: Sandbox.stat,
    8: Sandbox.lseek,
    9: Sandbox.mmap,
    10: Sandbox.mprotect,
    11: Sandbox.munmap,
    12: Sandbox.brk,
    13: Sandbox.nothing,  # rt_sigaction: there are no signals but the last one
    14: Sandbox.nothing,  # rt_sigprocmask
    16: Sandbox.ioctl,
    17: Sandbox.pread,
    19: Sandbox.readv,
    20: Sandbox.writev,
    21: Sandbox.access,
    25: Sandbox.mremap,
    28: Sandbox.madvise,
    32: Sandbox.dup,
    33: Sandbox.dup2,
    39: Sandbox.one,  # getpid
    40: Sandbox.sendfile,
    60: Sandbox.exit,
    63: Sandbox.uname,
    72: Sandbox.fcntl,
    79: Sandbox.getcwd,
    89: Sandbox.readlink,
    95: Sandbox.nothing,  # umask
    96: Sandbox.gettimeofday,
    102: Sandbox.user,
    104: Sandbox.user,
    105: Sandbox.nothing,  # setuid
    106: Sandbox.nothing,  # setgid
    107: Sandbox.user,
    108: Sandbox.user,
    110: Sandbox.one,  # getppid
    131: Sandbox.nothing,  # sigaltstack
    158: Sandbox.arch_prctl,
    186: Sandbox.one,  # gettid
    201: Sandbox.time,
    202: Sandbox.nothing,  # futex: there is one thread
    218: Sandbox.one,  # set_tid_address
    221: Sandbox.nothing,  # fadvise64
    228: Sandbox.clock_gettime,
    231: Sandbox.exit,  # exit_group
    234: Sandbox.kill_self,  # tgkill
    257: Sandbox.openat,
    262: Sandbox.newfstatat,
    267: Sandbox.readlinkat,
    273: Sandbox.nothing,  # set_robust_list
    302: Sandbox.prlimit,
    318: Sandbox.getrandom,
}
