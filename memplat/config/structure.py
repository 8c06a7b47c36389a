"""Plain values into typed ones, strictly: nothing is coerced in silence, ``true`` is no integer and ``"3"`` no number.

cattrs finds out what to do for a type; the hooks here are stricter than its own, and name what was expected.
"""

from __future__ import annotations

import enum
import functools
import math
import os
import threading
import types
import typing
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final, Literal, Union

import attrs
import cattrs

from memplat.config.document import KeyPath
from memplat.config.source import nearest
from memplat.errors import MemplatError
from memplat.ranges import parse_size
from memplat.types import EngineOptions
from memplat.wording import shown

#: Sizes and offsets must fit into the kernel's signed 64-bit ``off_t``.
SIZE_LIMIT: Final = 1 << 63

#: More threads populate memory no quicker.
MOST_THREADS: Final = 256
#: The longest time that a thread can be made to wait, in seconds.
LONGEST_DELAY: Final = threading.TIMEOUT_MAX

#: Fields of the engine whose names do not show that they are sizes.
_ENGINE_SIZES: Final = frozenset({"keep", "prealloc"})

_WORDS: Final[Mapping[Any, str]] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    bytes: "bytes",
    Path: "a path",
}
_ARRAYS: Final = (list, tuple, set, frozenset)


class UnfitError(Exception):
    """A value that does not suit its type, or a key that nobody knows; *path* leads from the outer value to it."""

    def __init__(self, message: str, path: KeyPath = ()) -> None:
        super().__init__(message)
        self.path = path


def options_of(cls: type[Any] | None) -> dict[str, attrs.Attribute[Any]]:
    """The options that an attrs class defines, by the name that its constructor takes; none for ``None``."""
    if cls is None:
        return {}
    return {str(field.alias or field.name): field for field in attrs.fields(cls) if field.init}


def is_size(field: attrs.Attribute[Any], cls: type[Any]) -> bool:
    """Whether a field is a number of bytes, which TOML may write as ``"4GiB"``.

    So is an ``int`` named ``size``, ``*_size`` or ``*_bytes``; ``metadata={"size": ...}`` says otherwise.
    """
    if "size" in field.metadata:
        return bool(field.metadata["size"])
    named = field.name == "size" or field.name.endswith(("_size", "_bytes"))
    return (named or (cls is EngineOptions and field.name in _ENGINE_SIZES)) and int in members(field.type)


def has_own_rules(field: attrs.Attribute[Any]) -> bool:
    """Whether the class converts the value itself. A converter that is the type is there for convenience only."""
    return field.converter is not None and field.converter is not field.type  # type: ignore[comparison-overlap]


def structure_option(cls: type[Any], name: str, value: Any, *, text_sizes: bool) -> Any:
    """The value for the option *name* of *cls*.

    :param text_sizes: whether sizes may be text, as in TOML; in Python they are integers
    :raises UnfitError: if it does not suit
    """
    resolve(cls)
    return _structurer(text_sizes).field(cls, options_of(cls)[name], value)


def build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """An instance of *cls* from structured values.

    :raises UnfitError: the first of the :func:`mistakes`
    """
    for error in mistakes(cls, values):
        raise error
    return cls(**values)


def mistakes(cls: type[Any], values: Mapping[str, Any]) -> list[UnfitError]:
    """What keeps *cls* from being made of structured values: values that are missing, those that a converter or
    validator of the class refuses whatever the others are, or, if all of them are good, that they do not go together.
    """
    fields = options_of(cls)
    required = [name for name, field in fields.items() if field.default is attrs.NOTHING]
    if missing := [name for name in required if name not in values]:
        return [UnfitError("is required and missing", (name,)) for name in missing]
    if _refusal(cls, values) is None:
        return []
    needed = {name: values[name] for name in required}
    if needed and (refused := _refusal(cls, needed)):
        return [UnfitError(refused, (required[0],) if len(required) == 1 else ())]
    alone = {name: _refusal(cls, needed | {name: value}) for name, value in values.items() if name not in needed}
    if single := [UnfitError(refused, (name,)) for name, refused in alone.items() if refused is not None]:
        return single
    return [UnfitError(_refusal(cls, values) or "is refused")]


def _refusal(cls: type[Any], values: Mapping[str, Any]) -> str | None:
    """What the class says against these values."""
    try:
        cls(**values)
    except (ValueError, TypeError, MemplatError) as error:
        if not error.args or isinstance(error, UnicodeError):  # whose first argument is the encoding
            return str(error) or repr(error)
        return str(error.args[0])  # validators of attrs add more than text
    return None


