"""What the host is like, against the host's own programs, and read from a host that is made up."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from memplat.linux import files, system
from tests.hostparts import MIB, SWAPS, hugetlb_pool, nobody_else, run, setting, swap_file

THP = Path("/sys/kernel/mm/transparent_hugepage")


def test_ram_and_swap_are_those_of_the_host():
    with nobody_else(SWAPS):
        memory = system.host_memory()
        words = run("free", "-b").splitlines()
    assert memory.ram == int(words[1].split()[1])
    assert memory.swap == int(words[2].split()[1])
    assert 0 < memory.available <= memory.ram


def test_added_swap_shows():
    with nobody_else(SWAPS):
        before = system.host_memory().swap
        with swap_file(16 * MIB):
            assert 15 * MIB < system.host_memory().swap - before <= 16 * MIB


def test_without_proc_the_ram_is_still_known(monkeypatch):
    monkeypatch.setattr(system, "text_of", lambda _: "")
    assert system.host_memory().ram == os.sysconf("SC_PHYS_PAGES") * system.PAGE_SIZE
    assert system.read_cgroup_headroom() is None
    assert system.commit_headroom() is None
    assert system.shmem_huge_pages() == ""
    assert system.default_huge_page_size() is None


def test_the_page_size_is_the_processors():
    assert int(run("getconf", "PAGE_SIZE")) == system.PAGE_SIZE


def test_a_pool_shows_what_can_still_be_reserved():
    with hugetlb_pool(6):
        pool = system.huge_page_pools()[2 * MIB]
        assert (pool.page_size, pool.total, pool.free, pool.reserved, pool.available) == (2 * MIB, 6, 6, 0, 6)
        fd = files.memfd("huge", files.MFD_HUGETLB)
        try:
            files.fallocate(fd, 0, 0, 4 * MIB)
            assert system.huge_page_pools()[2 * MIB].available == 4
        finally:
            os.close(fd)


def test_pages_that_the_kernel_may_add_can_be_reserved_too():
    directory = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    with hugetlb_pool(1), setting(directory / "nr_overcommit_hugepages", "3"):
        assert system.huge_page_pools()[2 * MIB].available == 4


def test_pools_are_sorted_by_page_size():
    sizes = list(system.huge_page_pools())
    assert sizes == sorted(sizes)
    assert system.default_huge_page_size() in [None, *sizes]


@pytest.mark.parametrize("value", ["never", "advise", "deny", "within_size"])
def test_the_setting_for_transparent_huge_pages_is_the_effective_one(value):
    with setting(THP / "shmem_enabled", value):
        assert system.shmem_huge_pages() == value


def test_the_setting_of_the_size_wins():
    this_size = THP / "hugepages-2048kB" / "shmem_enabled"
    if not this_size.exists():
        return
    with setting(this_size, "advise"), setting(THP / "shmem_enabled", "never"):
        assert system.shmem_huge_pages() == "advise"
    with setting(this_size, "always"), setting(THP / "shmem_enabled", "deny"):
        assert system.shmem_huge_pages() == "deny"


def test_the_limit_of_the_address_space_is_none_or_bytes():
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    assert system.address_space_limit() == (None if soft == resource.RLIM_INFINITY else soft)


def test_features_follow_the_release(monkeypatch):
    monkeypatch.setattr(system, "kernel_release", lambda: (6, 5))
    features = system.kernel_features()
    assert features["cachestat"]
    assert not features["pagemap_scan"]


def test_the_release_is_that_of_the_kernel():
    assert list(system.kernel_release()) == [int(part) for part in os.uname().release.split(".")[:2]]


# ---- cgroups: a tree that is made up --------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files by path below the cgroup root; /proc/self/cgroup and no swap."""
    real = system.text_of
    texts = {"/proc/self/cgroup": "0::/box/inner\n", "/proc/meminfo": "MemAvailable: 1048576 kB\n"}

    def read(path: Path) -> str:
        return texts[str(path)] if str(path) in texts else real(path)

    def put(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        system._cgroup_directories.cache_clear()  # which directories exist is looked up once

    put.texts = texts  # type: ignore[attr-defined]
    monkeypatch.setattr(system, "_CGROUPS", tmp_path)
    monkeypatch.setattr(system, "text_of", read)
    return put


def test_the_tightest_level_decides(tree):
    tree("box/inner/memory.max", "max\n")
    tree("box/inner/memory.current", "10\n")
    tree("box/memory.max", "1000\n")
    tree("box/memory.current", "400\n")
    tree("memory.max", "5000\n")
    tree("memory.current", "4500\n")
    assert system.read_cgroup_headroom() == 500


def test_page_cache_and_swap_make_room(tree):
    tree("box/inner/memory.max", "1000\n")
    tree("box/inner/memory.current", "900\n")
    tree("box/inner/memory.stat", "anon 5\ninactive_file 30\nactive_file 20\nshmem 7\n")
    assert system.read_cgroup_headroom() == 150
    tree.texts["/proc/meminfo"] = "SwapFree: 1 kB\n"
    assert system.read_cgroup_headroom() == 150 + 1024
    tree("box/inner/memory.swap.max", "600\n")
    tree("box/inner/memory.swap.current", "500\n")
    assert system.read_cgroup_headroom() == 250


def test_the_first_version_of_cgroups_is_read_too(tree):
    tree.texts["/proc/self/cgroup"] = "5:cpu:/\n4:memory:/box\n0::/\n"
    tree("memory/box/memory.limit_in_bytes", "1000\n")
    tree("memory/box/memory.usage_in_bytes", "100\n")
    tree("memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n")
    tree("memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    tree("memory/memory.usage_in_bytes", "100\n")
    assert system.read_cgroup_headroom() == 950
    tree.texts["/proc/meminfo"] = "SwapFree: 1 kB\n"
    tree("memory/box/memory.memsw.limit_in_bytes", "1100\n")
    tree("memory/box/memory.memsw.usage_in_bytes", "90\n")
    assert system.read_cgroup_headroom() == 950 + 1010


def test_usage_above_the_limit_leaves_no_room(tree):
    tree("box/memory.max", "0\n")
    tree("box/memory.current", "4096\n")
    assert system.read_cgroup_headroom() == 0


def test_without_a_limit_there_is_no_figure_but_the_hosts(tree):
    assert system.read_cgroup_headroom() is None
    assert system.commit_headroom() == 1 << 30
    tree("box/memory.max", "2000\n")
    tree("box/memory.current", "0\n")
    assert system.commit_headroom() == 2000
