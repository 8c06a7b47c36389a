"""The recipes of docs/sharing.md and docs/platforms.md run as they are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import memplat
from tests.needs import needs

ROOT = Path(memplat.__file__).parents[1]


RECIPES = [("sharing", 2, "499999500000.0", 4), ("sharing", 3, "8192.0", 32), ("platforms", 0, "nothing", 0)]


@pytest.mark.parametrize(("page", "number", "printed", "times"), RECIPES)
def test_a_recipe_runs_as_written(page: str, number: int, printed: str, times: int, tmp_path: Path) -> None:
    if page == "sharing":
        try:
            import numpy as np
        except ImportError:
            needs("numpy", "it is not installed")
        assert np.frombuffer(b"x", dtype=np.uint8)[0] == ord("x")
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    script = tmp_path / "recipe.py"  # a file: multiprocessing and its children import it
    script.write_text(text.split("```python\n")[1 + number].partition("```")[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(printed) == times
