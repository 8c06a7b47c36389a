"""The author's ways in with pytest: the class, and ``--pyargs memplat.conformance --memplat-backend NAME``."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from memplat.conformance import BackendConformance
from memplat.conformance.registry import all_checks
from tests.unit.cli.running import SOURCE, environment
from tests.unit.conformance import strangers


def plugin_option() -> list[str]:
    """The plugin has to be named where memplat is not installed."""
    points = importlib.metadata.entry_points(group="pytest11")
    return (
        []
        if any(point.value == "memplat.conformance.plugin" for point in points)
        else ["-p", "memplat.conformance.plugin"]
    )


def run_pytest(directory: Path, *arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = SOURCE if site is None else f"{SOURCE}{os.pathsep}{site}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *plugin_option(), *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment(PYTHONPATH=path), capture_output=True, text=True, check=False
    )


def write_tests(directory: Path, code: str) -> None:
    (directory / "test_it.py").write_text(
        "from memplat.conformance import BackendConformance\n" + textwrap.dedent(code)
    )


def test_three_lines_are_all_checks(tmp_path: Path):
    write_tests(tmp_path, 'class TestMine(BackendConformance):\n    backend = "memfd"\n')
    done = run_pytest(tmp_path, "--collect-only")
    assert done.returncode == 0, done.stdout
    collected = [line.split("::")[-1] for line in done.stdout.splitlines() if "::TestMine::" in line]
    assert collected == [check.test_name for check in all_checks()]


def test_a_class_without_a_backend_is_an_error():
    with pytest.raises(TypeError, match='TestNothing does not say which backend it tests: add backend = "mine"'):
        type("TestNothing", (BackendConformance,), {})


def test_an_intermediate_class_is_not_collected():
    class Between(BackendConformance):
        pass

    class Its(Between):
        backend = "memfd"

    assert (Between.__test__, Its.__test__) == (False, True)


def test_options_come_from_the_class_or_from_a_fixture(tmp_path: Path):
    write_tests(
        tmp_path,
        """
        import pytest

        class TestPlain(BackendConformance):
            backend = "memfd"
            options = {"seal": False}

        class TestFixture(BackendConformance):
            backend = "tmpfile"
            title = "tmpfile in a place of its own"

            @pytest.fixture
            def conformance_options(self, tmp_path_factory):
                return {"directory": str(tmp_path_factory.getbasetemp())}
        """,
    )
    done = run_pytest(tmp_path, "-k", "sec_05 or life_03 or life_04")
    assert "FAILED test_it.py::TestPlain::test_sec_05_nobody_can_truncate_the_file" in done.stdout
    assert "1 failed, 4 passed, 1 skipped" in done.stdout, done.stdout
    assert "tmpfile in a place of its own 1.0 conforms" in done.stdout


def test_a_failure_says_what_to_mend_and_shows_no_traceback(tmp_path: Path):
    site = strangers.put(tmp_path / "site", "readable", strangers.READABLE)
    write_tests(tmp_path, 'class TestMine(BackendConformance):\n    backend = "readable"\n')
    done = run_pytest(tmp_path, "-k", "sec_0", site=site)
    assert done.returncode == 1
    assert "SEC-02 nobody else may open the file" in done.stdout
    assert "the mode of the file is 0o644: others may open it; 0600 is allowed" in done.stdout
    assert "to mend (rule 15.2): Set the mode to 0600" in done.stdout
    assert "Traceback" not in done.stdout
    assert "readable 0.1 does not conform to memplat contract level 1" in done.stdout


def test_where_the_smoke_tier_fails_the_rest_is_skipped_with_the_reason(tmp_path: Path):
    site = strangers.put(tmp_path / "site", "stingy", strangers.STINGY)
    write_tests(tmp_path, 'class TestMine(BackendConformance):\n    backend = "stingy"\n')
    done = run_pytest(tmp_path, "-rs", site=site)
    smoke = sum(check.smoke for check in all_checks())
    assert f"2 failed, {smoke - 2} passed, {len(all_checks()) - smoke} skipped" in done.stdout, done.stdout
    assert "not run, because DECOM-02 failed: mend that first" in done.stdout
    assert (
        "ALLOC-01 the page size is what the host gives and takes back (follows from DECOM-02: mend that first)"
        in done.stdout
    )


def test_a_failure_of_the_smoke_tier_cannot_be_deselected_away(tmp_path: Path):
    site = strangers.put(tmp_path / "site", "stingy", strangers.STINGY)
    write_tests(tmp_path, 'class TestMine(BackendConformance):\n    backend = "stingy"\n')
    done = run_pytest(tmp_path, "-k", "sec_01", site=site)
    assert "1 failed" in done.stdout
    assert "SEC-01 not run, because DECOM-02 failed: mend that first" in done.stdout
    assert "DECOM-02 decommitted pages cost nothing: 2097152 bytes were decommitted" in done.stdout


def test_what_explains_a_failure_is_found_also_if_it_was_not_selected(tmp_path: Path):
    site = strangers.put(
        tmp_path / "site",
        "named",
        strangers.GOOD.replace(
            'memfd_create("stranger", os.MFD_CLOEXEC)', 'open("named-file", os.O_CREAT | os.O_EXCL | os.O_RDWR)'
        )
        + """
    @hookimpl
    def memplat_close_file(file):
        os.unlink("named-file")
        os.close(file.fd)
        return True
    """,
    )
    write_tests(tmp_path, 'class TestMine(BackendConformance):\n    backend = "named"\n')
    done = run_pytest(tmp_path, "-k", "sec_04", site=site)
    assert "SEC-04 the file cannot be given a name (follows from SEC-01: mend that first)" in done.stdout, done.stdout


def test_an_installed_backend_is_tested_by_its_name(tmp_path: Path):
    site = strangers.put(tmp_path / "site", "good", strangers.GOOD)
    done = run_pytest(
        tmp_path, "--pyargs", "memplat.conformance", "--memplat-backend", "good", "-k", "life_0 or sec_0", site=site
    )
    assert done.returncode == 0, done.stdout
    assert "good 0.1 conforms to memplat contract level 1: core, share" in done.stdout


def test_several_backends_and_options_can_be_named(tmp_path: Path):
    done = run_pytest(
        tmp_path,
        *("--pyargs", "memplat.conformance", "--memplat-backend", "memfd", "--memplat-option", "name=named-here"),
        *("--memplat-backend", "tmpfile", "-k", "life_01"),
    )
    assert (
        "Test_memfd"
        in run_pytest(
            tmp_path, "--pyargs", "memplat.conformance", "--memplat-backend", "memfd", "--collect-only"
        ).stdout
    )
    assert "2 passed" in done.stdout, done.stdout


def test_without_a_name_nothing_is_tested_and_that_is_no_success(tmp_path: Path):
    done = run_pytest(tmp_path, "--pyargs", "memplat.conformance")
    assert done.returncode not in (0, 5)
    assert "name the backend to be tested" in done.stdout


def test_a_plain_run_of_pytest_imports_nothing_for_the_plugin(tmp_path: Path):
    code = """
        import sys
        import memplat.conformance.plugin
        heavy = {"pytest", "_pytest", "hypothesis", "rich", "click", "pluggy", "attrs", "memplat.opening"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_plain_run_of_pytest_shows_no_summary(tmp_path: Path):
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    assert "memplat" not in run_pytest(tmp_path).stdout
