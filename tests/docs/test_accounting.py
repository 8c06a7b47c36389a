"""What docs/accounting.md says of Linux's own figures, claim by claim, on real files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memplat
from memplat.memory import Memory
from memplat.ranges import FileRange
from tests.hostparts import MIB, hugetlb_pool, loop_mount, memory_cgroup, swap_file, touch_elsewhere
from tests.oracle import Observer, descriptors, forget
from tests.unit.cli.running import environment
from tests.unit.engine.helpers import close_with_leftovers

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "accounting.md").read_text(encoding="utf-8")
PAGE = 4096
#: Some of the kernel's counters are kept a processor each and added up now and then.
LAG = MIB


def smaps(address: int) -> dict[str, int]:
    """The figures of all mappings of the file that is mapped at *address*, in bytes. proc_pid_smaps(5)"""
    figures: dict[str, int] = {}
    inode, ours = "", False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)", line)
        if head:
            if int(head[1], 16) <= address < int(head[2], 16):
                inode = head[3]
            ours = bool(inode) and head[3] == inode
        elif ours and line.endswith(" kB"):
            name, value = line.removesuffix(" kB").split(":")
            figures[name] = figures.get(name, 0) + int(value) * 1024
    return figures


def status(name: str, file: str = "status") -> int:
    """A figure of /proc/self/status or of another file of that form, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self", file).read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024


@pytest.fixture
def memory() -> Iterator[Memory]:
    opened = memplat.open("memfd", reclaim="manual", max_size=64 * MIB)
    yield opened
    close_with_leftovers(opened)


