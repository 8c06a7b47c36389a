"""Lay the layers upon each other, and remember where each value comes from."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from memplat.config import structure
from memplat.config.document import Document, find_document
from memplat.config.inforce import ENGINE, LISTS, BackendItem, Config, structured
from memplat.config.source import Origin, Report, Setting, Source, nearest, reporting, stop
from memplat.errors import ConfigError, UnknownBackendError
from memplat.ranges import align_up
from memplat.types import EngineOptions
from memplat.wording import shown

_DEFAULT_BACKENDS: Final = ("memfd",)
#: Names that a backend cannot have, because they mean something else where its options are written.
RESERVED_NAMES: Final = frozenset({*ENGINE, *LISTS, "config", "profile", "progress"})
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ON: Final = frozenset({"1", "true", "yes", "on"})


def load(
    backend: object = None,
    *,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    profile: str | None = None,
    options: Mapping[str, Any] | None = None,
    backend_names: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The configuration in force.

    :param backend: the argument of :func:`memplat.open`: a name, a plugin, or a list of them
    :param config: a TOML file, or a mapping of the same shape
    :param profile: the profile of that file
    :param options: the keyword options of :func:`memplat.open`
    :param backend_names: the names of plugins that a list or a table of options may name
    :param environ: the environment variables; the process's own by default
    :raises ConfigError: with file, line and key, and the nearest valid name
    :raises UnknownBackendError: if a backend, or a table of options, has none of *backend_names*
    """
    environ = os.environ if environ is None else environ
    document = find_document(config, environ)
    layers = Layers(backend_names)
    if document is not None:
        check_top(document)
        layers.add_table(document, ("memory",))
    if profile is not None:
        layers.add_table(*_find_profile(document, profile))
    if names := environ.get("MEMPLAT_BACKEND"):
        source = Source(Origin.ENVIRONMENT, ("MEMPLAT_BACKEND",))
        layers.add("backend", Setting([name.strip() for name in names.split(",") if name.strip()], source))
    layers.add_arguments(options or {})
    if backend is not None:
        layers.add("backend", Setting(backend, Source(Origin.ARGUMENT, ("backend",))))
    return layers.finish(document, profile, plugins_disabled(environ))


def profile_names(document: Document) -> list[str]:
    """The profiles of a document."""
    check_top(document)
    return sorted(document.data.get("profile", {}))


