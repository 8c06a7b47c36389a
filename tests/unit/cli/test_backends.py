"""``memplat backends``, with distributions that are really found by their metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.running import SOURCE, run_memplat

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


def list_backends(site: Path, *arguments: object, **env: str) -> dict[str, dict[str, Any]]:
    done = run_memplat("backends", "--json", *arguments, env={"PYTHONPATH": f"{site}:{SOURCE}", **env})
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["backends"]}


def test_memfd_is_built_in_and_available(tmp_path: Path) -> None:
    memfd = list_backends(tmp_path)["memfd"]
    assert memfd["available"] is True
    assert memfd["source"] == "built-in"
    assert {"share", "seal", "swap_exact"} <= set(memfd["capabilities"])
    assert (memfd["selected"], memfd["preference"]) == (True, 1)


def test_all_built_in_backends_are_listed(tmp_path: Path) -> None:
    assert {"memfd", "tmpfile", "hugetlb"} <= list_backends(tmp_path).keys()


def test_a_strangers_backend_is_listed_with_where_it_comes_from(tmp_path: Path) -> None:
    install(tmp_path, "tiny", GOOD)
    tiny = list_backends(tmp_path)["tiny"]
    assert (tiny["status"], tiny["version"], tiny["source"]) == ("available", "3.2", "memplat-tiny 7.8")
    assert tiny["capabilities"] == ["share"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 +", "SyntaxError"),
        ("", "memplat_backend_info"),
        (GOOD + CHECK_RAISES, "memplat_check raised RuntimeError: boom"),
        (GOOD + CHECK_LIES, "no Availability"),
    ],
    ids=["import error", "exit", "syntax error", "no hooks", "check raises", "check lies"],
)
def test_a_broken_plugin_is_listed_as_broken_and_breaks_nothing(tmp_path: Path, source: str, told: str) -> None:
    install(tmp_path, "bad", source.replace("{3}", "3"))
    found = list_backends(tmp_path)
    assert found["bad"]["status"] == "broken"
    assert told in found["bad"]["reason"]
    assert found["memfd"]["available"] is True


def test_a_name_that_two_claim_is_broken_for_both(tmp_path: Path) -> None:
    install(tmp_path, "tiny", GOOD)
    install(tmp_path, "tiny", GOOD, distribution="other-tiny")
    done = run_memplat("backends", "--json", env={"PYTHONPATH": f"{tmp_path}:{SOURCE}"})
    tinies = [each for each in json.loads(done.stdout)["backends"] if each["name"] == "tiny"]
    assert [each["status"] for each in tinies] == ["broken", "broken"]
    assert "memplat-tiny 7.8" in tinies[0]["reason"]
    assert "other-tiny 7.8" in tinies[0]["reason"]


def test_an_unavailable_backend_says_why_and_what_to_do(tmp_path: Path) -> None:
    install(tmp_path, "tiny", GOOD + UNAVAILABLE)
    tiny = list_backends(tmp_path)["tiny"]
    assert (tiny["status"], tiny["reason"], tiny["remedy"]) == ("unavailable", "the moon is full", "wait a day")
    table = run_memplat("backends", env={"PYTHONPATH": f"{tmp_path}:{SOURCE}"}).stdout
    assert "the moon is full" in table
    assert "wait a day" in table


def test_an_extension_is_told_from_a_broken_backend(tmp_path: Path) -> None:
    install(tmp_path, "tracing", EXTENSION)
    assert list_backends(tmp_path)["tracing"]["status"] == "extension"


def test_plugins_that_are_shut_out_are_not_imported(tmp_path: Path) -> None:
    witness = tmp_path / "imported"
    install(tmp_path, "tiny", f"open({str(witness)!r}, 'w').close()" + GOOD)
    assert list_backends(tmp_path, MEMPLAT_DISABLE_PLUGINS="1")["tiny"]["status"] == "shut out"
    config = tmp_path / "memplat.toml"
    config.write_text("[memory]\nplugins = []\n")
    shut_out = list_backends(tmp_path, "--config", config)["tiny"]
    assert shut_out["status"] == "shut out"
    assert "allow-list" in shut_out["reason"]
    assert not witness.exists()


def test_the_star_marks_what_open_takes(tmp_path: Path) -> None:
    install(tmp_path, "tiny", GOOD + UNAVAILABLE)
    config = tmp_path / "memplat.toml"
    config.write_text("[memory]\nbackend = ['tiny', 'memfd']\n")
    found = list_backends(tmp_path, "--config", config)
    assert [found[name]["preference"] for name in ("tiny", "memfd")] == [1, 2]
    assert [found[name]["selected"] for name in ("tiny", "memfd")] == [False, True]
    table = run_memplat("backends", "--config", config, env={"PYTHONPATH": f"{tmp_path}:{SOURCE}"}).stdout
    assert "memfd *" in table
    assert "tiny, memfd" in table


def test_wrong_options_of_one_backend_hide_no_other(tmp_path: Path) -> None:
    install(tmp_path, "tiny", GOOD)
    config = tmp_path / "memplat.toml"
    config.write_text("[memory.memfd]\nseel = true\n")
    found = list_backends(tmp_path, "--config", config)
    assert found["memfd"]["status"] == "unavailable"
    assert f"{config}:2" in found["memfd"]["reason"]
    assert found["tiny"]["status"] == "available"


def test_verbose_shows_entry_points_and_options() -> None:
    shown = run_memplat("backends", "--verbose").stdout
    assert "entry point: memplat.backends.memfd" in shown
    assert "option seal: default True" in shown
