"""``kill -9`` of a process in the middle of everything leaves no file, mount, reservation or storage behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memplat
from memplat.linux import system
from tests.hostparts import MIB, hugetlb_pool, loop_mount, mounted, tmpfs_mount

ROOT = Path(memplat.__file__).parent.parent
HUGE = 2 * MIB
POOL = 8

#: One memory is kept, with a view, waste and a handle; others are opened, used and closed for ever.
USER = """
import json, sys
import memplat
backend, options = sys.argv[1], json.loads(sys.argv[2])
MIB = 1 << 20
def use(memory):
    pages = memory.allocate(4 * MIB, mode="committed")
    more = memory.allocate(2 * MIB, mode="reserved")
    memory.view(pages)[:: memory.page_size] = b"x" * (4 * MIB // memory.page_size)
    memory.decref(more)
    return memory.view(pages), pages
kept = memplat.open(backend, reclaim_delay=0, **{backend: options})
view = use(kept)
trusted = backend != "memfd"
handle = kept.share(view[1], writable=True, trusted=trusted)
while True:
    print("opening", flush=True)
    with memplat.open(backend, reclaim="manual", **{backend: options}) as memory:
        print("open", flush=True)
        again, pages = use(memory)
        print("used", flush=True)
        del again
        memory.decref(pages)
        memory.reclaim()
"""


@contextlib.contextmanager
def place(name: str) -> Iterator[tuple[str, dict[str, Any], Path | None]]:
    """A backend, its options, and the directory where its files are."""
    with contextlib.ExitStack() as stack:
        if name.startswith("hugetlb"):
            stack.enter_context(hugetlb_pool(POOL))
            mount = stack.enter_context(mounted("hugetlbfs", "pagesize=2M")) if name.endswith("mount") else None
            yield "hugetlb", {"page_size": HUGE} | ({"mount": str(mount)} if mount else {}), mount
        elif name == "memfd":
            yield "memfd", {}, None
        else:
            made = tmpfs_mount(64 * MIB) if name == "tmpfs" else loop_mount(name)
            directory = stack.enter_context(made)
            yield "tmpfile", {"directory": str(directory)}, directory


def kill_a_user(backend: str, options: dict[str, Any], lines: int) -> None:
    """Start a process that uses memories, and kill it when it has printed so many lines."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMPLAT_", "PYTHON"))}
    with subprocess.Popen(
        [sys.executable, "-c", USER, backend, json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": "/nonexistent"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(lines):
            if not process.stdout.readline():
                raise AssertionError(process.stderr.read())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def names() -> set[str]:
    """What is in the places where somebody might put files, other tests' scratch directories left out."""
    found = {entry.path for place in ("/dev/shm", tempfile.gettempdir()) for entry in os.scandir(place)}
    return {path for path in found if "memplat" in path and not os.path.isdir(path)}


def mounts() -> set[str]:
    """The mounts that are not those of other tests."""
    lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    return {line for line in lines if f"{tempfile.gettempdir()}/memplat-" not in line and "/pytest-" not in line}


def free(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bfree * status.f_frsize


@pytest.mark.parametrize("name", ["memfd", "hugetlb", "hugetlb on a mount", "tmpfs", "ext4", "xfs", "btrfs"])
def test_a_killed_process_leaves_nothing_behind(name: str):
    with place(name) as (backend, options, directory):
        before = names(), mounts(), free(directory) if directory else 0
        for lines in (2, 4, 7):
            kill_a_user(backend, options, lines)
            assert [path for path in names() - before[0] if os.path.lexists(path)] == []  # others' come and go
            assert mounts() - before[1] == set()
            if directory is not None:
                assert os.listdir(directory) in ([], ["lost+found"])
            if backend == "hugetlb":
                pool = system.huge_page_pools()[HUGE]
                assert (pool.total, pool.free, pool.reserved) == (POOL, POOL, 0)
        if directory is not None and backend == "tmpfile":
            for _ in range(20):  # xfs and btrfs give the storage back in the background: a sync waits for some of it
                os.sync()
                if free(directory) >= before[2] - MIB:
                    return
            raise AssertionError(f"{before[2] - free(directory)} bytes have not come back")
