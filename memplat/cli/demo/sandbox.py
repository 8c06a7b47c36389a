"""``memplat demo --sandbox``: starts the example of the source tree, which is no part of the package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click

import memplat


def run_sandbox(files: tuple[Path, ...], backend: str | None, config: str | None, profile: str | None) -> int:
    """Run it; its exit status.

    :raises click.ClickException: if the example or the emulator is not there
    """
    root = Path(memplat.__file__).parents[1]
    if not (root / "examples" / "sandbox").is_dir():
        raise click.ClickException(
            "the sandbox is an example of the source tree, and is not installed with the package"
        )
    if importlib.util.find_spec("unicorn") is None:
        raise click.ClickException("the sandbox needs the package unicorn: pip install 'memplat[unicorn]'")
    options = {"--backend": backend, "--config": config and str(Path(config).resolve()), "--profile": profile}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    read = [f"--read={path.resolve()}" for path in files]
    return subprocess.run([sys.executable, "-m", "examples.sandbox", *given, *read], cwd=root, check=False).returncode


__all__ = ["run_sandbox"]
