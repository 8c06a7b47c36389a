"""Options that several commands have, and the consoles that they print on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from rich.console import Console

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: The width of output that goes to a pipe or a file, unless COLUMNS says otherwise.
_PIPED_WIDTH: Final = 120

_SELECTION: Final = (
    click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        help="The configuration: a TOML file. Without it: MEMPLAT_CONFIG, then the user's own memplat.toml.",
    ),
    click.option("--profile", help="The profile of the configuration that is to count."),
)


def selection_options(command: _Command) -> _Command:
    """Give a command ``--config`` and ``--profile``."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def make_console(*, stderr: bool = False) -> Console:
    """A console for people, or a plain one where the output is piped; honours NO_COLOR and COLUMNS."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if (stream is not None and stream.isatty()) or os.environ.get("COLUMNS") else _PIPED_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, emoji=False)


__all__ = ["make_console", "selection_options"]
