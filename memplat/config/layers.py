"""Lay the layers upon each other, remember where each value comes from, and structure what is in force."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import attrs

from memplat.config import structure
from memplat.config.document import Document, find_document
from memplat.config.source import Origin, Setting, Source, nearest
from memplat.errors import ConfigError, UnknownBackendError
from memplat.ranges import align_up
from memplat.types import EngineOptions

#: A backend or an extension: a name, or in Python also the plugin itself.
BackendItem = str | object

_DEFAULT_BACKENDS: Final = ("memfd",)
_ENGINE: Final = structure.options_of(EngineOptions)
#: The keys of ``[memory]`` that are no option of the engine.
_LISTS: Final = ("backend", "extensions", "plugins")
#: Names that a backend cannot have, because they mean something else where its options are written.
RESERVED_NAMES: Final = frozenset({*_ENGINE, *_LISTS, "config", "profile"})
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ON: Final = frozenset({"1", "true", "yes", "on"})


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

    def backend_options(self, backend: str, cls: type[Any] | None) -> Any:
        """The own options of *backend* as an instance of its class *cls*, ``None`` if it has none.

        :raises ConfigError: an unknown key, a wrong type, a value that the class refuses
        """
        known = structure.options_of(cls)
        given = dict(self.tables.get(backend, {}))
        for name, setting in self.flat.items():
            if name in known:
                if name in given and given[name].source.origin is Origin.ARGUMENT:
                    raise setting.source.error(f"is given twice: here, and as {given[name].source.key}")
                given[name] = setting
        values = {}
        for name, setting in given.items():
            if cls is None or name not in known:
                raise setting.source.error(f"is no option of backend {backend!r}{nearest(name, known)}")
            values[name] = _structured(cls, name, setting)
        return None if cls is None else self._build(backend, cls, values, given)

    def check_flat(self, classes: Mapping[str, type[Any] | None]) -> None:
        """Make sure that each flat argument suits one of the listed backends, whose option classes are *classes*.

        :raises ConfigError: naming the nearest option
        """
        own = {name for cls in classes.values() for name in structure.options_of(cls)}
        for name, setting in self.flat.items():
            if name not in own:
                listed = ", ".join(map(repr, classes)) or "the listed backends"
                known = own | set(_ENGINE) | set(_LISTS)
                raise setting.source.error(f"is no option of memplat, nor of {listed}{nearest(name, known)}")

    def _build(self, backend: str, cls: type[Any], values: Mapping[str, Any], given: Mapping[str, Setting]) -> Any:
        try:
            return structure.build(cls, values)
        except structure.UnfitError as error:
            if error.path and error.path[0] in given:
                raise given[error.path[0]].source.below(*error.path[1:]).error(str(error)) from error
            anywhere = next((setting.source for setting in given.values()), None)
            if anywhere is None:
                raise ConfigError(str(error), key=".".join(("memory", backend, *error.path))) from error
            raise attrs.evolve(anywhere, path=(*anywhere.path[:-1], *error.path)).error(str(error)) from error


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
    :param backend_names: the names that a backend or a table of options may have
    :param environ: the environment variables; the process's own by default
    :raises ConfigError: with file, line and key, and the nearest valid name
    :raises UnknownBackendError: if a backend, or a table of options, has none of *backend_names*
    """
    environ = os.environ if environ is None else environ
    document = find_document(config, environ)
    layers = _Layers(backend_names)
    if document is not None:
        _check_top(document)
        layers.add_table(document, ("memory",))
    if profile is not None:
        layers.add_table(*_find_profile(document, profile))
    if names := environ.get("MEMPLAT_BACKEND"):
        source = Source(Origin.ENVIRONMENT, ("MEMPLAT_BACKEND",))
        layers.add("backend", Setting([name.strip() for name in names.split(",") if name.strip()], source))
    layers.add_arguments(options or {})
    if backend is not None:
        layers.add("backend", Setting(backend, Source(Origin.ARGUMENT, ("backend",))))
    return layers.finish(document, profile, _plugins_disabled(environ))


