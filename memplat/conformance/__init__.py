"""The conformance suite: the same checks for every backend, ours and anybody's.

A backend's author runs it in one of three ways: ``class TestMine(BackendConformance)`` in the tests of the plugin,
``memplat conformance mine``, or ``pytest --pyargs memplat.conformance --memplat-backend mine``.

What the checks are stands in ``areas/``, what they enforce in docs/contract.md. Nothing here is imported by ``import
memplat``, and pytest is imported only for :class:`BackendConformance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memplat.conformance.pytest_class import BackendConformance


def __getattr__(name: str) -> Any:
    # The pytest plugin lives below this package, and is imported by every run of pytest: keep it light.
    if name == "BackendConformance":
        from memplat.conformance.pytest_class import BackendConformance

        return BackendConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["BackendConformance"]
