"""Both cores side by side, from 1,000 to 1,000,000 live segments: a table, and plots of time against segments.

    python -m benchmarks.cores [--sizes 1000,10000,...] [--runs 5] [--rounds 4]
                              [--markdown [FILE]] [--json FILE] [--from FILE]

What is measured is the steady state, in conditions like those of the figures of Go (fresh processes, a quiet machine):

- Each workload at each size with each core has a fresh process. In one process for all sizes, the larger ones found
  what the smaller ones had left of the heap, and shared the processor's caches with their live objects.
- It is warmed up until as many pairs are done as there are live allocations (W1), otherwise by one run. Until then the
  file grows, nodes of the tree split, and ranges lie in the order of the list.
- A run is long. 5,000 pairs take 2 ms, less than one turn at the GIL (5 ms), so the reclaimer fell into a run or not;
  and a good part of them was what the untimed work before a run had thrown out of the caches. Those of W7 stayed with
  5,000 segments, which were in the caches from the run before.
- Only quiet runs count, as with the figures of Go: those whose calibrator took at most 8% more than the quietest.
  On this kind of machine somebody else has the other half of the core now and then, and everything takes a third more
  for minutes. The calibrator decides, never the figure itself. What has too few quiet runs is measured again in a fresh
  process, up to so many *rounds*; if there are too few even then, all of its runs count, and the page says so.

The page goes to docs/cores.md, the plots beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.published import CALIBRATORS
from memplat.ranges import HUGE_PAGE_SIZE, KIB, MIB

CORES: Final = ("python", "native")
_MOST_GAPS: Final = 100_000
#: A run whose calibrator took more than so many times what the quietest took was disturbed.
_QUIET: Final = 1.08
_SIZES: Final = "1000,10000,100000,1000000"

#: What is plotted: title, unit, Go's published figures by live segments, targets of the compiled core; microseconds.
_PLOTS: Final[Mapping[str, tuple[str, str, Mapping[int, float], Mapping[int, float]]]] = {
    "W1": (
        "W1: free one, allocate one",
        "pair",
        {1_000: 1.15, 100_000: 3.0, 1_000_000: 5.2},
        {1_000: 0.45, 100_000: 1.0, 1_000_000: 1.8},
    ),
    "W3": (
        "W3: two pages behind holes of one page",
        "search",
        {1_000: 0.30, 1_000_000: 0.30},
        {1_000_000: 0.25},
    ),
    "W3 aligned": (
        "W3: 2 MiB aligned behind gaps of 2 to 4 MiB",
        "search",
        {},
        {100_000: 0.4},
    ),
    "W7": (
        "W7: incref and decref of one segment",
        "pair",
        {1_000: 0.16, 100_000: 0.46},
        {1_000: 0.15, 100_000: 0.4},
    ),
    "W7 middle": (
        "W7: incref and decref of the middle of a segment",
        "pair",
        {1_000: 0.31, 100_000: 0.61},
        {1_000: 0.25, 100_000: 0.5},
    ),
    "W6": ("W6: an unpinned view of 64 KiB", "view", {}, {1_000: 0.2}),
    "W6 pinned": ("W6: a pinned view of 64 KiB", "view", {}, {1_000: 0.5}),
    "W2": ("W2: allocate, touch and free 64 KiB, recycled", "cycle", {1: 4.8}, {1: 3}),
    "W2 2 MiB": ("W2: allocate, touch and free 2 MiB, recycled", "cycle", {1: 116}, {1: 90}),
    "W5": ("W5: every other page freed upwards, and reclaimed", "page", {400_000: 5.8}, {400_000: 4.0}),
    "W5 random": ("W5: every other page freed in random order, and reclaimed", "page", {400_000: 7.4}, {400_000: 4.5}),
    "W5b": ("W5b: all pages freed in random order, and reclaimed", "page", {}, {400_000: 1.3}),
    "W5 beside": ("W5: every other page of waste, reclaimed beside a busy thread", "page", {}, {}),
    "W5 slowed": ("W5: what that thread does in 1,000 us alone takes it meanwhile", "piece of work", {}, {}),
}

#: Workloads of one size: the live segments.
_FIXED: Final[Mapping[str, int]] = {
    "W2": 1,
    "W2 2 MiB": 1,
    **dict.fromkeys(("W5", "W5 random", "W5b"), 400_000),
    **dict.fromkeys(("W6", "W6 pinned"), 1_000),
    **dict.fromkeys(("W5 beside", "W5 slowed"), 100_000),
}


#: Pairs or views a run, at least; of many live allocations, a pair for each fifth of them.
_PAIRS: Final = 100_000
_SEARCHES: Final = 10_000


class _Cases:
    """A group of the harness: one workload at one size."""

    TITLE = NOTE = ""

    def __init__(self, name: str, live: int) -> None:
        self._name, self._live = name, live
        self._pairs = max(_PAIRS, live // 5)

    @property
    def warm_ups(self) -> int:
        """Runs that are not counted."""
        return -(-self._live // self._pairs) if self._name == "W1" else 1

    def cases(self, size: str) -> list[Any]:  # noqa: ARG002 -- the harness passes it
        from benchmarks import w1_churn, w2_touch, w3_search, w5_reclaim, w6_view, w7_references

        if self._name.startswith("W2"):
            length = HUGE_PAGE_SIZE if self._name != "W2" else 64 * KIB
            return [
                w2_touch.Touch(f"{length >> 10} KiB recycled", length, "will_commit", 3_000 if length < MIB else 100)
            ]
        if self._name.startswith("W5"):
            count, every = _FIXED[self._name], 1 if self._name == "W5b" else 2
            if self._name in ("W5 beside", "W5 slowed"):
                return [w5_reclaim.Beside(count, every=every, is_slowdown=self._name == "W5 slowed")]
            return [w5_reclaim.Reclaim(count, every=every, is_random=self._name != "W5")]
        if self._name == "W1":
            return [w1_churn.Churn(self._live, self._pairs)]
        if self._name == "W3":
            return [w3_search.SmallSearch(self._live // 2, _SEARCHES)]
        if self._name == "W3 aligned":
            return [w3_search.AlignedSearch(self._live, _SEARCHES)]
        if self._name.startswith("W6"):
            return [w6_view.View(_PAIRS, pin=self._name != "W6")]
        return [w7_references.Share(self._live, self._pairs, middle=self._name != "W7")]


def _measure_one(core: str, name: str, live: int, runs: int) -> dict[str, Any]:
    os.environ["MEMPLAT_CORE"] = core
    import memplat
    from benchmarks.harness import run_group

    assert memplat.core == core
    group = _Cases(name, live)
    rows = run_group(f"{core} {name}", group, "full", runs, warm_ups=group.warm_ups)
    (row,) = (row for row in rows if not row.figure)
    return {
        "core": core,
        "plot": name,
        "live": live,
        "segments": row.segments,
        "seconds": row.seconds,
        "calibrator": row.calibrator,
        "calibrations": row.calibrations,
    }


def _sizes_of(name: str, sizes: Sequence[int]) -> list[int]:
    if name in _FIXED:
        return [_FIXED[name]]
    if name == "W3 aligned":  # a million gaps would be a file of 4 TiB
        return [gaps for gaps in sizes if gaps <= _MOST_GAPS]
    return [*sizes]


def _quietest(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The least that each calibrator took."""
    least: dict[str, float] = {}
    for row in rows:
        least[row["calibrator"]] = min(*row["calibrations"], least.get(row["calibrator"], math.inf))
    return least


