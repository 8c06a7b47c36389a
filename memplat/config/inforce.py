"""The configuration in force, and how plain values in it become typed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from memplat.config import structure
from memplat.config.document import Document
from memplat.config.source import Origin, Report, Setting, nearest, reporting, stop
from memplat.errors import ConfigError
from memplat.ranges import align_down
from memplat.types import EngineOptions

#: A backend or an extension: a name, or in Python also the plugin itself.
BackendItem = str | object

#: The options of the engine, by name.
ENGINE: Final = structure.options_of(EngineOptions)
#: The keys of ``[memory]`` that are no option of the engine.
LISTS: Final = ("backend", "extensions", "plugins")


@attrs.frozen
class Config:
    """The configuration in force."""

    backends: tuple[BackendItem, ...]
    """The preference list."""
    engine: EngineOptions
    extensions: tuple[BackendItem, ...]
    """Each is registered after those before it, and so wraps them."""
    allowed_plugins: frozenset[str] | None
    """The allow-list of plugins that are not built in; ``None`` allows all of them."""
    plugins_disabled: bool
    """Whether ``MEMPLAT_DISABLE_PLUGINS`` shuts all of them out."""
    settings: Mapping[str, Setting]
    """Every value in force and where it comes from, by its key in ``[memory]`` (``max_size``, ``memfd.name``)."""
    tables: Mapping[str, Mapping[str, Setting]]
    """The backends' own options, by backend; not structured yet, as only the backend knows their types."""
    flat: Mapping[str, Setting]
    """Arguments that are no options of the engine: they must suit at least one of the listed backends."""
    document: Document | None = None
    profile: str | None = None

    def engine_for(self, page_size: int) -> EngineOptions:
        """The engine's options, once the backend's page size is known.

        :raises ConfigError: if a size is no multiple of it
        """
        for key in ("max_size", "prealloc"):
            size = getattr(self.engine, key)
            if size is not None and size % page_size:
                down = align_down(size, page_size)
                raise self.settings[key].source.error(
                    f"{size} is no multiple of the backend's page size, {page_size}; the nearest are "
                    f"{f'{down} and ' if down else ''}{down + page_size}"
                )
        return self.engine

    def backend_options(
        self, backend: str, cls: type[Any] | None, report: Report = stop, *, complete: bool = True
    ) -> Any:
        """The own options of *backend* as an instance of its class *cls*, ``None`` if it has none.

        :param report: gets each mistake: an unknown key, a wrong type, a value that the class refuses. If it does not
            raise, the result after a mistake is ``None``.
        :param complete: whether it is a mistake that a required option is missing
        :raises ConfigError: by the default *report*
        """
        known = structure.options_of(cls)
        given = dict(self.tables.get(backend, {}))
        for name, setting in self.flat.items():
            if name in known:
                if name in given and given[name].source.origin is Origin.ARGUMENT:
                    report(setting.source.error(f"is given twice: here, and as {given[name].source.key}"))
                given[name] = setting
        values = {}
        for name, setting in given.items():
            with reporting(report):
                values[name] = _own_option(backend, cls, name, setting)
        return None if cls is None else self._build(backend, cls, values, given, report, complete)

    def check_flat(self, classes: Mapping[str, type[Any] | None]) -> None:
        """Make sure that each flat argument suits one of the listed backends, whose option classes are *classes*.

        :raises ConfigError: naming the nearest option
        """
        own = {name for cls in classes.values() for name in structure.options_of(cls)}
        for name, setting in self.flat.items():
            if name not in own:
                listed = ", ".join(map(repr, classes)) or "the listed backends"
                known = own | set(ENGINE) | set(LISTS)
                raise setting.source.error(f"is no option of memplat, nor of {listed}{nearest(name, known)}")

    def _build(
        self,
        backend: str,
        cls: type[Any],
        values: Mapping[str, Any],
        given: Mapping[str, Setting],
        report: Report,
        complete: bool,
    ) -> Any:
        unfit = structure.mistakes(cls, values)
        for error in unfit:
            if error.path and error.path[0] in values:
                report(given[error.path[0]].source.below(*error.path[1:]).error(str(error)))
            elif not error.path or (complete and error.path[0] not in given):
                report(self._table_error(backend, error))
        return None if unfit or len(values) < len(given) else cls(**values)

    def _table_error(self, backend: str, error: structure.UnfitError) -> ConfigError:
        """A mistake that is in none of the values alone: it stands where the table's first value does."""
        first = next((setting.source for setting in self.tables.get(backend, {}).values()), None)
        if first is not None:
            return attrs.evolve(first, path=(*first.path[:-1], *error.path)).error(str(error))
        asked = self.settings["backend"].source  # there is no table: what asks for the backend has to do
        key = ".".join(("memory", backend, *error.path))
        return ConfigError(str(error), file=asked.file, line=asked.line, key=key)


def _own_option(backend: str, cls: type[Any] | None, name: str, setting: Setting) -> Any:
    """The value of one of the backend's own options.

    :raises ConfigError: if there is no such option, or the value has the wrong type
    """
    known = structure.options_of(cls)
    if cls is None or name not in known:
        raise setting.source.error(f"is no option of backend {backend!r}{nearest(name, known)}")
    return structured(cls, name, setting)


def structured(cls: type[Any], key: str, setting: Setting) -> Any:
    """The typed value of a setting.

    :raises ConfigError: if it does not suit the option *key* of *cls*
    """
    text_sizes = setting.source.origin is not Origin.ARGUMENT
    try:
        return structure.structure_option(cls, key, setting.value, text_sizes=text_sizes)
    except structure.UnfitError as error:
        raise setting.source.below(*error.path).error(str(error)) from error


__all__ = ["ENGINE", "LISTS", "BackendItem", "Config", "structured"]
