"""Which plugins are installed. Reads metadata only: nothing is imported.

A distribution offers plugins as entry points of the group ``memplat``::

    [project.entry-points.memplat]
    mine = "my_package.my_module"      # or "my_package.my_module:an_object_or_class"
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import attrs

ENTRY_POINT_GROUP: Final = "memplat"
BUILT_IN: Final = "built-in"

_OWN_DISTRIBUTION: Final = "memplat"
#: The same as in our own metadata: for a source tree that is not installed.
_BUILT_INS: Final = {
    "memfd": "memplat.backends.memfd",
    "tmpfile": "memplat.backends.tmpfile",
    "hugetlb": "memplat.backends.hugetlb",
}
_log = logging.getLogger("memplat")


@attrs.frozen
class PluginRecord:
    """A plugin as its distribution's metadata show it."""

    name: str
    value: str
    """The module, or ``module:attribute``."""
    distribution: str
    version: str
    """Of the distribution; empty for a built-in plugin in a source tree."""
    source: str
    """``built-in``, or the distribution and its version."""
    problem: str = ""
    """Why it cannot be loaded whatever is in it: another distribution claims the same name."""


@attrs.frozen
class Policy:
    """Which plugins may be loaded; those that are built in always may."""

    disabled: bool = False
    """``MEMPLAT_DISABLE_PLUGINS=1``"""
    allowed: frozenset[str] | None = None
    """The allow-list in the configuration; ``None``: all."""

    def refusal(self, record: PluginRecord) -> str:
        """Why *record* may not be loaded, with the remedy; empty if it may."""
        if record.source == BUILT_IN:
            return ""
        if self.disabled:
            return "MEMPLAT_DISABLE_PLUGINS shuts out all plugins that are not built in; unset it to use this one"
        if self.allowed is not None and record.name not in self.allowed:
            return f'the allow-list "plugins" of the configuration does not name it; add "{record.name}" to use it'
        return ""


def list_plugins() -> tuple[PluginRecord, ...]:
    """Every installed plugin, by name. The same name in two distributions gives two records with a *problem* each."""
    return _list_plugins(_path_state())


def _path_state() -> tuple[object, ...]:
    """Changes whenever something is installed, removed, or put on the path: what the list depends on."""
    return (*((entry, _modified(entry)) for entry in sys.path), *map(id, sys.meta_path))


def _modified(path: str) -> int | None:
    try:
        return os.stat(path or ".").st_mtime_ns
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=4)
def _list_plugins(_state: tuple[object, ...]) -> tuple[PluginRecord, ...]:
    by_name: dict[str, list[PluginRecord]] = defaultdict(list)
    for record in _read_metadata():
        by_name[record.name].append(record)
    for name, value in _BUILT_INS.items():
        if not any(record.source == BUILT_IN for record in by_name[name]):
            by_name[name].insert(0, PluginRecord(name, value, _OWN_DISTRIBUTION, "", BUILT_IN))
    return tuple(record for name in sorted(by_name) for record in _with_problems(by_name[name]))


def _with_problems(records: list[PluginRecord]) -> list[PluginRecord]:
    """The records of one name; a name that is claimed twice is nobody's, because which one runs must not be luck."""
    if len(records) == 1:
        return records
    claims = sorted(f"{record.distribution} {record.version}".strip() for record in records)
    strangers = [record.distribution for record in records if record.source != BUILT_IN]
    remedy = "all of them but one" if len(strangers) == len(records) else " and ".join(sorted(strangers))
    problem = f"its name is claimed by {' and '.join(claims)}; uninstall {remedy}"
    return [attrs.evolve(record, problem=problem) for record in records]


def _read_metadata() -> Iterator[PluginRecord]:
    """The entry points of our group. A distribution that stands on the path twice counts where it comes first."""
    seen = set()
    for distribution in importlib.metadata.distributions():
        try:
            points = distribution.entry_points.select(group=ENTRY_POINT_GROUP)
            if not points:
                continue
            name, version = distribution.name, distribution.version
            normalized = re.sub(r"[-_.]+", "-", name).lower()
        except Exception as error:  # noqa: BLE001 -- strangers' metadata; one that is broken must break nothing else
            where = distribution.locate_file("")
            _log.warning("memplat: the metadata of a distribution in %s cannot be read: %r", where, error)
            continue
        if normalized in seen:
            continue
        seen.add(normalized)
        source = BUILT_IN if normalized == _OWN_DISTRIBUTION else f"{name} {version}"
        for point in points:
            yield PluginRecord(point.name, point.value, name, version, source)


__all__ = ["BUILT_IN", "ENTRY_POINT_GROUP", "PluginRecord", "Policy", "list_plugins"]
