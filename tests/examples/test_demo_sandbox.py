"""``memplat demo --sandbox`` runs the example, and says what is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import memplat
from tests.needs import needs
from tools.check_skips import has_busybox

ROOT = Path(memplat.__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": "/nonexistent"}
    command = [sys.executable, "-m", "memplat", "demo", "--sandbox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_the_demo_runs_programs_in_the_sandbox_and_compares_them_with_the_hosts(tmp_path: Path) -> None:
    if not has_busybox():
        needs("busybox", "there is no static /usr/bin/busybox")
    if importlib.util.find_spec("unicorn") is None:
        needs("unicorn", "it is not installed")
    path = tmp_path / "text"
    path.write_text("to be sorted\n" * 100 + "and counted\n")
    config = tmp_path / "memplat.toml"
    config.write_text('[profile.guest.memory]\nbackend = "memfd"\n')
    done = run("--config", str(config), "--profile", "guest", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the same as on the host") == 3
    assert "afterwards the host spends 0 bytes" in done.stderr
    assert "shared by all" in done.stderr
