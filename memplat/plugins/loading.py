"""Import one plugin, make sure that it is what it has to be, and assemble the plugin manager of one memory."""

from __future__ import annotations

import importlib
import importlib.metadata
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, cast

import attrs
import pluggy

from memplat import hookspecs
from memplat.config import RESERVED_NAMES, nearest
from memplat.errors import PluginError, UnknownBackendError
from memplat.hookspecs import BackendHooks
from memplat.plugins.checks import check_extension, check_hooks, check_required, may_be_hook, specifications
from memplat.plugins.discovery import BUILT_IN, ENTRY_POINT_GROUP, PluginRecord, Policy, list_plugins
from memplat.types import CONTRACT_LEVEL, BackendInfo

_OUR_LEVEL: Final = f"contract level {CONTRACT_LEVEL}"
_OPEN_POLICY: Final = Policy()
#: Modules that were checked before: a module stays what it is, and is not checked again for each memory.
_modules: Final[weakref.WeakKeyDictionary[ModuleType, BackendInfo]] = weakref.WeakKeyDictionary()


@attrs.frozen
class Backend:
    """A backend that was loaded and checked."""

    plugin: object
    info: BackendInfo
    source: str
    """``built-in``, the distribution and its version, or that it was given in Python."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name


@attrs.frozen
class Extension:
    """An extension that was loaded and checked."""

    plugin: object
    name: str
    source: str


def load(name: str, policy: Policy = _OPEN_POLICY) -> Backend:
    """Import the backend *name* and check it.

    :raises UnknownBackendError: if no plugin has that name
    :raises PluginError: if it may not be loaded, cannot be imported, or breaks the contract
    """
    record = _find(name, policy)
    return _check_backend(_import(record), name, record.source)


def load_object(plugin: object) -> Backend:
    """Check a backend that was given as a module, an object, or a class, in place of a name.

    :raises PluginError: if it breaks the contract
    """
    label = _label(plugin)
    return _check_backend(_instance(plugin, label), None, f"given in Python ({label})")


def load_extension(extension: object, policy: Policy = _OPEN_POLICY) -> Extension:
    """Import an extension by its name, or take the object that was given, and check it.

    :raises UnknownBackendError: if no plugin has that name
    :raises PluginError: if it may not be loaded, cannot be imported, or breaks the contract
    """
    if isinstance(extension, str):
        record = _find(extension, policy)
        plugin, name, source = _import(record), record.name, record.source
    else:
        name = _label(extension)
        plugin, source = _instance(extension, name), "given in Python"
    check_extension(name, check_hooks(plugin, name))
    return Extension(plugin, name, source)


def build_manager(backend: object, extensions: Sequence[object] = ()) -> pluggy.PluginManager:
    """The plugin manager of one memory: the defaults, *backend*, then *extensions*, each wrapping those before it.

    :raises PluginError: if one of them is no valid plugin, or is given twice
    """
    manager = _Manager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in (importlib.import_module(hookspecs.DEFAULTS), backend, *extensions):
        try:
            manager.register(plugin)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {_label(plugin)!r}: {error}", plugin=_label(plugin)) from error
    return manager


class _Manager(pluggy.PluginManager):
    """Does not look at what can be no hook: pluggy's careful look at each name would be most of the time of an open."""

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        """The options of a specification."""
        return super().parse_hookspec_opts(module_or_class, name) if name in specifications() else None

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """The options of an implementation."""
        return super().parse_hookimpl_opts(plugin, name) if may_be_hook(plugin, name) else None


def hooks_of(manager: pluggy.PluginManager) -> BackendHooks:
    """The hooks to call, with their types."""
    return cast(BackendHooks, manager.hook)


def _find(name: str, policy: Policy) -> PluginRecord:
    records = list_plugins()
    for record in records:
        if record.name == name:
            if problem := record.problem or policy.refusal(record):
                raise PluginError(f"plugin {name!r} cannot be loaded: {problem}", plugin=name)
            return record
    raise UnknownBackendError(f"no plugin is named {name!r}{nearest(name, {record.name for record in records})}")


