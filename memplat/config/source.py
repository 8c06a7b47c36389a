"""Where a value comes from, and errors that say so."""

from __future__ import annotations

import contextlib
import difflib
import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from memplat.config.document import Document, KeyPath
from memplat.errors import ConfigError


class Origin(enum.StrEnum):
    """The layer that a value comes from."""

    DEFAULT = "default"
    FILE = "file"
    MAPPING = "mapping"
    ENVIRONMENT = "environment"
    ARGUMENT = "argument"


@attrs.frozen
class Source:
    """Where a value was written: the layer, and the key as it stands there."""

    origin: Origin
    path: KeyPath
    document: Document | None = attrs.field(default=None, repr=False)
    index: int | None = None
    """Which element of the list that stands there."""

    @property
    def key(self) -> str:
        """The dotted key, or the environment variable."""
        return ".".join(self.path)

    @property
    def file(self) -> str | None:
        """The file, for values from one."""
        return self.document.file if self.document is not None else None

    @property
    def line(self) -> int | None:
        """The line in it, for what is missing that of its table; found when asked for, as it takes another look at the
        text.
        """
        if self.document is None:
            return None
        if self.index is not None:
            return self.document.line_of(self.path, self.index)
        above = (self.path[:length] for length in range(len(self.path), 0, -1))
        return next((line for path in above if (line := self.document.line_of(path)) is not None), None)

    def below(self, *path: str) -> Source:
        """The source of something inside this value."""
        return attrs.evolve(self, path=(*self.path, *path))

    def element(self, index: int) -> Source:
        """The source of an element of the list that stands here. It has no key of its own."""
        return attrs.evolve(self, index=index)

    def error(self, message: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """A configuration error that names file, line and key."""
        return kind(message, file=self.file, line=self.line, key=self.key)

    def __str__(self) -> str:
        if self.origin is Origin.DEFAULT:
            return "default"
        if self.file is not None:
            return f"{self.file}:{self.line}"
        return f"{self.origin} {self.key}"


@attrs.frozen
class Setting:
    """A value and where it comes from."""

    value: Any
    source: Source


#: What to do with a mistake: raise it, or write it down and look for the next one.
Report = Callable[[ConfigError], None]


def stop(error: ConfigError) -> None:
    """Raise the first mistake: the report of those who want a configuration, and not a list of mistakes."""
    raise error


@contextlib.contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Hand a mistake to *report*, and go on behind the block if it does not raise."""
    try:
        yield
    except ConfigError as error:
        report(error)


def nearest(name: str, names: Iterable[str]) -> str:
    """`` Did you mean "x"?`` where one of *names* resembles *name*, then all of them; begins with a full stop or so.

    >>> nearest("memfs", ["memfd", "hugetlb"])
    '; did you mean "memfd"? Known are hugetlb, memfd'
    """
    known = sorted(names)
    if not known:
        return "; there are none"
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    guess = f'; did you mean "{close[0]}"?' if close else "."
    return f"{guess} Known are {', '.join(known)}"


__all__ = ["Origin", "Report", "Setting", "Source", "nearest", "reporting", "stop"]
