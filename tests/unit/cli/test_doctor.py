"""``memplat doctor``, as an operator uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from memplat.cli.app import app
from memplat.doctor import diagnose
from tests.hostparts import hugetlb_pool
from tests.unit.cli.running import run_memplat


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