def _import(record: PluginRecord) -> object:
    point = importlib.metadata.EntryPoint(record.name, record.value, ENTRY_POINT_GROUP)
    try:
        plugin = point.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
        owner = "" if record.source == BUILT_IN else f"; {_import_remedy(record, error)}"
        raise PluginError(
            f"plugin {record.name!r} ({record.source}) cannot be imported from {record.value!r}: "
            f"{type(error).__name__}: {error}{owner}",
            plugin=record.name,
        ) from error
    return _instance(plugin, record.name)


def _import_remedy(record: PluginRecord, error: BaseException) -> str:
    """What to do about a module that cannot be imported: one that misses a part of memplat is of another version."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == hookspecs.PROJECT:
        return f"install a version of {record.distribution} that suits this memplat ({_OUR_LEVEL}), or another memplat"
    return f"mend or uninstall {record.distribution}"


def _instance(plugin: object, name: str) -> object:
    """The plugin itself, or an instance if it is a class."""
    if not isinstance(plugin, type):
        return plugin
    try:
        return plugin()
    except Exception as error:
        raise PluginError(
            f"plugin {name!r}: the class {plugin.__qualname__} cannot be instantiated without arguments: "
            f"{type(error).__name__}: {error}; give its arguments defaults, or name an instance",
            plugin=name,
        ) from error


def _label(plugin: object) -> str:
    """What to call a plugin that has no name yet."""
    if isinstance(plugin, ModuleType):
        return plugin.__name__
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_backend(plugin: object, name: str | None, source: str) -> Backend:
    label = name or _label(plugin)
    info = _modules.get(plugin) if isinstance(plugin, ModuleType) else None
    if info is None:
        check_required(label, check_hooks(plugin, label))
        info = _checked_info(plugin, label)
        if isinstance(plugin, ModuleType):
            _modules[plugin] = info
    if name is not None and info.name != name:
        raise _wrong_info(label, f"says name={info.name!r}, but its entry point is named {name!r}", "let them agree")
    return Backend(plugin, info, source)


def _checked_info(plugin: object, label: str) -> BackendInfo:
    manager = _Manager(hookspecs.PROJECT)  # of its own: what it says of itself, no extension has a say in
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    try:
        info = hooks_of(manager).memplat_backend_info()
    except Exception as error:
        remedy = f"mend it, or install a version that was built for this memplat ({_OUR_LEVEL})"
        raise _wrong_info(label, f"raised {type(error).__name__}: {error}", remedy) from error
    if not isinstance(info, BackendInfo):
        raise _wrong_info(label, f"returned {info!r}, which is no memplat.BackendInfo", "return one")
    if info.name in RESERVED_NAMES:
        raise _wrong_info(label, f"says name={info.name!r}, which is an option of every memory", "choose another name")
    _check_level(label, info.contract_level)
    _check_options_class(label, info.options)
    return info


def _check_level(label: str, level: object) -> None:
    if type(level) is not int or level < 1:
        raise _wrong_info(
            label, f"says contract_level={level!r}; allowed are 1 to {CONTRACT_LEVEL}", "say the one it was built for"
        )
    if level > CONTRACT_LEVEL:
        raise _wrong_info(
            label,
            f"was built for contract level {level}, and this memplat implements {CONTRACT_LEVEL}",
            "install a newer memplat or an older version of the plugin",
        )


def _check_options_class(label: str, options: object) -> None:
    if options is None:
        return
    if not isinstance(options, type) or not attrs.has(options):
        raise _wrong_info(label, f"says options={options!r}", "it must be a class made with attrs, or None")
    try:
        attrs.resolve_types(options)
    except Exception as error:
        raise _wrong_info(
            label,
            f"names {options.__name__}, whose annotations cannot be resolved ({error})",
            "import their names for real",
        ) from error


def _wrong_info(label: str, problem: str, remedy: str) -> PluginError:
    hook = "memplat_backend_info"
    return PluginError(f"plugin {label!r}, hook {hook!r}: it {problem}. Remedy: {remedy}", plugin=label, hook=hook)


__all__ = ["Backend", "Extension", "build_manager", "hooks_of", "load", "load_extension", "load_object"]
