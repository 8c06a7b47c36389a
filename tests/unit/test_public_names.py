"""What ``import memplat`` gives and costs, and that docs/api.md says the same, both ways."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import memplat

ROOT = Path(memplat.__file__).parent
API = (ROOT.parent / "docs" / "api.md").read_text(encoding="utf-8")
MODULES = ("engine.registry", "errors", "hookspecs", "memory", "opening", "ranges", "sharing", "types")


def section(title: str) -> str:
    """The text below a heading of docs/api.md, up to the next heading."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", API, re.DOTALL | re.MULTILINE)
    assert match is not None, f"docs/api.md has no section {title!r}"
    return match.group(1)


def first_columns(text: str) -> list[str]:
    """The names in backquotes in the first column of the tables of *text*."""
    return [name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)", row)]


def run(code: str) -> list[str]:
    """What the code prints as JSON, in an interpreter of its own."""
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=True, capture_output=True, text=True)
    modules: list[str] = json.loads(output.stdout)
    return modules


# ---- what it costs


def test_importing_the_package_imports_nothing_that_is_not_needed():
    bare = set(run("import __future__, sys, json, importlib, typing; print(json.dumps(list(sys.modules)))"))
    loaded = set(run("import memplat, sys, json; print(json.dumps(list(sys.modules)))"))
    assert loaded - bare == {"memplat"}


@pytest.mark.parametrize(
    ("use", "wanted", "unwanted"),
    [
        ("memplat.OutOfMemory", "memplat.errors", "attrs"),
        ("memplat.FileRange", "memplat.ranges", "attrs"),
        ("memplat.Usage", "memplat.types", "pluggy"),
        ("memplat.Memory", "memplat.memory", "pluggy"),
        ("memplat.hookimpl", "pluggy", "cattrs"),
        ("memplat.memories()", "memplat.engine.registry", "memplat.engine.memoryfile"),
        ("memplat.accounting()", "memplat.engine.registry", "pluggy"),
        ("memplat.open", "memplat.engine.memoryfile", "memplat.backends.default"),
        ("memplat.open('memfd').close()", "memplat.backends.memfd", "memplat.backends.hugetlb"),
        ("memplat.__version__", "importlib.metadata", "attrs"),
    ],
)
def test_using_a_name_imports_its_home_and_no_more(use, wanted, unwanted):
    loaded = set(run(f"import memplat, sys, json; {use}; print(json.dumps(list(sys.modules)))"))
    assert wanted in loaded
    assert unwanted not in loaded
    assert not loaded & {"rich", "click", "hypothesis", "pytest", "numpy", "memplat.cli", "memplat.conformance"}


# ---- which names there are


def test_every_name_is_the_one_of_its_home():
    modules = [importlib.import_module(f"memplat.{name}") for name in MODULES]
    for name in set(memplat.__all__) - {"__version__", "core"}:
        homes = [module for module in modules if name in getattr(module, "__all__", ["hookimpl"])]
        assert len(homes) == 1, (name, homes)
        assert getattr(memplat, name) is getattr(homes[0], name)


def test_the_names_are_listed_once_and_no_others_are_given():
    assert len(set(memplat.__all__)) == len(memplat.__all__)
    assert set(memplat.__all__) <= set(dir(memplat))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = memplat.nonsense


def test_type_checkers_see_the_names_that_the_interpreter_finds():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen: dict[str, str | None] = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            seen[node.target.id] = "memplat"
    assert set(seen) == set(memplat.__all__)
    for name, home in seen.items():
        if home != "memplat":
            assert memplat._HOME_OF.get(name, "memplat.errors") == home


def test_every_error_is_exported_and_is_a_builtin_error_too():
    errors = importlib.import_module("memplat.errors")
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, Exception):
            assert name in memplat.__all__
            assert issubclass(value, memplat.MemplatError)
            if value is not memplat.MemplatError:
                foreign = [base for base in value.__mro__ if base.__module__ == "builtins"]
                assert set(foreign) - {Exception, BaseException, object}, name


def test_the_version_is_that_of_the_distribution_or_says_that_there_is_none():
    assert re.fullmatch(r"\d+(\.\d+)+.*|0\+unknown", memplat.__version__)


# ---- docs/api.md


def drawn_tree() -> list[str]:
    return [line for line in section("Errors").split("```")[1].splitlines() if line.strip() and line != "text"]


def test_docs_list_exactly_the_exported_names():
    tables = API.partition("\n## Names\n")[2].partition("\n## Errors\n")[0]
    errors = [line.split()[0] for line in drawn_tree()]
    assert sorted([*first_columns(tables), *errors]) == sorted(memplat.__all__)


def test_the_example_in_the_docs_runs_as_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    example = API.split("```python\n")[1].partition("```")[0]
    exec(compile(example, "docs/api.md", "exec"), {})


def test_docs_list_exactly_the_fields_of_usage_in_order():
    assert first_columns(section("Fields of `Usage`")) == [field.name for field in attrs.fields(memplat.Usage)]


def test_docs_list_exactly_the_options_of_every_memory():
    listed = first_columns(section("Options of every memory"))
    assert listed == [field.name for field in attrs.fields(memplat.EngineOptions)]


def test_docs_draw_the_error_tree_as_it_is():
    expected: list[str] = []

    def draw(cls: type[Exception], depth: int) -> None:
        builtin = [base.__name__ for base in cls.__bases__ if base.__module__ == "builtins" and base is not Exception]
        expected.append("  " * depth + cls.__name__ + "".join(f" ({name})" for name in builtin))
        for child in sorted(cls.__subclasses__(), key=lambda child: child.__name__):
            if child.__module__ == "memplat.errors":
                draw(child, depth + 1)

    draw(memplat.MemplatError, 0)
    assert drawn_tree() == expected


def test_docs_list_exactly_the_members_of_memory():
    protocol = memplat.Memory
    members = [name for name, value in vars(protocol).items() if callable(value) or isinstance(value, property)]
    public = [name for name in members if not name.startswith("_")]
    assert sorted(first_columns(section("`Memory`"))) == sorted(public)


def test_docs_list_the_members_of_every_enumeration():
    for name in ("MemoryKind", "AllocationMode", "Direction", "Access", "PageState", "ReclaimMode", "Capability"):
        row = re.search(rf"^\| `{name}` \| (.*) \|$", API, re.MULTILINE)
        assert row is not None, name
        assert re.findall(r"`(\w+)`", row.group(1)) == [member.value for member in getattr(memplat, name)]
