"""The way in for authors of backends: a class whose tests are the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from memplat.conformance.registry import Check, all_checks
from memplat.conformance.report import Result, Status
from memplat.conformance.sessions import Session, session_of


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
    title: ClassVar[str] = ""
    """What to call it in reports; the backend's name unless it is given."""

    __test__ = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make it a class of tests, unless it is an intermediate one that names no backend."""
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.backend is not None
        if not cls.__test__ and cls.__name__.startswith("Test"):
            raise TypeError(f'{cls.__name__} does not say which backend it tests: add backend = "mine"')

    @classmethod
    def conformance_options(cls) -> Mapping[str, Any]:
        """The options, asked for once before the first test: override it where they are known only then."""
        return cls.options

    @pytest.fixture
    def conformance_session(self, request: pytest.FixtureRequest) -> Session:
        """The results of this class so far."""
        cls = type(self)
        return session_of(cls, lambda: (cls.backend, cls.conformance_options(), cls.title), request.config)


def _test_of(one: Check) -> Any:
    def test(self: BackendConformance, conformance_session: Session) -> None:  # noqa: ARG001 -- pytest's form
        __tracebackhide__ = True
        _tell(conformance_session.result(one), conformance_session)

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
    if result.status is Status.NOT_RUN and not session.smoke_was_shown:
        pytest.fail(f"{one.id} {result.message}\n\n{session.smoke_failures()}", pytrace=False)
    if result.status is not Status.PASSED:
        pytest.skip(f"{one.id} {result.message}")


def _add_tests() -> None:
    # In the order in which they are run: pytest keeps that of the definitions.
    for one in all_checks():
        setattr(BackendConformance, one.test_name, _test_of(one))


_add_tests()

__all__ = ["BackendConformance"]