class _Structurer:
    """The strict hooks, and the converter that they are registered with."""

    def __init__(self, text_sizes: bool) -> None:
        self._text_sizes = text_sizes
        self._converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
        for scalar in (*_WORDS, enum.Enum):
            self._converter.register_structure_hook(scalar, _scalar)
        for applies, hook in (
            (is_array, self._array),
            (is_table, self._table),
            (_is_union, self._union),
            (_is_literal, _literal),
            (attrs.has, self._record),
        ):
            self._converter.register_structure_hook_func(applies, hook)

    def field(self, cls: type[Any], field: attrs.Attribute[Any], value: Any) -> Any:
        if is_size(field, cls):
            return self._size(value, field.type)
        if field.type is None or has_own_rules(field):
            return value  # the class itself says what it takes: build() reports what it refuses
        try:
            return self._converter.structure(value, field.type)
        except cattrs.StructureHandlerNotFoundError as error:
            raise UnfitError(f"cannot be configured: {cls.__name__} gives it the type {field.type}") from error
        except (TypeError, ValueError, AttributeError) as error:  # of a hook of cattrs' own
            raise UnfitError(f"{shown(value)} does not suit: {error}") from error

    def _size(self, value: Any, kind: Any) -> int | None:
        if value is None and type(None) in members(kind):
            return None
        if isinstance(value, str):
            value = self._size_from_text(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _unexpected('a size (an integer, or "64KiB", "4GiB")' if self._text_sizes else "an integer", value)
        if not 0 <= value < SIZE_LIMIT:
            raise UnfitError(f"{shown(value)} is no possible size: allowed are 0 to 2**63 - 1 bytes")
        return value

    def _size_from_text(self, text: str) -> int:
        try:
            size = parse_size(text)
        except (MemplatError, OverflowError) as error:
            raise UnfitError(str(error)) from error
        if not self._text_sizes:
            raise UnfitError(f"{text!r} is text, and sizes in Python are integers: write {size}")
        return size

    def _union(self, value: Any, kind: Any) -> Any:
        """The first member that takes the value; unambiguous, as each of them is strict."""
        if value is None and type(None) in members(kind):
            return None
        unfit: list[UnfitError] = []
        for member in members(kind):
            if member is not type(None):
                try:
                    return self._converter.structure(value, member)
                except UnfitError as error:
                    unfit.append(error)
        raise unfit[0] if len(unfit) == 1 else _unexpected(_describe(kind), value)

    def _array(self, value: Any, kind: Any) -> Any:
        if not isinstance(value, _ARRAYS):
            raise _unexpected("a list", value)
        items = list(value)
        arguments = typing.get_args(kind)
        origin = typing.get_origin(kind) or kind
        kinds = (arguments[0] if arguments else Any,) * len(items)
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            if len(items) != len(arguments):
                raise UnfitError(f"expected a list of {len(arguments)}, got one of {len(items)}")
            kinds = arguments
        container = origin if origin in _ARRAYS else (frozenset if issubclass(origin, AbstractSet) else tuple)
        return container([self._converter.structure(item, of) for item, of in zip(items, kinds, strict=True)])

    def _table(self, value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _unexpected("a table", value)
        keys, values = typing.get_args(kind) or (Any, Any)
        structured = {}
        for key, item in value.items():
            try:
                structured[self._converter.structure(key, keys)] = self._converter.structure(item, values)
            except UnfitError as error:
                raise UnfitError(str(error), (str(key), *error.path)) from error
        return structured

    def _record(self, value: Any, kind: Any) -> Any:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise _unexpected("a table", value)
        resolve(kind)
        fields = options_of(kind)
        values = {}
        for name, item in value.items():
            if name not in fields:
                raise UnfitError(f"is no key of this table{nearest(str(name), fields)}", (str(name),))
            try:
                values[name] = self.field(kind, fields[name], item)
            except UnfitError as error:
                raise UnfitError(str(error), (name, *error.path)) from error
        return build(kind, values)


_structurer = functools.cache(_Structurer)


def resolve(cls: type[Any]) -> None:
    """Turn annotations that are text into types, once."""
    if any(isinstance(field.type, str) for field in attrs.fields(cls)):
        attrs.resolve_types(cls)


def members(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other type by itself."""
    return typing.get_args(kind) if _is_union(kind) else (kind,)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def is_table(kind: Any) -> bool:
    """Whether a type is that of mappings."""
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def is_array(kind: Any) -> bool:
    """Whether a type is that of lists, tuples or sets."""
    origin = typing.get_origin(kind) or kind
    return (
        isinstance(origin, type) and issubclass(origin, Sequence | AbstractSet) and not issubclass(origin, str | bytes)
    )


def _unexpected(expected: str, value: Any) -> UnfitError:
    return UnfitError(f"expected {expected}, got {shown(value)} ({type(value).__name__})")


def _describe(kind: Any) -> str:
    if _is_union(kind):
        return " or ".join(_describe(member) for member in members(kind) if member is not type(None))
    if _is_literal(kind):
        return "one of " + ", ".join(repr(value) for value in typing.get_args(kind))
    if is_array(kind):
        return "a list"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in kind)
    if is_table(kind) or (isinstance(kind, type) and attrs.has(kind)):
        return "a table"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _scalar(value: Any, kind: Any) -> Any:
    """Booleans, numbers, texts, paths and what is derived from them, of which enumerations are the usual ones."""
    if issubclass(kind, enum.Enum):
        return _enumeration(value, kind)
    if issubclass(kind, Path) and isinstance(value, str | os.PathLike):
        return kind(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise UnfitError(f"{shown(value)} is no finite number")
        return number
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise _unexpected(_describe(kind), value)


def _enumeration(value: Any, kind: type[enum.Enum]) -> Any:
    for member in kind:
        if member is value or (type(member.value) is type(value) and member.value == value):
            return member
    if isinstance(value, str):
        raise UnfitError(f"{value!r} is not allowed{nearest(value, [str(member.value) for member in kind])}")
    raise _unexpected(_describe(kind), value)


def _literal(value: Any, kind: Any) -> Any:
    allowed = typing.get_args(kind)
    if any(type(item) is type(value) and item == value for item in allowed):
        return value
    if isinstance(value, str):
        raise UnfitError(f"{value!r} is not allowed{nearest(value, [str(item) for item in allowed])}")
    raise _unexpected(_describe(kind), value)


__all__ = [
    "LONGEST_DELAY",
    "MOST_THREADS",
    "SIZE_LIMIT",
    "UnfitError",
    "build",
    "has_own_rules",
    "is_array",
    "is_size",
    "is_table",
    "members",
    "mistakes",
    "options_of",
    "resolve",
    "structure_option",
]