class Layers:
    """Collects settings; a later one replaces an earlier one of the same key. What is wrong is reported, and left out
    if the report does not raise.
    """

    def __init__(self, backend_names: Collection[str], report: Report = stop) -> None:
        self._names = frozenset(backend_names)
        self._report = report
        self._values: dict[str, Setting] = {}
        self._tables: dict[str, dict[str, Setting]] = {}
        self._flat: dict[str, Setting] = {}

    def add_table(self, document: Document, path: tuple[str, ...]) -> None:
        """A ``[memory]`` table of a document. That it is missing is no error."""
        table: Any = document.data
        for key in path:
            table = table.get(key, {})
        top = _source(document, *path)
        for key, value in items(table, top):
            with reporting(self._report):
                self._add_item(key, Setting(value, top.below(key)), path)

    def _add_item(self, key: str, setting: Setting, path: tuple[str, ...]) -> None:
        if key in ENGINE or key in LISTS:
            self.add(key, setting)
        elif key in self._names or isinstance(setting.value, Mapping):
            self._add_options(key, setting)
        else:
            known = {*ENGINE, *LISTS, *self._names}
            raise setting.source.error(f"is no key of [{'.'.join(path)}]{nearest(key, known)}")

    def add_arguments(self, options: Mapping[str, Any]) -> None:
        """The keyword arguments of a call."""
        for key, value in options.items():
            setting = Setting(value, Source(Origin.ARGUMENT, (key,)))
            if key in ENGINE or key in LISTS:
                self.add(key, setting)
            elif key in self._names:
                self._add_options(key, setting)
            else:
                self._flat[key] = setting

    def add(self, key: str, setting: Setting) -> None:
        """A list, or an option of the engine: structured at once, so that a mistake that is overridden is still one."""
        if key == "backend":
            value: Any = self._known_plugins(setting)
            if setting.value in ([], ()):
                raise setting.source.error("names no backend")
        elif key == "extensions":
            value = self._known_plugins(setting)
        elif key == "plugins":
            value = frozenset(item for item, _ in _plugin_list(setting, self._report, names_only=True))
        else:
            value = structured(EngineOptions, key, setting)
            _check_engine_value(key, value, setting.source)
        self._values[key] = Setting(value, setting.source)

    def _known_plugins(self, setting: Setting) -> tuple[BackendItem, ...]:
        found = _plugin_list(setting, self._report)
        for item, source in found:
            if isinstance(item, str):
                with reporting(self._report):
                    self._check_name(item, source)
        return tuple(item for item, _ in found)

    def _add_options(self, backend: str, setting: Setting) -> None:
        self._check_name(backend, setting.source)
        table = self._tables.setdefault(backend, {})
        for key, value in items(setting.value, setting.source):
            table[key] = Setting(value, setting.source.below(key))

    def _check_name(self, backend: str, source: Source) -> None:
        if backend not in self._names:
            raise source.error(f"no plugin is named {backend!r}{nearest(backend, self._names)}", UnknownBackendError)

    def finish(self, document: Document | None, profile: str | None, disabled: bool) -> Config:
        """The configuration, and the defaults for what nobody set."""
        engine = self._engine_options()
        self._check_sizes_together()
        settings = {"backend": Setting(_DEFAULT_BACKENDS, Source(Origin.DEFAULT, ("backend",)))}
        for key, field in ENGINE.items():
            settings[key] = Setting(field.default, Source(Origin.DEFAULT, (key,)))
        settings |= self._values
        for backend, table in self._tables.items():
            settings |= {f"{backend}.{key}": setting for key, setting in table.items()}
        settings |= self._flat
        plugins = self._values.get("plugins")
        extensions = self._values.get("extensions")
        return Config(
            backends=settings["backend"].value,
            engine=engine,
            extensions=extensions.value if extensions else (),
            allowed_plugins=plugins.value if plugins else None,
            plugins_disabled=disabled,
            settings=settings,
            tables=self._tables,
            flat=self._flat,
            document=document,
            profile=profile,
        )

    def _engine_options(self) -> EngineOptions:
        """The engine's options; the defaults, if what is wrong with them is reported and does not raise."""
        values = {key: self._values[key].value for key in ENGINE if key in self._values}
        unfit = structure.mistakes(EngineOptions, values)
        for error in unfit:
            named = error.path[0] if error.path else next(iter(values))
            self._report(self._values[named].source.below(*error.path[1:]).error(str(error)))
        return EngineOptions() if unfit else EngineOptions(**values)

    def _check_sizes_together(self) -> None:
        limit, prealloc = self._values.get("max_size"), self._values.get("prealloc")
        if limit and prealloc and limit.value is not None and prealloc.value > limit.value:
            more = f"{prealloc.value} is more than max_size, {limit.value} ({limit.source})"
            self._report(prealloc.source.error(f"{more}: nothing could commit so much"))


def _check_engine_value(key: str, value: Any, source: Source) -> None:
    """What the types of the engine's options do not say."""
    if key == "max_size" and value == 0:
        raise source.error("0 is no possible size: a memory needs at least a page")
    if key in ("max_size", "prealloc") and value is not None and value % mmap.PAGESIZE:
        up = align_up(value, mmap.PAGESIZE)
        raise source.error(f"{value} is no multiple of the page size, {mmap.PAGESIZE}: the next one is {up}")
    if key == "reclaim_delay" and not 0 <= value <= structure.LONGEST_DELAY:
        raise source.error(f"{value} is no possible delay: allowed are 0 to {structure.LONGEST_DELAY} seconds")
    if key == "prealloc_threads" and not 1 <= value <= structure.MOST_THREADS:
        raise source.error(
            f"{shown(value)} is no possible number of threads: allowed are 1 to {structure.MOST_THREADS}"
        )


