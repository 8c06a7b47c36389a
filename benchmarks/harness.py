"""Running workloads side by side with their calibrators, in one process.

Why not pyperf or pytest-benchmark: both time one function in isolation. Here a figure only means something beside the
host's own, taken in the same moment of the same process; some work is done by another thread and ends later than the
call that caused it; and a timed part needs untimed work before each run (a gigabyte to touch, a new memory).

Each run measures every case once, in changing order, with the case's calibrator right before and right after it; so a
machine that becomes slower or faster slows both, and the ratio stays. One run more, at the beginning, is not counted
(or several).
The garbage collector stays on, as it is for users; what the set-up made is taken out of its sight (``gc.freeze``).
"""

from __future__ import annotations

import abc
import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, Protocol

import attrs

from benchmarks.calibrators import Calibrators

#: The sizes that every group knows: for the published figures, for a look, for tests.
SIZES: Final = ("full", "quick", "tiny")

#: Runs that are counted; medians of less than five mean little.
RUNS: Final[Mapping[str, int]] = {"full": 7, "quick": 5, "tiny": 2}


class Case(abc.ABC):
    """One line of a table: something that is prepared, timed and cleaned up, run after run.

    :ivar name: what distinguishes it within its group
    :ivar unit: what the seconds are for: a pair, a page, a scan
    :ivar calibrator: what it is compared with
    :ivar least_segments: the live segments that the name promises; checked at the end
    """

    name: str
    unit: str
    calibrator: str = "getppid"
    least_segments: int = 0

    def set_up(self, stack: ExitStack) -> None:  # noqa: B027 -- nothing to do is a usual case
        """Untimed work once, before all runs; *stack* closes at the end what it opens."""

    def prepare(self) -> None:  # noqa: B027 -- as set_up
        """Untimed work before each run."""

    @abc.abstractmethod
    def measure(self) -> Mapping[str, float]:
        """Seconds a unit; the main figure is named ``""``, others say what they include or leave out."""

    def finish(self) -> None:  # noqa: B027 -- as set_up
        """Untimed work after each run."""

    def unit_of(self, figure: str) -> str:  # noqa: ARG002 -- most cases have one unit
        """What the seconds of one of the figures are for."""
        return self.unit

    def segments(self) -> int:
        """The segments that were live; asked once, after the last run."""
        return 0


class Group(Protocol):
    """A module with the cases of one workload."""

    TITLE: str
    NOTE: str

    def cases(self, size: str) -> Sequence[Case]:
        """The cases at one of :data:`SIZES`, not yet set up."""


def times_more(group: Group) -> int:
    """How many times as many runs as others a group needs: its ``TIMES``, if it has one."""
    found: int = getattr(group, "TIMES", 1)
    return found


@attrs.frozen
class Row:
    """What was measured of one figure of one case."""

    group: str
    case: str
    figure: str
    """What it includes or leaves out; empty for the main figure."""
    unit: str
    seconds: tuple[float, ...]
    """For one unit, run by run."""
    calibrator: str
    calibrations: tuple[float, ...]
    """Seconds for one step of the calibrator, run by run: the mean of before and after."""
    segments: int

    @property
    def median(self) -> float:
        """The median of the runs, in seconds."""
        return statistics.median(self.seconds)

    @property
    def calibration(self) -> float:
        """The median of the calibrator, in seconds."""
        return statistics.median(self.calibrations)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The figure in steps of the calibrator, run by run."""
        return tuple(mine / host for mine, host in zip(self.seconds, self.calibrations, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)


class BenchmarkError(Exception):
    """A benchmark did not do what its figures would claim."""


def check(holds: bool, otherwise: str) -> None:
    """Refuse figures that would not mean what they say.

    :raises BenchmarkError: unless it holds
    """
    if not holds:
        raise BenchmarkError(otherwise)


def run_group(
    name: str,
    group: Group,
    size: str,
    runs: int,
    tell: Callable[[str], None] = lambda _: None,
    *,
    warm_ups: int = 1,
) -> list[Row]:
    """Measure a group.

    :param warm_ups: runs at the beginning that are not counted
    :raises BenchmarkError: if a case turns out not to be what it says
    """
    with ExitStack() as stack:
        calibrators = stack.enter_context(Calibrators())
        tell(f"{name}: setting up")
        cases = group.cases(size)
        for case in cases:
            case.set_up(stack)
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        samples: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for run in range(-warm_ups, runs):
            tell(f"{name}: run {run + 1} of {runs}" if run >= 0 else f"{name}: warming up")
            for turn in range(len(cases)):
                index = (turn + run) % len(cases)
                for figure, seconds, calibration in _run_case(cases[index], calibrators):
                    if run >= 0:
                        samples.setdefault((index, figure), []).append((seconds, calibration))
        return [
            _row(name, cases[index], figure, pairs, _segments(cases[index]))
            for (index, figure), pairs in sorted(samples.items(), key=lambda item: item[0])
        ]


def _run_case(case: Case, calibrators: Calibrators) -> list[tuple[str, float, float]]:
    case.prepare()
    before = calibrators.measure(case.calibrator)
    figures = case.measure()
    after = calibrators.measure(case.calibrator)
    case.finish()
    return [(figure, seconds, (before + after) / 2) for figure, seconds in figures.items()]


def _segments(case: Case) -> int:
    if not case.least_segments:
        return 0
    found = case.segments()
    check(
        found >= case.least_segments,
        f"{case.name}: {found} live segments, fewer than the {case.least_segments} promised",
    )
    return found


def _row(group: str, case: Case, figure: str, pairs: Sequence[tuple[float, float]], segments: int) -> Row:
    return Row(
        group=group,
        case=case.name,
        figure=figure,
        unit=case.unit_of(figure),
        seconds=tuple(seconds for seconds, _ in pairs),
        calibrator=case.calibrator,
        calibrations=tuple(calibration for _, calibration in pairs),
        segments=segments,
    )
