"""Which core is taken, and how one is forced."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest

import memplat
from memplat.engine.memoryfile import MemoryFile


def asked(core: str | None, code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a new interpreter with this ``MEMPLAT_CORE``."""
    environment = {name: value for name, value in os.environ.items() if name != "MEMPLAT_CORE"}
    if core is not None:
        environment["MEMPLAT_CORE"] = core
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_core_is_one_of_the_two() -> None:
    assert memplat.core in ("native", "python")


def test_the_core_in_python_can_be_forced() -> None:
    done = asked(
        "python", "import memplat; m = memplat.open('memfd'); m.close(); print(memplat.core, type(m).__name__)"
    )
    assert done.stdout.split() == ["python", "MemoryFile"]


def test_the_compiled_core_can_be_forced_and_is_an_error_where_it_is_absent() -> None:
    without = "import sys; sys.modules['memplat._native.core'] = None; import memplat; memplat.core"
    done = asked("native", without)
    assert done.returncode == 1
    assert "ConfigError: MEMPLAT_CORE: the compiled core cannot be loaded" in done.stderr
    assert "C compiler" in done.stderr


def test_where_the_compiled_core_is_absent_the_one_in_python_is_taken() -> None:
    done = asked(None, "import sys; sys.modules['memplat._native.core'] = None; import memplat; print(memplat.core)")
    assert done.stdout.strip() == "python"


@pytest.mark.parametrize("name", ["Native", "c", "1"])
def test_a_core_that_does_not_exist_is_an_error_that_names_the_two(name: str) -> None:
    done = asked(name, "import memplat; memplat.core")
    assert f"{name!r} is no core; allowed are 'python' and 'native'" in done.stderr


def test_each_call_has_the_parameters_that_the_core_in_python_gives_it() -> None:
    """Compiled methods tell their parameters, too, but not the types."""

    def parameters(method: Any) -> list[tuple[str, Any, Any]]:
        own = [*inspect.signature(method).parameters.values()][1:]
        return [(parameter.name, parameter.kind, parameter.default) for parameter in own]

    with memplat.open("memfd") as memory:
        made = type(memory)
    names = [name for name in dir(MemoryFile) if name[0] != "_" and inspect.isfunction(getattr(MemoryFile, name))]
    assert {"allocate", "incref", "decref", "view", "update_usage"} <= {*names}
    for name in names:
        assert parameters(getattr(made, name)) == parameters(getattr(MemoryFile, name)), name
