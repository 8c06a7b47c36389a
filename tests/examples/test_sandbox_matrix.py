"""A part of docs/sandbox-matrix.md is run each time; the rest by ``python -m tests.examples``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples import matrix
from tests.examples.matrix import BACKENDS, ENGINES, MEGABYTE, PAGE, PROGRAMS, SIZES
from tests.needs import needs
from tools.check_skips import has_busybox


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    if not has_busybox():
        needs("busybox", "there is no static /usr/bin/busybox")
    directory = tmp_path_factory.mktemp("read")
    return {size: matrix.make_text(directory / f"text{size}", size * MEGABYTE) for size in (1, 20)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_give_the_hosts_own_results_and_leave_nothing(
    backend: str, engine: str, texts: dict[int, Path]
) -> None:
    """All of them on memfd; elsewhere the one with the most memory, and the one with the most work."""
    with matrix.on_backend(backend) as config:
        for program in PROGRAMS if backend == "memfd" else ("sort", "gzip -c"):
            assert matrix.run_cell(config, engine, program, texts[1]).looks >= 60


def test_twenty_megabytes_are_no_different(texts: dict[int, Path]) -> None:
    with matrix.on_backend("memfd") as config:
        cell = matrix.run_cell(config, "kvm", "gzip -c", texts[20])
    assert cell.peak > 20 * MEGABYTE
    assert cell.looks >= 100


def test_the_page_has_every_cell() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(matrix.INTRODUCTION)
    heads = [line for line in text.splitlines() if line.startswith("| program |")]
    assert len(heads) == 2 * len(ENGINES)
    assert all(line.endswith(f"| {' | '.join(BACKENDS)} |") for line in heads)
    for program in PROGRAMS:
        for size in SIZES:
            rows = [line for line in text.splitlines() if line.startswith(f"| {program} | {size} |")]
            assert len(rows) == len(heads)
            assert all(len(row.split(" | ")) == 3 + len(BACKENDS) for row in rows)


def test_a_memory_that_tells_too_little_or_a_wrong_result_fails_its_cell(
    texts: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the tests."""

    class Forgetful(matrix.Looks):
        def _blocks(self) -> int:
            return super()._blocks() + 4096

    with matrix.on_backend("memfd") as config:
        monkeypatch.setattr(matrix, "on_host", lambda command: b"another result")
        with pytest.raises(AssertionError, match="not what the host makes of it"):
            matrix.run_cell(config, "kvm", "wc", texts[1])
        monkeypatch.setattr(matrix, "Looks", Forgetful)
        with pytest.raises(AssertionError, match="instead of"):
            matrix.run_cell(config, "kvm", "wc", texts[1])
