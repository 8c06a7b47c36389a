"""The options ``numa`` and ``lock``: where the pages come to lie, and that they stay there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import memplat
from memplat import Numa
from memplat.linux import numa
from memplat.memory import Memory
from tests.hostparts import hugetlb_pool, in_another_process, loop_mount, swap_file, tmpfs_mount
from tests.needs import needs
from tests.oracle import PAGE
from tests.unit.engine.helpers import MIB, check, close_with_leftovers

Opener = Callable[..., Memory]
SOURCE = str(Path(memplat.__file__).parent.parent)


@pytest.fixture
def node() -> int:
    """The first node that has memory."""
    nodes = numa.nodes_with_memory()
    if nodes is None:
        needs("numa", "the kernel does not tell of nodes")
    return nodes[0]


def policies(memory: Memory) -> set[str]:
    """The policies of the memory's own mapping: numa_maps of proc_pid_numa_maps(5), by address."""
    start = memory.address(memplat.FileRange(0, PAGE))
    lines = [line.split() for line in Path("/proc/self/numa_maps").read_text().splitlines()]
    return {line[1] for line in lines if start <= int(line[0], 16) < start + memory.total_size()}


def status(key: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def in_smaps(memory: Memory, key: str) -> int:
    """A size of the memory's own mapping in /proc/self/smaps, in bytes."""
    start = memory.address(memplat.FileRange(0, PAGE))
    found, mine = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if not line.split()[0].endswith(":"):
            low, high = (int(edge, 16) for edge in line.split()[0].split("-"))
            mine = low < start + memory.total_size() and high > start
        elif mine and line.startswith(f"{key}:"):
            found += int(line.split()[1]) * 1024
    return found


# ---- numa -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["bind", "preferred", "interleave"])
def test_the_policy_holds_for_the_whole_file_however_it_grows(open_memory: Opener, node: int, policy: str):
    memory = open_memory(numa={"policy": policy, "nodes": [node]})
    for length in (PAGE, 20 * MIB, 30 * MIB):
        pages = memory.allocate(length, mode="committed")
        assert memory.read(pages) == bytes(length)
    assert memory.total_size() > 32 * MIB
    word = {"preferred": "prefer"}.get(policy, policy)
    assert policies(memory) == {f"{word}:{node}"}
    assert memory.backend.notes == ()


def test_it_holds_for_pages_that_another_process_touches(open_memory: Opener, node: int):
    memory = open_memory(numa=Numa("bind", [node]))
    memory.allocate(PAGE)
    told = in_another_process(
        """
        import mmap, sys
        with mmap.mmap(int(sys.argv[1]), 4096) as mapping:
            mapping[0] = 1
            print([line.split()[1] for line in open("/proc/self/numa_maps") if "memfd:memplat" in line])
        """,
        memory.fileno(),
        fds=[memory.fileno()],
    )
    assert told.strip() == f"['bind:{node}']"


def test_without_nodes_it_is_all_of_them_and_local_names_none(open_memory: Opener, node: int):
    nodes = numa.nodes_with_memory() or ()
    memory = open_memory(numa={"policy": "bind"})
    memory.allocate(PAGE)
    (policy,) = policies(memory)
    assert numa.parse_list(policy.removeprefix("bind:")) == list(nodes)
    local = open_memory(numa={"policy": "local"})
    local.allocate(PAGE)
    assert local.backend.notes == ()


def test_on_a_disk_it_is_reported_as_not_effective(node: int):
    with (
        loop_mount("ext4") as directory,
        memplat.open("tmpfile", directory=str(directory), numa={"policy": "bind", "nodes": [node]}) as memory,
    ):
        (note,) = memory.backend.notes
        assert note.startswith("numa is not effective: the file is on ext4")
        assert "memfd, hugetlb, tmpfile on tmpfs" in note
        with memory.block(PAGE):
            assert policies(memory) <= {"default"}


def test_on_a_tmpfs_it_is_effective(node: int):
    with (
        tmpfs_mount(8 * MIB) as directory,
        memplat.open("tmpfile", directory=str(directory), numa={"policy": "interleave"}) as memory,
        memory.block(PAGE),
    ):
        assert memory.backend.notes == ()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_without_it_is_reported(open_memory: Opener, monkeypatch: pytest.MonkeyPatch, code: int):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(numa, "mbind", refuse)
    memory = open_memory(numa={"policy": "bind", "nodes": [0]})
    (note,) = memory.backend.notes
    assert note.startswith("numa is not effective: kernel or sandbox refuses it")
    memory.allocate(20 * MIB)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"policy": "bind", "nodes": [1000]}, ("no memory on node 1000", "nodes with memory are 0")),
        ({"policy": "bind", "nodes": [0, 1000, 1001]}, ("no memory on node 1000, 1001",)),
        ({"policy": "bind", "nodes": [-1]}, ("-1 is no node", "0 to 1023")),
        ({"policy": "bind", "nodes": [True]}, ("True is no node",)),
        ({"policy": "local", "nodes": [0]}, ("local names no nodes",)),
        ({"policy": "bnd"}, ("did you mean", "bind")),
        ({"nodes": [0]}, ("required",)),
        (5, ("expected a table",)),
    ],
)
def test_wrong_nodes_are_an_error_that_says_which_there_are(node: int, value: object, words: tuple[str, ...]):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(memplat.ConfigError) as caught:
        memplat.open("memfd", numa=value)
    for word in words:
        assert word in str(caught.value)
    assert (caught.value.key or "").startswith("numa")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_configuration_file_has_it_too_and_mistakes_have_their_line(tmp_path: Path, node: int):
    file = tmp_path / "memplat.toml"
    file.write_text(f'[memory]\nlock = true\nnuma = {{policy = "bind", nodes = [{node}]}}\n')
    with memplat.open("memfd", config=file, max_size=MIB) as memory, memory.block(PAGE):
        assert policies(memory) == {f"bind:{node}"}
        assert in_smaps(memory, "Size") == MIB
    file.write_text('[memory]\n\nnuma = {policy = "bind", nodes = [1000]}\n')
    with pytest.raises(memplat.ConfigError) as caught:
        memplat.open("memfd", config=file)
    assert (caught.value.file, caught.value.line) == (str(file), 3)


