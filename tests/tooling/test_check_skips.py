"""The check that no test was skipped over something that the host has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memplat.conformance.hosts import stands
from tests.needs import FEATURES, needs
from tools import check_skips

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_one" name="test_runs"/>
<testcase classname="tests.test_one" name="test_skipped"><skipped type="pytest.skip" message="{reason}"/></testcase>
<testcase classname="tests.test_one" name="test_xfails"><skipped type="pytest.xfail" message="known"/></testcase>
</testsuite></testsuites>"""


CONFORMANCE = """<testsuites name="memplat conformance">{suites}</testsuites>"""
SUITE = """<testsuite name="{title}"><testcase classname="{title}" name="LIFE-01 it works"/>{skip}</testsuite>"""
SKIP = """<testcase classname="mine" name="EXH-01 it holds"><skipped message="{reason}"/></testcase>"""


def write_conformance(directory: Path, *titles: str, reason: str = "") -> str:
    path = directory / "conformance.xml"
    skip = SKIP.format(reason=reason) if reason else ""
    path.write_text(CONFORMANCE.format(suites="".join(SUITE.format(title=title, skip=skip) for title in titles)))
    return str(path)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(check_skips.__file__)
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


def write_report(directory: Path, reason: str) -> str:
    path = directory / "report.xml"
    path.write_text(REPORT.format(reason=reason))
    return str(path)


def test_tests_and_check_know_the_same_features() -> None:
    assert set(check_skips.PROBES) == FEATURES


def test_a_skip_over_what_the_host_has_is_a_failure(tmp_path: Path) -> None:
    done = run_script(write_report(tmp_path, "needs loop: no device"))
    assert (done.returncode == 1) == check_skips.has_loop()


def test_a_skip_over_what_the_host_lacks_is_due() -> None:
    skip = check_skips.Skip("test", "needs kvm: no /dev/kvm")
    assert check_skips.judge(skip, lambda _: False) is None
    assert "which this host has" in (check_skips.judge(skip, lambda _: True) or "")


@pytest.mark.parametrize("reason", ["", "not today", "needs kvm", "needs kvm:", "needs teapot: no tea"])
def test_a_skip_without_a_known_feature_is_a_failure(tmp_path: Path, reason: str) -> None:
    done = run_script(write_report(tmp_path, reason))
    assert done.returncode == 1, done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert [skip.test for skip in check_skips.read_skips(write_report(tmp_path, "needs loop: x"))] == [
        "tests.test_one.test_skipped"
    ]


def test_a_report_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.xml").write_text("<testsuites>")
    assert run_script(str(tmp_path / "broken.xml")).returncode == 2
    assert run_script(str(tmp_path / "missing.xml")).returncode == 2
    assert run_script().returncode == 2


def test_what_needs_says_is_what_the_check_reads() -> None:
    with pytest.raises(pytest.skip.Exception) as caught:
        needs("swap", "no swap file can be switched on")
    assert check_skips.judge(check_skips.Skip("test", str(caught.value)), lambda _: False) is None
    with pytest.raises(ValueError, match="unknown feature 'teapot'"):
        needs("teapot", "no tea")


@pytest.mark.parametrize(
    "reason",
    [
        "huge_pages is not declared",
        "seal is switched off by the options",
        "neither a file system nor a pool bounds the file: all of the host would have to be used up",
        "there is no disk below the directory that was chosen",
        "the host has 20 GiB free here, and a check uses up at most 512 MiB",
        "needs 2560 huge pages of 2 MiB, and the pool has 40",
    ],
)
def test_what_a_check_says_of_the_backend_is_a_reason_in_a_report_of_conformance_only(tmp_path: Path, reason: str):
    assert run_script(write_conformance(tmp_path, *check_skips.STANDS, reason=reason)).returncode == 0
    assert run_script(write_report(tmp_path, reason)).returncode == 1


@pytest.mark.parametrize(
    "reason",
    [
        "the moon is full",
        "needs teapot: no tea",
        "hypothesis is not installed",
        "needs 39 huge pages of 2 MiB, and 0 are free",
    ],
)
def test_any_other_reason_is_none_in_a_report_of_conformance_either(tmp_path: Path, reason: str):
    done = run_script(write_conformance(tmp_path, *check_skips.STANDS, reason=reason))
    assert done.returncode == 1, done.stdout


def test_what_conformance_left_out_without_a_word_is_missing_if_the_host_has_it(tmp_path: Path):
    report = write_conformance(tmp_path, *(set(check_skips.STANDS) - {"memfd", "tmpfile on xfs"}))
    assert check_skips.missing_stands(report, lambda _: True) == ["memfd", "tmpfile on xfs"]
    assert check_skips.missing_stands(report, lambda feature: feature != "xfs") == ["memfd"]
    done = run_script(report)
    assert done.returncode == 1
    assert "memfd: was not run" in done.stdout


def test_the_stands_are_those_of_the_command():
    titles = {stand.title for stand in stands() if stand.backend in ("memfd", "tmpfile", "hugetlb")}
    assert set(check_skips.STANDS) == titles - {"tmpfile where temporary files are made"}
