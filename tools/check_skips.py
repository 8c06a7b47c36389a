#!/usr/bin/env python3
"""Fail if a test was skipped over something that this host has.

Usage: check_skips.py JUNIT_REPORT...

Every skip has to read ``needs FEATURE: REASON``. What the host has is found out here, by trying it, with the standard
library and the host's own programs, and with nothing of memplat: a bug there must not be able to hide its own tests.
In a report of ``memplat conformance --all`` a backend must have been put on all that the host has, and what a check
says of the backend itself (that a capability is not declared) is a reason, too.
Exit status: 0 if each skip is due, 1 if one is not, 2 if a report cannot be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

MIB: Final = 1 << 20
_SKIP: Final = re.compile(r"(?:Skipped: )?needs (\w+): .")

#: How ``memplat conformance`` calls its report.
_CONFORMANCE: Final = "memplat conformance"
#: What ``--all`` has to put backends on, and what the host needs to have for that.
STANDS: Final = {
    "memfd": None,
    "memfd with huge pages (collapse)": None,
    "memfd with huge pages (advise)": "thp",
    "tmpfile on ext4": "ext4",
    "tmpfile on xfs": "xfs",
    "tmpfile on btrfs": "btrfs",
    "tmpfile on tmpfs": "tmpfs",
    "hugetlb with pages of 2 MiB": "hugetlb",
}
#: Why a check may say nothing about a backend, though the host lacks nothing.
_DUE: Final = re.compile(
    r"""\w+[ ]is[ ](not[ ]declared|switched[ ]off[ ]by[ ]the[ ]options)$
    |neither[ ]a[ ]file[ ]system[ ]nor[ ]a[ ]pool[ ]bounds[ ]the[ ]file
    |there[ ]is[ ]no[ ]disk[ ]below
    |the[ ]host[ ]has[ ].+[ ]free[ ]here,[ ]and[ ]a[ ]check[ ]uses[ ]up[ ]at[ ]most
    |needs[ ]\d{4,}[ ]huge[ ]pages""",
    re.VERBOSE,
)


class Skip(NamedTuple):
    """A test that was skipped, and the reason that it gave."""

    test: str
    reason: str


def _run(*command: str) -> str | None:
    """The output of a program, or ``None`` if it is missing or failed."""
    path = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        return None
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@contextlib.contextmanager
def _sparse_file(nbytes: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="check_skips-") as directory:
        path = os.path.join(directory, "file")
        with open(path, "wb") as file:
            file.truncate(nbytes)
        yield path


def has_root() -> bool:
    """The tests run with all of root's rights."""
    return os.geteuid() == 0


def has_swap() -> bool:
    """A swap file can be switched on."""
    with tempfile.TemporaryDirectory(prefix="check_skips-") as directory:
        path = os.path.join(directory, "swap")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(bytes(4 * MIB))  # swapon refuses holes
        if _run("mkswap", path) is None or _run("swapon", path) is None:
            return False
        _run("swapoff", path)
        return True


def has_cgroup() -> bool:
    """A memory cgroup can be made, v1 or v2."""
    for parent in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        directory = os.path.join(parent, f"check_skips-{os.getpid()}")
        with contextlib.suppress(OSError):
            os.mkdir(directory)
            found = os.path.exists(os.path.join(directory, "memory.stat"))
            os.rmdir(directory)
            if found:
                return True
    return False


def has_loop() -> bool:
    """A file can be attached to a loop device."""
    with _sparse_file(MIB) as path:
        device = _run("losetup", "--find", "--show", path)
        if device is None:
            return False
        _run("losetup", "--detach", device)
        return True


def has_hugetlb() -> bool:
    """The pool of huge pages can be made larger."""
    name = "/proc/sys/vm/nr_hugepages"
    try:
        with open(name) as file:
            before = int(file.read())
        with open(name, "w") as file:
            file.write(str(before + 1))
        with open(name) as file:
            after = int(file.read())
        with open(name, "w") as file:
            file.write(str(before))
    except OSError:
        return False
    return after == before + 1


def _mounts(*make: str, size: int, options: str) -> bool:
    with _sparse_file(size) as path:
        if _run(*make, path) is None:
            return False
        where = os.path.join(os.path.dirname(path), "mounted")
        os.mkdir(where)
        if _run("mount", "-o", options, path, where) is None:
            return False
        _run("umount", where)
        return True


def has_ext4() -> bool:
    """An ext4 image can be made and mounted."""
    return _mounts("mkfs.ext4", "-q", "-F", "-b", "4096", size=64 * MIB, options="loop")


def has_xfs() -> bool:
    """An xfs image can be made and mounted; 300 MiB is the least that mkfs.xfs makes."""
    return _mounts("mkfs.xfs", "-q", "-f", size=320 * MIB, options="loop")


def has_btrfs() -> bool:
    """A btrfs image can be made and mounted."""
    return _mounts("mkfs.btrfs", "-q", "-f", size=256 * MIB, options="loop")


def has_tmpfs() -> bool:
    """A tmpfs can be mounted."""
    with tempfile.TemporaryDirectory(prefix="check_skips-") as where:
        if _run("mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", where) is None:
            return False
        _run("umount", where)
        return True


def has_thp() -> bool:
    """A memfd can be advised to use transparent huge pages, or the setting for that can be written."""
    name = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    if not os.path.exists(name):
        return False
    with open(name) as file:
        chosen = file.read().partition("[")[2].partition("]")[0]
    return chosen not in ("never", "deny") or os.access(name, os.W_OK)