# ---- lock -----------------------------------------------------------------------------------------------------------


def test_what_is_mapped_is_locked_and_nothing_is_committed_by_that(open_memory: Opener):
    before = status("VmLck")
    memory = open_memory(lock=True)
    assert status("VmLck") == before
    pages = memory.allocate(20 * MIB)
    assert status("VmLck") - before == memory.total_size()
    assert memory.total_usage() == 0
    memory.view(pages)[PAGE] = 1
    assert in_smaps(memory, "Locked") == PAGE
    close_with_leftovers(memory)
    assert status("VmLck") == before


def test_locked_pages_stay_in_memory_though_the_kernel_is_asked_to_swap_them_out(open_memory: Opener):
    with swap_file(16 * MIB):
        left = {}
        for lock in (False, True):
            memory = open_memory(lock=lock)
            pages = memory.allocate(64 * PAGE)
            memory.view(pages)[:] = b"x" * pages.length
            address = memory.address(pages)
            in_another_process(
                """
                import ctypes, os, sys
                pid, address, length = map(int, sys.argv[1:])
                libc = ctypes.CDLL(None, use_errno=True)
                fd = libc.syscall(ctypes.c_long(434), ctypes.c_int(pid), ctypes.c_uint(0))  # pidfd_open
                span = (ctypes.c_size_t * 2)(address, length)
                libc.syscall(ctypes.c_long(440), fd, span, ctypes.c_size_t(1), ctypes.c_int(21), ctypes.c_uint(0))
                """,
                os.getpid(),
                address,
                pages.length,
            )
            left[lock] = in_smaps(memory, "Rss")
            assert memory.update_usage().committed["anonymous"] == pages.length
        assert left[True] == 64 * PAGE
        assert left[False] < 64 * PAGE, "the kernel swaps nothing out: this proves nothing"


def test_locked_memory_is_decommitted_and_reclaimed_as_any_other(open_memory: Opener):
    memory = open_memory(lock=True)
    scattered = [memory.allocate(PAGE, mode="committed") for _ in range(40)]
    kept = scattered[1::2]
    for pages in scattered[::2]:
        memory.decref(pages)
    assert memory.reclaim() == 20 * PAGE
    assert memory.total_usage() == 20 * PAGE
    assert memory.decommit(kept[0]) == PAGE
    assert memory.update_usage().committed["anonymous"] == 19 * PAGE
    check(memory)


def test_huge_pages_are_never_swapped_out_and_need_no_lock():
    with hugetlb_pool(2):
        before = status("VmLck")
        with memplat.open("hugetlb", page_size=2 * MIB, lock=True) as memory, memory.block(2 * MIB):
            assert status("VmLck") == before
            assert memory.backend.notes == ()


LIMITED = """
import ctypes, resource, sys
import memplat
from memplat.engine import memoryfile
MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, data) == 0
for word in (0, 1, 2):
    data[word] &= ~(1 << 14)  # CAP_IPC_LOCK
assert libc.capset(header, data) == 0
resource.setrlimit(resource.RLIMIT_MEMLOCK, (int(sys.argv[1]), int(sys.argv[1])))
"""


def limited(limit: int, code: str) -> str:
    """What a process prints that may lock *limit* bytes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + textwrap.dedent(code), str(limit)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_file_grows_no_further_than_may_be_locked():
    told = limited(
        6 * MIB,
        """
        with memplat.open("memfd", lock=True, max_size=64 * MIB, reclaim="manual") as memory:
            first = memory.allocate(5 * MIB, fill=b"first")
            print(memory.total_size() // MIB)
            second = memory.allocate(MIB)
            try:
                memory.allocate(MIB)
            except memplat.OutOfMemory as error:
                print(error)
            print(memory.read(memplat.FileRange(0, 5)), memory.total_size() // MIB)
            memory.decref(second)
            print(memory.allocate(MIB) == second)
        """,
    ).splitlines()
    assert told[0] == "6", "not 16 MiB, as without the limit"
    assert "RLIMIT_MEMLOCK is 6 MiB" in told[1]
    assert "ulimit -l" in told[1]
    assert told[2:] == ["b'first' 6", "True"]


def test_a_process_that_may_lock_nothing_gets_no_locked_memory():
    told = limited(
        0,
        """
        with memplat.open("memfd", lock=True, max_size=64 * MIB) as memory:
            try:
                memory.allocate(4096)
            except memplat.OutOfMemory as error:
                print(error)
        try:
            memplat.open("memfd", lock=True, prealloc=MIB)
        except memplat.BackendUnavailableError as error:
            print(error)
        """,
    ).splitlines()
    assert len(told) == 2
    assert all("RLIMIT_MEMLOCK is 0 B" in line and "CAP_IPC_LOCK" in line for line in told)
