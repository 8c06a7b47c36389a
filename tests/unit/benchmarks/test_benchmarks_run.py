"""The benchmarks at tiny sizes: they run, and what they say makes sense. How fast anything is, is not tested."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import command, published
from benchmarks.calibrators import MEANINGS, Calibrators
from benchmarks.cores import choose_runs, page
from benchmarks.groups import GROUPS
from benchmarks.harness import BenchmarkError, Case, Row, run_group
from benchmarks.report import Report, advantage, format_seconds, markdown, read_report, table
from benchmarks.targets import TARGETS, Target, judge

RUNS = 2


def row(case, *seconds, group="W1", calibrator="getppid", figure="", calibration=1e-7):
    return Row(group, case, figure, "pair", seconds, calibrator, tuple(calibration for _ in seconds), 0)


@pytest.mark.parametrize("name", GROUPS)
def test_every_workload_runs_at_a_tiny_size_and_reports_sane_numbers(name):
    rows = run_group(name, GROUPS[name], "tiny", RUNS)
    assert rows
    assert len({(found.case, found.figure) for found in rows}) == len(rows)
    for found in rows:
        assert found.group == name
        assert found.calibrator in MEANINGS
        assert len(found.seconds) == len(found.calibrations) == RUNS
        assert all(0 < seconds < 10 and math.isfinite(seconds) for seconds in (*found.seconds, *found.calibrations))
        assert min(found.seconds) <= found.median <= max(found.seconds)
        assert min(found.ratios) <= found.ratio <= max(found.ratios)
    including = {found.case: found for found in rows if found.figure == "and reclaimed"}
    for found in rows:
        if not found.figure and found.case in including:
            assert all(less <= more for less, more in zip(found.seconds, including[found.case].seconds, strict=True))


@pytest.mark.parametrize("name", MEANINGS)
def test_every_calibrator_takes_some_time_also_without_a_compiler(name, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with Calibrators() as found:
        assert found.through == "Python"
        assert 0 < found.measure(name) < 10


def test_every_published_figure_and_every_target_names_a_case_of_the_full_size():
    names = {(name, case.name) for name, group in GROUPS.items() for case in group.cases("full")}
    assert published.CASES.keys() <= names
    assert published.CALIBRATORS.keys() == MEANINGS.keys()
    for target in TARGETS:
        assert (target.group, target.case) in names
        assert not target.relative_to or (target.group, target.relative_to) in names


class TooFewSegments(Case):
    name = "a million live"
    unit = "pair"
    least_segments = 1_000_000

    def measure(self):
        return {"": 1.0}

    def segments(self):
        return 999_999


class OnlyThat:
    TITLE = NOTE = ""

    @staticmethod
    def cases(size):
        return [TooFewSegments()]


def test_a_case_with_fewer_segments_than_it_promises_is_refused():
    with pytest.raises(BenchmarkError, match="999999 live segments, fewer than the 1000000 promised"):
        run_group("W1", OnlyThat, "tiny", 1)


def test_a_target_is_judged_by_the_median():
    target = Target("W1", "x", 3e-6)
    assert judge([row("x", 9e-6, 2e-6, 3e-6)], [target])[0].is_met
    assert not judge([row("x", 9e-6, 2e-6, 4e-6)], [target])[0].is_met


def test_a_relative_target_is_judged_run_by_run():
    rows = [row("large", 2e-6, 40e-6, 4e-6), row("small", 1e-6, 20e-6, 2e-6)]
    assert judge(rows, [Target("W1", "large", 2, relative_to="small")])[0].measured == 2


def test_a_target_whose_case_was_not_measured_is_left_out():
    assert judge([row("x", 1e-6, figure="and reclaimed")], [Target("W1", "x", 1)]) == []
    assert judge([row("x", 1e-6)], [Target("W1", "x", 1, relative_to="y")]) == []


def test_the_comparison_with_go_goes_through_the_calibrators():
    # Twice as slow as published, on a host whose system calls take twice as long: as fast.
    known = published.CASES["W1", "1,000 live"].today
    assert known is not None
    slow = published.CALIBRATORS["getppid"] * 2
    assert advantage(row("1,000 live", known * 2, calibration=slow)) == pytest.approx(1)
    assert advantage(row("1,000 live", known * 2, calibration=slow, figure="and reclaimed")) is None
    assert advantage(row("nobody published this", 1.0)) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((1.5,), "1.50 s"),
        ((2e-6, 1.5e-6, 3e-6), "2.00 / **1.50** / 3.00 us"),
        ((0.041,), "41.0 ms"),
        ((5e-10,), "0.500 ns"),
    ],
)
def test_durations_are_written_in_the_unit_of_the_middle_one(seconds, text):
    assert format_seconds(*seconds) == text


def test_the_columns_of_a_table_are_aligned():
    assert table(("a", "long"), [("wide cell", "b")]).splitlines() == [
        "| a         | long |",
        "| --------- | ---- |",
        "| wide cell | b    |",
    ]


@pytest.fixture
def report():
    rows = row("1,000 live", 19e-6, 18e-6), row("1,000 live", 2e-5, 2e-5, figure="and reclaimed")
    return Report({"python": "CPython"}, rows)


def test_a_report_survives_json(report, tmp_path):
    file = tmp_path / "report.json"
    file.write_text(report.to_json())
    assert read_report(file) == report


def test_the_page_says_what_was_measured_where_and_where_go_is_faster(report):
    page = markdown(report)
    assert "measured elsewhere" in page
    assert "CPython" in page
    assert "- W1, 1,000 live: 27.3 times" in page
    assert "pass  W1 1,000 live: at most 20 us -- 18.5 us" in page


def test_the_command_measures_each_group_in_a_process_of_its_own_and_writes_what_was_asked_for(tmp_path):
    data, page = tmp_path / "out.json", tmp_path / "page.md"
    run = (sys.executable, "-m", "benchmarks", "--only", "w6", "--quick", "--runs", "1")
    root = Path(command.__file__).parents[1]
    done = subprocess.run(
        [*run, "--json", data, "--markdown", page], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {found["case"] for found in json.loads(data.read_text())["rows"]} == {"unpinned", "pinned"}
    assert "## W6" in page.read_text()
    assert "## W6" in done.stdout


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_only_strict_makes_a_missed_target_a_failure(options, status, tmp_path, capsys):
    data = tmp_path / "slow.json"
    data.write_text(Report({}, (row("1,000 live", 1.0),)).to_json())
    assert command.main(["--from", str(data), *options]) == status
    assert "FAIL  W1 1,000 live" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--only", "W9"], "there is no W9; allowed are C, W1"), (["--runs", "0"], "0 is no number of runs")],
)
def test_an_impossible_wish_is_refused_with_what_is_allowed(arguments, told, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert told in capsys.readouterr().err


def cell(core, seconds, calibrations):
    found = {"core": core, "plot": "W1", "live": 1_000, "segments": 1_500, "calibrator": "getppid"}
    return found | {"seconds": seconds, "calibrations": calibrations}


def test_runs_with_a_slow_calibrator_do_not_count_unless_too_few_are_left():
    quiet = cell("python", [5e-6, 1e-6, 7e-6, 2e-6], [100e-9, 130e-9, 107e-9, 109e-9])
    noisy = cell("native", [9e-6, 1e-6], [130e-9, 100e-9])
    found = {"runs": 2, "when": "now", "load": [0.5], "rows": [quiet, noisy]}
    choose_runs(found)
    assert (quiet["counted"], quiet["beside"], quiet["is_quiet"]) == ((5e-6, 7e-6), (100e-9, 107e-9), True)
    assert (noisy["counted"], noisy["is_quiet"]) == ((9e-6, 1e-6), False)
    text = page(found, [])
    assert "| 6.00 us (5.00 to 7.00) | 5.000 us (1.000 to 9.000, *noisy*) | 1 | 115 ns |" in text
    assert "(2 of 6 runs)" in text
    assert "in 1 of 2 cells" in text
