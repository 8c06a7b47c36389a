"""Compare a plugin's functions with the hook specifications.

pluggy refuses some mistakes and lives with others in silence (a function that was not marked, an argument with a
default, which it never passes). Here each is an error that names plugin, hook, definition and remedy.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final, NoReturn

import pluggy

from memplat import hookspecs
from memplat.errors import PluginError

#: The hooks that have no default.
REQUIRED: Final = ("memplat_backend_info", "memplat_create_file")


@functools.cache
def specifications() -> Mapping[str, tuple[str, ...]]:
    """The hooks, and the arguments of each."""
    return {
        name: tuple(inspect.signature(spec).parameters)
        for name, spec in vars(hookspecs).items()
        if hasattr(spec, f"{hookspecs.PROJECT}_spec")
    }


def may_be_hook(plugin: object, attribute: str) -> bool:
    """Whether the attribute is a function or a method; does not evaluate properties, as some versions of pluggy do."""
    if isinstance(plugin, ModuleType):
        return inspect.isroutine(vars(plugin).get(attribute))
    return inspect.isroutine(inspect.getattr_static(plugin, attribute, None))


def check_hooks(plugin: object, name: str) -> dict[str, bool]:
    """Make sure that all hooks of *plugin* are what the specifications say.

    Returns the hooks that it implements, and whether it wraps them.

    :raises PluginError: for the first one that is not
    """
    parser = pluggy.PluginManager(hookspecs.PROJECT)
    found: dict[str, bool] = {}
    for attribute in filter(functools.partial(may_be_hook, plugin), dir(plugin)):
        options = parser.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            _check_unmarked(plugin, name, attribute)
            continue
        hook = options.get("specname") or attribute
        function = getattr(plugin, attribute)
        if hook in specifications():
            _check_implementation(name, hook, function, dict(options))
            found[hook] = found.get(hook, True) and bool(options.get("wrapper"))
        elif not options.get("optionalhook"):
            _refuse(
                name, hook, function, f"there is no such hook{_nearest(hook)}",
                "rename it, drop its @hookimpl, or mark it optionalhook=True if another version of memplat has it",
            )  # fmt: skip
    return found


def check_required(name: str, hooks: Mapping[str, bool]) -> None:
    """Make sure that a backend brings what has no default.

    :raises PluginError: if it does not
    """
    for hook in REQUIRED:
        if hooks.get(hook, True):
            hint = " (a plugin that only wraps hooks belongs under extensions)" if hooks else ""
            raise PluginError(
                f"plugin {name!r} is no backend: it does not implement {hook}{hint}; "
                f"add a function {hook} that is marked @memplat.hookimpl",
                plugin=name,
                hook=hook,
            )


def check_extension(name: str, hooks: Mapping[str, bool]) -> None:
    """Make sure that an extension does not pose as a backend.

    :raises PluginError: if it does, or does nothing at all
    """
    if not hooks:
        raise PluginError(
            f"extension {name!r} implements no hook; mark its functions with @memplat.hookimpl", plugin=name
        )
    for hook in REQUIRED:
        if not hooks.get(hook, True):
            raise PluginError(
                f"extension {name!r} implements {hook}, and so would take the backend's place; "
                f"wrap the hook with @hookimpl(wrapper=True), or name the plugin under backend",
                plugin=name,
                hook=hook,
            )


def _check_unmarked(plugin: object, name: str, attribute: str) -> None:
    """A function that is named like a hook, and would never be called."""
    if attribute not in specifications():
        return
    function = inspect.getattr_static(plugin, attribute)
    if getattr(function, "__module__", None) == hookspecs.__name__:  # a specification that was imported or inherited
        return
    if callable(function):
        _refuse(
            name, attribute, function, "it is not marked, so it would never be called", "decorate it with @hookimpl"
        )


def _check_implementation(name: str, hook: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    for problem, remedy in _problems(hook, function, options):
        _refuse(name, hook, function, problem, remedy)


def _problems(hook: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if options.get("hookwrapper"):
        yield "it is an old-style wrapper, which cannot pass on exceptions", "use @hookimpl(wrapper=True)"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield "it is asynchronous, and hooks are called synchronously", "make it a plain function"
    if bool(options.get("wrapper")) != inspect.isgeneratorfunction(function):
        if options.get("wrapper"):
            yield "it is a wrapper without a yield", "write result = yield, and return a result"
        else:
            yield "it is a generator", "use @hookimpl(wrapper=True) for a wrapper, or return instead of yielding"
    allowed = specifications()[hook]
    listed = ", ".join(allowed) or "none"
    for parameter in inspect.signature(function).parameters.values():
        has_default = parameter.default is not parameter.empty
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield f"{parameter} is never filled", f"name the arguments that it needs; the hook has: {listed}"
        elif parameter.name in allowed and (has_default or parameter.kind is parameter.KEYWORD_ONLY):
            yield f"the argument {parameter} would never be passed", "make it a plain argument, without a default"
        elif parameter.name not in allowed and not has_default:
            close = difflib.get_close_matches(parameter.name, allowed, n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            yield f"it has an argument {parameter.name!r} that the hook does not have{guess}", f"it has: {listed}"


def _nearest(hook: str) -> str:
    close = difflib.get_close_matches(hook, specifications(), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _refuse(name: str, hook: str, function: object, problem: str, remedy: str) -> NoReturn:
    raise PluginError(
        f"plugin {name!r}, hook {hook!r}: {problem}. It is defined as {_definition(function)}. Remedy: {remedy}",
        plugin=name,
        hook=hook,
    )


def _definition(function: object) -> str:
    """``name(arguments) in file:line``, as far as it can be found out."""
    function = inspect.unwrap(getattr(function, "__func__", function))  # type: ignore[arg-type]
    code = getattr(function, "__code__", None)
    where = f" in {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
    try:
        signature = str(inspect.signature(function))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        signature = ""
    return f"{getattr(function, '__qualname__', repr(function))}{signature}{where}"


__all__ = ["REQUIRED", "check_extension", "check_hooks", "check_required", "may_be_hook", "specifications"]
