"""Runs checks, each in a child process of its own: a crash, a hang or a leak in one is no other one's concern."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self

import attrs

from memplat.conformance.case import Case
from memplat.conformance.others import Peer, run_in_child
from memplat.conformance.registry import Check, all_checks
from memplat.conformance.report import Report, Result, Status
from memplat.conformance.subject import Subject
from memplat.conformance.verdict import CheckFailedError, NotApplicableError
from memplat.errors import BackendUnavailableError, MemplatError, PluginError
from memplat.types import CONTRACT_LEVEL, Capability

#: How much of a traceback says where an unexpected exception comes from.
_FRAMES: Final = 4
_SCOUT_SECONDS: Final = 30.0


@attrs.frozen
class Verdict:
    """What one run of a check came to."""

    status: Status
    message: str = ""
    hook: str | None = None
    """The hook that the engine found to break the contract."""


class Runner:
    """Runs the suite on one backend. Use as a context manager: it keeps another process."""

    def __init__(self, subject: Subject, *, isolated: bool = True) -> None:
        self._subject = subject
        self._isolated = isolated
        self._peer = Peer()
        self._page_size: int | None = None
        self._verdicts: dict[str, Verdict] = {}
        self._scouted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """End the other process; idempotent."""
        self._peer.stop()

    def run(
        self,
        checks: Iterable[Check] | None = None,
        *,
        gated: bool = True,
        tell: Callable[[Result], None] | None = None,
    ) -> Report:
        """Run *checks*, all of them by default.

        :param gated: whether a failure of the smoke tier keeps the rest from being run
        :param tell: is called with each result as it comes; what it follows from is known only at the end
        """
        started = time.monotonic()
        chosen = tuple(all_checks() if checks is None else checks)
        results: list[Result] = []
        for one in chosen:
            broken = [] if one.smoke else roots_of_smoke(results)
            result = self.hold_back(one, broken) if gated and broken else self.check(one)
            results.append(result)
            if tell is not None:
                tell(result)
        return self.report(results, time.monotonic() - started)

    def check(self, one: Check) -> Result:
        """Run one check."""
        started = time.monotonic()
        declared = self._declared()
        undeclared = one.needs is not None and declared is not None and one.needs not in declared
        level = self._level()
        if one.since > level:
            why = f"required since contract level {one.since}, and the backend was built for level {level}"
            return Result(one, Status.NOT_APPLICABLE, why)
        verdict = self._run(one)
        self._verdicts[one.id] = verdict
        seconds = time.monotonic() - started
        if undeclared:
            works = None if verdict.status is Status.NOT_APPLICABLE else verdict.status is Status.PASSED
            return Result(one, Status.NOT_APPLICABLE, self._why_not(one), seconds=seconds, works=works)
        return Result(one, verdict.status, verdict.message, hook=verdict.hook, seconds=seconds)

    # -- one check ----------------------------------------------------------------------------------------------------

    def _run(self, one: Check) -> Verdict:
        self._scout()
        if not self._isolated:
            return self._judge(one)
        self._peer.start()
        result = run_in_child(lambda: self._judge(one), one.seconds)
        if result.error:
            self._peer.stop()  # it may wait for the rest of a request
            return Verdict(Status.FAILED, result.error)
        verdict: Verdict = result.value
        return verdict

    def _judge(self, one: Check) -> Verdict:
        if self._isolated:
            logging.disable()  # what the engine warns of here is what the checks provoke
        case = Case(self._subject, self._peer, self._page_size)
        try:
            verdict = self._call(one, case)
            if verdict.status is Status.FAILED and (state := case.describe()):
                verdict = attrs.evolve(verdict, message=f"{verdict.message}\n{state}")
        finally:
            closing = self._close(case)
        return closing if closing is not None and verdict.status is Status.PASSED else verdict

    def _call(self, one: Check, case: Case) -> Verdict:
        try:
            one.function(case)
        except NotApplicableError as reason:
            return Verdict(Status.NOT_APPLICABLE, str(reason))
        except CheckFailedError as failure:
            return Verdict(Status.FAILED, str(failure))
        except BackendUnavailableError as error:
            return Verdict(Status.FAILED, str(error), _hook_of(error))
        except MemplatError as error:
            return Verdict(Status.FAILED, f"{type(error).__name__}: {error}{_origin(error)}", _hook_of(error))
        except Exception as error:  # noqa: BLE001 -- whatever a stranger's hook raised
            return Verdict(Status.FAILED, f"unexpected {type(error).__name__}: {error}{_origin(error)}")
        return Verdict(Status.PASSED)

    def _close(self, case: Case) -> Verdict | None:
        try:
            case.close_all()
        except Exception as error:  # noqa: BLE001 -- as above
            return Verdict(Status.FAILED, f"closing failed: {type(error).__name__}: {error}{_origin(error)}")
        return None

    def _scout(self) -> None:
        """Find out the page size, once; where that fails the smoke tier will say why."""
        if self._scouted:
            return
        self._scouted = True
        if self._declared() is not None:
            scout = run_in_child(self._look, _SCOUT_SECONDS)
            self._page_size = scout.value

    def _look(self) -> int | None:
        try:
            with self._subject.open() as memory:
                return memory.page_size
        except Exception:  # noqa: BLE001 -- the smoke tier meets it again, and tells
            return None

    # -- what is known of the backend ---------------------------------------------------------------------------------

    def _declared(self) -> frozenset[Capability] | None:
        try:
            return self._subject.declared
        except MemplatError:
            return None

    def _level(self) -> int:
        try:
            return self._subject.info.contract_level
        except MemplatError:
            return CONTRACT_LEVEL

    def _why_not(self, one: Check) -> str:
        off = one.needs in self._subject.without
        return f"{one.needs} is {'switched off by the options' if off else 'not declared'}"

    def hold_back(self, one: Check, broken: Sequence[Check]) -> Result:
        """The result of a check that is not run, because the smoke tier failed."""
        why = f"not run, because {', '.join(check.id for check in broken)} failed: mend that first"
        return Result(one, Status.NOT_RUN, why)

    def report(self, results: Sequence[Result], seconds: float) -> Report:
        """The report on *results*."""
        try:
            info = self._subject.info
        except MemplatError:
            info = None
        return Report(self._subject.title, self._subject.name, info, explain(results), seconds, self._subject.without)


def explain(results: Sequence[Result]) -> tuple[Result, ...]:
    """The results, with each failure that another one explains saying so."""
    failed = {result.check.id: result for result in results if result.status is Status.FAILED}
    forms = {result.check.forms: result.check.id for result in failed.values() if result.check.forms}
    explained = []
    for result in results:
        cause = ""
        if result.status is Status.FAILED:
            named = [forms[result.hook]] if result.hook in forms else []
            causes = [check for check in (*named, *result.check.after) if check in failed and check != result.check.id]
            cause = causes[0] if causes else ""
        explained.append(attrs.evolve(result, follows=cause))
    return tuple(explained)


def roots_of_smoke(results: Sequence[Result]) -> list[Check]:
    """The failed checks of the smoke tier that no other one explains."""
    smoke = [result for result in explain(results) if result.check.smoke]
    return [result.check for result in smoke if result.status is Status.FAILED and not result.follows]


def _hook_of(error: BaseException | None) -> str | None:
    """The hook that a :class:`PluginError` among the causes of *error* names."""
    while error is not None:
        if isinstance(error, PluginError):
            return error.hook
        error = error.__cause__ or error.__context__
    return None


def _origin(error: BaseException) -> str:
    """The innermost frames."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames)


__all__ = ["Runner", "Verdict", "explain", "roots_of_smoke"]
