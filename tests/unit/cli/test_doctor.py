"""``memplat doctor``, as an operator uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from memplat.cli.app import app
from memplat.doctor import diagnose
from tests.hostparts import MIB, hugetlb_pool, memory_cgroup
from tests.needs import need_root
from tests.unit.cli.running import environment, run_memplat


def write(directory: Path, text: str) -> Path:
    path = directory / "memplat.toml"
    path.write_text(text)
    return path


def test_it_shows_the_host_and_what_is_selected() -> None:
    done = run_memplat("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("huge pages", "swap", "overcommit", "memory cgroup", "userfaultfd", "PAGEMAP_SCAN", "/dev/kvm"):
        assert word in done.stdout
    assert "Of memfd (default) memplat.open() takes memfd." in done.stdout


def test_json_has_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, "[memory]\nbackend = ['hugetlb', 'memfd']\nmax_size = '1GiB'\n")
    with hugetlb_pool(0):
        diagnosis = diagnose(str(config), None)
    monkeypatch.setattr("memplat.cli.doctor.diagnose", lambda config, profile: diagnosis)
    monkeypatch.setenv("COLUMNS", "400")
    done, shown = (
        CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False) for arguments in (["--json"], [])
    )
    assert (done.exit_code, shown.exit_code) == (0, 0)
    document = json.loads(done.stdout)
    found = document["configuration"]
    assert (found["asked"], found["asked_by"], found["taken"]) == (["hugetlb", "memfd"], f"{config}:2", "memfd")
    assert [row["selected"] for row in found["candidates"]] == [False, True]
    assert found["settings"][1] == {"key": "max_size", "value": 1 << 30, "source": f"{config}:3"}
    assert "no huge page is left" in shown.stdout
    for each in document["findings"]:
        assert each["name"] in shown.stdout
        assert each["says"] in shown.stdout
    for each in document["mend"]:
        assert each["how"] in shown.stdout


def test_status_1_if_nothing_can_be_selected(tmp_path: Path) -> None:
    config = write(tmp_path, "[memory]\nbackend = 'tmpfile'\ntmpfile.directory = '/nonexistent'\n")
    done = run_memplat("doctor", "--config", config)
    assert done.returncode == 1
    assert "finds none that can be used" in done.stdout
    assert "    mkdir -p /nonexistent" in done.stdout.splitlines()


def test_status_2_for_a_wrong_configuration_or_usage(tmp_path: Path) -> None:
    config = write(tmp_path, "[memory]\nbackend = 'memfs'\n")
    done = run_memplat("doctor", "--config", config)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{config}:2: memory.backend: no plugin is named 'memfs'; did you mean \"memfd\"?" in done.stderr
    assert run_memplat("doctor", "--config", tmp_path / "missing.toml").returncode == 2
    assert run_memplat("doctor", "--config", config, "--profile", "nobody").returncode == 2
    assert run_memplat("doctor", "--nonsense").returncode == 2


def test_a_command_is_never_broken_over_lines(tmp_path: Path) -> None:
    place = "/nonexistent/" + "directory/" * 20
    config = write(tmp_path, f"[memory]\nbackend = 'tmpfile'\ntmpfile.directory = '{place}'\n")
    done = run_memplat("doctor", "--config", config, env={"COLUMNS": "80"})
    assert f"    mkdir -p {place}" in done.stdout.splitlines()


def test_it_tells_of_the_memory_cgroup_that_it_runs_in(tmp_path: Path) -> None:
    config = write(tmp_path, "[memory]\nmax_size = '1GiB'\n")
    with memory_cgroup() as group:
        (limit,) = [group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists()]
        limit.write_text(str(256 * MIB))
        inside = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -m memplat doctor --json --config {config}"
        done = subprocess.run(["sh", "-c", inside], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    (found,) = [each for each in document["findings"] if each["name"] == "memory cgroup"]
    assert (found["state"], found["data"]["limit"]) == ("limited", 256 * MIB)
    assert found["says"].startswith(f"{group}: 256 MiB, ")
    assert f"> {limit} " in found["remedy"]
    says = [each["says"] for each in document["findings"] if each["name"] == "max_size"]
    assert "1 GiB is more than the memory cgroup's limit, 256 MiB" in says


def test_without_privileges_it_says_what_is_refused_and_what_mends_it() -> None:
    """The libraries are loaded before the rights are given up: nobody may not be able to read them."""
    if os.geteuid():
        need_root("becoming nobody")
    code = """
        import ctypes, json, os, sys
        from memplat.doctor import diagnose
        diagnose(None, None)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, which setuid(2) took away, and with it /proc/self
        print(json.dumps(diagnose(None, None).as_dict()))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["configuration"]["taken"] == "memfd"
    found = {each["name"]: each for each in document["findings"]}
    assert found["/dev/shm"]["data"]["usable"]
    if Path("/dev/kvm").exists() and Path("/dev/kvm").stat().st_mode & 0o006 != 0o006:
        assert found["/dev/kvm"]["says"] == "cannot be used: Permission denied"
        assert found["/dev/kvm"]["remedy"].startswith("usermod -aG kvm")
    if found["locked memory"]["data"]["limit"] is not None:
        assert found["locked memory"]["remedy"] == "ulimit -l unlimited"
    assert found["userfaultfd"]["state"] == "good", "what memplat uses of it needs no privilege"


def test_without_proc_and_sys_it_says_what_it_cannot_know() -> None:
    need_root("a mount namespace without /proc and /sys")
    hide = " && ".join(f"mount -t tmpfs memplat-test {place}" for place in ("/proc", "/sys", "/dev"))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{hide} && exec {sys.executable} -W error -m memplat doctor --json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    found = {each["name"]: each for each in document["findings"]}
    assert found["/proc"]["remedy"] == "mount -t proc proc /proc"
    assert found["/sys"]["remedy"] == "mount -t sysfs sysfs /sys"
    assert "unknown" in found["pools"]["says"]
    assert "an unknown part of it available" in found["RAM"]["says"]
    assert document["configuration"]["taken"] == "memfd"
