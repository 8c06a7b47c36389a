"""docs/configuration.md: its tables, its mistakes and its three configurations are what the commands say."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import memplat
from memplat import config as configuration
from memplat.backends.tmpfile import TmpfileOptions, memplat_check
from memplat.config import Document
from tests.hostparts import MIB, hugetlb_pool
from tests.unit.cli.running import run_memplat

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
CONFIGURATIONS = ROOT / "docs" / "configurations"
REAL = sorted(path.name for path in CONFIGURATIONS.iterdir())


def marked(kind: str) -> list[tuple[str, str]]:
    """The blocks of code behind ``<!-- kind: words -->``, each with its words."""
    return re.findall(rf"^<!-- {kind}: (.*?) -->\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def status_of(words: list[str]) -> int:
    return next((int(word.removeprefix("status ")) for word in words if word.startswith("status ")), 0)


def test_the_tables_of_options_are_those_of_the_schema() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "option_tables.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python tools/option_tables.py"


def test_every_environment_variable_that_is_read_is_on_the_page() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "memplat").rglob("*.py")]
    used = {name for source in sources for name in re.findall(r"\"(MEMPLAT_[A-Z_]+)\"", source)}
    assert used >= {"MEMPLAT_CONFIG", "MEMPLAT_BACKEND"}
    assert [name for name in used if f"| `{name}` |" not in PAGE] == []


@pytest.mark.parametrize(("words", "told"), marked("told"), ids=lambda value: value.partition(";")[0])
def test_mistakes_are_told_as_the_page_says(words: str, told: str, tmp_path: Path) -> None:
    for name, text in marked("file"):
        (tmp_path / name).write_text(text)
    command, *rest = words.split("; ")
    done = run_memplat(*command.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (status_of(rest), "")
    printed = done.stdout.splitlines()
    assert len(printed) == len(told.splitlines())
    for line, expected in zip(printed, told.splitlines(), strict=True):
        assert re.fullmatch(re.escape(expected).replace("…", ".*"), line), line


@pytest.mark.parametrize(("words", "told"), marked("doctor"), ids=lambda value: value.partition("\n")[0])
def test_the_doctor_says_what_the_page_says(words: str, told: str) -> None:
    arguments, *rest = words.split("; ")
    pool = next((int(word.removeprefix("pool ")) for word in rest if word.startswith("pool ")), None)
    with contextlib.nullcontext() if pool is None else hugetlb_pool(pool):
        done = run_memplat("doctor", "--config", *arguments.split(), cwd=CONFIGURATIONS)
    assert (done.returncode, done.stderr) == (status_of(rest), "")
    printed = done.stdout.splitlines()
    assert [line for line in told.splitlines() if line not in printed] == [], done.stdout
    places = [printed.index(line) for line in told.splitlines()]
    assert places == sorted(places)


def test_there_are_three_configurations_and_the_page_links_and_explains_each() -> None:
    assert REAL == ["ci-runner.toml", "laptop.toml", "server-huge-pages.toml"]
    assert all(f"[configurations/{name}](configurations/{name})" in PAGE for name in REAL)
    assert {words.split()[0].rstrip(";") for words, _ in marked("doctor")} == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_real_configuration_has_no_mistake(name: str) -> None:
    done = run_memplat("config", "check", name, cwd=CONFIGURATIONS)
    assert (done.returncode, done.stdout) == (0, f"{name}: no mistake\n")


def profiles() -> list[tuple[str, str | None]]:
    return [
        (name, profile)
        for name in REAL
        for profile in (None, *configuration.profile_names(Document.read(CONFIGURATIONS / name)))
    ]


@pytest.mark.parametrize(("name", "profile"), profiles())
def test_a_real_configuration_opens_a_memory_that_works(name: str, profile: str | None) -> None:
    pool = hugetlb_pool(160) if "huge" in name else contextlib.nullcontext()
    with pool, memplat.open(config=CONFIGURATIONS / name, profile=profile) as memory:
        pages = memory.allocate(memory.round_up(MIB), fill=b"hello")
        assert memory.read(pages)[:5] == b"hello"
        assert memory.backend.name == taken(name, profile)
        memory.decref(pages)


def taken(name: str, profile: str | None) -> str:
    if "huge" in name:
        return "hugetlb"
    on_disk = name == "ci-runner.toml" or profile == "disk"
    usable = memplat_check(TmpfileOptions(directory="/var/tmp")).available
    return "tmpfile" if on_disk and usable else "memfd"


def test_without_huge_pages_the_server_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIGURATIONS / "server-huge-pages.toml"
    with hugetlb_pool(0):
        with caplog.at_level("INFO", "memplat"), memplat.open(config=config, prealloc=0) as memory:
            assert [(each.name, each.taken) for each in memory.backend.selection] == [
                ("hugetlb", False),
                ("memfd", True),
            ]
        (record,) = caplog.records
        assert "no huge page is left" in record.getMessage()
        with pytest.raises(memplat.BackendUnavailableError, match="no huge page is left"):
            memplat.open(config=config, profile="strict")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
