"""``memplat conformance``: run the conformance suite on backends, and say whether they conform."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from memplat.cli.options import make_console
from memplat.conformance.hosts import UnavailableError, stands, swap
from memplat.conformance.registry import Check, all_checks
from memplat.conformance.render import show
from memplat.conformance.report import Report, as_junit
from memplat.conformance.runner import Runner
from memplat.conformance.subject import Subject
from memplat.conformance.values import parse_options
from memplat.types import Availability, Capability


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--all", "everything", is_flag=True, help="Every backend on all that it can stand on, as far as the host has it."
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the backend, as in memplat.toml.",
)
@click.option(
    "--without",
    multiple=True,
    type=click.Choice([str(name) for name in Capability]),
    help="A capability that these options switch off.",
)
@click.option(
    "--check",
    "wanted",
    multiple=True,
    metavar="ID",
    help="Only these checks (DECOM-01), or areas (DECOM), and the smoke tier.",
)
@click.option("--list", "listing", is_flag=True, help="List the checks, and run none.")
@click.option("-v", "--verbose", is_flag=True, help="List the passed checks, too.")
@click.option(
    "--json",
    "as_json",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the reports as JSON; - is standard output.",
)
@click.option("--junit", type=click.Path(dir_okay=False), help="Write the reports as JUnit XML.")
@click.option("--markdown", type=click.Path(dir_okay=False, allow_dash=True), help="Write the reports as Markdown.")
@click.pass_context
def conformance(
    context: click.Context,
    names: Sequence[str],
    everything: bool,
    options: Sequence[str],
    without: Sequence[str],
    wanted: Sequence[str],
    listing: bool,
    verbose: bool,
    as_json: str | None,
    junit: str | None,
    markdown: str | None,
) -> None:
    """Put backends through the checks of the contract, and say in one line whether they conform.

    Exit status: 0 if all that could be run conform, 1 if one does not, 2 for wrong usage.
    """
    checks = _choose(wanted)
    console = make_console(stderr="-" in (as_json, markdown))
    if listing:
        _list(console, checks)
        return
    if everything == bool(names):
        raise click.UsageError("name backends, or say --all")
    if everything and (options or without):
        raise click.UsageError("options belong to one backend: name it in place of --all")
    for option, path in (("--json", as_json), ("--junit", junit), ("--markdown", markdown)):
        _check_path(option, path)
    reports: list[Report] = []
    left_out: dict[str, str] = {}
    for title, item in _everything() if everything else _named(names, parse_options(options), without):
        if isinstance(item, str):
            left_out[title] = item
            continue
        report = _run(console, item, checks)
        show(console, report, verbose=verbose)
        reports.append(report)
    _summarise(console, reports, left_out)
    _write(reports, left_out, as_json, junit, markdown)
    context.exit(0 if reports and all(report.conforms for report in reports) else 1)


def _choose(wanted: Sequence[str]) -> list[Check]:
    """The smoke tier and what was asked for; everything if nothing was."""
    checks = all_checks()
    names = {one.id for one in checks} | {one.id.partition("-")[0] for one in checks}
    for name in wanted:
        if name.upper() not in names:
            raise click.UsageError(f"there is no check {name!r}; memplat conformance --list shows them")
    asked = {name.upper() for name in wanted}
    return [one for one in checks if not asked or one.smoke or asked & {one.id, one.id.partition("-")[0]}]


def _named(
    names: Sequence[str], options: dict[str, Any], without: Sequence[str]
) -> Iterator[tuple[str, Subject | str]]:
    """What was asked for."""
    for name in names:
        subject = Subject(name, options, without=without)
        subject.own_options()  # an unknown name or option is wrong usage, not a backend that fails
        yield name, subject


def _everything() -> Iterator[tuple[str, Subject | str]]:
    """What the host has, each for as long as the caller is at it; a text is the reason why it cannot be had."""
    with swap() as reason:
        if reason:
            click.echo(reason, err=True)
        for stand in stands():
            with contextlib.ExitStack() as stack:
                try:
                    provided = stack.enter_context(stand.provide())
                except UnavailableError as error:
                    yield stand.title, str(error)
                    continue
                subject = Subject(stand.backend, provided, stand.title)
                yield stand.title, _why_not(subject) or subject


def _why_not(subject: Subject) -> str:
    """Why the backend cannot be used here; empty if it can, or if it is broken: then the suite has to say so."""
    try:
        said = subject.availability()
    except Exception:  # noqa: BLE001 -- whatever a stranger's plugin raises: LIFE-01 and LIFE-02 tell
        return ""
    if not isinstance(said, Availability) or said.available:
        return ""
    return f"is not available: {said.reason}" + (f" (remedy: {said.remedy})" if said.remedy else "")


def _run(console: Console, subject: Subject, checks: Sequence[Check]) -> Report:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Runner(subject) as runner, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(subject.title, total=len(checks))
        return runner.run(checks, tell=lambda _: progress.advance(task))


def _list(console: Console, checks: Sequence[Check]) -> None:
    table = Table()
    for name in ("check", "rule", "capability", "since", "sentence"):
        table.add_column(name, no_wrap=name != "sentence")
    for one in checks:
        tier = " (smoke)" if one.smoke else ""
        table.add_row(one.id, one.rule, str(one.needs or ""), str(one.since), one.sentence + tier)
    console.print(table)


def _summarise(console: Console, reports: Sequence[Report], left_out: Mapping[str, str]) -> None:
    for title, reason in left_out.items():
        console.print(f"{title}: not run, because it {reason}", style="yellow", soft_wrap=True, markup=False)
    if len(reports) > 1:
        good = sum(report.conforms for report in reports)
        seconds = sum(report.seconds for report in reports)
        console.print(f"{good} of {len(reports)} conform ({seconds:.0f} s)", style="bold")


def _write(
    reports: Sequence[Report],
    left_out: Mapping[str, str],
    as_json: str | None,
    junit: str | None,
    markdown: str | None,
) -> None:
    if as_json:
        rest = [{"title": title, "conforms": None, "not_run": reason} for title, reason in left_out.items()]
        _put(as_json, json.dumps([*(report.as_dict() for report in reports), *rest], indent=2))
    if junit:
        _put(junit, as_junit(reports, left_out))
    if markdown:
        rest_lines = [f"{title}: not run, because it {reason}\n" for title, reason in left_out.items()]
        _put(markdown, "\n".join([*(report.as_markdown() for report in reports), *rest_lines]))


def _check_path(option: str, path: str | None) -> None:
    """Refuse at once what could not be written after minutes of checks. Nothing is left behind, and nothing cut off.

    :raises click.BadParameter: if a report cannot be written there
    """
    if path in (None, "-"):
        return
    target = os.path.realpath(str(path))
    try:
        if os.path.lexists(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            os.unlink(target)
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint=option) from error


def _put(path: str, text: str) -> None:
    if path == "-":
        click.echo(text)
    else:
        Path(path).write_text(text + "\n", encoding="utf-8")


__all__ = ["conformance"]
