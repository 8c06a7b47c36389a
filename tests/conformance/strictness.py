"""Our own backends get no free passes: what a check may leave out is written down for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest

from memplat.conformance import BackendConformance
from memplat.conformance.report import Result
from memplat.types import Capability
from tests.needs import needs

#: The tests of the checks that have pages swapped out. One that is forgotten here is a skip that fails CI.
_SWAPPING = ("test_probe_06", "test_zero_04")


class StrictConformance(BackendConformance):
    """A check that is not applicable passes if that was foreseen, and fails if not. Lack of swap is the host's."""

    undeclared: ClassVar[frozenset[Capability]] = frozenset()
    """The capabilities that the backend does not have."""
    foreseen: ClassVar[Mapping[str, str]] = {}
    """Checks that say nothing here, each with a part of the reason."""

    @pytest.fixture(autouse=True)
    def swap_is_there(self, request: pytest.FixtureRequest) -> None:
        """Swap, for the checks that use it."""
        if request.function.__name__.startswith(_SWAPPING):
            request.getfixturevalue("little_swap")

    def conformance_not_applicable(self, result: Result) -> None:
        one = result.check
        if one.needs in self.undeclared and result.message == f"{one.needs} is not declared":
            return
        if one.needs in self.without and result.message == f"{one.needs} is switched off by the options":
            return
        if result.message.startswith("needs swap: "):
            needs("swap", result.message.removeprefix("needs swap: "))
        reason = self.foreseen.get(one.id)
        assert reason is not None, f"{one.id} was left out, and nobody has foreseen that: {result.message}"
        assert reason in result.message, f"{one.id} was left out for another reason than {reason!r}: {result.message}"
