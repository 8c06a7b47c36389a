"""The command ``memplat`` and what its subcommands share."""

from __future__ import annotations

import platform
from typing import Any

import click

import memplat
from memplat.cli.backends import backends
from memplat.cli.config import config
from memplat.cli.conformance import conformance
from memplat.cli.demo import demo
from memplat.cli.doctor import doctor
from memplat.errors import ConfigError, MemplatError


class _WrongUsage(click.ClickException):
    """A configuration is as much the user's word as an argument is."""

    exit_code = 2


class _Group(click.Group):
    """Tells memplat's own errors as a sentence, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except MemplatError as error:
            told = _WrongUsage if isinstance(error, ConfigError) else click.ClickException
            raise told(str(error)) from error


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"memplat {memplat.__version__} (Python {platform.python_version()}, Linux {platform.release()})")
    ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def app() -> None:
    """Platform memory for sandboxes, emulators and virtual machines."""


app.add_command(backends)
app.add_command(config)
app.add_command(conformance)
app.add_command(demo)
app.add_command(doctor)

__all__ = ["app"]
