"""The guarantee table of docs/guarantees.md, cell by cell, each by a process that a signal would kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memplat
from memplat.conformance.registry import all_checks
from memplat.linux import system
from tests.hostparts import MIB, hugetlb_pool, limited_cgroup, loop_mount, tmpfs_mount

ROOT = Path(memplat.__file__).parent.parent
PROMISED = ("reserved", "committed")
#: The images: 64 MiB, and for xfs and btrfs the least that mkfs agrees to, in whole MiB.
IMAGES = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 109 * MIB}
PLACES = ("hugetlb", "tmpfs", *IMAGES)


@contextlib.contextmanager
def place(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A small host, and the backend on it."""
    if name == "hugetlb":
        with hugetlb_pool(4):
            yield "hugetlb", {"page_size": 2 * MIB}
    elif name == "tmpfs":
        with tmpfs_mount(8 * MIB) as directory:
            yield "tmpfile", {"directory": str(directory)}
    else:
        with loop_mount(name, IMAGES[name]) as directory:
            yield "tmpfile", {"directory": str(directory)}


def run(
    scenario: str, backend: str, mode: str, options: dict[str, Any], cgroup: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A scenario in a process whose SIGBUS has its default disposition; that it has, it makes sure of itself."""
    enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cgroup)] if cgroup is not None else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMPLAT_", "PYTHON"))}
    return subprocess.run(
        [*enter, sys.executable, "-m", "tests.guarantees.scenarios", scenario, backend, mode, json.dumps(options)],
        cwd=ROOT,
        env={**kept, "XDG_CONFIG_HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )


def kept(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a scenario that kept its promise has to tell."""
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


# ---- reserved, committed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PROMISED)
@pytest.mark.parametrize("name", PLACES)
def test_an_exhausted_host_is_out_of_memory_and_what_was_allocated_before_stays(name: str, mode: str):
    with place(name) as (backend, options):
        told = kept(run("exhaust", backend, mode, options))
    least = {"hugetlb": 8 * MIB, "tmpfs": 7 * MIB, "btrfs": 24 * MIB, "xfs": 200 * MIB}.get(name, 40 * MIB)
    assert told["allocated"] >= least, told


@pytest.mark.parametrize("mode", PROMISED)
@pytest.mark.parametrize("name", PLACES)
def test_pages_can_be_touched_though_the_host_fills_up_after_the_allocation(name: str, mode: str):
    with place(name) as (backend, options):
        kept(run("fill_later", backend, mode, options))


@pytest.mark.parametrize("mode", PROMISED)
def test_more_than_the_host_has_is_refused_before_it_is_taken(mode: str):
    memory = system.host_memory()
    told = kept(run("ask_for_too_much", "memfd", mode, {"limit": (memory.ram + memory.swap) // MIB * MIB}))
    assert "the host refused" in told["told"]


@pytest.mark.parametrize("mode", PROMISED)
def test_more_than_a_cgroup_may_have_is_refused_before_the_process_is_killed_for_it(mode: str):
    with limited_cgroup(192 * MIB) as group:
        done = run("ask_for_too_much", "memfd", mode, {"limit": 192 * MIB}, group)
    assert "host and cgroup have" in kept(done)["told"]


# ---- uncommitted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tmpfs", *IMAGES])
def test_uncommitted_pages_on_a_full_disk_are_a_signal_by_store_and_an_error_by_call(name: str):
    with place(name) as (backend, options):
        done = run("touch_uncommitted", backend, "uncommitted", options)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert done.stdout.splitlines()[-2:] == ["write: refused", f"read: {64 * MIB}"]


def test_hugetlb_has_no_uncommitted_pages():
    with place("hugetlb") as (backend, options):
        kept(run("exhaust", backend, "uncommitted", options))


def test_huge_pages_are_kept_until_they_are_released_and_may_be_gone_then():
    with place("hugetlb") as (backend, options):
        done = run("release_and_drain", backend, "reserved", options)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert done.stdout.splitlines() == ["decommit: kept"]


def test_the_page_names_every_test_and_no_other():
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    tests = {name for name in globals() if name.startswith("test_")} - {"test_the_page_names_every_test_and_no_other"}
    assert set(re.findall(r"`(test_\w+)`", page)) == tests
    assert set(re.findall(r"`([A-Z]+-\d\d)`", page)) <= {check.id for check in all_checks()}
