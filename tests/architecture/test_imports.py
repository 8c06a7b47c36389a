"""The layers of DESIGN.md, kept; and the keeper, shown to see when they are not."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import memplat
from tests.architecture import rules

MEMPLAT = Path(memplat.__file__).parent
_serial = itertools.count()


def write_package(directory: Path, files: Mapping[str, str]) -> Path:
    """A package with a name of its own (the import system caches by name) and these modules; ``PKG`` is its name."""
    root = directory / f"synthetic_{next(_serial)}"
    for name, source in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.parent.relative_to(directory).parents:
            (directory / parent / "__init__.py").touch()
        (path.parent / "__init__.py").touch()
        path.write_text(source.replace("PKG", root.name))
    (directory / "__init__.py").unlink(missing_ok=True)
    return root


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_memplat_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(MEMPLAT) == []


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_a_package_without_faults_keeps_the_rule(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    root = write_package(
        tmp_path,
        {
            "__init__.py": "from PKG.errors import Wrong\n__all__ = ['Wrong']\n",
            "errors.py": "class Wrong(Exception): ...\n__all__ = ['Wrong']\n",
            "linux/__init__.py": "import ctypes\nfrom PKG import errors\n",
            "hookspecs.py": "import pluggy\nfrom PKG.errors import Wrong\n",
            "engine/__init__.py": "from PKG import hookspecs\nfrom PKG.linux import extents\n",
            "linux/extents.py": "from PKG.linux import errors\n".replace("PKG.linux", "PKG"),
            "backends/one/__init__.py": "from PKG.linux import extents\n",
            "backends/two/__init__.py": "from PKG import hookspecs\n",
            "engine/prealloc.py": "",
            "opening.py": "from PKG.engine import prealloc\n",
            "cli/__init__.py": "from PKG import opening\n",
        },
    )
    assert rule(root) == []


VIOLATIONS: dict[str, tuple[Callable[[Path], list[str]], dict[str, str], str]] = {
    "up one layer": (
        rules.find_arrow_violations,
        {"errors.py": "", "ranges.py": "import PKG.types\n", "types.py": ""},
        "ranges imports",
    ),
    "from the engine to a backend": (
        rules.find_arrow_violations,
        {"engine/core.py": "from PKG.backends import memfd\n", "backends/memfd/__init__.py": ""},
        "engine.core imports",
    ),
    "from a backend to the engine": (
        rules.find_arrow_violations,
        {"engine/core.py": "", "backends/memfd/__init__.py": "from PKG.engine.core import x\n"},
        "backends.memfd imports",
    ),
    "within a function": (
        rules.find_arrow_violations,
        {"memory.py": "def f():\n    from PKG import cli\n", "cli/__init__.py": ""},
        "memory imports",
    ),
    "for the type checker": (
        rules.find_arrow_violations,
        {
            "errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PKG.memory import M\n",
            "memory.py": "",
        },
        "errors imports",
    ),
    "by way of the façade": (
        rules.find_arrow_violations,
        {"__init__.py": "from PKG import opening\n", "opening.py": "", "types.py": "import PKG\n"},
        "types imports",
    ),
    "from a backend to its sibling": (
        rules.find_sibling_violations,
        {"backends/one/__init__.py": "from PKG.backends import two\n", "backends/two/__init__.py": ""},
        "backends.one imports",
    ),
    "from linux to the records": (
        rules.find_only_violations,
        {"linux/files.py": "from PKG import types\n", "types.py": ""},
        "linux.files imports",
    ),
    "from a command to the engine": (
        rules.find_engine_violations,
        {"cli/backends.py": "from PKG.engine import placement\n", "engine/placement.py": ""},
        "cli.backends imports",
    ),
    "from the doctor to more than it may": (
        rules.find_engine_violations,
        {"doctor/host.py": "from PKG.engine import pages\n", "engine/pages.py": ""},
        "doctor.host imports",
    ),
    "ctypes outside of linux": (rules.find_external_violations, {"engine/core.py": "import ctypes.util\n"}, "ctypes"),
    "rich in the engine": (
        rules.find_external_violations,
        {"engine/core.py": "def f():\n    import rich.table\n"},
        "rich",
    ),
    "a part that no rule knows": (rules.find_unplaced_modules, {"helpers.py": ""}, "helpers"),
    "a long module": (rules.find_long_modules, {"memory.py": "x = 1\n" * 401}, "memory.py has 401 lines"),
    "a re-export": (
        rules.find_homeless_names,
        {"types.py": "from PKG.errors import E\n__all__ = ['E']\n", "errors.py": "class E: ...\n"},
        "types.py exports E",
    ),
    "a name with two homes": (
        rules.find_homeless_names,
        {
            "__init__.py": "from PKG.types import E\n__all__ = ['E']\n",
            "types.py": "class E: ...\n__all__ = ['E']\n",
            "errors.py": "E = 1\n__all__ = ['E']\n",
        },
        "errors.py and in types.py",
    ),
    "a name with no home": (
        rules.find_homeless_names,
        {"__init__.py": "from PKG.types import E\n__all__ = ['E']\n", "types.py": "class E: ...\n__all__ = []\n"},
        "no module",
    ),
}


@pytest.mark.parametrize(("rule", "files", "expected"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_violation_is_seen(
    rule: Callable[[Path], list[str]], files: dict[str, str], expected: str, tmp_path: Path
) -> None:
    found = rule(write_package(tmp_path, files))
    assert len(found) == 1, found
    assert expected in found[0]


def test_every_rule_has_a_violation_that_it_sees() -> None:
    assert {rule for rule, _, _ in VIOLATIONS.values()} == set(rules.RULES)


def test_import_memplat_leaves_plugins_and_the_command_line_alone() -> None:
    code = "import sys, memplat; print(*sorted({name.partition('.')[0] for name in sys.modules} | set(sys.modules)))"
    environ = {**os.environ, "PYTHONPATH": str(MEMPLAT.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    unwanted = {"pluggy", "rich", "click", "hypothesis", "pytest", "cattrs", "memplat.cli", "memplat.conformance"}
    assert "memplat" in loaded
    assert loaded & unwanted == set()
    assert not {name for name in loaded if name.startswith("memplat.backends.")}
