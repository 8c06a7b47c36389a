"""The broken backends, by area; ``base.py`` says what a specimen is."""

from __future__ import annotations

from tests.meta.specimens import decommitting, growing, hosting, lifecycle, probing
from tests.meta.specimens.base import Specimen


def _of(cls: type[Specimen]) -> list[type[Specimen]]:
    return [found for child in cls.__subclasses__() for found in (child, *_of(child))]


_MODULES = (lifecycle, growing, decommitting, probing, hosting)

#: Every specimen, in the order of their modules.
SPECIMENS: tuple[type[Specimen], ...] = tuple(
    sorted(
        {cls for cls in _of(Specimen) if cls.fails},
        key=lambda cls: ([module.__name__ for module in _MODULES].index(cls.__module__), cls.__name__),
    )
)

__all__ = ["SPECIMENS"]
