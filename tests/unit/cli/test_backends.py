"""``memplat backends``, with distributions that are really found by their metadata."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import memplat
from memplat.cli.app import app
from tests.unit.cli.running import SOURCE, WIDE, run_memplat

GOOD = """
import os
from memplat import BackendInfo, BackingFile, hookimpl

@hookimpl
def memplat_backend_info():
    return BackendInfo(name="{name}", version="3.2", summary="a tiny one", capabilities={{"share"}})

@hookimpl
def memplat_create_file(options):
    return BackingFile(fd=os.memfd_create("x"), page_size=4096, backend="{name}")
"""
UNAVAILABLE = """
from memplat import Availability
@hookimpl
def memplat_check(options):
    return Availability(False, "the moon is full", "wait a day")
"""
CHECK_RAISES = """
@hookimpl
def memplat_check(options):
    raise RuntimeError("boom")
"""
CHECK_LIES = """
@hookimpl
def memplat_check(options):
    return True
"""
EXTENSION = """
from memplat import hookimpl

@hookimpl
def memplat_memory_opened(memory):
    pass
"""


def install(site: Path, name: str, source: str, *, distribution: str | None = None) -> None:
    """Put a distribution with one plugin where the interpreter finds it."""
    distribution = distribution or f"memplat-{name}"
    module = distribution.replace("-", "_")
    (site / f"{module}.py").write_text(source.format(name=name))
    info = site / f"{module}-7.8.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 7.8\n")
    (info / "entry_points.txt").write_text(f"[memplat]\n{name} = {module}\n")


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in which this interpreter looks for distributions; and no configuration of the user's."""
    for name in [name for name in os.environ if name.startswith("MEMPLAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def show(*arguments: object) -> str:
    """What ``memplat backends`` prints; it never fails over a plugin."""
    result = CliRunner(env=WIDE).invoke(app, ["backends", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def list_backends(*arguments: object) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(show("--json", *arguments))["backends"]}


def test_memfd_is_built_in_and_available(site: Path) -> None:
    memfd = list_backends()["memfd"]
    assert memfd["available"] is True
    assert memfd["source"] == "built-in"
    assert {"share", "seal", "swap_exact"} <= set(memfd["capabilities"])
    assert (memfd["selected"], memfd["preference"]) == (True, 1)


def test_all_built_in_backends_are_listed(site: Path) -> None:
    assert {"memfd", "tmpfile", "hugetlb"} <= list_backends().keys()


def test_a_strangers_backend_is_listed_with_where_it_comes_from(site: Path) -> None:
    install(site, "tiny", GOOD)
    tiny = list_backends()["tiny"]
    assert (tiny["status"], tiny["version"], tiny["source"]) == ("available", "3.2", "memplat-tiny 7.8")
    assert tiny["capabilities"] == ["share"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 +", "SyntaxError"),
        ("", "memplat_backend_info"),
        (GOOD + CHECK_RAISES, "hook 'memplat_check': it raised RuntimeError: boom"),
        (GOOD + CHECK_LIES, "no Availability"),
    ],
    ids=["import error", "exit", "syntax error", "no hooks", "check raises", "check lies"],
)
def test_a_broken_plugin_is_listed_as_broken_and_breaks_nothing(site: Path, source: str, told: str) -> None:
    install(site, "bad", source.replace("{3}", "3"))
    found = list_backends()
    assert found["bad"]["status"] == "broken"
    assert told in found["bad"]["reason"]
    assert found["memfd"]["available"] is True


def test_a_name_that_two_claim_is_broken_for_both(site: Path) -> None:
    install(site, "tiny", GOOD)
    install(site, "tiny", GOOD, distribution="other-tiny")
    tinies = [each for each in json.loads(show("--json"))["backends"] if each["name"] == "tiny"]
    assert [each["status"] for each in tinies] == ["broken", "broken"]
    assert "memplat-tiny 7.8" in tinies[0]["reason"]
    assert "other-tiny 7.8" in tinies[0]["reason"]


def test_an_unavailable_backend_says_why_and_what_to_do(site: Path) -> None:
    install(site, "tiny", GOOD + UNAVAILABLE)
    tiny = list_backends()["tiny"]
    assert (tiny["status"], tiny["reason"], tiny["remedy"]) == ("unavailable", "the moon is full", "wait a day")
    table = show()
    assert "the moon is full" in table
    assert "wait a day" in table


def test_an_extension_is_told_from_a_broken_backend(site: Path) -> None:
    install(site, "tracing", EXTENSION)
    assert list_backends()["tracing"]["status"] == "extension"


def test_plugins_that_are_shut_out_are_not_imported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = site / "imported"
    install(site, "tiny", f"open({str(witness)!r}, 'w').close()" + GOOD)
    with monkeypatch.context() as patch:
        patch.setenv("MEMPLAT_DISABLE_PLUGINS", "1")
        assert list_backends()["tiny"]["status"] == "shut out"
    config = site / "memplat.toml"
    config.write_text("[memory]\nplugins = []\n")
    shut_out = list_backends("--config", config)["tiny"]
    assert shut_out["status"] == "shut out"
    assert "allow-list" in shut_out["reason"]
    assert not witness.exists()


def test_the_star_marks_what_open_takes(site: Path) -> None:
    install(site, "tiny", GOOD + UNAVAILABLE)
    config = site / "memplat.toml"
    config.write_text("[memory]\nbackend = ['tiny', 'memfd']\n")
    found = list_backends("--config", config)
    assert [found[name]["preference"] for name in ("tiny", "memfd")] == [1, 2]
    assert [found[name]["selected"] for name in ("tiny", "memfd")] == [False, True]
    table = show("--config", config)
    assert "memfd *" in table
    assert "tiny, memfd" in table


def test_wrong_options_of_one_backend_hide_no_other(site: Path) -> None:
    install(site, "tiny", GOOD)
    config = site / "memplat.toml"
    config.write_text("[memory.memfd]\nseel = true\n")
    found = list_backends("--config", config)
    assert found["memfd"]["status"] == "unavailable"
    assert f"{config}:2" in found["memfd"]["reason"]
    assert found["tiny"]["status"] == "available"


def test_verbose_shows_entry_points_and_options() -> None:
    shown = show("--verbose")
    assert "entry point: memplat.backends.memfd" in shown
    assert "option seal: default True" in shown
    assert f"core: {memplat.core}, because " in shown


def test_a_broken_plugin_does_not_fail_the_command_of_a_user(site: Path) -> None:
    install(site, "bad", "import nothing_of_that_name")
    done = run_memplat("backends", env={"PYTHONPATH": f"{site}:{SOURCE}"})
    assert done.returncode == 0
    assert "broken" in done.stdout
    assert "memfd *" in done.stdout
    assert done.stderr == ""
