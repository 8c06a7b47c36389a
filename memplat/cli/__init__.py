"""The command line: one module a command. Its libraries, click and rich, come with the extra ``cli``."""

from __future__ import annotations

import sys

_LIBRARIES = frozenset({"click", "rich"})


def main() -> None:
    """Run the command line; ends the process with its exit status: 0 well, 1 something is wrong, 2 wrong usage."""
    try:
        from memplat.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        sys.exit(f"memplat: the command line needs {error.name}, which is not installed: pip install 'memplat[cli]'")
    app(prog_name="memplat")


__all__ = ["main"]
