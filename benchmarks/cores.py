"""Both cores side by side, from 1,000 to 1,000,000 live segments: a table, and plots of time against segments.

    python -m benchmarks.cores [--sizes 1000,10000,...] [--runs 5] [--markdown [FILE]] [--json FILE] [--from FILE]

What is measured is the steady state, in conditions like those of the figures of Go (fresh processes, a quiet machine):

- Each workload at each size with each core has a fresh process. In one process for all sizes, the larger ones found
  what the smaller ones had left of the heap, and shared the processor's caches with their live objects.
- It is warmed up until as many pairs are done as there are live allocations (W1), otherwise by one run. Until then the
  file grows, nodes of the tree split, and ranges lie in the order of the list.
- A run is long. 5,000 pairs take 2 ms, less than one turn at the GIL (5 ms), so the reclaimer fell into a run or not;
  and a good part of them was what the untimed work before a run had thrown out of the caches. Those of W7 stayed with
  5,000 segments, which were in the caches from the run before.

The page goes to docs/cores.md, the plots beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
        "getppid" if row.calibrator == "getppid" else "slice": row.calibrations,
    }


def _sizes_of(name: str, sizes: Sequence[int]) -> list[int]:
    if name in _FIXED:
        return [_FIXED[name]]
    if name == "W3 aligned":  # a million gaps would be a file of 4 TiB
        return [gaps for gaps in sizes if gaps <= _MOST_GAPS]
    return [*sizes]


def measure(sizes: Sequence[int], runs: int, only: Sequence[str] = (*_PLOTS,)) -> dict[str, Any]:
    """The figures, and how busy the machine was."""
    rows: list[dict[str, Any]] = []
    spawn = multiprocessing.get_context("spawn")
    load = [os.getloadavg()[0]]
    for name in only:
        for live, core in itertools.product(_sizes_of(name, sizes), CORES):
            print(f"{name}, {live:,}, {core}", file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                rows.append(pool.submit(_measure_one, core, name, live, runs).result())
        load.append(os.getloadavg()[0])
    return {"when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "runs": runs, "load": load, "rows": rows}


def _median(found: Mapping[str, Any], core: str, plot: str, live: int) -> Mapping[str, Any] | None:
    for row in found["rows"]:
        if (row["core"], row["plot"], row["live"]) == (core, plot, live):
            here: Mapping[str, Any] = row
            return here
    return None


def _microseconds(row: Mapping[str, Any] | None) -> float | None:
    return statistics.median(row["seconds"]) * 1e6 if row is not None else None


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
    slow = max(found["load"])
    quiet = "; **not quiet: preliminary**, the ratios say more than the microseconds" if slow > 1.5 else ""
    head = f"""# Both cores

Generated by `python -m benchmarks.cores --markdown`; do not edit. Medians of {found["runs"]} runs, {found["when"]},
each row with each core in a fresh process, warmed up until the steady state. Neighbours never have the same owner, so
that merging cannot collapse the segments; they were counted at the end. *Calibrator*: one `getppid` (W6: one slice of a
memoryview; W2: one memset of 64 KiB; W5: one punch of a page), right before and after each run; where the figures of Go
come from, a `getppid` took
{CALIBRATORS["getppid"] * 1e9:.0f} ns.

The figures of Go are those of today's gVisor, **measured elsewhere on the same kind of machine** (2 shared cores, Linux
6.18).

Load average while this was measured: {min(found["load"]):.1f} to {slow:.1f} on {os.cpu_count()} processors{quiet}.

| workload | live | segments | Python core | compiled core | factor | calibrator | target | gVisor |
|---|---|---|---|---|---|---|---|---|"""
    lines = [head]
    for name, (title, unit, published, targets) in _PLOTS.items():
        for live in sorted({row["live"] for row in found["rows"] if row["plot"] == name}):
            rows = [_median(found, core, name, live) for core in CORES]
            python, native = map(_microseconds, rows)
            if python is None or native is None or rows[1] is None:
                continue
            calibrator = statistics.median(rows[1].get("getppid") or rows[1]["slice"]) * 1e9
            target = f"{targets[live]} us" if live in targets else ""
            go = f"{published[live]} us" if live in published else ""
            segments = rows[1]["segments"] or live
            lines.append(
                f"| {title}, a {unit} | {live:,} | {segments:,} | {python:.2f} us | {native:.3f} us "
                f"| {python / native:.0f} | {calibrator:.0f} ns | {target} | {go} |"
            )
    lines.append("")
    lines += [f"![{name.removesuffix('.svg')}: time against live segments, log-log](plots/{name})" for name in plots]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=_SIZES)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", metavar="W1,...", default=",".join(_PLOTS), help="these workloads")
    parser.add_argument("--add", type=Path, nargs="*", default=(), help="--json files with what is not measured now")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", type=Path, dest="source", help="report a --json file, measure nothing")
    parser.add_argument("--markdown", type=Path, nargs="?", const=Path("docs/cores.md"))
    chosen = parser.parse_args(arguments)
    if chosen.source:
        found = json.loads(chosen.source.read_text())
    else:
        found = measure([int(size) for size in chosen.sizes.split(",")], chosen.runs, chosen.only.split(","))
    for file in chosen.add:
        other = json.loads(file.read_text())
        measured = {row["plot"] for row in found["rows"]}
        found["rows"] += [row for row in other["rows"] if row["plot"] not in measured]
        found["load"] += other["load"]
    if chosen.json:
        chosen.json.write_text(json.dumps(found))
    names = plot(found, chosen.markdown.parent / "plots") if chosen.markdown else []
    text = page(found, names)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
