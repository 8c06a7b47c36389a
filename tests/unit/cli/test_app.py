"""The command as a whole."""

from __future__ import annotations

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
