"""The configuration as a JSON schema (draft 2020-12), generated from the definitions that the parser uses.

It is for editors and for checks without memplat. What a schema cannot say is left to the parser: whether a plugin is
installed, how values go together, multiples of the page size, and what only code knows (converters, validators). A
class can say that of its fields itself: ``metadata={"schema": {"maxLength": 8}}``.
"""

from __future__ import annotations

import ast
import enum
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Union

import attrs

from memplat.config import structure
from memplat.config.inforce import LISTS
from memplat.ranges import SIZE_PATTERN
from memplat.types import EngineOptions

Schema = dict[str, Any]

#: Where the schema of the built-in backends is shipped, beside this module.
SCHEMA_FILE: Final = Path(__file__).with_name("memplat.schema.json")

#: What a plugin can be called.
_NAME: Final = "^[a-z][a-z0-9_-]*$"
_ROLE: Final = re.compile(r":\w+:`~?([^`]*)`")
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_NOTHING: Final[Schema] = {"not": {}}
_SCALARS: Final[Mapping[Any, str]] = {bool: "boolean", int: "integer", float: "number", str: "string"}
_LIST_WORDS: Final[Mapping[str, str]] = {
    "backend": "The backend, or a list in order of preference: the first that can be used here is taken.",
    "extensions": "Plugins that wrap the backend's hooks; each wraps those before it.",
    "plugins": "The allow-list: no plugin but these, and the built-in ones, may be loaded.",
}
#: What the types of the engine's options do not say.
_ENGINE_LIMITS: Final[Mapping[str, Schema]] = {
    "max_size": {"not": {"const": 0}},
    "prealloc_threads": {"minimum": 1, "maximum": structure.MOST_THREADS},
    "reclaim_delay": {"minimum": 0, "maximum": structure.LONGEST_DELAY},
}


def document_schema(backends: Mapping[str, type[Any] | None], *, closed: bool = False) -> Schema:
    """The schema of a configuration document.

    :param backends: the option classes of the backends that are described
    :param closed: whether there are no plugins but these; else other names are allowed, and tables for them
    """
    profile = {"type": "object", "additionalProperties": False, "properties": {"memory": {"$ref": "#/$defs/memory"}}}
    return {
        "$schema": _DIALECT,
        "title": "memplat.toml",
        "description": "Which memory backend is taken, and with which options.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "memory": {"$ref": "#/$defs/memory"},
            "profile": {
                "description": "By name: what overrides [memory] where that profile is asked for.",
                "type": "object",
                "additionalProperties": profile,
            },
        },
        "$defs": {
            "memory": _memory_schema(backends, closed),
            "size": {
                "description": 'Bytes, as an integer or as text: 4096, "64KiB", "4GiB".',
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": structure.SIZE_LIMIT - 1},
                    {"type": "string", "pattern": f"^(?:{SIZE_PATTERN})$"},
                ],
            },
        },
    }


def as_text(schema: Schema) -> str:
    """The schema as the file has it."""
    return json.dumps(schema, indent=2) + "\n"


def _memory_schema(backends: Mapping[str, type[Any] | None], closed: bool) -> Schema:
    engine = _properties(EngineOptions)
    for name, limits in _ENGINE_LIMITS.items():
        engine[name] |= limits
    tables = {name: _table(cls) | {"description": f"The options of {name}."} for name, cls in backends.items()}
    lists = {name: {"description": _LIST_WORDS[name]} | _names(name, backends, closed) for name in LISTS}
    others: Any = False if closed else {"type": "object", "description": "The options of another plugin's backend."}
    return {"type": "object", "properties": {**lists, **engine, **tables}, "additionalProperties": others}


def _names(key: str, backends: Mapping[str, type[Any] | None], closed: bool) -> Schema:
    """A name, or a list of different ones. The allow-list may name what is not installed."""
    name: Schema = {"type": "string", "minLength": 1}
    if closed and key != "plugins":
        name = {"enum": sorted(backends)}
    elif key == "backend":
        name = {"type": "string", "pattern": _NAME}
    least = {"minItems": 1} if key == "backend" else {}
    return {"anyOf": [name, {"type": "array", "items": name, "uniqueItems": True} | least]}


