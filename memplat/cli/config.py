"""``memplat config``: check a configuration file, and print the schema of one."""

from __future__ import annotations

import json
from typing import Any

import attrs
import click

from memplat import config as configuration
from memplat.config import Document
from memplat.errors import ConfigError, MemplatError, PluginError
from memplat.plugins import BUILT_IN, Policy, list_plugins, load


@click.group()
def config() -> None:
    """Check a configuration, and print the schema of one."""


@config.command()
@click.argument("file", type=click.Path())
@click.option("--json", "to_json", is_flag=True, help="Print the mistakes as JSON.")
@click.pass_context
def check(context: click.Context, file: str, to_json: bool) -> None:
    """List all mistakes of FILE: line, key, what is allowed, the nearest valid name.

    Every profile is checked on top of [memory]. Backends that are named are imported, if the file allows it, because
    only they know their options. Exit status: 0 if there is no mistake, 2 if there is one.
    """
    asked = _Asked()
    try:
        document = Document.read(file)
        asked.policy = _policy_of(document)
        mistakes = configuration.check(document, {record.name for record in list_plugins()}, asked.class_of)
    except ConfigError as error:
        mistakes = [error]
    told = [{"file": each.file or file, "line": each.line, "key": each.key, "message": str(each)} for each in mistakes]
    if to_json:
        click.echo(json.dumps({"mistakes": told, "notes": list(asked.notes.values())}, indent=2))
    else:
        for each in told:
            click.echo(each["message"])
        for note in asked.notes.values():
            click.echo(f"{file}: note: {note}")
        click.echo(f"{file}: {_count(len(mistakes))}")
    context.exit(2 if mistakes else 0)


@config.command()
@click.option("--installed", is_flag=True, help="With the options of all installed plugins, and with no other names.")
def schema(installed: bool) -> None:
    """Print the JSON schema of memplat.toml, for editors and other checks.

    It is generated from what the parser uses. Without --installed it is the one that is shipped, and allows for plugins
    that it does not know.
    """
    found = configuration.document_schema(_option_classes(installed), closed=installed)
    click.echo(configuration.as_text(found), nl=False)


@attrs.define
class _Asked:
    """Asks plugins for their options, and notes those that cannot be asked."""

    policy: Policy = attrs.field(factory=Policy)
    notes: dict[str, str] = attrs.field(factory=dict)

    def class_of(self, backend: str) -> type[Any] | None:
        """The option class of a backend.

        :raises LookupError: if it cannot be asked
        """
        try:
            return load(backend, self.policy).info.options
        except PluginError as error:
            self.notes[backend] = f"the options of {backend!r} were not checked: {error}"
            raise LookupError(backend) from error


def _policy_of(document: Document) -> Policy:
    """Which plugins the file and the environment allow to be imported: those of all its allow-lists, or all, if
    ``[memory]`` has none.
    """
    disabled = configuration.plugins_disabled()
    tables = configuration.memory_tables(document)
    if "plugins" not in tables[0]:
        return Policy(disabled)
    listed = [table["plugins"] for table in tables if "plugins" in table]
    names = [name for each in listed for name in (each if isinstance(each, list) else [each])]
    return Policy(disabled, frozenset(name for name in names if isinstance(name, str)))


def _option_classes(installed: bool) -> dict[str, type[Any] | None]:
    """By backend; plugins that are broken or no backend are left out."""
    found = {}
    for record in list_plugins():
        if installed or record.source == BUILT_IN:
            try:
                found[record.name] = load(record.name).info.options
            except MemplatError:
                continue
    return found


def _count(mistakes: int) -> str:
    return "no mistake" if not mistakes else "1 mistake" if mistakes == 1 else f"{mistakes} mistakes"


__all__ = ["config"]