def quiet_runs(row: Mapping[str, Any], least: Mapping[str, float]) -> list[tuple[float, float]]:
    """Those runs of *row*, with their calibrations, in which its calibrator was about as quick as it ever was."""
    most = least[row["calibrator"]] * _QUIET
    return [(mine, host) for mine, host in zip(row["seconds"], row["calibrations"], strict=True) if host <= most]


def measure(sizes: Sequence[int], runs: int, rounds: int, only: Sequence[str] = (*_PLOTS,)) -> dict[str, Any]:
    """The figures, and how busy the machine was."""
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    load = [os.getloadavg()[0]]
    wanted = [(name, live, core) for name in only for live in _sizes_of(name, sizes) for core in CORES]
    for turn in range(rounds):
        for name, live, core in wanted:
            print(f"round {turn + 1}: {name}, {live:,}, {core}", file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                found = pool.submit(_measure_one, core, name, live, runs).result()
            if (before := rows.setdefault((name, live, core), found)) is not found:
                for runs_of in ("seconds", "calibrations"):
                    before[runs_of] = (*before[runs_of], *found[runs_of])
            load.append(os.getloadavg()[0])
        least = _quietest([*rows.values()])
        wanted = [cell for cell in wanted if len(quiet_runs(rows[cell], least)) < runs]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return {"when": when, "runs": runs, "load": load, "rows": [*rows.values()]}


def choose_runs(found: dict[str, Any]) -> None:
    """Note for each row the runs that count: the quiet ones, or all where these are too few."""
    least = _quietest(found["rows"])
    for row in found["rows"]:
        quiet = quiet_runs(row, least)
        row["is_quiet"] = len(quiet) >= found["runs"]
        counted = quiet if row["is_quiet"] else zip(row["seconds"], row["calibrations"], strict=True)
        row["counted"], row["beside"] = zip(*counted, strict=True)


def _row_of(found: Mapping[str, Any], core: str, plot: str, live: int) -> Mapping[str, Any] | None:
    for row in found["rows"]:
        if (row["core"], row["plot"], row["live"]) == (core, plot, live):
            here: Mapping[str, Any] = row
            return here
    return None


def _microseconds(row: Mapping[str, Any]) -> float:
    return 1e6 * float(statistics.median(row["counted"]))


def plot(found: Mapping[str, Any], directory: Path) -> list[str]:
    """Draw the plots over many sizes; the names of the files."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    names = []
    for name, (title, unit, published, _) in _PLOTS.items():
        figure, axes = plt.subplots(figsize=(6, 4))
        drawn = 0
        for core, marker in zip(CORES, "os", strict=True):
            points = [
                (row["segments"] or row["live"], _microseconds(row))
                for row in found["rows"]
                if (row["core"], row["plot"]) == (core, name)
            ]
            drawn = max(drawn, len(points))
            axes.plot(*zip(*points, strict=True), marker=marker, label=f"memplat, {core} core")
        if published:
            axes.plot(
                list(published),
                list(published.values()),
                "k--",
                marker="^",
                label="gVisor today (Go), measured elsewhere\non the same kind of machine",
            )
        if drawn > 1:
            axes.set(xscale="log", yscale="log", xlabel="live segments", ylabel=f"microseconds a {unit}", title=title)
            axes.grid(visible=True, which="both", alpha=0.3)
            axes.legend(fontsize=8)
            names.append(f"{name.lower().replace(' ', '-')}.svg")
            figure.savefig(directory / names[-1], bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return names


def page(found: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The page as Markdown."""
    noisy = [row for row in found["rows"] if not row["is_quiet"]]
    warning = f", in {len(noisy)} of {len(found['rows'])} cells (marked *noisy*)" if noisy else ", in no cell here"
    counted = sum(len(row["counted"]) for row in found["rows"] if row["is_quiet"])
    done = sum(len(row["seconds"]) for row in found["rows"])
    head = f"""# Both cores

Generated by `python -m benchmarks.cores --markdown`; do not edit. {found["when"]}.

Medians of at least {found["runs"]} runs, the least and the most in brackets, each row and core in a fresh process,
warmed up until the steady state. Neighbours never have the same owner, so that merging cannot collapse the segments;
they were counted at the end. *Calibrator*: one `getppid` (W6: one slice of a memoryview; W2: one memset of 64 KiB; W5:
one punch of a page), right before and after each run; where the figures of Go come from, a `getppid` took
{CALIBRATORS["getppid"] * 1e9:.0f} ns.

Quiet runs count, as with the figures of Go: those whose calibrator took at most {_QUIET - 1:.0%} more than the quietest
({counted} of {done} runs). Where too few were quiet, all count{warning}.

The figures of Go are those of today's gVisor, **measured elsewhere on the same kind of machine** (2 shared cores, Linux
6.18).

Load average meanwhile: {min(found["load"]):.1f} to {max(found["load"]):.1f} on {os.cpu_count()} processors.

| workload | live | segments | Python core | compiled core | factor | calibrator | target | gVisor |
|---|---|---|---|---|---|---|---|---|"""
    lines = [head]
    for name, (title, unit, published, targets) in _PLOTS.items():
        for live in sorted({row["live"] for row in found["rows"] if row["plot"] == name}):
            python, native = (_row_of(found, core, name, live) for core in CORES)
            if python is None or native is None:
                continue
            calibrator = statistics.median(native["beside"]) * 1e9
            target = f"{targets[live]} us" if live in targets else ""
            go = f"{published[live]} us" if live in published else ""
            lines.append(
                f"| {title}, a {unit} | {live:,} | {native['segments'] or live:,} | {_cell(python, 2)} "
                f"| {_cell(native, 3)} | {_microseconds(python) / _microseconds(native):.0f} "
                f"| {calibrator:.0f} ns | {target} | {go} |"
            )
    lines.append("")
    lines += [f"![{name.removesuffix('.svg')}: time against live segments, log-log](plots/{name})" for name in plots]
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], digits: int) -> str:
    least, most = (bound(row["counted"]) * 1e6 for bound in (min, max))
    noisy = "" if row["is_quiet"] else ", *noisy*"
    return f"{_microseconds(row):.{digits}f} us ({least:.{digits}f} to {most:.{digits}f}{noisy})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=_SIZES)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4, help="for what has too few quiet runs")
    parser.add_argument("--only", metavar="W1,...", default=",".join(_PLOTS), help="these workloads")
    parser.add_argument("--add", type=Path, nargs="*", default=(), help="--json files with what is not measured now")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", type=Path, dest="source", help="report a --json file, measure nothing")
    parser.add_argument("--markdown", type=Path, nargs="?", const=Path("docs/cores.md"))
    chosen = parser.parse_args(arguments)
    if chosen.source:
        found = json.loads(chosen.source.read_text())
    else:
        found = measure(
            [int(size) for size in chosen.sizes.split(",")], chosen.runs, chosen.rounds, chosen.only.split(",")
        )
    for file in chosen.add:
        other = json.loads(file.read_text())
        measured = {row["plot"] for row in found["rows"]}
        found["rows"] += [row for row in other["rows"] if row["plot"] not in measured]
        found["load"] += other["load"]
    if chosen.json:
        chosen.json.write_text(json.dumps(found))
    choose_runs(found)
    names = plot(found, chosen.markdown.parent / "plots") if chosen.markdown else []
    text = page(found, names)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
