"""How the tests run the command line: as a user does, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import memplat

#: So that no sentence is broken that a test looks for, whatever terminal the tests run in.
WIDE = {"COLUMNS": "120"}
SOURCE = str(Path(memplat.__file__).parent.parent)


def environment(**variables: str) -> dict[str, str]:
    """The environment without anything of the user's that changes what memplat does or how it looks."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MEMPLAT_") and name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "XDG_CONFIG_HOME"}
    }
    return {**kept, "HOME": "/nonexistent", "PYTHONPATH": SOURCE, **variables}


def run_memplat(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -W error -m memplat ARGUMENTS``, its output piped."""
    command = [sys.executable, "-W", "error", "-m", "memplat", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**(env or {})), capture_output=True, text=True, check=False, timeout=120
    )
