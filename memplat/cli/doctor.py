"""``memplat doctor``: what this host offers, what a configuration comes to on it, and what could be mended."""

from __future__ import annotations

import itertools
import json
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memplat.cli.options import make_console, selection_options
from memplat.doctor import Diagnosis, Row, State, diagnose

_STYLES: Final = {State.GOOD: "green", State.LIMITED: "yellow", State.MISSING: "red"}


@click.command()
@click.option("--json", "to_json", is_flag=True, help="Print all of it as JSON.")
@selection_options
@click.pass_context
def doctor(context: click.Context, config: str | None, profile: str | None, to_json: bool) -> None:
    """Show what this host offers, which backend the configuration selects here and why, and what could be mended.

    Nothing is changed. Each interface is tried, and each wanted backend makes a file, which is given back at once. Exit
    status: 0 if a backend can be used, 1 if none can, 2 for wrong usage or a wrong configuration.
    """
    found = diagnose(config, profile)
    if to_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _show(make_console(), found)
    context.exit(0 if found.taken is not None else 1)


def _show(console: Console, found: Diagnosis) -> None:
    console.print(_host_table(found))
    console.print(_candidate_table(found))
    for setting in found.settings():
        console.print(Text(f"{setting['key']} = {json.dumps(setting['value'])} ({setting['source']})"), soft_wrap=True)
    wanted = ", ".join(row.name for row in found.survey.wanted)
    told = f"takes {found.taken.name}" if found.taken else "finds none that can be used"
    console.print(Text(f"Of {wanted} ({found.asked_by}) memplat.open() {told}.", style="bold"), soft_wrap=True)
    if mendings := found.mendings():
        console.print(Text("\nWhat could be mended, if you need it:", style="bold"))
        for each in mendings:
            console.print(Text(f"{each.what}"), Text(f"    {each.how}", style="cyan"), sep="\n", soft_wrap=True)


def _host_table(found: Diagnosis) -> Table:
    table = Table(title="this host", title_justify="left")
    for name in ("", "what", "here"):
        table.add_column(name, no_wrap=True)
    table.add_column("which means", overflow="fold", ratio=1)
    for area, findings in itertools.groupby(found.findings, key=lambda finding: finding.area):
        for index, each in enumerate(findings):
            state = Text(each.state, style=_STYLES[each.state])
            table.add_row(Text("" if index else area, style="bold"), Text(each.name), state, Text(each.says))
        table.add_section()
    return table


def _candidate_table(found: Diagnosis) -> Table:
    table = Table(title="what the configuration selects", title_justify="left")
    table.add_column("backend", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    table.add_column("from")
    for row in found.survey.wanted:
        table.add_row(
            Text(row.name, style="bold"),
            _verdict(row),
            Text("\n".join((row.reason, *row.notes))),
            Text(row.record.source),
        )
    return table


def _verdict(row: Row) -> Text:
    if row.selected:
        return Text("taken", style="green")
    return Text("not needed", style="dim") if row.status == "available" else Text(row.status, style="yellow")


__all__ = ["doctor"]
