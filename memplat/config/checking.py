"""All that is wrong with a configuration, not only the first of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

from memplat.config.document import Document, KeyPath
from memplat.config.inforce import Config
from memplat.config.layers import Layers, check_top
from memplat.errors import ConfigError

#: The option class of a backend, ``None`` if it has no options.
ClassOf = Callable[[str], type[Any] | None]


@attrs.define
class _Mistakes:
    """Each mistake once, however many profiles it is part of."""

    found: dict[tuple[object, ...], ConfigError] = attrs.field(factory=dict)

    def add(self, error: ConfigError) -> None:
        self.found.setdefault((error.line, error.key, str(error)), error)


def check(document: Document, backend_names: Collection[str], class_of: ClassOf) -> list[ConfigError]:
    """Every mistake of *document*, in the order of its lines: in ``[memory]``, and in ``[memory]`` with each profile on
    top of it.

    :param backend_names: the names that plugins have
    :param class_of: is asked for the options of each backend that is named; a ``LookupError`` leaves them unchecked
    """
    mistakes = _Mistakes()
    check_top(document, mistakes.add)
    base, *profiles = _places(document)
    for profile in (base, *profiles):
        layers = Layers(backend_names, mistakes.add)
        for path in dict.fromkeys((base, profile)):
            if _table_at(document, path):
                layers.add_table(document, path)
        _check_options(layers.finish(document, None, False), backend_names, class_of, mistakes)
    return sorted(mistakes.found.values(), key=lambda error: error.line or 0)


def memory_tables(document: Document) -> list[Mapping[str, Any]]:
    """``[memory]``, then that of each profile; what is no table is an empty one."""
    return [_table_at(document, place) for place in _places(document)]


def _places(document: Document) -> list[KeyPath]:
    """Where a ``memory`` table may stand."""
    profiles = document.data.get("profile")
    names = [name for name in profiles if isinstance(name, str)] if isinstance(profiles, Mapping) else []
    return [("memory",), *(("profile", name, "memory") for name in names)]


def _table_at(document: Document, path: KeyPath) -> Mapping[str, Any]:
    found: Any = document.data
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _check_options(config: Config, names: Collection[str], class_of: ClassOf, mistakes: _Mistakes) -> None:
    """The options of the backends that are named; of those that only have a table, that one may be incomplete."""
    listed = [name for name in config.backends if isinstance(name, str)]
    for name in dict.fromkeys([*listed, *config.tables]):
        if name not in names:
            continue
        try:
            cls = class_of(name)
        except LookupError:
            continue
        config.backend_options(name, cls, mistakes.add, complete=name in listed)


__all__ = ["ClassOf", "check", "memory_tables"]
