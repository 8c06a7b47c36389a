"""``memplat config check`` and ``memplat config schema``, as an operator uses them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from memplat import config as configuration
from memplat.cli.app import app
from tests.unit.cli.running import SOURCE, run_memplat
from tests.unit.conformance import strangers

MINE = """
import os
import attrs
from memplat import BackendInfo, BackingFile, hookimpl

open({witness!r}, "w").close()

@attrs.frozen
class Options:
    depth: int = 1
    \"\"\"How deep.\"\"\"

@hookimpl
def memplat_backend_info():
    return BackendInfo(name="mine", version="1.0", options=Options)

@hookimpl
def memplat_create_file(options):
    return BackingFile(fd=os.memfd_create("mine"), page_size=4096, backend="mine")
"""


@pytest.fixture(autouse=True)
def nobodys_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEMPLAT_")]:
        monkeypatch.delenv(name)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["config", *map(str, arguments)], catch_exceptions=False)


def write(directory: Path, text: str) -> Path:
    path = directory / "memplat.toml"
    path.write_text(text)
    return path


def test_a_good_file_is_well(tmp_path: Path) -> None:
    path = write(tmp_path, "[memory]\nbackend = 'memfd'\n")
    done = invoke("check", path)
    assert (done.exit_code, done.stdout) == (0, f"{path}: no mistake\n")


def test_all_mistakes_are_listed_with_file_line_key_and_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path, "[memory]\nmax_sise = 1\nkeep = 'much'\n[memory.memfd]\nhuge = 'advice'\n")
    done = invoke("check", path)
    assert done.exit_code == 2
    first, second, third, last = done.stdout.splitlines()
    assert first.startswith(f'{path}:2: memory.max_sise: is no key of [memory]; did you mean "max_size"?')
    assert second == f'{path}:3: memory.keep: \'much\' is no size: write bytes as an integer, or "64KiB", "2M", "4GiB"'
    assert third.startswith(f"{path}:5: memory.memfd.huge: 'advice' is not allowed; did you mean \"advise\"?")
    assert last == f"{path}: 3 mistakes"


def test_json_has_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, "[memory]\nkeep = -1\n")
    done = invoke("check", path, "--json")
    assert done.exit_code == 2
    (mistake,) = json.loads(done.stdout)["mistakes"]
    assert (mistake["file"], mistake["line"], mistake["key"]) == (str(path), 2, "memory.keep")
    assert mistake["message"] in invoke("check", path).stdout


@pytest.mark.parametrize(
    ("text", "line"), [("[memory\n", 1), ("[memory]\nkeep = = 1\n", 2), ("[memory]\nkeep = 1\nkeep = 2\n", 3)]
)
def test_what_is_no_toml_is_one_mistake_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    done = invoke("check", write(tmp_path, text), "--json")
    (mistake,) = json.loads(done.stdout)["mistakes"]
    assert (done.exit_code, mistake["line"]) == (2, line)
    assert "is no TOML" in mistake["message"]


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    done = invoke("check", tmp_path / "missing.toml")
    assert done.exit_code == 2
    assert "cannot be read: No such file or directory" in done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Path:
    witness = str(tmp_path / "imported")
    site = strangers.put(tmp_path / "site", "mine", "")
    (site / "mine_backend.py").write_text(MINE.format(witness=witness))
    return site


def run(site: Path, *arguments: object, **env: str) -> tuple[int, str]:
    done = run_memplat("config", *arguments, env={"PYTHONPATH": f"{SOURCE}{os.pathsep}{site}", **env})
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_options_of_a_strangers_backend_are_checked_by_its_own_class(tmp_path: Path, site: Path) -> None:
    path = write(tmp_path, "[memory.mine]\ndepht = 2\n")
    status, printed = run(site, "check", path)
    assert status == 2
    assert f"{path}:2: memory.mine.depht: is no option of backend 'mine'; did you mean \"depth\"?" in printed


def test_a_plugin_that_may_not_be_loaded_is_a_note_and_is_not_imported(tmp_path: Path, site: Path) -> None:
    path = write(tmp_path, "[memory]\nbackend = ['mine', 'memfd']\nplugins = []\n[memory.mine]\ndepht = 2\n")
    status, printed = run(site, "check", path)
    assert status == 0
    assert f"{path}: note: the options of 'mine' were not checked" in printed
    assert 'add "mine" to use it' in printed
    status, printed = run(site, "check", write(tmp_path, "[memory.mine]\n"), MEMPLAT_DISABLE_PLUGINS="1")
    assert "MEMPLAT_DISABLE_PLUGINS shuts out" in printed
    assert not (tmp_path / "imported").exists()
    path = write(tmp_path, "[memory]\nplugins = []\n[profile.p.memory]\nplugins = ['mine']\nbackend = 'mine'\n")
    assert run(site, "check", path) == (0, f"{path}: no mistake\n")
    assert (tmp_path / "imported").exists()


def test_a_broken_plugin_is_a_note(tmp_path: Path, site: Path) -> None:
    (site / "mine_backend.py").write_text("import nothing_of_that_name\n")
    status, printed = run(site, "check", write(tmp_path, "[memory]\nbackend = 'mine'\n"))
    assert status == 0
    assert "nothing_of_that_name" in printed


def test_the_schema_that_is_printed_is_the_one_that_is_shipped() -> None:
    done = invoke("schema")
    assert (done.exit_code, done.stdout) == (0, configuration.SCHEMA_FILE.read_text(encoding="utf-8"))


def test_the_schema_of_what_is_installed_has_the_strangers_options(site: Path) -> None:
    status, printed = run(site, "schema", "--installed")
    assert status == 0
    memory: dict[str, Any] = json.loads(printed)["$defs"]["memory"]
    assert memory["additionalProperties"] is False
    assert memory["properties"]["mine"]["properties"] == {
        "depth": {"description": "How deep.", "default": 1, "type": "integer"}
    }
    assert memory["properties"]["backend"]["anyOf"][0] == {"enum": ["hugetlb", "memfd", "mine", "tmpfile"]}
