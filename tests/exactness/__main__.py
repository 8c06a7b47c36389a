"""Write docs/exactness.md: ``python -m tests.exactness``, as root on a host that has everything."""

from __future__ import annotations

import contextlib
import sys

import pytest

from tests.exactness.hosts import HOSTS
from tests.exactness.matrix import IMPOSSIBLE, TABLE, as_text, run_cell
from tests.exactness.ways import WAYS
from tests.hostparts import MIB, swap_file


def main() -> int:
    """Run all cells, and write the table if none is wrong."""
    cells: dict[tuple[str, str], str] = {}
    wrong = []
    try:
        with swap_file(64 * MIB):
            for host_name, row in HOSTS.items():
                with row() as host:
                    for way in WAYS:
                        cells[host_name, way] = "?"
                        if (host_name, way) not in IMPOSSIBLE:
                            with contextlib.suppress(AssertionError):
                                cells[host_name, way] = run_cell(host, way)
                            if cells[host_name, way] != "=":
                                wrong.append(f"{host_name}, {way}")
    except pytest.skip.Exception as reason:
        print(f"nothing was written: {reason}", file=sys.stderr)
        return 1
    if wrong:
        print(f"nothing was written; these cells are wrong: {'; '.join(wrong)}", file=sys.stderr)
        return 1
    TABLE.write_text(as_text(cells), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
