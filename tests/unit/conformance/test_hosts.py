"""What ``memplat conformance --all`` makes for itself on the host, and puts back."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplat.conformance import hosts
from memplat.conformance.hosts import Stand, UnavailableError, stands, swap
from tests.hostparts import SWAPS, family, nobody_else
from tests.needs import need_root, needs

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
THP = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
BUILT_IN = [stand for stand in stands() if stand.backend in ("memfd", "tmpfile", "hugetlb")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are made, and what else is changed is changed by nobody else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.ExitStack() as locks:
        for thing in sorted({SWAPS, family(POOL), family(THP)}):
            locks.enter_context(nobody_else(thing))
        yield tmp_path


def state(place: Path) -> tuple[object, ...]:
    """Everything of the host that is changed for the suite: mounts, loop devices and swap files are made in *place*."""
    tables = [Path(file).read_text().splitlines() for file in ("/proc/self/mounts", "/proc/swaps")]
    ours = [line for table in tables for line in table if str(place) in line]
    backed = [file.read_text().strip() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    settings = [file.read_text() for file in (POOL, THP) if file.exists()]
    return ours, [image for image in backed if image.startswith(str(place))], settings, os.listdir(place)


def test_every_backend_stands_on_all_that_it_can():
    titles = {stand.title for stand in stands()}
    assert {f"tmpfile on {name}" for name in ("ext4", "xfs", "btrfs", "tmpfs")} <= titles
    assert {"memfd", "memfd with huge pages (collapse)", "memfd with huge pages (advise)"} <= titles
    assert "hugetlb with pages of 2 MiB" in titles


@pytest.mark.parametrize("stand", BUILT_IN, ids=lambda stand: stand.title.replace(" ", "-"))
def test_what_a_stand_needs_is_made_and_put_back(stand: Stand, place: Path):
    before = state(place)
    try:
        with stand.provide() as options:
            if "directory" in options:
                assert Path(options["directory"]).is_mount()
                assert state(place) != before
            if "page_size" in options:
                assert int(POOL.read_text()) >= 40
            if options.get("huge") == "advise":
                assert "[never]" not in THP.read_text()
    except UnavailableError as error:
        feature, _, reason = str(error).removeprefix("needs ").partition(": ")
        needs(feature, reason)
    assert state(place) == before


def test_a_little_swap_is_there_for_as_long_as_it_is_wanted(place: Path):
    need_root("adding swap")
    before = state(place)
    with swap() as reason:
        if reason:
            needs("swap", reason)
        assert len(SWAPS.read_text().splitlines()) > 1
    assert state(place) == before


def test_what_the_host_lacks_is_said_in_a_word_and_in_a_sentence():
    assert str(UnavailableError("ext4", "mkfs.ext4 is not installed")) == "needs ext4: mkfs.ext4 is not installed"
    with pytest.raises(UnavailableError, match=r"^needs ext4: mkfs\.none is not installed$"):
        hosts._run("ext4", "mkfs.none")
    with pytest.raises(UnavailableError, match=r"^needs swap: false  ?failed"):
        hosts._run("swap", "false", "")
