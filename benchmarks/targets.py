"""What the figures have to reach, on a quiet machine with two shared cores of today's servers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import attrs

from benchmarks.harness import Row


@attrs.frozen
class Target:
    """An upper limit of a figure's median; of seconds, or of what it is relative to another case."""

    group: str
    case: str
    limit: float
    relative_to: str = ""
    """A case of the same group; then *limit* is the greatest quotient."""

    def __str__(self) -> str:
        if self.relative_to:
            return f"{self.group} {self.case}: at most {self.limit:g} times {self.relative_to}"
        return f"{self.group} {self.case}: at most {self.limit * 1e6:g} us"


@attrs.frozen
class Verdict:
    """What became of a target."""

    target: Target
    measured: float
    """Seconds, or the quotient."""

    @property
    def is_met(self) -> bool:
        """Whether the limit was kept."""
        return self.measured <= self.target.limit

    def __str__(self) -> str:
        measured = f"{self.measured:.2f} times" if self.target.relative_to else f"{self.measured * 1e6:.4g} us"
        return f"{'pass' if self.is_met else 'FAIL'}  {self.target} -- {measured}"


TARGETS: Final = (
    Target("W1", "1,000 live", 20e-6),
    Target("W1", "1,000,000 live", 40e-6),  # twice the limit at 1,000; and the stricter reading: twice the figure
    Target("W1", "1,000,000 live", 2, relative_to="1,000 live"),
    Target("W2", "64 KiB recycled", 30e-6),
    Target("W3", "2 pages among 1,000,000 holes", 2, relative_to="2 pages among 1,000 holes"),
    Target("W3", "2 MiB aligned among 1,000,000 gaps", 2, relative_to="2 MiB aligned among 1,000 gaps"),
    # Three times what is asked of the compiled core, see below.
    Target("W4", "first scan, 65,536 one-page extents in 4,096 MiB", 30e-3),
    Target("W4", "one more page, 65,536 one-page extents in 4,096 MiB", 30e-3),
    Target("W4", "first scan, 1,024 MiB contiguous", 0.3e-3),
    Target("W4", "one page in 16,384 MiB", 0.06e-3),
    Target("W4", "nothing new", 7.5e-6),
    Target("W8", "ten threads poll, max_age=0.1", 1 / 0.9, relative_to="nobody polls"),  # less than 10% of throughput
    Target(
        "W8",
        "ten threads poll a thousand times a second together, max_age=0.1",
        1 / 0.9,
        relative_to="nobody polls",
    ),
    # What of the first one is not the interpreter's; and that exact polls share their scans, which breathe.
    Target("W8", "ten threads poll, max_age=0.1", 1 / 0.9, relative_to="ten threads wake up and ask nothing"),
    Target("W8", "ten threads poll, max_age=0", 1.25, relative_to="one thread polls, max_age=0"),
)


#: What is asked of the compiled core where it is stricter; the other targets are the same.
NATIVE_TARGETS: Final = (
    *(target for target in TARGETS if target.group != "W4"),
    Target("W4", "first scan, 65,536 one-page extents in 4,096 MiB", 10e-3),
    Target("W4", "one more page, 65,536 one-page extents in 4,096 MiB", 10e-3),
    Target("W4", "first scan, 1,024 MiB contiguous", 0.1e-3),
    Target("W4", "one page in 16,384 MiB", 0.02e-3),
    Target("W4", "nothing new", 2.5e-6),
)


def judge(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """The targets whose cases were measured."""
    found = {(row.group, row.case): row for row in rows if not row.figure}
    verdicts = []
    for target in targets:
        row = found.get((target.group, target.case))
        other = found.get((target.group, target.relative_to))
        if row is None or (target.relative_to and other is None):
            continue
        verdicts.append(Verdict(target, _quotient(row, other) if other else row.median))
    return verdicts


def _quotient(row: Row, other: Row) -> float:
    """The median of the quotients, run by run: each pair was measured at nearly the same time."""
    return statistics.median(mine / base for mine, base in zip(row.seconds, other.seconds, strict=True))
