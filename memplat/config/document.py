"""One configuration document: where it is found, what it says, and in which line it says it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from memplat.errors import ConfigError
from memplat.wording import shown

#: A key and the tables that it stands in, outermost first.
KeyPath = tuple[str, ...]

_LINE_IN_MESSAGE: Final = re.compile(r"at line (\d+)")


@attrs.frozen(eq=False)
class Document:
    """A configuration as it was written: a TOML file, or a mapping of the same shape that a program passed."""

    data: Mapping[str, Any]
    file: str | None = None
    """The path as it was given, or ``None`` for a mapping."""
    text: str = attrs.field(default="", repr=False)
    _places: dict[KeyPath, _Place] = attrs.field(init=False, factory=dict, repr=False)
    """Where each key is first mentioned; found out when it is first asked for."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Document:
        """Read a TOML file.

        :raises ConfigError: if it cannot be read, or is no TOML
        """
        file = os.fspath(path)
        try:
            text = Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"is no UTF-8 text: {error.reason} at byte {error.start}", file=file) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"cannot be read: {reason}", file=file) from error
        try:
            return cls(tomllib.loads(text), file, text)
        except tomllib.TOMLDecodeError as error:
            found = _LINE_IN_MESSAGE.search(str(error))
            line = int(found.group(1)) if found else text.count("\n") + 1
            raise ConfigError(f"is no TOML: {error}", file=file, line=line) from error
        except RecursionError as error:
            raise ConfigError("is no configuration: it is nested too deeply", file=file) from error

    def line_of(self, path: KeyPath, index: int | None = None) -> int | None:
        r"""The line, from 1, of the statement that first mentions *path*; ``None`` if there is no file or no such key.
        With *index*, the line in which that element of its list ends.

        >>> Document({}, "x", "[a]\nb.c = [1,\n2]\n").line_of(("a", "b", "c"))
        2
        >>> Document({}, "x", "[a]\nb.c = [1,\n2]\n").line_of(("a", "b", "c"), 1)
        3
        """
        if not self._places:
            self._places.update(_find_places(self.text))
        place = self._places.get(path)
        if place is None:
            return None
        return place.line if index is None else place.line + _lines_before(place, path, index)


@attrs.frozen
class _Place:
    """A statement, the line that it begins in, and the table that it stands in."""

    line: int
    statement: str
    table: KeyPath


def _find_places(text: str) -> dict[KeyPath, _Place]:
    places: dict[KeyPath, _Place] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        is_header = statement.lstrip().startswith("[")
        above = () if is_header else table
        mentioned = list(_paths(tomllib.loads(statement), above))
        if is_header:
            table = mentioned[-1]
        for key in mentioned:
            places.setdefault(key, _Place(line, statement, above))
    return places


def _lines_before(place: _Place, path: KeyPath, index: int) -> int:
    """How many lines of the statement come before the one in which the element of its list ends: those whose text, with
    the list closed behind it, has too few of them.
    """
    lines = place.statement.split("\n")
    for count in range(1, len(lines)):
        try:
            found: Any = tomllib.loads("\n".join(lines[:count]) + "\n]")
        except tomllib.TOMLDecodeError:  # in the middle of something longer
            continue
        for key in path[len(place.table) :]:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, list) and len(found) > index:
            return count - 1
    return len(lines) - 1


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The statements of a *valid* TOML text and the lines that they begin in.

    A statement is valid TOML by itself, and none of its beginnings that end at a line's end is: a string or an array
    would be left open. So a statement ends with the first line that makes it parse.
    """
    pending: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        pending.append(line)
        statement = "\n".join(pending)
        try:
            empty = not tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if not empty:
            yield number - len(pending) + 1, statement
        pending.clear()


def _paths(data: object, above: KeyPath) -> Iterator[KeyPath]:
    """The paths of all keys in *data*, outer ones first. Elements of arrays have the path of their array."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*above, key)
            yield from _paths(value, (*above, key))
    elif isinstance(data, list):
        for element in data:
            yield from _paths(element, above)


def find_document(
    config: str | os.PathLike[str] | Mapping[str, Any] | None, environ: Mapping[str, str]
) -> Document | None:
    """The configuration that counts: the argument, ``MEMPLAT_CONFIG``, the user's own file, or none.

    :raises ConfigError: if what was asked for cannot be read; that the user's own file does not exist is no error
    """
    if isinstance(config, Mapping):
        return Document(config)
    if isinstance(config, str | os.PathLike):
        return Document.read(config)
    if config is not None:
        raise ConfigError(f"config={shown(config)} is neither a path nor a mapping")
    if named := environ.get("MEMPLAT_CONFIG"):
        return Document.read(named)
    own = user_file(environ)
    return Document.read(own) if own is not None and own.exists() else None


def user_file(environ: Mapping[str, str]) -> Path | None:
    """``$XDG_CONFIG_HOME/memplat/memplat.toml``, or ``None`` where no home is known.

    The XDG base directory specification says that a relative path is to be ignored.
    """
    base = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".config")
    return Path(base, "memplat", "memplat.toml")


__all__ = ["Document", "KeyPath", "find_document", "user_file"]
