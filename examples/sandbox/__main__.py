"""``python -m examples.sandbox``: run static Linux programs in sandboxes, and show what each of them costs."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import threading
from typing import IO, Any

import attrs
import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

import memplat
from examples.sandbox.elf import NotExecutableError
from examples.sandbox.filecalls import Outcome
from examples.sandbox.frames import PageCache, page_cache
from examples.sandbox.kernel import Sandbox
from memplat import Memory, MemplatError, Usage, format_size
from memplat.cli.options import make_console

_BUSYBOX = "/usr/bin/busybox"
_REFRESH_SECONDS = 0.1


@attrs.define
class Job:
    """One program in one sandbox."""

    owner: int
    command: list[str]
    output: IO[bytes]
    errors: IO[bytes]
    outcome: Outcome | None = None
    error: BaseException | None = None


def make_cpu(platform: str, memory: Memory, owner: int) -> Any:
    """A processor of the kind that the user wants."""
    if platform == "kvm":
        return importlib.import_module("examples.sandbox.cpu_kvm").KvmCpu(memory, owner)
    try:
        return importlib.import_module("examples.sandbox.cpu_unicorn").UnicornCpu(memory, owner)
    except ImportError as error:
        raise click.ClickException("the package unicorn is not installed: pip install 'memplat[unicorn]'") from error


def run_job(job: Job, memory: Memory, cache: PageCache, platform: str, roots: list[str]) -> None:
    """Run a program to its end, and give its memory back."""
    try:
        cpu = make_cpu(platform, memory, job.owner)
        sandbox = Sandbox(memory, cache, cpu, owner=job.owner, roots=roots, stdout=job.output, stderr=job.errors)
        try:
            sandbox.load(job.command[0], job.command, {"LC_ALL": "C", "PATH": "/bin"})
            job.outcome = sandbox.run()
        finally:
            sandbox.close()
    except BaseException as error:  # noqa: BLE001 -- told by the main thread
        job.error = error


def usage_table(usage: Usage, jobs: list[Job], title: str) -> Table:
    """Who has what, exactly."""
    exact = "exact" if usage.exact else "not proven"
    table = Table(title=f"{title}: {format_size(usage.total)} on the host, {exact}", title_justify="left")
    kinds = ["page_cache", "anonymous", "system"]
    for name in ("owner", "program", *kinds):
        table.add_column(name, justify="left" if name in ("owner", "program") else "right")
    rows = [(0, "shared by all"), *((job.owner, " ".join(job.command)[:50]) for job in jobs)]
    for owner, program in rows:
        found = usage.committed_by_owner.get(owner, {})
        table.add_row(str(owner), program, *(f"{found.get(kind, 0):,}" for kind in kinds))
    total = [f"{usage.committed[kind]:,}" for kind in kinds]
    table.add_row("", "sum", *total, style="bold")
    return table


def run_all(memory: Memory, jobs: list[Job], platform: str, roots: list[str], console: Console) -> None:
    """All programs at once, each in a sandbox of its own, and the figures while they run."""
    most: Usage | None = None
    with page_cache(memory) as cache:
        threads = [
            threading.Thread(target=run_job, args=(job, memory, cache, platform, roots), daemon=True) for job in jobs
        ]
        with Live(console=console, auto_refresh=False) as live:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(_REFRESH_SECONDS / len(threads))
                usage = memory.update_usage()
                most = usage if most is None or usage.total > most.total else most
                live.update(usage_table(usage, jobs, "while they run"), refresh=console.is_terminal)
            if most is not None:
                live.update(usage_table(most, jobs, "at the most that was seen"))
    memory.reclaim()


def demonstration(named: tuple[str, ...]) -> tuple[list[list[str]], list[str]]:
    """What to run if no command was given: three programs of busybox, over *named* files or memplat's own sources."""
    directory = os.path.dirname(os.path.abspath(memplat.__file__))
    files = list(named) or sorted(
        os.path.join(at, name) for at, _, names in os.walk(directory) for name in names if name.endswith(".py")
    )
    commands = [[_BUSYBOX, program, *files * (1 if named else 4)] for program in ("sha256sum", "sort", "wc")]
    return commands, [os.path.dirname(path) for path in named] or [directory]


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--backend", metavar="NAME[,NAME...]", help="The backends to take, in order of preference.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="The configuration: a TOML file.")
@click.option("--profile", help="The profile of the configuration that is to count.")
@click.option("--platform", type=click.Choice(["unicorn", "kvm"]), default="unicorn", show_default=True)
@click.option("--dir", "roots", multiple=True, type=click.Path(exists=True), help="A directory that programs may read.")
@click.option("--read", multiple=True, type=click.Path(exists=True), help="Without COMMAND: a file to work on.")
@click.option("--copies", type=click.IntRange(1, 64), default=1, help="So many sandboxes with the same program.")
@click.option("--limit", help="What one sandbox may allocate, such as 64MiB.")
def main(
    command: tuple[str, ...],
    backend: str | None,
    config: str | None,
    profile: str | None,
    platform: str,
    roots: tuple[str, ...],
    read: tuple[str, ...],
    copies: int,
    limit: str | None,
) -> None:
    """Run COMMAND, a static x86-64 Linux program, in a sandbox; without one, three programs of busybox at once, whose
    results are compared with the host's own.
    """
    console = make_console(stderr=True)
    allowed, shown = list(roots), True
    if command:
        commands, shown = [list(command)] * copies, False
    else:
        commands, allowed = demonstration(read)
    jobs = [
        Job(owner, words, io.BytesIO() if shown or copies > 1 else sys.stdout.buffer, sys.stderr.buffer)
        for owner, words in enumerate(commands, 1)
    ]
    names = [name.strip() for name in backend.split(",")] if backend is not None else None
    try:
        with memplat.open(names, config=config, profile=profile) as memory:
            for job in jobs:
                if limit is not None:
                    memory.set_limit(job.owner, allocated=memplat.parse_size(limit))
            run_all(memory, jobs, platform, allowed, console)
            left = memory.total_usage()
            console.print(f"backend {memory.backend.name}, {platform}; afterwards the host spends {left:,} bytes on it")
    except MemplatError as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(report(jobs, console, compare=not command) or bool(left))


