"""C: the calibrators themselves, all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from benchmarks.calibrators import MEANINGS, Calibrators
from benchmarks.harness import Case

TITLE: Final = "Calibrators"
NOTE: Final = (
    "What the host itself takes, here and where the published figures of the Go allocators were measured; the last "
    "three are what a Python user would take instead of memplat. Unless it says Python: timed in C where there is a "
    "compiler."
)


class Calibration(Case):
    """One calibrator."""

    unit = "step"

    def __init__(self, name: str) -> None:
        self.name = self.calibrator = name

    def set_up(self, stack: ExitStack) -> None:
        self._calibrators = stack.enter_context(Calibrators())

    def measure(self) -> Mapping[str, float]:
        return {"": self._calibrators.measure(self.name)}


def cases(size: str) -> list[Case]:
    """Every calibrator; a test leaves the slow one out."""
    return [Calibration(name) for name in MEANINGS if size != "tiny" or name != "SEEK_DATA walk"]
