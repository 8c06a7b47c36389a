"""The check that no test was skipped over something that the host has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import FEATURES, needs
from tools import check_skips

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_one" name="test_runs"/>
<testcase classname="tests.test_one" name="test_skipped"><skipped type="pytest.skip" message="{reason}"/></testcase>
<testcase classname="tests.test_one" name="test_xfails"><skipped type="pytest.xfail" message="known"/></testcase>
</testsuite></testsuites>"""


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
