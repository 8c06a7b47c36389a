"""The command line: one module a command. Its libraries, click and rich, come with the extra ``cli``."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from memplat.errors import ConfigError, MemplatError

_LIBRARIES = frozenset({"click", "rich"})


def main() -> None:
    """Run the command line; ends the process with its exit status: 0 well, 1 something is wrong, 2 wrong usage, or
    output that cannot be written.
    """
    if sys.stdout is None:  # descriptor 1 was closed before Python started
        _fail("standard output is closed", 2)
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()  # here, where an error can be told
    except ConfigError as error:  # not of a command, which tells its own: of what has to be known to import it
        _fail(str(error), 2)
    except MemplatError as error:
        _fail(str(error), 1)
    except BrokenPipeError:  # the reader has seen enough; click's exit status for it
        _fail("", 1)
    except OSError as error:
        reason = error.strerror or str(error)
        _fail(f"{error.filename}: {reason}" if error.filename else reason, 2)


def _run() -> None:
    try:
        from memplat.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        sys.exit(f"memplat: the command line needs {error.name}, which is not installed: pip install 'memplat[cli]'")
    app(prog_name="memplat")


def _fail(message: str, status: int) -> NoReturn:
    """Tell, as far as that is possible, and end the process."""
    if message and sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"memplat: {message}\n")
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # given up, or the interpreter would try again, and complain
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, stream.fileno())
            os.close(null)
    sys.exit(status)


__all__ = ["main"]
