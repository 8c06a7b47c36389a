"""What the doctor finds out about the host, on the host as it is, changed for real, and made up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest

from memplat.doctor import Finding, State
from memplat.doctor import kernel as kernel_findings
from memplat.doctor.host import examine_host
from memplat.doctor.kernel import examine_kernel
from memplat.doctor.places import examine_places
from memplat.engine import placement
from memplat.linux import numa, offers, system
from memplat.linux.trials import Trial
from tests.hostparts import MIB, hugetlb_pool, loop_mount, mounted, setting, swap_file, tmpfs_mount

THP = Path("/sys/kernel/mm/transparent_hugepage")


def named(name: str, findings: Iterable[Finding] | None = None) -> Finding:
    (found,) = [each for each in (examine_host() if findings is None else findings) if each.name == name]
    return found


def test_every_finding_says_something_and_can_be_written_as_json() -> None:
    found = [*examine_host(), *examine_kernel(), *examine_places()]
    assert {each.area for each in found} == {"memory", "huge pages", "limits", "kernel", "directories"}
    assert all(each.says for each in found)
    json.dumps([attrs.asdict(each) for each in found])


def test_nothing_is_left_behind() -> None:
    list(examine_places())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        list(examine_host()), list(examine_kernel()), list(examine_places())
    assert len(os.listdir("/proc/self/fd")) <= before


# ---- memory and limits


def test_swap_in_use_is_named() -> None:
    with swap_file(16 * MIB) as path:
        found = named("swap")
        assert (found.state, found.remedy) == (State.GOOD, "")
        assert str(path) in found.says


def test_a_host_without_swap_gets_the_commands_for_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "host_memory", lambda: system.HostMemory(1 << 30, 1 << 29, 0, 0))
    found = named("swap")
    assert found.state is State.LIMITED
    assert "swapon" in found.remedy


def test_strict_overcommit_is_a_limit_with_its_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "overcommit", lambda: offers.Overcommit(2, 8 * MIB, MIB))
    found = named("overcommit")
    assert (found.state, found.remedy) == (State.LIMITED, "sysctl vm.overcommit_memory=0")
    assert "beyond 8 MiB" in found.says


def test_a_limited_cgroup_is_told_with_the_file_that_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (box / "memory.max").write_text("1048576\n")
    (box / "memory.current").write_text("4096\n")
    real = system.text_of
    monkeypatch.setattr(system, "_CGROUPS", tmp_path)
    monkeypatch.setattr(system, "text_of", lambda path: "0::/box\n" if str(path) == "/proc/self/cgroup" else real(path))
    found = named("memory cgroup")
    assert found.state is State.LIMITED
    assert f"{box}: 1 MiB, 4 KiB used" in found.says
    assert f"> {box}/memory.max" in found.remedy
    assert found.data["limit"] == MIB
    monkeypatch.setattr(system, "memory_cgroups", list)
    assert named("memory cgroup").says == "none"


def test_limits_of_the_process_are_told_with_their_ulimit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "address_space_limit", lambda: 1 << 40)
    monkeypatch.setattr(offers, "locked_memory_limit", lambda: 8 * MIB)
    monkeypatch.setattr(placement, "lockable", lambda: 3 * MIB)
    assert named("address space").remedy == "ulimit -v unlimited"
    assert named("locked memory").remedy == "ulimit -l unlimited"
    assert "3 MiB left" in named("locked memory").says


def test_the_nodes_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = numa.nodes_with_memory()
    assert named("NUMA nodes").data["nodes"] == nodes
    monkeypatch.setattr(numa, "nodes_with_memory", lambda: None)
    assert named("NUMA nodes").says == "unknown"


# ---- huge pages


def test_an_empty_pool_gets_the_sysctl_and_a_filled_one_does_not() -> None:
    with hugetlb_pool(0):
        found = named("pool of 2 MiB")
        assert found.state is State.MISSING
        assert found.remedy == ("sysctl vm.nr_hugepages=512" if found.data["default"] else found.remedy)
        assert found.data["total"] == 0
    with hugetlb_pool(6):
        assert named("pool of 2 MiB").data["total"] == 6


def test_a_kernel_without_huge_pages_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "huge_page_pools", dict)
    assert named("pools").state is State.MISSING


def test_the_decision_for_memfds_is_told_with_its_reason() -> None:
    file = THP / "shmem_enabled"
    with setting(file, "never"):
        for value, good in (("never", False), ("deny", False), ("advise", True), ("within_size", True)):
            file.write_text(value)
            found = named('memfd with huge = "advise"')
            assert (found.state is State.GOOD) == good
            assert f"shmem_enabled is {value}" in found.says
            assert bool(found.remedy) != good
            assert found.data["effective"] == ("advise" if good else "never")
            assert f'so "{value}" is what counts for memfds' in named("transparent").says


# ---- the kernel


def test_what_the_kernel_has_works_here() -> None:
    for name in ("PAGEMAP_SCAN", "cachestat", "MADV_POPULATE_WRITE"):
        found = named(name, examine_kernel())
        since = tuple(map(int, found.data["since"].removeprefix("Linux ").split(".")))
        assert (found.state is State.GOOD) == (system.kernel_release() >= since)


def test_what_is_missing_says_what_it_costs_and_which_release_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = attrs.evolve(
        kernel_findings._INTERFACES[0], attempt=lambda: Trial(False, "Inappropriate ioctl for device")
    )
    monkeypatch.setattr(kernel_findings, "_INTERFACES", (absent,))
    monkeypatch.setattr(system, "kernel_release", lambda: (6, 1))
    found = named("PAGEMAP_SCAN", examine_kernel())
    assert (found.state, found.remedy) == (State.MISSING, "Linux 6.7 or later")
    assert "15 times as long" in found.says
    monkeypatch.setattr(system, "kernel_release", lambda: (6, 12))
    found = named("PAGEMAP_SCAN", examine_kernel())
    assert "sandbox" in found.remedy
    assert "refused (Inappropriate ioctl for device)" in found.says


def test_settings_of_the_kernel_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "memfd_noexec", lambda: 2)
    monkeypatch.setattr(offers, "unprivileged_userfaultfd", lambda: None)
    assert "must be made with MFD_NOEXEC_SEAL" in named("vm.memfd_noexec", examine_kernel()).says
    assert named("vm.unprivileged_userfaultfd", examine_kernel()).state is State.MISSING


# ---- directories


def test_the_configured_directory_comes_first_and_each_one_once() -> None:
    with tmpfs_mount(8 * MIB) as place:
        found = list(examine_places([str(place), str(place)]))
        assert found[0].name == str(place)
        assert len({each.name for each in found}) == len(found)
        data = found[0].data
        assert (data["usable"], data["file_system"], data["block_size"], data["punches_holes"]) == (
            True,
            "tmpfs",
            4096,
            True,
        )
        assert "blocks of 4 KiB, holes can be punched" in found[0].says
        assert list(place.iterdir()) == []


def test_a_file_system_that_cannot_punch_is_told_of() -> None:
    with mounted("ramfs") as place:
        found = named(str(place), examine_places([str(place)]))
        assert (found.state, found.data["punches_holes"]) == (State.MISSING, False)
        assert "cannot punch holes" in found.says
        assert found.remedy


def test_blocks_that_are_smaller_than_a_page_are_told_of_with_the_mkfs_that_mends_it() -> None:
    with loop_mount("ext4", mkfs_args=("-q", "-b", "1024")) as place:
        found = named(str(place), examine_places([str(place)]))
        assert (found.state, found.data["block_size"]) == (State.MISSING, 1024)
        assert "mkfs" in found.remedy


def test_a_directory_that_does_not_exist_gets_its_mkdir(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    found = named(str(missing), examine_places([str(missing)]))
    assert (found.state, found.remedy) == (State.MISSING, f"mkdir -p {missing}")
