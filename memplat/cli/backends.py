"""``memplat backends``: which backends there are, and which can be used here, as configured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memplat import config as configuration
from memplat.cli.options import make_console, selection_options
from memplat.errors import MemplatError
from memplat.plugins import (
    Backend,
    Extension,
    PluginRecord,
    Policy,
    build_manager,
    hooks_of,
    list_plugins,
    load,
    load_extension,
)
from memplat.types import CONTRACT_LEVEL, Availability, BackendInfo

_STYLES: Final = {
    "available": "green",
    "unavailable": "yellow",
    "broken": "bold red",
    "shut out": "dim",
    "extension": "",
}


@attrs.frozen
class Row:
    """What there is to say of a plugin."""

    record: PluginRecord
    status: str
    """``available``, ``unavailable``, ``broken``, ``shut out`` by the policy, or ``extension``."""
    reason: str = ""
    remedy: str = ""
    info: BackendInfo | None = None
    preference: int | None = None
    """Its place in the configured list, from 1."""
    selected: bool = False
    """Whether it is the one that the configuration comes to."""

    @property
    def version(self) -> str:
        """Of the backend if it could be asked, else of its distribution."""
        return self.info.version if self.info else self.record.version


def survey(config: str | None, profile: str | None) -> list[Row]:
    """Look at every installed plugin; one that is broken is told of, and hides no other.

    :raises ConfigError: if the configuration itself cannot be used
    """
    records = list_plugins()
    names = {record.name for record in records}
    settings = configuration.load(config=config, profile=profile, backend_names=names)
    policy = Policy(settings.plugins_disabled, settings.allowed_plugins)
    extensions = [load_extension(extension, policy) for extension in settings.extensions]
    rows = [_look_at(record, settings, policy, extensions) for record in records]
    wanted = [row for name in settings.backends for row in rows if row.record.name == name]
    taken = next((row for row in wanted if row.status == "available"), None)
    return [
        attrs.evolve(row, preference=wanted.index(row) + 1, selected=row is taken) if row in wanted else row
        for row in rows
    ]


def _look_at(
    record: PluginRecord, settings: configuration.Config, policy: Policy, extensions: Sequence[Extension]
) -> Row:
    if record.problem:
        return Row(record, "broken", record.problem)
    if refusal := policy.refusal(record):
        return Row(record, "shut out", refusal)
    try:
        backend = load(record.name, policy)
    except MemplatError as error:
        return Row(record, "extension") if _is_extension(record, policy) else Row(record, "broken", str(error))
    try:
        options = settings.backend_options(record.name, backend.info.options)
    except MemplatError as error:
        return Row(record, "unavailable", str(error), "mend the configuration", backend.info)
    return _check(record, backend, options, extensions)


def _is_extension(record: PluginRecord, policy: Policy) -> bool:
    try:
        load_extension(record.name, policy)
    except MemplatError:
        return False
    return True


def _check(record: PluginRecord, backend: Backend, options: Any, extensions: Sequence[Extension]) -> Row:
    manager = build_manager(backend.plugin, [extension.plugin for extension in extensions])
    try:
        found = hooks_of(manager).memplat_check(options=options)
    except Exception as error:  # noqa: BLE001 -- whatever a stranger's check raises must break nothing else
        return Row(record, "broken", f"memplat_check raised {type(error).__name__}: {error}", info=backend.info)
    if not isinstance(found, Availability):
        return Row(record, "broken", f"memplat_check returned {found!r}, which is no Availability", info=backend.info)
    status = "available" if found.available else "unavailable"
    return Row(record, status, found.reason, found.remedy, backend.info)


@click.command()
@click.option("--json", "to_json", is_flag=True, help="Print the list as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show summaries, entry points and options, too.")
@selection_options
def backends(config: str | None, profile: str | None, to_json: bool, verbose: bool) -> None:
    """List all backends: whether they can be used here, as configured, and if not, why and what to do.

    Of the list that the configuration asks for, a star marks the backend that memplat.open() would take here.
    """
    rows = survey(config, profile)
    if to_json:
        document = {"contract_level": CONTRACT_LEVEL, "backends": [_as_json(row) for row in rows]}
        click.echo(json.dumps(document, indent=2))
        return
    console = make_console()
    console.print(_table(rows))
    if verbose:
        for row in rows:
            console.print(*_details(row), sep="\n")
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
            Text(f"{row.record.name} *" if row.selected else row.record.name, style="bold"),
            Text(row.version),
            Text(row.status, style=_STYLES[row.status]),
            Text(row.reason) + remedy,
            Text(", ".join(_capabilities(row))),
            Text(row.record.source),
        )
    return table


def _show_selection(console: Console, rows: list[Row]) -> None:
    wanted = [row.record.name for row in sorted(rows, key=lambda row: row.preference or 0) if row.preference]
    taken = next((row.record.name for row in rows if row.selected), None)
    told = f"memplat.open() takes {taken}" if taken else "memplat.open() finds none that can be used"
    console.print(Text(f"* of the configured list ({', '.join(wanted) or 'given in Python'}) {told}"))


def _capabilities(row: Row) -> list[str]:
    return sorted(row.info.capabilities) if row.info else []


def _details(row: Row) -> Iterator[Text]:
    yield Text(row.record.name, style="bold")
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


def _as_json(row: Row) -> dict[str, Any]:
    info = row.info
    return {
        "name": row.record.name,
        "version": row.version,
        "status": row.status,
        "available": row.status == "available",
        "reason": row.reason,
        "remedy": row.remedy,
        "capabilities": _capabilities(row),
        "source": row.record.source,
        "entry_point": row.record.value,
        "summary": info.summary if info else "",
        "contract_level": info.contract_level if info else None,
        "default_mode": info.default_mode if info else None,
        "preference": row.preference,
        "selected": row.selected,
    }


__all__ = ["Row", "backends", "survey"]
