"""What ``memplat conformance --all`` makes for itself on the host, and puts back."""

from __future__ import annotations

from pathlib import Path

import pytest

from memplat.conformance import hosts
from memplat.conformance.hosts import Stand, UnavailableError, stands, swap
from tests.needs import need_root, needs

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
THP = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
BUILT_IN = [stand for stand in stands() if stand.backend in ("memfd", "tmpfile", "hugetlb")]


def state() -> tuple[str, ...]:
    """Everything of the host that is changed for the suite."""
    files = ("/proc/self/mounts", "/proc/swaps", POOL, THP)
    return tuple(Path(file).read_text() for file in files if Path(file).exists())


def test_every_backend_stands_on_all_that_it_can():
    titles = {stand.title for stand in stands()}
    assert {f"tmpfile on {name}" for name in ("ext4", "xfs", "btrfs", "tmpfs")} <= titles
    assert {"memfd", "memfd with huge pages (collapse)", "memfd with huge pages (advise)"} <= titles
    assert "hugetlb with pages of 2 MiB" in titles


@pytest.mark.parametrize("stand", BUILT_IN, ids=lambda stand: stand.title.replace(" ", "-"))
def test_what_a_stand_needs_is_made_and_put_back(stand: Stand):
    before = state()
    try:
        with stand.provide() as options:
            if "directory" in options:
                assert Path(options["directory"]).is_dir()
            if "page_size" in options:
                assert int(POOL.read_text()) >= 40
            if options.get("huge") == "advise":
                assert "[never]" not in THP.read_text()
    except UnavailableError as error:
        feature, _, reason = str(error).removeprefix("needs ").partition(": ")
        needs("hugetlb" if feature == "thp" else feature, reason)
    assert state() == before


def test_a_little_swap_is_there_for_as_long_as_it_is_wanted():
    need_root("adding swap")
    before = state()
    with swap() as reason:
        if reason:
            needs("swap", reason)
        assert len(Path("/proc/swaps").read_text().splitlines()) > 1
    assert state() == before


def test_what_the_host_lacks_is_said_in_a_word_and_in_a_sentence():
    assert str(UnavailableError("ext4", "mkfs.ext4 is not installed")) == "needs ext4: mkfs.ext4 is not installed"
    with pytest.raises(UnavailableError, match=r"^needs ext4: mkfs\.none is not installed$"):
        hosts._run("ext4", "mkfs.none")
    with pytest.raises(UnavailableError, match=r"^needs swap: false  ?failed"):
        hosts._run("swap", "false", "")
