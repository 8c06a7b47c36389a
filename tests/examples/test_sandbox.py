"""The sandbox: owners, limits, what a guest sees and may do with memory. Its results: test_sandbox_matrix.py."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import memplat
from examples.sandbox.elf import NotExecutableError
from examples.sandbox.frames import page_cache
from memplat.memory import Memory
from tests.examples.matrix import BUSYBOX, ENGINES, MEGABYTE, MIB, make_text, on_host, sandbox
from tests.hostparts import hugetlb_pool
from tests.needs import needs
from tools.check_skips import has_busybox, has_libc_static

ROOT = Path(memplat.__file__).parents[1]
PLATFORMS = ENGINES


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of lines, a little more than 1 MB."""
    if not has_busybox():
        needs("busybox", "there is no static /usr/bin/busybox")
    return make_text(tmp_path_factory.mktemp("read") / "text", MEGABYTE)


@contextlib.contextmanager
def opened(backend: str) -> Iterator[Memory]:
    with (
        hugetlb_pool(24) if backend == "hugetlb" else contextlib.nullcontext(),
        memplat.open(backend, config={}, reclaim="manual") as memory,
    ):
        yield memory


@pytest.mark.parametrize("platform", PLATFORMS)
def test_on_hugetlb_the_pages_of_a_guest_are_packed(platform: str, text: Path) -> None:
    command = [BUSYBOX, "wc", str(text)]
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(opened("hugetlb"))
        cache = stack.enter_context(page_cache(memory))
        box, _ = stack.enter_context(sandbox(memory, cache, platform, command, [str(text.parent)]))
        assert box.run().status == 0
        own = memory.update_usage().committed_by_owner[7]
        assert own["anonymous"] == memory.page_size
        assert own.get("system", 0) in (0, memory.page_size)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_two_sandboxes_are_two_owners_and_one_leaves_without_the_other(platform: str, text: Path) -> None:
    command = [BUSYBOX, "sha256sum", str(text)]
    in_the_middle, go_on = threading.Event(), threading.Event()
    calls = 0

    def pause() -> None:
        nonlocal calls
        calls += 1
        if calls == 100:
            in_the_middle.set()
            assert go_on.wait(60)

    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(memplat.open("memfd", config={}, reclaim="manual"))
        cache = stack.enter_context(page_cache(memory))
        first, output = stack.enter_context(sandbox(memory, cache, platform, command, [str(text.parent)], owner=1))
        thread = threading.Thread(target=first.run, kwargs={"on_call": pause})
        thread.start()
        assert in_the_middle.wait(60)
        before = memory.update_usage()
        memory.set_limit(2, allocated=8 * MIB)
        with sandbox(memory, cache, platform, [BUSYBOX, "sort", str(text)], [str(text.parent)], owner=2) as (
            other,
            _,
        ):
            program = cache.open(BUSYBOX).pages
            assert program is not None
            assert memory.inspect(program.start).refs == 3  # the cache, and both machines
            outcome = other.run()
            assert outcome.status == 0
            during = memory.update_usage()
            assert during.committed_by_owner[2]["anonymous"] > MIB
            assert during.committed_by_owner[1] == before.committed_by_owner[1]
        memory.reclaim()
        after = memory.update_usage()
        assert not any(after.committed_by_owner.get(2, {}).values())
        assert after.committed_by_owner == before.committed_by_owner
        assert after.exact
        go_on.set()
        thread.join()
        assert output.getvalue() == on_host(command)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_limit_on_one_does_not_touch_the_other(platform: str, text: Path) -> None:
    roots, command = [str(text.parent)], [BUSYBOX, "sort", str(text), str(text)]
    with memplat.open("memfd", config={}, reclaim="manual") as memory, page_cache(memory) as cache:
        memory.set_limit(1, allocated=4 * MIB if platform == "kvm" else 2 * MIB)  # one chunk each: KVM has page tables
        with sandbox(memory, cache, platform, command, roots, owner=1) as (poor, _):
            assert "out of memory" in poor.run().killed_by
            with sandbox(memory, cache, platform, command, roots, owner=2) as (rich, output):
                assert rich.run().status == 0
                assert output.getvalue() == on_host(command)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_guest_sees_only_what_it_was_given(platform: str, text: Path, tmp_path: Path) -> None:
    (tmp_path / "way_out").symlink_to("/etc/passwd")
    with memplat.open("memfd", config={}, reclaim="manual") as memory, page_cache(memory) as cache:
        for path in ("/etc/passwd", str(text), str(tmp_path / "way_out"), f"{tmp_path}/../../etc/passwd"):
            with sandbox(memory, cache, platform, [BUSYBOX, "cat", path], [str(tmp_path)]) as (box, output):
                outcome = box.run()
                assert outcome.status == 1
                assert output.getvalue() == b""
                assert outcome.missing[f"path {path}"] >= 1


