"""The kernel: its release, and which of its interfaces work here. Each is tried."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs

from memplat.doctor.findings import Finding, State
from memplat.linux import offers, system, trials
from memplat.linux.trials import Trial

_AREA: Final = "kernel"


@attrs.frozen
class _Interface:
    name: str
    since: tuple[int, int]
    attempt: Callable[[], Trial]
    use: str
    """What memplat does with it."""
    without: str


_INTERFACES: Final = (
    _Interface(
        "PAGEMAP_SCAN", (6, 7), trials.pagemap_scan, "exact figures fast", "a scan takes 15 times as long (SEEK_DATA)"
    ),
    _Interface(
        "cachestat",
        (6, 5),
        trials.cachestat,
        "reserved pages are counted exactly",
        "all that was reserved is taken to cost",
    ),
    _Interface(
        "process_madvise",
        (6, 13),
        trials.process_madvise,
        "1,024 ranges are given back in a call",
        "each range is given back with a call of its own",
    ),
    _Interface(
        "MADV_POPULATE_WRITE",
        (5, 14),
        trials.populate_write,
        "a page that the host cannot supply is an error",
        "recycling and prealloc cannot rule out a SIGBUS",
    ),
    _Interface(
        "MADV_COLLAPSE",
        (6, 1),
        trials.collapse,
        'memfd with huge = "collapse"',
        'huge = "collapse" of memfd has no effect',
    ),
    _Interface(
        "MFD_NOEXEC_SEAL",
        (6, 3),
        trials.noexec_seal,
        "no memfd can be run as a program",
        "a memfd could be run as a program",
    ),
    _Interface(
        "userfaultfd",
        (5, 13),
        trials.userfaultfd_minor,
        "which huge pages exist is known, whoever touched them",
        "the backend hugetlb cannot be used",
    ),
)


def examine_kernel() -> Iterator[Finding]:
    """All of it."""
    release = os.uname().release
    data = {"release": release, "machine": platform.machine()}
    yield Finding(_AREA, "release", State.GOOD, f"Linux {release} on {platform.machine()}", data=data)
    yield from _unmounted()
    for interface in _INTERFACES:
        yield _tried(interface)
    yield _userfaultfd_setting()
    yield _memfd_setting()
    yield _kvm()


def _unmounted() -> Iterator[Finding]:
    """What has to be mounted for most of this to be known; nothing if all of it is."""
    for place, inside, kind in (("/proc", "/proc/self", "proc"), ("/sys", "/sys/kernel", "sysfs")):
        if not os.path.exists(inside):
            says = "not mounted: what is read from there is unknown"
            yield Finding(_AREA, place, State.MISSING, says, f"mount -t {kind} {kind} {place}")


def _tried(interface: _Interface) -> Finding:
    found = interface.attempt()
    since = f"Linux {interface.since[0]}.{interface.since[1]}"
    data = {"works": found.works, "since": since, "reason": found.reason}
    if found.works:
        return Finding(_AREA, interface.name, State.GOOD, f"works: {interface.use}", data=data)
    if system.kernel_release() < interface.since:
        return Finding(
            _AREA,
            interface.name,
            State.MISSING,
            f"{interface.without}: it comes with {since}",
            f"{since} or later",
            data,
        )
    why = f"refused ({found.reason})" if found.reason else "refused"
    remedy = f"allow {interface.name} in the sandbox (its seccomp filter) that this process runs in"
    return Finding(_AREA, interface.name, State.MISSING, f"{why}: {interface.without}", remedy, data)


def _userfaultfd_setting() -> Finding:
    value = offers.unprivileged_userfaultfd()
    says = {
        None: "unknown, or the kernel has no userfaultfd",
        0: "0: users can only have UFFD_USER_MODE_ONLY, which is all that memplat needs",
    }.get(value, f"{value}: users can have all of it")
    state = State.MISSING if value is None else State.GOOD
    return Finding(_AREA, "vm.unprivileged_userfaultfd", state, says, data={"value": value})


def _memfd_setting() -> Finding:
    value = offers.memfd_noexec()
    says = {
        None: "unknown, or the kernel has no such setting",
        2: "2: memfds must be made with MFD_NOEXEC_SEAL, as memplat's are",
    }.get(value, f"{value}: MFD_NOEXEC_SEAL is not enforced; memplat uses it all the same")
    return Finding(_AREA, "vm.memfd_noexec", State.GOOD, says, data={"value": value})


def _kvm() -> Finding:
    found = trials.kvm()
    exists = Path("/dev/kvm").exists()
    data = {"exists": exists, "works": found.works, "reason": found.reason}
    if found.works:
        return Finding(_AREA, "/dev/kvm", State.GOOD, "works: a memory can be the memory of a guest", data=data)
    if exists:
        says = f"cannot be used: {found.reason or 'another API version'}"
        return Finding(_AREA, "/dev/kvm", State.MISSING, says, 'usermod -aG kvm "$USER"  # and log in again', data)
    says = "there is none: only virtual machine monitors miss it"
    return Finding(_AREA, "/dev/kvm", State.MISSING, says, "modprobe kvm_intel  # or kvm_amd", data)


__all__ = ["examine_kernel"]
