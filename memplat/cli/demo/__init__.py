"""``memplat demo``: the main job on real files. ``job.py`` does it, ``render.py`` shows it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import memplat
from memplat import config as configuration
from memplat.cli.demo import workers as worker_processes
from memplat.cli.demo.job import DemoError, Observe, Report, Source, run_demo
from memplat.cli.demo.render import as_json, show_opened, show_report
from memplat.cli.demo.sandbox import run_sandbox
from memplat.cli.options import make_console, selection_options
from memplat.memory import Memory
from memplat.plugins import list_plugins


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.option("--backend", metavar="NAME[,NAME...]", help="The backends to take, in order of preference.")
@selection_options
@click.option("--workers", type=click.IntRange(1, 256), help="How many processes; as many as there are processors.")
@click.option("--json", "to_json", is_flag=True, help="Print the report as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="List every file.")
@click.option("--sandbox", is_flag=True, help="Run programs in the sandbox of the source tree instead.")
def demo(
    files: tuple[Path, ...],
    backend: str | None,
    config: str | None,
    profile: str | None,
    workers: int | None,
    to_json: bool,
    verbose: bool,
    sandbox: bool,
) -> None:
    """Load FILES (memplat's own sources if there are none) into a memory, let processes look at them, and check it all.

    The files become page_cache pages. Worker processes get the descriptor and the ranges, map them read-only, and write
    SHA-256 and word count into an anonymous range. The results are compared with hashlib, the usage by kind with the
    sizes of the files and with fstat, and in the end everything has to be back with the host. Exit status 1 if anything
    does not add up.

    With --sandbox, unmodified programs (busybox) work on the files inside of the Unicorn emulator, in memory of the
    same kind, and their output is compared with that of the host's own. Needs the source tree, and the extra "unicorn".
    """
    if sandbox:
        raise SystemExit(run_sandbox(files, backend, config, profile))
    sources = [_look_at(path) for path in files or _own_sources()]
    console = make_console()
    names = [name.strip() for name in backend.split(",")] if backend is not None else None
    may_keep = _may_keep(names, config, profile)
    with memplat.open(names, config=config, profile=profile) as memory:
        if not to_json:
            show_opened(console, memory)
        report = _run(memory, sources, workers or len(os.sched_getaffinity(0)), may_keep)
        if to_json:
            click.echo(json.dumps(as_json(report, memory.backend), indent=2))
        else:
            show_report(console, report, verbose=verbose)
            _show_outcome(console, report)
    if report.problems:
        raise SystemExit(1)


def _look_at(path: Path) -> Source:
    try:
        return Source.of(path)
    except (DemoError, OSError) as error:
        raise click.BadParameter(str(error), param_hint="'[FILES]...'") from error


def _own_sources() -> list[Path]:
    return sorted(Path(memplat.__file__).parent.rglob("*.py"))


def _may_keep(names: list[str] | None, config: str | None, profile: str | None) -> int:
    """The bytes that the configuration wants to stay committed although nobody uses them."""
    known = {record.name for record in list_plugins()}
    options = configuration.load(names, config=config, profile=profile, backend_names=known).engine
    return options.keep + options.prealloc


def _run(memory: Memory, sources: list[Source], workers: int, may_keep: int) -> Report:
    with _progress(sources) as observe:
        script = worker_processes.WORKER_SCRIPT
        return run_demo(memory, sources, workers, observe, may_keep=may_keep, script=script)


@contextmanager
def _progress(sources: list[Source]) -> Iterator[Observe]:
    """Progress bars on standard error, if that is a terminal."""
    console = make_console(stderr=True)
    total = sum(source.length for source in sources)
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {
            "load": progress.add_task("loading", total=total, unit="bytes"),
            "work": progress.add_task("working", total=len(sources), unit="files"),
            "check": progress.add_task("checking", total=total, unit="bytes"),
        }
        yield lambda stage, amount: progress.advance(tasks[stage], amount)


def _show_outcome(console: Console, report: Report) -> None:
    words = sum(found.words for found in report.findings)
    files = "1 file" if len(report.findings) == 1 else f"{len(report.findings):,} files"
    left = report.moments[-1].fstat_bytes
    kept = f"{left:,} bytes, which the configuration keeps" if left else "nothing"
    if report.problems:
        errors = make_console(stderr=True)
        errors.print("FAILED: this does not add up:", style="bold red")
        for problem in report.problems:
            errors.print(f"  {problem}", markup=False, soft_wrap=True)
        return
    console.print(
        f"{files}, {words:,} words: every SHA-256 and word count agrees with hashlib, every figure with fstat.\n"
        f"What the host still spends on the memory: {kept}.",
        style="bold green",
    )


__all__ = ["demo"]
