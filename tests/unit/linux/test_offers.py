"""What the host offers, against the host's own programs, and from a host that is made up."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from memplat.linux import offers, system
from tests.hostparts import MIB, mounted, run, swap_file

THP = Path("/sys/kernel/mm/transparent_hugepage")


def test_the_settings_for_transparent_huge_pages_are_the_kernels_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        THP / "enabled": "always madvise [never]\n",
        THP / "shmem_enabled": "always [within_size] advise never deny force\n",
        THP / "hugepages-2048kB" / "shmem_enabled": "always [inherit] within_size advise never\n",
    }
    if THP.exists():
        words = THP.joinpath("shmem_enabled").read_text().translate({ord("["): None, ord("]"): None}).split()
        assert {"always", "within_size", "advise", "never"} <= set(words)
    monkeypatch.setattr(system, "text_of", lambda path: texts.get(path, ""))
    assert offers.transparent_huge_pages() == ("never", "within_size", "inherit", "within_size")


def test_swap_areas_are_listed_while_they_are_in_use() -> None:
    with swap_file(16 * MIB) as path:
        (area,) = [area for area in offers.swaps() if area.path == str(path)]
        assert 15 * MIB < area.size <= 16 * MIB
        assert 0 <= area.used <= area.size
    assert str(path) not in [area.path for area in offers.swaps()]


def test_overcommit_is_that_of_proc() -> None:
    found = offers.overcommit()
    assert found.mode == int(run("sysctl", "-n", "vm.overcommit_memory"))
    assert found.limit is not None
    assert found.committed is not None
    assert found.limit > 0
    assert found.committed > 0


def test_the_limit_of_locked_memory_is_none_or_bytes() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert offers.locked_memory_limit() == (None if soft == resource.RLIM_INFINITY else soft)


def test_mounts_of_hugetlbfs_are_found() -> None:
    with mounted("hugetlbfs") as path:
        assert str(path) in offers.hugetlbfs_mounts()
    assert str(path) not in offers.hugetlbfs_mounts()


@pytest.mark.parametrize("name", ["memfd_noexec", "unprivileged_userfaultfd"])
def test_settings_are_numbers_or_nothing(name: str) -> None:
    path = Path("/proc/sys/vm", name)
    assert getattr(offers, name)() == (int(path.read_text()) if path.exists() else None)


def test_a_host_without_proc_and_sys_offers_nothing_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "text_of", lambda _: "")
    assert offers.transparent_huge_pages() == ("", "", "", "")
    assert offers.overcommit() == (None, None, None)
    assert offers.swaps() == []
    assert offers.memfd_noexec() is offers.unprivileged_userfaultfd() is None
    assert system.memory_cgroups() == []


def test_the_levels_of_a_cgroup_are_those_of_its_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = system.text_of
    box = tmp_path / "box"
    box.mkdir()
    (box / "memory.max").write_text("1000\n")
    (box / "memory.current").write_text("10\n")
    (box / "memory.swap.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("20\n")
    monkeypatch.setattr(system, "_CGROUPS", tmp_path)
    monkeypatch.setattr(system, "text_of", lambda path: "0::/box\n" if str(path) == "/proc/self/cgroup" else real(path))
    inner, outer = system.memory_cgroups()
    assert inner == (box, 1000, 10, None)
    assert outer == (tmp_path, None, 20, None)
