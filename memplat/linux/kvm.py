"""/dev/kvm: virtual machines, their memory slots and processors. Documentation/virt/kvm/api.rst."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import Final

from memplat.linux import _libc

# <linux/kvm.h>; ioctl numbers of the x86-64 structures
_CREATE_VM: Final = 0xAE01
_CHECK_EXTENSION: Final = 0xAE03
_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_GET_SUPPORTED_CPUID: Final = 0xC008AE05
_CREATE_VCPU: Final = 0xAE41
_GET_DIRTY_LOG: Final = 0x4010AE42
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_SET_TSS_ADDR: Final = 0xAE47
_RUN: Final = 0xAE80
_GET_REGS: Final = 0x8090AE81
_SET_REGS: Final = 0x4090AE82
_GET_SREGS: Final = 0x8138AE83
_SET_SREGS: Final = 0x4138AE84
_SET_MSRS: Final = 0x4008AE89
_SET_CPUID2: Final = 0x4008AE90

CAP_NR_MEMSLOTS: Final = 10
CAP_READONLY_MEM: Final = 81

MEM_LOG_DIRTY_PAGES: Final = 1
MEM_READONLY: Final = 2

EXIT_IO: Final = 2
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6

_REGION: Final = struct.Struct("<IIQQQ")
_DIRTY: Final = struct.Struct("<IIQ")
_CPUID_ENTRIES: Final = 256
_CPUID_ENTRY_BYTES: Final = 40
REGS_BYTES: Final = 144
SREGS_BYTES: Final = 312


def create_vm() -> int:
    """A descriptor of a new virtual machine. KVM_CREATE_VM.

    :raises OSError: ENOENT, EACCES (no /dev/kvm for us), ENODEV
    """
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        vm = fcntl.ioctl(device, _CREATE_VM, 0)
        try:
            # Three pages that processors without "unrestricted guest" need.
            if _libc.ioctl_released(vm, _SET_TSS_ADDR, 0xFFFBD000) < 0:
                raise _libc.error("KVM_SET_TSS_ADDR")
        except OSError:
            os.close(vm)
            raise
    finally:
        os.close(device)
    os.set_inheritable(vm, False)
    return vm


def check_extension(vm: int, capability: int) -> int:
    """What the kernel says about a capability; 0: it does not have it. KVM_CHECK_EXTENSION."""
    return fcntl.ioctl(vm, _CHECK_EXTENSION, capability)


def set_memory_region(vm: int, slot: int, guest: int, length: int, address: int, flags: int) -> None:
    """Let guest-physical ``[guest, guest + length)`` be the memory at *address* of this process; a *length* of 0 takes
    the slot away. KVM_SET_USER_MEMORY_REGION: flags can be changed, the size of a slot cannot.

    :raises OSError: EEXIST (it overlaps another slot), EINVAL
    """
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, _REGION.pack(slot, flags, guest, length, address))


def get_dirty_log(vm: int, slot: int, pages: int) -> bytes:
    """Which pages of a slot the guest has written to since the last call, one bit each. KVM_GET_DIRTY_LOG."""
    bitmap = ctypes.create_string_buffer(-(-pages // 64) * 8)
    request = ctypes.create_string_buffer(_DIRTY.pack(slot, 0, ctypes.addressof(bitmap)))
    if _libc.ioctl_released(vm, _GET_DIRTY_LOG, ctypes.addressof(request)) < 0:
        raise _libc.error("KVM_GET_DIRTY_LOG")
    return bitmap.raw


def create_vcpu(vm: int, number: int) -> tuple[int, int]:
    """A descriptor of a new processor with all features that KVM has, and how many bytes of it are to be mapped.
    KVM_CREATE_VCPU, KVM_SET_CPUID2.
    """
    vcpu = fcntl.ioctl(vm, _CREATE_VCPU, number)
    os.set_inheritable(vcpu, False)
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        size = fcntl.ioctl(device, _GET_VCPU_MMAP_SIZE, 0)
        table = ctypes.create_string_buffer(8 + _CPUID_ENTRIES * _CPUID_ENTRY_BYTES)
        struct.pack_into("<I", table, 0, _CPUID_ENTRIES)
        for fd, request in ((device, _GET_SUPPORTED_CPUID), (vcpu, _SET_CPUID2)):
            if _libc.ioctl_released(fd, request, ctypes.addressof(table)) < 0:
                raise _libc.error("KVM_SET_CPUID2")
    except OSError:
        os.close(vcpu)
        raise
    finally:
        os.close(device)
    return vcpu, size


def run(vcpu: int) -> None:
    """Run the guest until something is to be done for it. KVM_RUN, with the GIL released."""
    while True:
        try:
            fcntl.ioctl(vcpu, _RUN, 0)
        except InterruptedError:
            continue
        return


def get_regs(vcpu: int) -> bytes:
    """The general registers: struct kvm_regs. KVM_GET_REGS."""
    return fcntl.ioctl(vcpu, _GET_REGS, bytes(REGS_BYTES))


def set_regs(vcpu: int, regs: bytes) -> None:
    """Set struct kvm_regs. KVM_SET_REGS."""
    fcntl.ioctl(vcpu, _SET_REGS, regs)


def get_sregs(vcpu: int) -> bytes:
    """The system registers: struct kvm_sregs. KVM_GET_SREGS."""
    return fcntl.ioctl(vcpu, _GET_SREGS, bytes(SREGS_BYTES))


def set_sregs(vcpu: int, sregs: bytes) -> None:
    """Set struct kvm_sregs. KVM_SET_SREGS."""
    fcntl.ioctl(vcpu, _SET_SREGS, sregs)


def set_msrs(vcpu: int, values: dict[int, int]) -> None:
    """Set model specific registers. KVM_SET_MSRS returns how many were set."""
    entries = b"".join(struct.pack("<IIQ", number, 0, value) for number, value in values.items())
    request = ctypes.create_string_buffer(struct.pack("<II", len(values), 0) + entries)
    if _libc.ioctl_released(vcpu, _SET_MSRS, ctypes.addressof(request)) != len(values):
        raise _libc.error("KVM_SET_MSRS")
