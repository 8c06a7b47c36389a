"""``python -m tests.meta.table``: run all checks on all broken backends, and write docs/conformance-table.md.

Takes some minutes. It fails, and writes nothing, if a backend fails a check that is unrelated to what is broken, or if
a check is failed by none of them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from memplat.conformance.registry import all_checks
from tests.meta import bench
from tests.meta.specimens import SPECIMENS

TABLE = Path(__file__).parents[2] / "docs" / "conformance-table.md"

_HEAD = """\
# The suite's own table

Every check of the conformance suite, and the deliberately broken backends (`tests/meta/specimens/`) that it fails.
Written by `python -m tests.meta.table`, which runs all checks on all of them. **Bold**: the check is named for what is
broken, and no other failure explains it. Plain: it fails, too, and the report says from which other check that follows.

| check | sentence | fails |
|---|---|---|
"""
_BROKEN = """
## The broken backends

| backend | what has to fail |
|---|---|
"""


class Finding(NamedTuple):
    """What came of one broken backend."""

    specimen: str
    roots: set[str]
    failed: list[tuple[str, bool]]
    """Each failed check, and whether another failure explains it."""
    told: str


def find(index: int) -> Finding:
    """Run all checks on a broken backend, given by its number: classes made at run time cannot be sent."""
    specimen = SPECIMENS[index]
    report = bench.run(specimen, broken=True, checks=list(all_checks()))
    failed = [(result.check.id, bool(result.follows)) for result in report.failures]
    return Finding(specimen.__name__, bench.roots(report), failed, bench.told(report))


def measure(processes: int) -> tuple[dict[str, list[str]], list[str]]:
    """For each check the backends that fail it, and what was not as it should be."""
    found: dict[str, list[str]] = defaultdict(list)
    problems = []
    fails = {specimen.__name__: set(specimen.fails) for specimen in SPECIMENS}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as executor:
        for name, roots, failed, told in executor.map(find, range(len(SPECIMENS))):
            if roots != fails[name]:
                problems.append(f"{name} should fail {fails[name]}, fails {roots}:\n{told}")
            for check, explained in failed:
                found[check].append(name if explained else f"**{name}**")
            print(f"{name}: {', '.join(sorted(roots))}", flush=True)
    problems += [f"no broken backend fails {check.id}" for check in all_checks() if check.id not in found]
    return found, problems


def render(found: dict[str, list[str]]) -> str:
    """The page."""
    checks = sorted(all_checks(), key=lambda check: tuple(map(int, check.rule.split("."))))
    rows = [
        f"| {check.id} | {check.sentence} | {', '.join(sorted(found[check.id], key=lambda name: name.strip('*')))} |"
        for check in checks
    ]
    broken = [f"| {specimen.__name__} | {', '.join(specimen.fails)} |" for specimen in SPECIMENS]
    return _HEAD + "\n".join(rows) + "\n" + _BROKEN + "\n".join(broken) + "\n"


def main() -> int:
    """Measure, and write if all is well."""
    found, problems = measure(len(os.sched_getaffinity(0)))
    if problems:
        print("\n".join(problems))
        return 1
    TABLE.write_text(render(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