def profile_names(document: Document) -> list[str]:
    """The profiles of a document."""
    _check_top(document)
    return sorted(document.data.get("profile", {}))


class _Layers:
    """Collects settings; a later one replaces an earlier one of the same key."""

    def __init__(self, backend_names: Collection[str]) -> None:
        self._names = frozenset(backend_names)
        self._values: dict[str, Setting] = {}
        self._tables: dict[str, dict[str, Setting]] = {}
        self._flat: dict[str, Setting] = {}

    def add_table(self, document: Document, path: tuple[str, ...]) -> None:
        """A ``[memory]`` table of a document. That it is missing is no error."""
        table: Any = document.data
        for key in path:
            table = table.get(key, {})
        top = _source(document, *path)
        for key, value in _items(table, top):
            setting = Setting(value, top.below(key))
            if key in _ENGINE or key in _LISTS:
                self.add(key, setting)
            elif key in self._names or isinstance(value, Mapping):
                self._add_options(key, setting)
            else:
                known = {*_ENGINE, *_LISTS, *self._names}
                raise setting.source.error(f"is no key of [{'.'.join(path)}]{nearest(key, known)}")

    def add_arguments(self, options: Mapping[str, Any]) -> None:
        """The keyword arguments of a call."""
        for key, value in options.items():
            setting = Setting(value, Source(Origin.ARGUMENT, (key,)))
            if key in _ENGINE or key in _LISTS:
                self.add(key, setting)
            elif key in self._names:
                self._add_options(key, setting)
            else:
                self._flat[key] = setting

    def add(self, key: str, setting: Setting) -> None:
        """A list, or an option of the engine: structured at once, so that a mistake that is overridden is still one."""
        if key == "backend":
            value: Any = _plugin_list(setting)
            for item in value:
                if isinstance(item, str):
                    self._check_name(item, setting.source)
            if not value:
                raise setting.source.error("names no backend")
        elif key == "extensions":
            value = _plugin_list(setting)
        elif key == "plugins":
            value = frozenset(_plugin_list(setting, names_only=True))
        else:
            value = _structured(EngineOptions, key, setting)
            _check_engine_value(key, value, setting.source)
        self._values[key] = Setting(value, setting.source)

    def _add_options(self, backend: str, setting: Setting) -> None:
        self._check_name(backend, setting.source)
        table = self._tables.setdefault(backend, {})
        for key, value in _items(setting.value, setting.source):
            table[key] = Setting(value, setting.source.below(key))

    def _check_name(self, backend: str, source: Source) -> None:
        if backend not in self._names:
            raise source.error(f"no plugin is named {backend!r}{nearest(backend, self._names)}", UnknownBackendError)

    def finish(self, document: Document | None, profile: str | None, disabled: bool) -> Config:
        """The configuration, and the defaults for what nobody set."""
        engine = {key: self._values[key].value for key in _ENGINE if key in self._values}
        self._check_sizes_together()
        settings = {"backend": Setting(_DEFAULT_BACKENDS, Source(Origin.DEFAULT, ("backend",)))}
        for key, field in _ENGINE.items():
            settings[key] = Setting(field.default, Source(Origin.DEFAULT, (key,)))
        settings |= self._values
        for backend, table in self._tables.items():
            settings |= {f"{backend}.{key}": setting for key, setting in table.items()}
        settings |= self._flat
        plugins = self._values.get("plugins")
        extensions = self._values.get("extensions")
        return Config(
            backends=settings["backend"].value,
            engine=EngineOptions(**engine),
            extensions=extensions.value if extensions else (),
            allowed_plugins=plugins.value if plugins else None,
            plugins_disabled=disabled,
            settings=settings,
            tables=self._tables,
            flat=self._flat,
            document=document,
            profile=profile,
        )

    def _check_sizes_together(self) -> None:
        limit, prealloc = self._values.get("max_size"), self._values.get("prealloc")
        if limit and prealloc and limit.value is not None and prealloc.value > limit.value:
            raise prealloc.source.error(
                f"{prealloc.value} is more than max_size, {limit.value} ({limit.source}): nothing could commit so much"
            )


