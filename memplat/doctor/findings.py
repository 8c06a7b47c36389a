"""What was found out about the host, in words and in figures, and what would mend it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs


class State(enum.StrEnum):
    """How good it is."""

    GOOD = "good"
    LIMITED = "limited"
    """It works, and could be better."""
    MISSING = "missing"


@attrs.frozen
class Finding:
    """One thing that the host offers, or does not."""

    area: str
    """What it belongs to: ``huge pages``, ``kernel`` …"""
    name: str
    state: State
    says: str
    """For people: what there is, and why that is so."""
    remedy: str = ""
    """A command, or what to change; empty if nothing has to be, or nothing can be."""
    data: Mapping[str, Any] = attrs.field(factory=dict)
    """The figures, for programs: bytes, numbers and the host's own words."""


@attrs.frozen
class Mending:
    """Something that could be mended, and how."""

    what: str
    how: str


__all__ = ["Finding", "Mending", "State"]