def touch(memory: Memory, pages: FileRange) -> None:
    with memory.view(pages) as view:
        view[::PAGE] = b"\1" * (pages.length // PAGE)


def told(memory: Memory) -> int:
    usage = memory.update_usage()
    assert usage.exact
    return usage.total


# -- this process's smaps ----------------------------------------------------------------------------------------------


def test_rss_has_what_this_process_touched_and_not_what_others_or_system_calls_did(memory: Memory) -> None:
    pages = memory.allocate(24 * MIB)
    touch(memory, FileRange(pages.start, pages.start + 4 * MIB))
    address = memory.address(pages)
    assert smaps(address)["Rss"] == told(memory) == 4 * MIB
    memory.write(FileRange(pages.start + 8 * MIB, pages.start + 10 * MIB), b"x" * 2 * MIB)
    touch_elsewhere(memory.fileno(), range(pages.start + 16 * MIB, pages.start + 17 * MIB, PAGE), pages.end)
    assert smaps(address)["Rss"] == 4 * MIB
    assert told(memory) == 7 * MIB


def test_rss_forgets_what_the_page_tables_forget_and_the_file_keeps(memory: Memory) -> None:
    pages = memory.allocate(4 * MIB)
    touch(memory, pages)
    forget(memory.address(pages), pages.length)
    assert smaps(memory.address(pages))["Rss"] == 0
    assert told(memory) == 4 * MIB


def test_it_is_shmem_and_not_anonymous(memory: Memory) -> None:
    anonymous, shmem, rollup = status("RssAnon"), status("RssShmem"), status("Pss_Shmem", "smaps_rollup")
    pages = memory.allocate(16 * MIB)
    touch(memory, pages)
    assert smaps(memory.address(pages))["Anonymous"] == 0
    assert abs(status("RssShmem") - shmem - 16 * MIB) <= LAG  # it is told from counters that lag
    assert status("Pss_Shmem", "smaps_rollup") - rollup == 16 * MIB
    assert status("RssAnon") - anonymous < 4 * MIB


def test_reading_an_untouched_page_costs_a_page_of_memory(memory: Memory) -> None:
    pages = memory.allocate(4 * MIB)
    with memory.view(pages, writable=False) as view:
        assert not any(view[::PAGE])
    assert told(memory) == smaps(memory.address(pages))["Rss"] == 4 * MIB


def test_reserved_pages_cost_as_much_as_touched_ones_and_are_in_no_rss(memory: Memory) -> None:
    pages = memory.allocate(4 * MIB, mode="reserved")
    assert told(memory) == 4 * MIB
    assert smaps(memory.address(pages))["Rss"] == 0


def test_what_is_swapped_out_leaves_rss_and_stays_in_our_figures(memory: Memory) -> None:
    pages = memory.allocate(16 * MIB)
    touch(memory, pages)
    address = memory.address(pages)
    with swap_file(64 * MIB), Observer(memory.fileno()) as observer:
        mapping = observer.map(pages.start, pages.length)
        for _ in range(8):
            forget(address, pages.length)
            mapping.page_out(observer.committed_pages() - observer.swapped_pages())
        mapping.close()
        swapped = len(observer.swapped_pages()) * PAGE
        assert swapped >= 0.9 * pages.length
        figures = smaps(address)
        assert figures["Swap"] == swapped
        assert figures["Rss"] <= pages.length - swapped
        assert told(memory) == 16 * MIB
        assert os.fstat(memory.fileno()).st_blocks * 512 == 16 * MIB
        memory.decref(pages)
        memory.reclaim()
        assert smaps(address)["Swap"] == 0
        assert told(memory) == 0


def test_huge_pages_of_the_pool_are_in_figures_of_their_own() -> None:
    with hugetlb_pool(8):
        memory = memplat.open("hugetlb", reclaim="manual", max_size=16 * MIB)
        pages = memory.allocate(4 * MIB)
        with memory.view(pages) as view:
            view[0] = view[2 * MIB] = 1
        figures = smaps(memory.address(pages))
        assert told(memory) == figures["Private_Hugetlb"] + figures["Shared_Hugetlb"] == 4 * MIB
        assert figures["Rss"] == 0
        memory.decref(pages)
        memory.close()


def test_on_a_disk_ours_are_blocks_and_theirs_the_page_cache() -> None:
    with loop_mount("ext4") as directory:
        memory = memplat.open("tmpfile", directory=str(directory), reclaim="manual", max_size=32 * MIB)
        pages = memory.allocate(8 * MIB, mode="reserved")
        assert told(memory) >= 8 * MIB
        address = memory.address(pages)
        assert smaps(address)["Rss"] == 0
        hole = memory.allocate(4 * MIB, mode="uncommitted")
        before = told(memory)
        with memory.view(hole, writable=False) as view:
            assert not any(view[::PAGE])
        assert told(memory) == before, "reading a hole takes page cache, and no block"
        assert smaps(address)["Rss"] == 4 * MIB
        memory.decref(pages)
        memory.decref(hole)
        memory.close()


# -- cgroups -----------------------------------------------------------------------------------------------------------

#: Runs in the cgroup: says what it sees whenever it is asked, and does what it is told.
CHILD = """
import json, os, sys
import memplat
from tests.oracle import Observer, forget

cgroup = sys.argv[1]
with open(os.path.join(cgroup, "cgroup.procs"), "w") as file:
    file.write(str(os.getpid()))
MIB = 1 << 20
memory = memplat.open("memfd", reclaim="manual", max_size=64 * MIB)
pages = memory.allocate(32 * MIB)
front = memplat.FileRange(pages.start, pages.start + 16 * MIB)

def figures():
    with open(os.path.join(cgroup, "memory.stat")) as file:
        found = dict(line.split() for line in file)
    anonymous = int(found.get("anon", found.get("rss", 0)))
    return {"shmem": int(found["shmem"]), "anonymous": anonymous, "ours": memory.update_usage().total}

def touch():
    view = memory.view(front)
    view[::4096] = b"\\1" * 4096
    del view

def swap_out():
    address = memory.address(front)
    with Observer(memory.fileno()) as observer:
        mapping = observer.map(front.start, front.length)
        for _ in range(8):
            forget(address, front.length)
            mapping.page_out({n for n in observer.committed_pages() if n < 4096} - observer.swapped_pages())
        mapping.close()
        return len(observer.swapped_pages()) * 4096

print(json.dumps({"fd": memory.fileno()}), flush=True)
for line in sys.stdin:
    told = {"touch": touch, "swap out": swap_out, "decommit": lambda: memory.decommit(front), "look": figures}
    print(json.dumps(told[line.strip()]()), flush=True)
memory.decref(pages)
memory.close()
"""


@contextlib.contextmanager
def child_in(cgroup: Path) -> Iterator[Any]:
    """A process in the cgroup; the function that is yielded tells it what to do, and returns its answer."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(cgroup)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(what: str | None) -> Any:
            if what is not None:
                process.stdin.write(what + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            line = process.stdout.readline()  # type: ignore[union-attr]
            assert line, "the process in the cgroup has ended"
            return json.loads(line)

        ask.fd = f"/proc/{process.pid}/fd/{ask(None)['fd']}"  # type: ignore[attr-defined]
        yield ask
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_cgroup_pays_for_what_its_processes_touched_first_and_calls_it_shmem() -> None:
    with memory_cgroup() as cgroup, child_in(cgroup) as ask:
        before = ask("look")
        assert before["ours"] == 0
        ask("touch")
        after = ask("look")
        assert after["ours"] == 16 * MIB
        assert abs(after["shmem"] - before["shmem"] - 16 * MIB) <= LAG
        assert abs(after["anonymous"] - before["anonymous"]) <= 4 * MIB
        fd = os.open(ask.fd, os.O_RDWR)
        os.pwrite(fd, bytes(8 * MIB), 16 * MIB)  # this process is in another cgroup, which pays
        os.close(fd)
        more = ask("look")
        assert more["ours"] == 24 * MIB
        assert abs(more["shmem"] - after["shmem"]) <= LAG
        ask("decommit")
        less = ask("look")
        assert less["ours"] == 8 * MIB
        assert less["shmem"] <= before["shmem"] + LAG


def test_what_is_swapped_out_leaves_the_shmem_of_the_cgroup_and_stays_in_our_figures() -> None:
    with swap_file(64 * MIB), memory_cgroup() as cgroup, child_in(cgroup) as ask:
        ask("touch")
        before = ask("look")
        swapped = ask("swap out")
        assert swapped >= 0.9 * 16 * MIB
        after = ask("look")
        assert after["ours"] == before["ours"] == 16 * MIB
        assert abs(before["shmem"] - after["shmem"] - swapped) <= LAG
        ask("decommit")
        assert ask("look")["ours"] == 0


# -- the page ----------------------------------------------------------------------------------------------------------


def test_every_claim_of_the_page_names_its_test_and_every_test_is_named() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == here - {"test_every_claim_of_the_page_names_its_test_and_every_test_is_named", "test_snippets"}


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
def test_snippets(code: str) -> None:
    before = descriptors()
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment(), cwd=ROOT)
    assert descriptors() == before
