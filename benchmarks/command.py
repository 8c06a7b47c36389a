"""Measure the workloads W1 to W8 beside what the host itself takes."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import memplat
from benchmarks.groups import GROUPS
from benchmarks.harness import RUNS, BenchmarkError, Row, run_group, times_more
from benchmarks.report import (
    Report,
    describe_environment,
    markdown,
    read_report,
    sections,
    targets_text,
    waited_seconds,
)

_PAGE: Final = "docs/benchmarks.md"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="W1,...", default=",".join(GROUPS), help="these groups: " + ", ".join(GROUPS))
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer runs: a look, not a figure")
    parser.add_argument("--core", choices=("python", "native"), help="measure this core, not the one that is chosen")
    parser.add_argument(
        "--runs", type=int, help="runs that are counted (default: 7, with --quick 5; W8: five times as many)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs there")
    parser.add_argument(
        "--markdown", type=Path, nargs="?", const=Path(_PAGE), metavar="FILE", help=f"write the page (default: {_PAGE})"
    )
    parser.add_argument(
        "--from", type=Path, dest="source", metavar="FILE", help="report a --json file, measure nothing"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    chosen = parser.parse_args(arguments)
    chosen.only = chosen.only.upper().split(",")
    unknown = sorted(set(chosen.only) - set(GROUPS))
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; allowed are {', '.join(GROUPS)}")
    if chosen.runs is not None and chosen.runs < 1:
        parser.error(f"--runs: {chosen.runs} is no number of runs")
    return chosen


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _measure_group(name: str, size: str, runs: int) -> list[Row]:
    group = GROUPS[name]
    return run_group(name, group, size, runs * times_more(group), _tell)


def _measure(names: Sequence[str], size: str, runs: int) -> Report:
    """Each group in a process of its own, so that none suffers from the memory that another one left behind."""
    environment = describe_environment(size, runs)
    environment["core"] = os.environ.get("MEMPLAT_CORE") or memplat.core  # that of the processes that measure
    started, waited = time.monotonic(), waited_seconds()
    rows: list[Row] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for name in names:
            rows += pool.submit(_measure_group, name, size, runs).result()
    if waited is not None and (now_waited := waited_seconds()) is not None:
        share = (now_waited - waited) / (time.monotonic() - started)
        environment["quiet"] = f"some task waited for a processor {share:.0%} of the time"
    return Report(environment, tuple(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for; the exit status."""
    chosen = _parse(arguments)
    size = "quick" if chosen.quick else "full"
    if chosen.core:
        os.environ["MEMPLAT_CORE"] = chosen.core  # before it is asked for here, and for the processes that measure
    try:
        report = read_report(chosen.source) if chosen.source else _measure(chosen.only, size, chosen.runs or RUNS[size])
    except BenchmarkError as error:
        _tell(f"benchmarks: {error}")
        return 1
    print("\n".join((*sections(report), targets_text(report))))
    if chosen.json:
        chosen.json.write_text(report.to_json(), encoding="utf-8")
    if chosen.markdown:
        chosen.markdown.write_text(markdown(report), encoding="utf-8")
    return int(chosen.strict and not all(verdict.is_met for verdict in report.verdicts()))
