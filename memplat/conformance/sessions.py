"""The runs of a pytest session: each backend's results, and the smoke tier before everything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from memplat.conformance.registry import Check, all_checks
from memplat.conformance.report import Report, Result, Status
from memplat.conformance.runner import Runner, explain, roots_of_smoke
from memplat.conformance.subject import Subject

if TYPE_CHECKING:
    import pytest


class Session:
    """One backend in one pytest session. Runs each check once, and the smoke tier before any other.

    :ivar smoke_was_shown: whether a failure of the smoke tier is in pytest's report already
    """

    def __init__(self, subject: Subject) -> None:
        self._runner = Runner(subject)
        self._results: dict[str, Result] = {}
        self._asked: dict[str, None] = {}
        self._started = time.monotonic()
        self.smoke_was_shown = False

    def result(self, one: Check) -> Result:
        """The result of a check; it is run unless it was before."""
        self._asked[one.id] = None
        if not one.smoke:
            for first in all_checks():
                if first.smoke:
                    self._run(first)
            if broken := roots_of_smoke(list(self._results.values())):
                self._results[one.id] = self._runner.hold_back(one, broken)
                return self._results[one.id]
        if self._run(one).status is Status.FAILED:
            self.smoke_was_shown = self.smoke_was_shown or one.smoke
            for cause in all_checks():  # what explains it, also where pytest was told to run this test only
                if cause.id in one.after or cause.forms:
                    self._run(cause)
        return next(result for result in explain(list(self._results.values())) if result.check.id == one.id)

    def smoke_failures(self) -> str:
        """What failed in the smoke tier, and what to mend."""
        failed = [self._results[check.id] for check in roots_of_smoke(list(self._results.values()))]
        return "\n".join(f"{one.check.id} {one.check.sentence}: {one.message}\n{one.check.mend}" for one in failed)

    def report(self) -> Report:
        """What has come of the tests that pytest has run."""
        asked = [self._results[name] for name in self._asked if name in self._results]
        return self._runner.report(asked, time.monotonic() - self._started)

    def close(self) -> None:
        """End the other process."""
        self._runner.close()

    def _run(self, one: Check) -> Result:
        if one.id not in self._results:
            self._results[one.id] = self._runner.check(one)
        return self._results[one.id]


#: The sessions of the pytest run, by the class whose tests they belong to.
_sessions: dict[type, Session] = {}


def session_of(cls: type, make_subject: Callable[[], Subject], config: pytest.Config) -> Session:
    """The session of a class of tests."""
    if cls not in _sessions:
        _sessions[cls] = Session(make_subject())
        config.add_cleanup(lambda: _end(cls))
    return _sessions[cls]


def reports() -> list[Report]:
    """One report a class that has run."""
    return [session.report() for session in _sessions.values()]


def _end(cls: type) -> None:
    session = _sessions.pop(cls, None)
    if session is not None:
        session.close()


__all__ = ["Session", "reports", "session_of"]