def has_kvm() -> bool:
    """/dev/kvm can be opened and answers KVM_GET_API_VERSION with 12."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, 0xAE00) == 12
    except OSError:
        return False
    finally:
        os.close(fd)


def _syscall(number: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
    """The result of a raw system call, and errno."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = call(ctypes.c_long(number), *passed)
    return result, ctypes.get_errno()


def has_userfaultfd() -> bool:
    """userfaultfd(2) works for faults of user code."""
    number = {"x86_64": 323, "aarch64": 282}.get(platform.machine())
    if number is None:
        return False
    fd, _ = _syscall(number, os.O_CLOEXEC | 1)  # 1: UFFD_USER_MODE_ONLY
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def has_cachestat() -> bool:
    """The kernel has cachestat(2): 451 on every architecture, since 6.5."""
    with tempfile.TemporaryFile() as file:
        span, result = ctypes.create_string_buffer(16), ctypes.create_string_buffer(40)
        return _syscall(451, file.fileno(), span, result, 0)[0] == 0


def has_pagemap_scan() -> bool:
    """/proc/self/pagemap has the ioctl PAGEMAP_SCAN, since 6.7: an empty range is scanned."""
    argument = bytearray(96)
    argument[0:8] = (96).to_bytes(8, sys.byteorder)  # struct pm_scan_arg begins with its size
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        try:
            fcntl.ioctl(pagemap, 0xC0606610, argument)
        except OSError:
            return False
        return True


def has_numa() -> bool:
    """The kernel knows the nodes that memory comes from."""
    return os.path.exists("/sys/devices/system/node/has_memory")


def has_compiler() -> bool:
    """A C compiler, and the headers of this interpreter."""
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    return os.path.exists(header) and any(shutil.which(name) for name in ("cc", "gcc", "clang"))


def has_numpy() -> bool:
    """This interpreter can import numpy."""
    return importlib.util.find_spec("numpy") is not None


def has_busybox() -> bool:
    """Debian's busybox-static, or another one that is statically linked: no program header names an interpreter."""
    path = Path("/usr/bin/busybox")
    return path.exists() and b"ld-linux" not in path.read_bytes()[:4096]


def has_libc_static() -> bool:
    """A C compiler, and a C library to link statically with it."""
    if shutil.which("cc") is None:
        return False
    found = subprocess.run(["cc", "-print-file-name=libc.a"], capture_output=True, text=True, check=False)
    return os.path.isabs(found.stdout.strip())


def has_torch() -> bool:
    """This interpreter can import torch."""
    return importlib.util.find_spec("torch") is not None


def has_pyarrow() -> bool:
    """This interpreter can import pyarrow."""
    return importlib.util.find_spec("pyarrow") is not None


def has_unicorn() -> bool:
    """This interpreter can import unicorn."""
    return importlib.util.find_spec("unicorn") is not None


#: How to find out whether the host has a feature.
PROBES: Final[dict[str, Callable[[], bool]]] = {
    name.removeprefix("has_"): probe for name, probe in sorted(globals().items()) if name.startswith("has_")
}


@functools.cache
def offered(feature: str) -> bool:
    """Whether this host has *feature*; asked once."""
    return PROBES[feature]()


def read_skips(report: str) -> list[Skip]:
    """The skipped tests of a JUnit report, those that are expected to fail left out."""
    skips = []
    for case in ET.parse(report).iter("testcase"):
        for skipped in case.iter("skipped"):
            if skipped.get("type") != "pytest.xfail":
                reason = skipped.get("message") or (skipped.text or "").strip()
                skips.append(Skip(f"{case.get('classname')}.{case.get('name')}", reason))
    return skips


def judge(skip: Skip, is_offered: Callable[[str], bool] = offered, *, conformance: bool = False) -> str | None:
    """Why the skip is wrong, or ``None`` if it is due."""
    if conformance and _DUE.match(skip.reason):
        return None
    match = _SKIP.search(skip.reason)
    if match is None:
        return "gives no reason of the form 'needs FEATURE: why'"
    feature = match.group(1)
    if feature not in PROBES:
        return f"names the unknown feature {feature!r}; known are {', '.join(PROBES)}"
    return f"was skipped for the lack of {feature}, which this host has" if is_offered(feature) else None


def is_conformance(report: str) -> bool:
    """Whether a report is one of ``memplat conformance``."""
    return ET.parse(report).getroot().get("name") == _CONFORMANCE


def missing_stands(report: str, is_offered: Callable[[str], bool] = offered) -> list[str]:
    """What a report of ``memplat conformance --all`` does not even mention, though the host has it."""
    told = {suite.get("name") for suite in ET.parse(report).iter("testsuite")}
    return [
        title for title, feature in STANDS.items() if title not in told and (feature is None or is_offered(feature))
    ]


def main(reports: list[str]) -> int:
    """Print each skip with what is to be said of it."""
    if not reports:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        verdicts = [(skip, judge(skip, conformance=is_conformance(one))) for one in reports for skip in read_skips(one)]
        missing = [title for one in reports if is_conformance(one) for title in missing_stands(one)]
    except (OSError, ET.ParseError) as error:
        print(f"check_skips: {error}", file=sys.stderr)
        return 2
    for skip, verdict in verdicts:
        print(f"{'FAIL' if verdict else 'ok'}  {skip.test}: {skip.reason}" + (f"\n      {verdict}" if verdict else ""))
    for title in missing:
        print(f"FAIL  {title}: was not run, and this host has what it stands on")
    wrong = sum(verdict is not None for _, verdict in verdicts)
    print(
        f"check_skips: {len(verdicts)} skips, {wrong} of them wrong" + (f"; {len(missing)} missing" if missing else "")
    )
    return 1 if wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