def report(jobs: list[Job], console: Console, *, compare: bool) -> int:
    """How each has ended; the greatest exit status."""
    worst = 0
    for job in jobs:
        name = f"{job.owner}: {' '.join(job.command)[:60]}"
        if job.error is not None:
            if not isinstance(job.error, (NotExecutableError, MemplatError, OSError, click.ClickException)):
                raise job.error
            console.print(f"{name}: {job.error}", style="red", markup=False, soft_wrap=True)
            worst = 1
            continue
        assert job.outcome is not None
        ended = job.outcome.killed_by or f"status {job.outcome.status}"
        console.print(
            f"{name}: {ended}; {job.outcome.calls} calls, {job.outcome.faults} faults, "
            f"{job.outcome.shared_pages} pages of files, {job.outcome.copied_pages} copied",
            markup=False,
            soft_wrap=True,
        )
        for what, times in job.outcome.missing.items():
            console.print(f"   refused: {what} ({times} times)", markup=False, soft_wrap=True)
        worst = max(worst, job.outcome.status)
        if not compare and isinstance(job.output, io.BytesIO):
            sys.stdout.buffer.write(job.output.getvalue())
        if compare and isinstance(job.output, io.BytesIO):
            environment = {**os.environ, "LC_ALL": "C"}
            host = subprocess.run(job.command, capture_output=True, check=False, env=environment).stdout
            same = host == job.output.getvalue()
            console.print(f"   {len(host):,} bytes of output, {'the same as' if same else 'NOT those'} on the host")
            worst = max(worst, not same)
    return worst


if __name__ == "__main__":
    main(prog_name="python -m examples.sandbox")
