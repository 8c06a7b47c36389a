"""The command as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import memplat
from tests.unit.cli.running import environment, run_memplat


def test_the_version_is_shown() -> None:
    done = run_memplat("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"memplat {memplat.__version__} (Python ")


def test_without_a_command_the_help_is_shown() -> None:
    done = run_memplat()
    assert "backends" in done.stdout + done.stderr
    assert "demo" in done.stdout + done.stderr


@pytest.mark.parametrize("command", [(), ("backends",), ("conformance",), ("demo",)])
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    done = run_memplat(*command, "--help")
    assert done.returncode == 0
    assert "Usage: memplat" in done.stdout


def test_an_unknown_command_is_wrong_usage() -> None:
    done = run_memplat("frobnicate")
    assert done.returncode == 2
    assert "frobnicate" in done.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_remedy_is_told(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from memplat.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"memplat: the command line needs {missing}")
    assert "pip install 'memplat[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_missing_module_is_not_hidden() -> None:
    code = "import sys; sys.modules['pluggy'] = None; from memplat.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "memplat[cli]" not in done.stderr


def test_a_wrong_configuration_is_wrong_usage_told_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "memplat.toml"
    config.write_text("[memory]\nbackedn = 'memfd'\n")
    for command in ("backends", "demo"):
        done = run_memplat(command, "--config", config)
        assert done.returncode == 2
        assert done.stderr.startswith(f"Error: {config}:2: ")
        assert "backend" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_configuration_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    done = run_memplat("demo", "--config", tmp_path / "missing.toml")
    assert done.returncode == 2
    assert "missing.toml" in done.stderr


def test_a_profile_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    config = tmp_path / "memplat.toml"
    config.write_text("[profile.browser.memory]\nbackend = 'memfd'\n")
    done = run_memplat("backends", "--config", config, "--profile", "browsr")
    assert done.returncode == 2
    assert "browser" in done.stderr


@pytest.mark.parametrize("command", [("--version",), ("backends",)])
def test_a_core_that_does_not_exist_is_wrong_usage_told_in_one_line(command: tuple[str, ...]) -> None:
    done = run_memplat(*command, env={"MEMPLAT_CORE": "bogus"})
    assert done.returncode == 2
    assert done.stderr == "memplat: MEMPLAT_CORE: 'bogus' is no core; allowed are 'python' and 'native'\n"
    assert done.stdout == ""


@pytest.mark.parametrize("command", [("--version",), ("backends",), ("doctor", "--json"), ("demo",)])
@pytest.mark.parametrize(("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "standard output")])
def test_output_that_cannot_be_written_is_told_in_one_line(command: tuple[str, ...], where: str, why: str) -> None:
    done = in_shell(command, where)
    assert done.returncode == 2
    assert done.stderr.startswith("memplat: ")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("where", [">/dev/full 2>&1", ">&- 2>&-"])
def test_where_nothing_can_be_written_the_exit_status_tells(where: str) -> None:
    assert in_shell(("backends",), where).returncode == 2


@pytest.mark.parametrize("command", [("--version",), ("backends",)])
def test_a_reader_that_has_gone_is_no_matter_for_words(command: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "memplat", *command],
            env=environment(),
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def in_shell(command: tuple[str, ...], where: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output redirected as a shell does it."""
    line = ["sh", "-c", f'exec "$@" {where}', "sh", sys.executable, "-m", "memplat", *command]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