def _plugin_list(setting: Setting, report: Report, *, names_only: bool = False) -> list[tuple[BackendItem, Source]]:
    """One name or plugin, or a list of them, and where each stands; a plugin itself only in Python."""
    value, source = setting.value, setting.source
    objects = source.origin is Origin.ARGUMENT and not names_only
    one = isinstance(value, str) or (objects and not isinstance(value, list | tuple | Mapping | int | float))
    if not one and not isinstance(value, list | tuple):
        raise source.error(f"expected a name or a list of names, got {shown(value)} ({type(value).__name__})")
    found: list[tuple[BackendItem, Source]] = []
    for item, place in [(value, source)] if one else [(item, source.element(i)) for i, item in enumerate(value)]:
        is_name = isinstance(item, str) and item != ""
        if not is_name and (not objects or item is None or isinstance(item, str | int | float)):
            report(place.error(f"expected a name, got {shown(item)} ({type(item).__name__})"))
        elif any(item is other or (isinstance(item, str) and item == other) for other, _ in found):
            report(place.error(f"lists {shown(item)} twice"))
        else:
            found.append((item, place))
    return found


def check_top(document: Document, report: Report = stop) -> None:
    """Strict about what stands outside of the ``memory`` tables, in all profiles."""
    with reporting(report):
        for key, value in items(document.data, _source(document)):
            source = _source(document, key)
            with reporting(report):
                if key == "memory":
                    items(value, source)
                elif key == "profile":
                    for name, profile in items(value, source):
                        with reporting(report):
                            _check_profile(profile, source.below(name), report)
                else:
                    raise source.error(f"is no key of a configuration{nearest(key, ['memory', 'profile'])}")


def _check_profile(profile: object, source: Source, report: Report) -> None:
    for key, table in items(profile, source):
        with reporting(report):
            if key != "memory":
                raise source.below(key).error(f"is no key of a profile{nearest(key, ['memory'])}")
            items(table, source.below(key))


def items(table: object, source: Source) -> Iterator[tuple[str, Any]]:
    """The items of a table, in order.

    :raises ConfigError: at once if it is none
    """
    if not isinstance(table, Mapping):
        raise source.error(f"expected a table, got {shown(table)} ({type(table).__name__})")
    for key in table:
        if not isinstance(key, str):
            raise source.error(f"keys are texts, not {shown(key)} ({type(key).__name__})")
    return iter(table.items())


def _find_profile(document: Document | None, profile: object) -> tuple[Document, tuple[str, ...]]:
    if not isinstance(profile, str):
        raise ConfigError(f"expected the name of a profile, got {shown(profile)}", key="profile")
    if document is None:
        raise ConfigError(
            f"there is no configuration file that could have profile {profile!r}: pass config=, or set MEMPLAT_CONFIG",
            key="profile",
        )
    names = profile_names(document)
    if profile not in names:
        raise ConfigError(
            f"there is no profile {profile!r}{nearest(profile, names)}", file=document.file, key="profile"
        )
    return document, ("profile", profile, "memory")


def _source(document: Document, *path: str) -> Source:
    return Source(Origin.MAPPING if document.file is None else Origin.FILE, path, document)


def plugins_disabled(environ: Mapping[str, str] | None = None) -> bool:
    """Whether ``MEMPLAT_DISABLE_PLUGINS`` shuts out all plugins that are not built in.

    :raises ConfigError: if it is neither 1 nor 0
    """
    environ = os.environ if environ is None else environ
    value = environ.get("MEMPLAT_DISABLE_PLUGINS", "").strip().lower()
    if value not in _ON | _OFF:
        raise ConfigError(f"{value!r} is neither 1 nor 0", key="MEMPLAT_DISABLE_PLUGINS")
    return value in _ON


__all__ = ["RESERVED_NAMES", "Layers", "check_top", "items", "load", "plugins_disabled", "profile_names"]
