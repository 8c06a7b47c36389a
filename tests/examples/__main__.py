"""Write docs/sandbox-matrix.md: ``python -m tests.examples``, as root on a host that has everything.

Cells that were run are kept in a file beside the build, and not run again while the sources are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.examples import matrix
from tests.examples.matrix import BACKENDS, ENGINES, MEGABYTE, PROGRAMS, SIZES, Cell

_ROOT = Path(__file__).parents[2]
_KEPT = _ROOT / "build" / "sandbox-matrix.json"


def _sources() -> str:
    """What a cell depends on."""
    found = hashlib.sha256()
    for directory in ("memplat", "examples/sandbox", "tests/examples"):
        for path in sorted((_ROOT / directory).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def _load(sources: str) -> dict[tuple[str, str, int, str], Cell]:
    try:
        kept = json.loads(_KEPT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if kept["sources"] != sources:
        return {}
    return {(backend, engine, size, program): Cell(*cell) for backend, engine, size, program, cell in kept["cells"]}


def _keep(sources: str, cells: matrix.Cells) -> None:
    _KEPT.parent.mkdir(exist_ok=True)
    rows = [[*place, list(cell)] for place, cell in cells.items()]
    _KEPT.write_text(json.dumps({"sources": sources, "cells": rows}), encoding="utf-8")


def _run_missing(cells: dict[tuple[str, str, int, str], Cell], until: float, scratch: Path) -> list[str]:
    """Run what is not there yet; what was wrong."""
    wrong = []
    texts = {size: matrix.make_text(scratch / f"text{size}", size * MEGABYTE) for size in SIZES}
    for backend in BACKENDS:
        places = [(backend, engine, size, program) for engine in ENGINES for size in SIZES for program in PROGRAMS]
        missing = [place for place in places if place not in cells]
        if not missing or time.monotonic() > until:
            continue
        with matrix.on_backend(backend) as config:
            for place in missing:
                if time.monotonic() > until:
                    break
                _, engine, size, program = place
                try:
                    cells[place] = matrix.run_cell(config, engine, program, texts[size])
                except AssertionError as error:
                    wrong.append(f"{place}: {error}")
    return wrong


def main() -> int:
    """Run all cells, and write the page if none is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.examples", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1e9, help="end after so many, and go on the next time")
    options = parser.parse_args()
    sources = _sources()
    cells = _load(sources)
    try:
        with tempfile.TemporaryDirectory(prefix="memplat-") as scratch:
            wrong = _run_missing(cells, time.monotonic() + options.seconds, Path(scratch))
    except pytest.skip.Exception as reason:
        print(f"nothing was written: {reason}", file=sys.stderr)
        return 1
    finally:
        _keep(sources, cells)
    if wrong:
        print("nothing was written; these cells are wrong:", *wrong, sep="\n", file=sys.stderr)
        return 1
    whole = len(BACKENDS) * len(ENGINES) * len(SIZES) * len(PROGRAMS)
    if len(cells) < whole:
        print(f"{len(cells)} of {whole} cells were run; once more for the others")
        return 0
    matrix.PAGE.write_text(matrix.as_text(cells), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
