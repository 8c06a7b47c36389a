"""Reports for people, with rich."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memplat.conformance.registry import AREAS
from memplat.conformance.report import Report, Result, Status

_IDS_WIDTH: Final = 18
_MARKS: Final = {
    Status.PASSED: Text("passed", "green"),
    Status.FAILED: Text("FAILED", "bold red"),
    Status.NOT_APPLICABLE: Text("n/a", "dim"),
    Status.NOT_RUN: Text("not run", "yellow"),
}


def show(console: Console, report: Report, *, verbose: bool) -> None:
    """The table, what to mend, and the statement. Passed checks are counted, or listed if *verbose*."""
    table = Table(title=report.title, title_justify="left", title_style="bold", expand=False)
    table.add_column("check", max_width=_IDS_WIDTH)
    table.add_column("result", no_wrap=True)
    table.add_column("what")
    for area in AREAS:
        results = [result for result in report.results if result.check.area == area]
        if results:
            _add_area(table, area, results, verbose=verbose)
            table.add_section()
    if held := [result for result in report.results if result.status is Status.NOT_RUN]:
        table.add_row(f"{len(held)} others", _MARKS[Status.NOT_RUN], Text(held[0].message, "yellow"))
    console.print(table)
    for result in report.roots:
        _show_failure(console, report, result)
    console.print(Text(report.statement(), "green" if report.conforms else "bold red"), soft_wrap=True)
    console.print()


def _add_area(table: Table, area: str, results: list[Result], *, verbose: bool) -> None:
    passed = [result for result in results if result.status is Status.PASSED]
    if passed and not verbose:
        table.add_row(AREAS[area], Text(f"{len(passed)} passed", "green"), Text(area, "dim"))
    excused: dict[str, list[str]] = {}
    for result in results:
        if result.status is Status.FAILED or (verbose and result.status is Status.PASSED):
            table.add_row(result.check.id, _MARKS[result.status], _what(result))
        elif result.status is Status.NOT_APPLICABLE:
            excused.setdefault(result.message, []).append(result.check.id)
    for reason, ids in excused.items():
        table.add_row(", ".join(ids), _MARKS[Status.NOT_APPLICABLE], Text(reason, "dim"))


def _what(result: Result) -> Text:
    text = Text(result.check.sentence)
    if result.follows:
        text.append(f"\nfollows from {result.follows}", "yellow")
    elif result.status is Status.FAILED:
        text.append(f"\n{result.message.partition(chr(10))[0]}", "red")
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
