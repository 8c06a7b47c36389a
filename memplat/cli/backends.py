"""``memplat backends``: which backends there are, and which can be used here, as configured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memplat import _core
from memplat.cli.options import make_console, selection_options
from memplat.doctor import Row, survey
from memplat.types import CONTRACT_LEVEL

_STYLES: Final = {
    "available": "green",
    "unavailable": "yellow",
    "broken": "bold red",
    "shut out": "dim",
    "extension": "",
}


@click.command()
@click.option("--json", "to_json", is_flag=True, help="Print the list as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show summaries, entry points and options, too.")
@selection_options
def backends(config: str | None, profile: str | None, to_json: bool, verbose: bool) -> None:
    """List all backends: whether they can be used here, as configured, and if not, why and what to do.

    Of the list that the configuration asks for, a star marks the backend that memplat.open() would take here.
    """
    rows = list(survey(config, profile).rows)
    if to_json:
        document = {"contract_level": CONTRACT_LEVEL, "backends": [row.as_dict() for row in rows]}
        click.echo(json.dumps(document, indent=2))
        return
    console = make_console()
    console.print(_table(rows))
    if verbose:
        for row in rows:
            console.print(*_details(row), sep="\n")
        console.print(Text(f"core: {_core.NAME}, because {_core.REASON}"))
    _show_selection(console, rows)


def _table(rows: list[Row]) -> Table:
    table = Table()
    table.add_column("backend", no_wrap=True)
    table.add_column("version")
    table.add_column("here", no_wrap=True)
    table.add_column("why, and what to do", overflow="fold", ratio=1)
    table.add_column("capabilities")
    table.add_column("from")
    for row in rows:
        remedy = Text(f"\n{row.remedy}", style="cyan") if row.remedy else Text()
        table.add_row(
            Text(f"{row.name} *" if row.selected else row.name, style="bold"),
            Text(row.version),
            Text(row.status, style=_STYLES[row.status]),
            Text(row.reason) + remedy,
            Text(", ".join(row.capabilities)),
            Text(row.record.source),
        )
    return table


def _show_selection(console: Console, rows: list[Row]) -> None:
    wanted = [row.name for row in sorted(rows, key=lambda row: row.preference or 0) if row.preference]
    taken = next((row.name for row in rows if row.selected), None)
    told = f"memplat.open() takes {taken}" if taken else "memplat.open() finds none that can be used"
    console.print(Text(f"* of the configured list ({', '.join(wanted) or 'given in Python'}) {told}"))


def _details(row: Row) -> Iterator[Text]:
    yield Text(row.name, style="bold")
    yield Text(f"  entry point: {row.record.value}")
    if row.info is None:
        return
    if row.info.summary:
        yield Text(f"  {row.info.summary}")
    yield Text(f"  contract level {row.info.contract_level}, default mode {row.info.default_mode}")
    for option in attrs.fields(row.info.options) if row.info.options else ():
        default = "required" if option.default is attrs.NOTHING else f"default {_plain(option.default)}"
        yield Text(f"  option {option.name}: {default}")


def _plain(default: Any) -> Any:
    """The default's value, where it is made by a factory."""
    return default.factory() if isinstance(default, attrs.Factory) and not default.takes_self else default  # type: ignore[arg-type]


__all__ = ["backends"]