def _table(cls: type[Any] | None) -> Schema:
    """The table of an option class. What it requires is not told: a profile may bring it."""
    return {"type": "object", "additionalProperties": False, "properties": _properties(cls) if cls else {}}


def _properties(cls: type[Any]) -> dict[str, Schema]:
    structure.resolve(cls)
    words = _field_docs(cls)
    return {
        name: _described(words.get(field.name, "")) | _default(field) | _field(cls, field) | _own_words(field)
        for name, field in structure.options_of(cls).items()
    }


def _described(words: str) -> Schema:
    return {"description": words} if words else {}


def _own_words(field: attrs.Attribute[Any]) -> Schema:
    """What the class itself adds to the schema of a field."""
    return dict(field.metadata.get("schema", {}))


def _default(field: attrs.Attribute[Any]) -> Schema:
    """The default, where JSON has it."""
    value: Any = field.default
    if value is attrs.NOTHING:
        return {}
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        if value.takes_self:
            return {}
        value = value.factory()
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, tuple | set | frozenset):
        value = list(value)
    return {"default": value} if isinstance(value, bool | int | float | str | list | dict) else {}


def _field(cls: type[Any], field: attrs.Attribute[Any]) -> Schema:
    """As structure.py takes the values of a field."""
    if structure.is_size(field, cls):
        size = {"$ref": "#/$defs/size"}
        return {"anyOf": [size, {"type": "null"}]} if type(None) in structure.members(field.type) else size
    if structure.has_own_rules(field):
        taken = _argument_of(field.converter)
        return {} if taken is None else of_type(taken)
    return {} if field.type is None else of_type(field.type)


def _argument_of(converter: Any) -> Any:
    """What a converter says that it takes; ``None`` if it does not say."""
    try:
        first = next(iter(inspect.signature(converter).parameters))
        return typing.get_type_hints(converter).get(first)
    except (TypeError, ValueError, NameError, StopIteration):
        return None


def of_type(kind: Any) -> Schema:
    """The schema of what structure.py takes for a type; of what only Python can pass, nothing is left."""
    if kind is Any:
        return {}
    if kind is None or kind is type(None):
        return {"type": "null"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        parts = [part for part in map(of_type, arguments) if part != _NOTHING]
        return parts[0] if len(parts) == 1 else {"anyOf": parts} if parts else _NOTHING
    if origin is Literal:
        return {"enum": list(arguments)}
    if structure.is_table(kind):
        return {"type": "object"} | ({"additionalProperties": of_type(arguments[1])} if arguments else {})
    if structure.is_array(kind):
        return {"type": "array"} | _items(origin, arguments)
    return _of_class(kind)


def _items(origin: Any, arguments: tuple[Any, ...]) -> Schema:
    if not arguments:
        return {}
    if origin is tuple and arguments[-1] is not Ellipsis:
        count = len(arguments)
        return {"prefixItems": [of_type(item) for item in arguments], "minItems": count, "maxItems": count}
    return {"items": of_type(arguments[0])}


def _of_class(kind: Any) -> Schema:
    if not isinstance(kind, type):
        return _NOTHING
    if issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if issubclass(kind, Path):
        return {"type": "string"}
    if attrs.has(kind):
        required = [name for name, field in structure.options_of(kind).items() if field.default is attrs.NOTHING]
        return _table(kind) | ({"required": required} if required else {})
    return _NOTHING


def _plain(words: str) -> str:
    """A docstring without its markup, in the words of those who write TOML."""
    words = _ROLE.sub(r"\1", words).replace("``", "").replace("; None: ", "; without it: ")
    return " ".join(words.split())


def _field_docs(cls: type[Any]) -> Mapping[str, str]:
    """The texts below the fields of a class, from its source; none where that is not to be had."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    found = {}
    statements = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, text in itertools.pairwise(statements):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = _plain(str(text.value.value))
    return found


__all__ = ["SCHEMA_FILE", "as_text", "document_schema", "of_type"]
