"""The option ``prealloc`` with threads and progress, and a ``max_size`` that is raised later."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import memplat
from memplat.memory import Memory
from tests.hostparts import hugetlb_pool, tmpfs_mount
from tests.oracle import PAGE, Observer
from tests.unit.engine.helpers import MIB, check

Opener = Callable[..., Memory]
SOURCE = str(Path(memplat.__file__).parent.parent)


def helpers() -> list[str]:
    """The threads of ``prealloc`` that there are."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("memplat-prealloc")]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_all_of_it_is_committed_by_so_many_threads_and_told_as_it_comes(open_memory: Opener, threads: int):
    told: list[tuple[int, int]] = []
    seen: list[int] = []

    def progress(done: int, wanted: int) -> None:
        told.append((done, wanted))
        seen.append(len(helpers()))

    wanted = 160 * MIB + PAGE
    memory = open_memory(prealloc=wanted, prealloc_threads=threads, max_size=256 * MIB, progress=progress)
    assert [done for done, _ in told] == sorted({done for done, _ in told}), "it only goes forward"
    assert {all_ for _, all_ in told} == {wanted}
    assert told[-1] == (wanted, wanted)
    assert max(seen) in (range(1, threads + 1) if threads > 1 else [0]), "some may have ended before others began"
    assert helpers() == []
    with Observer(memory.fileno()) as observer:
        assert len(observer.committed_pages()) == wanted // PAGE
    usage = memory.update_usage()
    assert (usage.free_committed, usage.total, usage.waste) == (wanted, wanted, 0)
    pages = memory.allocate(MIB)
    assert memory.read(pages) == bytes(MIB)
    check(memory)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_progress_ends_the_work_and_leaves_nothing(threads: int):
    def fail(done: int, _: int) -> None:
        raise KeyError(done)

    before, running = len(os.listdir("/proc/self/fd")), threading.active_count()
    with pytest.raises(KeyError):
        memplat.open("memfd", prealloc=256 * MIB, prealloc_threads=threads, progress=fail)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() == running


@pytest.mark.parametrize("threads", [1, 3])
def test_a_host_that_has_not_so_much_says_so(threads: int):
    with (
        tmpfs_mount(8 * MIB) as directory,
        pytest.raises(memplat.BackendUnavailableError, match="OutOfMemory: cannot allocate 16777216 bytes"),
    ):
        memplat.open("tmpfile", directory=str(directory), prealloc=16 * MIB, prealloc_threads=threads)


def test_huge_pages_are_preallocated_and_stay_reserved():
    with (
        hugetlb_pool(4),
        memplat.open("hugetlb", page_size=2 * MIB, prealloc=8 * MIB, prealloc_threads=2) as memory,
    ):
        assert memory.total_usage() == 8 * MIB
        with memory.block(8 * MIB), pytest.raises(memplat.OutOfMemory):
            memory.allocate(2 * MIB)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_wrong_number_of_threads_is_an_error(threads: int):
    with pytest.raises(memplat.ConfigError, match="allowed are 1 to 256"):
        memplat.open("memfd", prealloc_threads=threads)


def test_without_prealloc_nothing_is_told(open_memory: Opener):
    open_memory(progress=lambda *_: pytest.fail("there is nothing to tell"))


# ---- max_size -------------------------------------------------------------------------------------------------------


def test_a_limit_is_raised_while_views_live_and_nothing_moves(open_memory: Opener):
    memory = open_memory(max_size=4 * MIB)
    pages = memory.allocate(4 * MIB)
    view, address = memory.view(pages), memory.address(pages)
    view[:4] = b"here"
    with pytest.raises(memplat.OutOfMemory, match="within max_size, 4194304"):
        memory.allocate(PAGE)
    memory.raise_max_size(64 * MIB)
    assert memory.total_size() == 4 * MIB
    more = memory.allocate(60 * MIB)
    assert (memory.address(pages), memory.address(more)) == (address, address + 4 * MIB)
    assert bytes(view[:4]) == b"here"
    with pytest.raises(memplat.OutOfMemory, match="within max_size, 67108864"):
        memory.allocate(PAGE)
    check(memory)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2 * MIB, "4194304 (4 MiB), and can only be raised"),
        (0, "can only be raised"),
        (-PAGE, "can only be raised"),
        (4 * MIB + 1, "multiples of 4096"),
        ("8MiB", "allowed are integers"),
        (None, "allowed are integers"),
        (True, "allowed are integers"),
        (64 * MIB + PAGE, "at most 67108864 (64 MiB)"),
        (2**63, "at most 67108864 (64 MiB)"),
    ],
)
def test_a_limit_that_cannot_be_is_an_error_and_changes_nothing(open_memory: Opener, value: object, words: str):
    memory = open_memory(max_size=4 * MIB)
    with pytest.raises(memplat.InvalidArgumentError) as caught:
        memory.raise_max_size(value)  # type: ignore[arg-type]
    assert words in str(caught.value)
    memory.allocate(4 * MIB)
    with pytest.raises(memplat.OutOfMemory):
        memory.allocate(PAGE)


def test_the_same_limit_again_is_no_error_and_a_closed_memory_has_none(open_memory: Opener):
    memory = open_memory(max_size=4 * MIB)
    memory.raise_max_size(4 * MIB)
    memory.close()
    with pytest.raises(memplat.ClosedError):
        memory.raise_max_size(8 * MIB)


def test_where_address_space_is_limited_nothing_is_set_aside():
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    code = (
        "import memplat, resource\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"  # allocators take a lot
        "resource.setrlimit(resource.RLIMIT_AS, (taken + (3 << 29),) * 2)\n"
        "with memplat.open('memfd', max_size=1 << 30) as memory:\n"
        "    try: memory.raise_max_size(2 << 30)\n"
        "    except memplat.InvalidArgumentError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "at most 1073741824 (1 GiB)" in done.stdout
