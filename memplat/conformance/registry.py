"""What a check is, and the register of all of them.

A check is a function of a :class:`~memplat.conformance.case.Case`. Its name is the sentence that it proves, its
docstring says what to mend when it fails. Identifiers are for ever: a check that goes takes its number with it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from memplat.types import Capability

if TYPE_CHECKING:
    from memplat.conformance.case import Case

#: The areas in the order in which they are run: the module, and what the identifiers of its checks begin with.
AREAS: Final = {
    "lifecycle": "LIFE",
    "allocation": "ALLOC",
    "growth": "GROW",
    "views": "VIEW",
    "zeroing": "ZERO",
    "decommit": "DECOM",
    "probing": "PROBE",
    "references": "REF",
    "accounting": "ACCT",
    "reclaim": "RECL",
    "exhaustion": "EXH",
    "sharing": "SHARE",
    "forking": "FORK",
    "concurrency": "CONC",
    "security": "SEC",
    "faults": "FAULT",
    "model": "MODEL",
}

_IDENTIFIER: Final = re.compile(r"([A-Z]+)-(\d\d)")


@attrs.frozen
class Check:
    """One check."""

    id: str
    sentence: str
    """The name of the function, in words."""
    mend: str
    """What to look at when it fails: the docstring, on one line."""
    area: str
    function: Callable[[Case], None] = attrs.field(eq=False, repr=False)
    rule: str
    """The rule of docs/contract.md that it enforces."""
    needs: Capability | None = None
    """The capability that it proves; ``None``: every backend has to pass it."""
    since: int = 1
    """The contract level from which on it is required."""
    smoke: bool = False
    """Whether nothing else is worth running where it fails."""
    after: tuple[str, ...] = ()
    """Checks that explain a failure of this one: where one of them failed too, that is what to mend."""
    forms: str | None = None
    """The hook whose results' form it is about: it explains what the engine says about that hook."""
    seconds: float = 60.0
    """After how long it is called a hang."""

    @property
    def test_name(self) -> str:
        """The name of its test: ``test_zero_02_pages_that_were_given_back_are_zero``."""
        return f"test_{self.id}_{self.sentence}".replace("-", "_").replace(" ", "_").lower()


_checks: dict[str, Check] = {}
_Function = TypeVar("_Function", bound="Callable[[Case], None]")


def check(
    identifier: str,
    *,
    rule: str,
    needs: Capability | None = None,
    since: int = 1,
    smoke: bool = False,
    after: str = "",
    forms: str | None = None,
    seconds: float = 60.0,
) -> Callable[[_Function], _Function]:
    """Register the decorated function as the check *identifier*; the arguments are those of :class:`Check`.

    :raises ValueError: an identifier that does not suit the module, or is taken; a function without a docstring
    """

    def register(function: _Function) -> _Function:
        area = function.__module__.rpartition(".")[2]
        match = _IDENTIFIER.fullmatch(identifier)
        if match is None or AREAS.get(area) != match[1]:
            raise ValueError(
                f"{identifier} is no identifier for the area {area!r}, whose checks are {AREAS.get(area)}-NN"
            )
        if identifier in _checks:
            raise ValueError(f"{identifier} is taken by {_checks[identifier].sentence!r}")
        if not function.__doc__:
            raise ValueError(f"{identifier} does not say in a docstring what to mend")
        _checks[identifier] = Check(
            id=identifier,
            sentence=function.__name__.replace("_", " "),
            mend=" ".join(function.__doc__.split()),
            area=area,
            function=function,
            rule=rule,
            needs=needs,
            since=since,
            smoke=smoke,
            after=tuple(after.split()),
            forms=forms,
            seconds=seconds,
        )
        return function

    return register


def all_checks() -> tuple[Check, ...]:
    """Every check in the order in which they are run: the smoke tier first, then area by area."""
    for area in AREAS:
        importlib.import_module(f"memplat.conformance.areas.{area}")
    order = list(AREAS)
    return tuple(sorted(_checks.values(), key=lambda one: (not one.smoke, order.index(one.area), one.id)))


__all__ = ["AREAS", "Check", "all_checks", "check"]
