"""The way in for authors of backends: a class whose tests are the checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pytest

from memplat.conformance.registry import Check, all_checks
from memplat.conformance.report import Result, Status
from memplat.conformance.sessions import Session, session_of
from memplat.conformance.subject import Subject
from memplat.types import Capability


class BackendConformance:
    """Inherit from it, and say which backend::

        class TestMine(BackendConformance):
            backend = "mine"
            options = {"directory": "/dev/shm"}

    Every check is a test. Those of the smoke tier run first; where one fails the others are not run.
    """

    backend: ClassVar[object] = None
    """The name of the backend, or the plugin itself: a module, an object, a class."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Its options."""
    without: ClassVar[Collection[Capability | str]] = ()
    """Capabilities that the backend declares and that these options switch off."""
    title: ClassVar[str] = ""
    """What to call it in reports; the backend's name unless it is given."""

    __test__ = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make it a class of tests, unless it is an intermediate one that names no backend."""
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.backend is not None
        if not cls.__test__ and cls.__name__.startswith("Test"):
            raise TypeError(f'{cls.__name__} does not say which backend it tests: add backend = "mine"')

    @pytest.fixture
    def conformance_options(self) -> Mapping[str, Any]:
        """The options: override it where they come from other fixtures. What the first test gets counts for all."""
        return self.options

    @pytest.fixture
    def conformance_session(self, request: pytest.FixtureRequest, conformance_options: Mapping[str, Any]) -> Session:
        """The results of this class so far."""
        cls = type(self)
        return session_of(
            cls, lambda: Subject(cls.backend, conformance_options, cls.title, without=cls.without), request.config
        )

    def conformance_not_applicable(self, result: Result) -> None:
        """A check says nothing about this backend, here: the test is skipped. Override it to be stricter: to fail where
        the host has to offer what the check needs, or to let pass what cannot be otherwise.
        """
        pytest.skip(f"{result.check.id} {result.message}")


def _test_of(one: Check) -> Any:
    def test(self: BackendConformance, conformance_session: Session) -> None:
        __tracebackhide__ = True
        result = conformance_session.result(one)
        if result.status is Status.NOT_APPLICABLE:
            self.conformance_not_applicable(result)
        elif result.status is not Status.PASSED:
            _tell(result, conformance_session)

    test.__name__ = one.test_name
    test.__qualname__ = f"{BackendConformance.__name__}.{one.test_name}"
    test.__doc__ = f"{one.sentence}. To mend: {one.mend}"
    return test


def _tell(result: Result, session: Session) -> None:
    __tracebackhide__ = True
    one = result.check
    if result.status is Status.FAILED:
        cause = f" (follows from {result.follows}: mend that first)" if result.follows else ""
        pytest.fail(
            f"{one.id} {one.sentence}{cause}\n\n{result.message}\n\nto mend (rule {one.rule}): {one.mend}",
            pytrace=False,
        )
    if not session.smoke_was_shown:
        pytest.fail(f"{one.id} {result.message}\n\n{session.smoke_failures()}", pytrace=False)
    pytest.skip(f"{one.id} {result.message}")


def _add_tests() -> None:
    # In the order in which they are run: pytest keeps that of the definitions.
    for one in all_checks():
        setattr(BackendConformance, one.test_name, _test_of(one))


_add_tests()

__all__ = ["BackendConformance"]
