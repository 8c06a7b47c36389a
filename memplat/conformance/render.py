"""Reports for people, with rich."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memplat.conformance.registry import AREAS
from memplat.conformance.report import Report, Result, Status

_MARKS: Final = {
    Status.PASSED: Text("passed", "green"),
    Status.FAILED: Text("FAILED", "bold red"),
    Status.NOT_APPLICABLE: Text("n/a", "dim"),
    Status.NOT_RUN: Text("not run", "yellow"),
}


def show(console: Console, report: Report, *, verbose: bool) -> None:
    """The table, what to mend, and the statement. Passed checks are counted, or listed if *verbose*."""
    table = Table(title=report.title, title_justify="left", title_style="bold", expand=False)
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("what")
    for area in AREAS:
        results = [result for result in report.results if result.check.area == area]
        if results:
            _add_area(table, area, results, verbose=verbose)
    console.print(table)
    for result in report.roots:
        _show_failure(console, report, result)
    console.print(Text(report.statement(), "green" if report.conforms else "bold red"), soft_wrap=True)
    console.print()


def _add_area(table: Table, area: str, results: list[Result], *, verbose: bool) -> None:
    passed = [result for result in results if result.status is Status.PASSED]
    shown = results if verbose else [result for result in results if result.status is not Status.PASSED]
    if passed and not verbose:
        table.add_row(AREAS[area], Text(f"{len(passed)} passed", "green"), Text(area, "dim"))
    held = [result for result in shown if result.status is Status.NOT_RUN]
    for result in shown:
        if result.status is not Status.NOT_RUN or verbose:
            table.add_row(result.check.id, _MARKS[result.status], _what(result))
    if held and not verbose:
        table.add_row(AREAS[area], Text(f"{len(held)} not run", "yellow"), Text(area, "dim"))
    table.add_section()


def _what(result: Result) -> Text:
    text = Text(result.check.sentence)
    if result.follows:
        text.append(f"\nfollows from {result.follows}", "yellow")
    elif result.status is not Status.PASSED:
        text.append(f"\n{result.message.partition(chr(10))[0]}", "red" if result.status is Status.FAILED else "dim")
    return text


def _show_failure(console: Console, report: Report, result: Result) -> None:
    one = result.check
    followers = [other.check.id for other in report.failures if other.follows == one.id]
    console.print(Text(f"{one.id} {one.sentence}", "bold red"))
    console.print(Text(result.message), soft_wrap=True)
    console.print(Text.assemble((f"to mend (rule {one.rule}): ", "bold"), one.mend))
    if followers:
        console.print(Text(f"these follow from it: {', '.join(followers)}", "yellow"))
    console.print()


__all__ = ["show"]