@pytest.fixture(scope="module")
def memory_user(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not has_libc_static():
        needs("libc_static", "there is no C compiler with a static C library")
    path = tmp_path_factory.mktemp("built") / "memory_user"
    source = ROOT / "examples" / "sandbox" / "memory_user.c"
    subprocess.run(["cc", "-O1", "-static", "-o", path, source], check=True)
    return str(path)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("backend", ["memfd", "hugetlb"])
def test_a_program_that_uses_memory_in_every_way(platform: str, backend: str, memory_user: str) -> None:
    with opened(backend) as memory:
        with page_cache(memory) as cache, sandbox(memory, cache, platform, [memory_user], []) as (box, output):
            outcome = box.run()
            lines = output.getvalue().decode().splitlines()
            assert (outcome.status, outcome.killed_by, len(lines)) == (0, "", 15), lines
            assert all(line.startswith("good") for line in lines)
        memory.reclaim()
        assert memory.total_usage() == 0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_program_that_crashes_takes_nobody_with_it(platform: str, memory_user: str) -> None:
    with memplat.open("memfd", config={}, reclaim="manual") as memory:
        with page_cache(memory) as cache, sandbox(memory, cache, platform, [memory_user, "crash"], []) as (box, _):
            outcome = box.run()
            assert outcome.status == 128 + 11
            assert "SIGSEGV: a store at" in outcome.killed_by
        memory.reclaim()
        assert memory.total_usage() == 0


def test_what_is_no_static_program_is_refused(text: Path) -> None:
    with memplat.open("memfd", config={}, reclaim="manual") as memory, page_cache(memory) as cache:
        for path in (str(text), os.path.realpath("/bin/sh")):
            with pytest.raises(NotExecutableError), sandbox(memory, cache, "unicorn", [path], []):
                pass


@pytest.mark.parametrize("platform", PLATFORMS)
def test_pages_that_nobody_else_refers_to_are_written_in_place_and_paid_for(platform: str, memory_user: str) -> None:
    with memplat.open("memfd", config={}, reclaim="manual") as memory:
        with page_cache(memory) as cache, sandbox(memory, cache, platform, [memory_user], []) as (box, output):
            cache.close()  # the cache has no use for the program any more
            outcome = box.run()
            assert outcome.status == 0
            assert b"BAD" not in output.getvalue()
            assert outcome.taken_over_pages > 0
            usage = memory.update_usage()
            assert usage.committed_by_owner[7]["page_cache"] == outcome.taken_over_pages * 4096
            assert outcome.copied_pages <= 1  # while it was loaded
        memory.reclaim()
        assert memory.total_usage() == 0


def broken(data: bytes, at: int, replacement: bytes) -> bytes:
    return data[:at] + replacement + data[at + len(replacement) :]


def test_executables_that_lie_are_refused(tmp_path: Path, text: Path) -> None:
    good = Path(BUSYBOX).read_bytes()[:4096]
    lies = {
        "more program headers than there are": broken(good, 56, (0xFFFF).to_bytes(2, "little")),
        "headers outside of the file": broken(good, 32, (1 << 60).to_bytes(8, "little")),
        "a segment in the kernel's half": broken(good, 64 + 16, (0xFFFF_8000_0000_0000).to_bytes(8, "little")),
        "a segment at the end of the address space": broken(good, 64 + 40, (1 << 63).to_bytes(8, "little")),
        "a segment that is not aligned": broken(good, 64 + 16, (0x400123).to_bytes(8, "little")),
        "no program headers": broken(good, 56, bytes(2)),
    }
    with memplat.open("memfd", config={}, reclaim="manual") as memory, page_cache(memory) as cache:
        for name, data in lies.items():
            path = tmp_path / name
            path.write_bytes(data)
            with pytest.raises(NotExecutableError), sandbox(memory, cache, "unicorn", [str(path)], []):
                pytest.fail(f"it has {name}, and was loaded")
        assert set(memory.update_usage().committed_by_owner) <= {0}