def _check_engine_value(key: str, value: Any, source: Source) -> None:
    """What the types of the engine's options do not say."""
    if key == "max_size" and value == 0:
        raise source.error("0 is no possible size: a memory needs at least a page")
    if key in ("max_size", "prealloc") and value is not None and value % mmap.PAGESIZE:
        up = align_up(value, mmap.PAGESIZE)
        raise source.error(f"{value} is no multiple of the page size, {mmap.PAGESIZE}: the next one is {up}")
    if key == "reclaim_delay" and not 0 <= value <= threading.TIMEOUT_MAX:
        raise source.error(f"{value} is no possible delay: allowed are 0 to {threading.TIMEOUT_MAX} seconds")


def _structured(cls: type[Any], key: str, setting: Setting) -> Any:
    text_sizes = setting.source.origin is not Origin.ARGUMENT
    try:
        return structure.structure_option(cls, key, setting.value, text_sizes=text_sizes)
    except structure.UnfitError as error:
        raise setting.source.below(*error.path).error(str(error)) from error


def _plugin_list(setting: Setting, *, names_only: bool = False) -> tuple[BackendItem, ...]:
    """One name or plugin, or a list of them; a plugin itself only in Python."""
    value, source = setting.value, setting.source
    objects = source.origin is Origin.ARGUMENT and not names_only
    one = isinstance(value, str) or (objects and not isinstance(value, list | tuple | Mapping | int | float))
    if not one and not isinstance(value, list | tuple):
        raise source.error(f"expected a name or a list of names, got {value!r} ({type(value).__name__})")
    items = (value,) if one else tuple(value)
    for item in items:
        is_name = isinstance(item, str) and item != ""
        if not is_name and (not objects or item is None or isinstance(item, str | int | float)):
            raise source.error(f"expected a name, got {item!r} ({type(item).__name__})")
    for index, item in enumerate(items):
        if any(item is other or (isinstance(item, str) and item == other) for other in items[:index]):
            raise source.error(f"lists {item!r} twice")
    return items


def _check_top(document: Document) -> None:
    """Strict about what stands outside of the ``memory`` tables, in all profiles."""
    for key, value in _items(document.data, _source(document)):
        source = _source(document, key)
        if key == "memory":
            _items(value, source)
        elif key == "profile":
            for name, profile in _items(value, source):
                for inner, table in _items(profile, source.below(name)):
                    if inner != "memory":
                        raise source.below(name, inner).error(f"is no key of a profile{nearest(inner, ['memory'])}")
                    _items(table, source.below(name, inner))
        else:
            raise source.error(f"is no key of a configuration{nearest(key, ['memory', 'profile'])}")


def _items(table: object, source: Source) -> Iterator[tuple[str, Any]]:
    """The items of a table, in order.

    :raises ConfigError: at once if it is none
    """
    if not isinstance(table, Mapping):
        raise source.error(f"expected a table, got {table!r} ({type(table).__name__})")
    for key in table:
        if not isinstance(key, str):
            raise source.error(f"keys are texts, not {key!r} ({type(key).__name__})")
    return iter(table.items())


def _find_profile(document: Document | None, profile: object) -> tuple[Document, tuple[str, ...]]:
    if not isinstance(profile, str):
        raise ConfigError(f"expected the name of a profile, got {profile!r}", key="profile")
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


def _plugins_disabled(environ: Mapping[str, str]) -> bool:
    value = environ.get("MEMPLAT_DISABLE_PLUGINS", "").strip().lower()
    if value not in _ON | _OFF:
        raise ConfigError(f"{value!r} is neither 1 nor 0", key="MEMPLAT_DISABLE_PLUGINS")
    return value in _ON


__all__ = ["RESERVED_NAMES", "BackendItem", "Config", "load", "profile_names"]
