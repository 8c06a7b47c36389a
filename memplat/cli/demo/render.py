"""How the demo's report looks: tables for people, plain values for ``--json``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

import memplat
from memplat.cli.demo.job import ANONYMOUS, PAGE_CACHE, Finding, Moment, Report
from memplat.cli.demo.page_map import LETTERS, MIXED, PageMap
from memplat.memory import Memory
from memplat.ranges import format_size
from memplat.types import MemoryKind, PageState, SelectedBackend

_STYLES: Final[Mapping[str, str]] = {
    PageState.FREE: "dim",
    PageState.WASTE: "yellow",
    PageState.RELEASING: "yellow",
    MemoryKind.PAGE_CACHE: "cyan",
    MemoryKind.ANONYMOUS: "magenta",
}
_LETTER_STYLES: Final = {LETTERS[word]: style for word, style in _STYLES.items()}
#: How many files are listed unless all of them are asked for.
_FEW: Final = 8


def show_opened(console: Console, memory: Memory) -> None:
    """Which backend was selected, and why not those before it."""
    backend = memory.backend
    page = format_size(memory.page_size)
    console.print(Text.assemble("backend ", (backend.name, "bold"), f" {backend.info.version}, pages of {page}"))
    for candidate in backend.selection:
        if not candidate.taken:
            console.print(Text(f"  not {candidate.name}: {candidate.reason} {_remedy(candidate.remedy)}".rstrip()))
    for note in backend.notes:
        console.print(Text(f"  note: {note}"))


def show_report(console: Console, report: Report, *, verbose: bool) -> None:
    """All of the report but its problems."""
    if report.pages is not None:
        _show_page_map(console, report.pages)
    console.print(_usage_table(report.moments))
    if report.findings:
        console.print(_worker_table(report))
        if verbose:
            _show_files(console, report.findings)
        else:
            console.print(_file_table(report.findings))


def as_json(report: Report, backend: SelectedBackend) -> dict[str, Any]:
    """The report as plain values; sizes in bytes."""
    return {
        "ok": not report.problems,
        "problems": report.problems,
        "backend": {
            "name": backend.name,
            "version": backend.info.version,
            "selection": [attrs.asdict(candidate) for candidate in backend.selection],
        },
        "workers": report.workers,
        "moments": [_moment_as_json(moment) for moment in report.moments],
        "page_map": report.pages and {"cell_bytes": report.pages.cell_bytes, "rows": report.pages.rows},
        "files": [{**attrs.asdict(found), "path": str(found.path)} for found in report.findings],
    }


def _moment_as_json(moment: Moment) -> dict[str, Any]:
    usage = moment.usage
    return {
        "name": moment.name,
        "committed": dict(usage.committed),
        "committed_by_owner": {str(owner): dict(kinds) for owner, kinds in usage.committed_by_owner.items()},
        "allocated": dict(usage.allocated),
        "waste": usage.waste,
        "free_committed": usage.free_committed,
        "overhead": usage.overhead,
        "total": usage.total,
        "fstat": moment.fstat_bytes,
        "exact": usage.exact,
        "method": usage.method,
    }


def _remedy(remedy: str) -> str:
    return f"({remedy})" if remedy else ""


def _kib(nbytes: int) -> str:
    return f"{nbytes // 1024:,}" if nbytes % 1024 == 0 else f"{nbytes / 1024:,.1f}"


def _usage_table(moments: list[Moment]) -> Table:
    """Usage by kind, a column for each moment."""
    table = Table(title="usage by kind, KiB", title_justify="left", title_style="bold")
    table.add_column("")
    for moment in moments:
        table.add_column(moment.name, justify="right")
    kinds = dict.fromkeys((PAGE_CACHE, ANONYMOUS))
    seen = {kind for moment in moments for kind, nbytes in moment.usage.committed.items() if nbytes}
    kinds.update(dict.fromkeys(kind for kind in MemoryKind if kind in seen))
    for kind in kinds:
        table.add_row(kind, *(_kib(moment.usage.committed.get(kind, 0)) for moment in moments))
    if any(moment.usage.overhead for moment in moments):
        table.add_row("overhead", *(_kib(moment.usage.overhead) for moment in moments))
    table.add_section()
    table.add_row("total", *(_kib(moment.usage.total) for moment in moments), style="bold")
    table.add_row("fstat", *(_kib(moment.fstat_bytes) for moment in moments))
    table.add_row("exact", *("yes" if moment.usage.exact else "no" for moment in moments))
    table.add_row("method", *(moment.usage.method for moment in moments), style="dim")
    return table


def _worker_table(report: Report) -> Table:
    """Who pays: each worker is an owner."""
    table = Table(title="usage by owner, KiB", title_justify="left", title_style="bold")
    for name in ("worker", "process", "files", "words", str(PAGE_CACHE), str(ANONYMOUS)):
        table.add_column(name, justify="right")
    by_owner = next((moment.usage.committed_by_owner for moment in report.moments if moment.name == "worked"), {})
    for owner in range(1, report.workers + 1):
        found = [each for each in report.findings if each.owner == owner]
        charged = by_owner.get(owner, {})
        table.add_row(
            str(owner),
            ", ".join(sorted({str(each.process) for each in found})),
            f"{len(found):,}",
            f"{sum(each.words for each in found):,}",
            _kib(charged.get(PAGE_CACHE, 0)),
            _kib(charged.get(ANONYMOUS, 0)),
        )
    return table


def _file_table(findings: list[Finding]) -> Table:
    """The largest files."""
    shown = sorted(findings, key=lambda found: (-found.length, found.path))[:_FEW]
    left_out = len(findings) - len(shown)
    table = Table(
        title="files",
        title_justify="left",
        title_style="bold",
        caption=f"and {left_out} more: --verbose lists all" if left_out else None,
        caption_justify="left",
    )
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("words", justify="right")
    table.add_column("SHA-256", no_wrap=True)
    for found in shown:
        table.add_row(Text(_short(found.path)), f"{found.length:,}", f"{found.words:,}", f"{found.sha256[:16]}…")
    return table


def _show_files(console: Console, findings: list[Finding]) -> None:
    """Every file on a line of its own, as sha256sum(1) has it, and in the order of the paths."""
    console.print("files: SHA-256, bytes, words, path", style="bold")
    for found in sorted(findings, key=lambda found: found.path):
        line = f"{found.sha256}  {found.length:>12,}  {found.words:>10,}  {_short(found.path)}"
        console.print(Text(line), soft_wrap=True)


def _short(path: Path) -> str:
    """The path as seen from the working directory, or from where memplat is installed, if it is below that."""
    for base in (Path.cwd(), Path(memplat.__file__).parents[1]):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


def _show_page_map(console: Console, pages: PageMap) -> None:
    console.print(Text.assemble(("page map", "bold"), f" (a letter is {format_size(pages.cell_bytes)})"))
    for row in pages.rows:
        line = Text("  ")
        for letter, run in itertools.groupby(row):
            line.append("".join(run), style=_LETTER_STYLES.get(letter, "red"))
        console.print(line)
    console.print(Text("  " + "  ".join(_legend(pages)), style="dim"))


def _legend(pages: PageMap) -> Iterator[str]:
    for word in dict.fromkeys(pages.cells):
        yield f"{LETTERS.get(word, MIXED)} {word}"
