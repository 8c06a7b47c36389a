"""docs/plugin-authors.md: its drafts of a backend are told what it says, and its example is the one in examples/."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

import memplat
from memplat.conformance.registry import all_checks
from memplat.conformance.runner import Runner
from memplat.conformance.subject import Subject
from tests import hostparts
from tests.hostparts import MIB
from tests.unit.cli.running import SOURCE, run_memplat
from tests.unit.conformance import strangers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugin-authors.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "memplat-devshm"


def marked(label: str) -> str:
    """The block of code behind ``<!-- label -->``."""
    (block,) = re.findall(rf"^<!-- {label} -->\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(block)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_draft_is_told_what_the_page_says(number: int, tmp_path: Path):
    site = strangers.put(tmp_path / "site", "mine", "")
    (site / "mine_backend.py").write_text(marked(f"draft {number}"))
    path = f"{SOURCE}{os.pathsep}{site}"
    done = run_memplat("conformance", "mine", env={"PYTHONPATH": path, "COLUMNS": "100"})
    assert done.returncode == (0 if number == 4 else 1)
    printed = words(re.sub(r" It is defined as .*?\. ", " ", done.stdout + done.stderr))
    for paragraph in marked(f"told {number}").split("\n\n"):
        for sentence in re.split(r"(?=^to mend)", paragraph, flags=re.MULTILINE):
            assert words(sentence) in printed, done.stdout + done.stderr


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memplat_devshm", EXAMPLE / "src" / "memplat_devshm" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conforms(**options: str) -> None:
    checks = [check for check in all_checks() if check.smoke or check.area in ("security", "lifecycle", "exhaustion")]
    with Runner(Subject(example(), options)) as runner:
        report = runner.run(checks)
    assert report.conforms, report.statement()


def test_the_example_conforms():
    conforms()


def test_the_example_conforms_in_another_directory_that_is_soon_full():
    with hostparts.tmpfs_mount(16 * MIB) as directory:
        conforms(directory=str(directory))


def test_the_example_refuses_what_is_no_tmpfs(tmp_path: Path):
    with pytest.raises(memplat.BackendUnavailableError, match="is no directory"):
        memplat.open(example(), devshm={"directory": str(tmp_path / "missing")})
    with (
        hostparts.mounted("ramfs") as directory,
        pytest.raises(memplat.BackendUnavailableError, match=r"is on ramfs, which is no tmpfs.*remedy: mount -t tmpfs"),
    ):
        memplat.open(example(), devshm={"directory": str(directory)})


def test_the_tests_of_the_example_are_three_lines():
    (file,) = (EXAMPLE / "tests").glob("*.py")
    assert len([line for line in file.read_text().splitlines() if line]) == 3


def test_the_pages_of_the_example_are_those_of_its_source():
    """What the page quotes of the hooks stands in the source, statement by statement, but for what it leaves out."""
    source = {
        ast.unparse(node) for node in ast.walk(ast.parse((EXAMPLE / "src/memplat_devshm/__init__.py").read_text()))
    }
    quoted = re.search(r"```python\n@hookimpl\ndef memplat_backend_info.*?```", PAGE, re.DOTALL)
    assert quoted is not None
    (function,) = ast.parse(quoted[0].removeprefix("```python\n").removesuffix("```")).body
    assert isinstance(function, ast.FunctionDef)
    assert ast.unparse(function.body[-1]) in source


def test_every_hook_that_can_be_implemented_is_on_the_page():
    hooks = [
        name
        for name in vars(memplat.hookspecs)
        if name.startswith("memplat_") and hasattr(getattr(memplat.hookspecs, name), "memplat_spec")
    ]
    for_extensions = {"memplat_out_of_memory", "memplat_memory_opened", "memplat_memory_closed", "memplat_reclaimed"}
    assert [name for name in hooks if name not in PAGE and name not in for_extensions] == []
