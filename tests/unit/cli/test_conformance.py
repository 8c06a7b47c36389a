"""``memplat conformance``: as a user runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from memplat.conformance.registry import all_checks
from tests.unit.cli.running import SOURCE, run_memplat
from tests.unit.conformance import strangers


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


def with_site(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{SOURCE}{os.pathsep}{site}"}


def test_the_checks_can_be_listed():
    done = run_memplat("conformance", "--list")
    assert done.returncode == 0
    for check in all_checks():
        assert check.id in done.stdout


def test_a_backend_that_conforms_is_exit_status_0_and_one_line():
    done = run_memplat("conformance", "memfd", "--check", "sec")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "memfd 1.0 conforms to memplat contract level 1: core, execute, reserve, seal" in done.stdout
    assert "SEC" in done.stdout


def test_a_backend_that_does_not_is_exit_status_1_and_says_what_to_mend(site: Path):
    strangers.put(site, "readable", strangers.READABLE)
    done = run_memplat("conformance", "readable", "--check", "SEC-02", env=with_site(site))
    assert done.returncode == 1
    assert "SEC-02 nobody else may open the file" in done.stdout
    assert "to mend (rule 15.2): Set the mode to 0600" in done.stdout
    assert "readable 0.1 does not conform" in done.stdout


def test_one_of_several_that_does_not_conform_is_exit_status_1(site: Path):
    strangers.put(site, "readable", strangers.READABLE)
    done = run_memplat("conformance", "memfd", "readable", "--check", "SEC-02", env=with_site(site))
    assert done.returncode == 1
    assert "1 of 2 conform" in done.stdout


def test_reports_are_written_in_all_forms(tmp_path: Path):
    files = {name: tmp_path / f"report.{name}" for name in ("json", "junit", "markdown")}
    options = [argument for name, path in files.items() for argument in (f"--{name}", path)]
    done = run_memplat("conformance", "memfd", "--check", "ACCT", *options)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(files["json"].read_text())
    assert report["conforms"] is True
    assert {"ACCT-01", "LIFE-01"} <= {result["id"] for result in report["results"]}
    assert ET.fromstring(files["junit"].read_text()).find("testsuite") is not None
    assert files["markdown"].read_text().startswith("## memfd")


def test_json_on_standard_output_is_nothing_but_json():
    done = run_memplat("conformance", "memfd", "--check", "LIFE-05", "--json", "-")
    (report,) = json.loads(done.stdout)
    assert report["title"] == "memfd"
    assert "conforms" in done.stderr


def test_options_and_what_they_switch_off_can_be_given():
    alone = run_memplat("conformance", "memfd", "-o", "seal=false", "--check", "SEC-05")
    assert (alone.returncode, "SEC-05" in alone.stdout) == (1, True)
    excused = run_memplat("conformance", "memfd", "-o", "seal=false", "--without", "seal", "--check", "SEC-05")
    assert excused.returncode == 0
    assert "switched off by the options: seal" in excused.stdout


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "name backends, or say --all"),
        (["memfd", "--all"], "name backends, or say --all"),
        (["--all", "-o", "seal=false"], "options belong to one backend"),
        (["memfd", "--check", "NONE-01"], "there is no check 'NONE-01'"),
        (["memfd", "-o", "seal"], "write KEY=VALUE"),
        (["nobody"], "no plugin is named 'nobody'"),
        (["memfd", "-o", "sael=false", "--check", "LIFE-01"], "sael"),
    ],
)
def test_wrong_usage_is_exit_status_2_and_says_what_is_wrong(arguments: list[str], fault: str):
    done = run_memplat("conformance", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert fault in done.stderr + done.stdout


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown"])
def test_a_report_that_could_not_be_written_is_wrong_usage_before_anything_runs(tmp_path: Path, option: str):
    done = run_memplat("conformance", "memfd", option, tmp_path / "missing" / "report")
    assert done.returncode == 2
    assert f"Invalid value for {option}" in done.stderr
    assert "No such file or directory" in done.stderr
    assert done.stdout == ""


def test_looking_whether_a_report_can_be_written_leaves_nothing_behind(tmp_path: Path):
    there = tmp_path / "there"
    there.write_text("earlier")
    done = run_memplat(
        "conformance", "memfd", "--json", there, "--junit", tmp_path / "new", "--markdown", tmp_path / "no" / "way"
    )
    assert done.returncode == 2
    assert there.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [there]
