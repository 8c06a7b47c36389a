"""The JSON schema: it is what is shipped, and says what the parser says."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplat import config as configuration
from memplat import plugins
from memplat.config.schema import Schema, of_type
from memplat.errors import ConfigError
from memplat.types import EngineOptions

BUILT_IN = ("hugetlb", "memfd", "tmpfile")
CLASSES: dict[str, type[Any] | None] = {name: plugins.load(name).info.options for name in BUILT_IN}
OPEN = configuration.document_schema(CLASSES)
CLOSED = configuration.document_schema(CLASSES, closed=True)


def accepts(schema: Schema, document: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(document))


def mistakes(document: dict[str, Any]) -> list[str]:
    """What the parser says of a document: all of it, with the options of the built-in backends."""
    found = configuration.check(configuration.Document(document), BUILT_IN, lambda name: CLASSES[name])
    return [str(error) for error in found]


def test_the_shipped_file_is_what_is_generated() -> None:
    shipped = configuration.SCHEMA_FILE.read_text(encoding="utf-8")
    regenerate = "memplat config schema > memplat/config/memplat.schema.json"
    assert shipped == configuration.as_text(OPEN), f"it is out of date: {regenerate}"


def test_it_is_a_valid_schema() -> None:
    for schema in (OPEN, CLOSED):
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_option_of_the_engine_and_of_each_backend_is_in_it_with_a_description() -> None:
    properties = OPEN["$defs"]["memory"]["properties"]
    assert set(properties) == {*attrs.fields_dict(EngineOptions), "backend", "extensions", "plugins", *BUILT_IN}
    for name, cls in CLASSES.items():
        assert cls is not None
        assert set(properties[name]["properties"]) == {field.name for field in attrs.fields(cls)}
        assert all("description" in option for option in properties[name]["properties"].values())
    assert all("description" in option for option in properties.values())


GOOD: list[dict[str, Any]] = [
    {},
    {"memory": {}},
    {"memory": {"backend": "memfd"}},
    {"memory": {"backend": ["hugetlb", "memfd"], "max_size": "4GiB", "reclaim": "manual", "reclaim_delay": 1}},
    {"memory": {"max_size": 8192, "prealloc": " 4 kib", "keep": "1.5M", "core_dump": True, "default_mode": "reserved"}},
    {"memory": {"max_size": None, "default_mode": None}},
    {"memory": {"plugins": [], "extensions": []}},
    {"memory": {"plugins": "not-installed-here"}},
    {"memory": {"hugetlb": {"page_size": "2MiB", "mount": "/mnt", "seal": False}}},
    {"memory": {"memfd": {"huge": "collapse", "name": "x" * 249}}},
    {"profile": {"browser": {"memory": {"backend": "tmpfile", "tmpfile": {"directory": "/var/tmp"}}}}},
    {"profile": {"empty": {}}},
]
BAD: list[dict[str, Any]] = [
    {"memroy": {}},
    {"memory": []},
    {"memory": {"max_sise": 1}},
    {"memory": {"backend": []}},
    {"memory": {"backend": ["memfd", "memfd"]}},
    {"memory": {"backend": 3}},
    {"memory": {"backend": ""}},
    {"memory": {"max_size": "4 giraffes"}},
    {"memory": {"max_size": 0}},
    {"memory": {"max_size": -4096}},
    {"memory": {"max_size": True}},
    {"memory": {"max_size": 1 << 63}},
    {"memory": {"keep": 1.5}},
    {"memory": {"keep": None}},
    {"memory": {"reclaim": "never"}},
    {"memory": {"reclaim_delay": -1}},
    {"memory": {"reclaim_delay": "1"}},
    {"memory": {"reclaim_delay": 1e10}},
    {"memory": {"core_dump": 1}},
    {"memory": {"plugins": [1]}},
    {"memory": {"extensions": {}}},
    {"memory": {"memfd": 1}},
    {"memory": {"memfd": {"nam": "x"}}},
    {"memory": {"memfd": {"name": "x" * 250}}},
    {"memory": {"memfd": {"huge": "always"}}},
    {"memory": {"hugetlb": {"page_size": "2 millibits"}}},
    {"memory": {"tmpfile": {"directory": 1}}},
    {"profile": 1},
    {"profile": {"p": 1}},
    {"profile": {"p": {"memroy": {}}}},
    {"profile": {"p": {"memory": {"keep": -1}}}},
]


@pytest.mark.parametrize("document", GOOD, ids=str)
def test_schema_and_parser_both_accept_what_is_good(document: dict[str, Any]) -> None:
    assert mistakes(document) == []
    for schema in (OPEN, CLOSED):
        jsonschema.validate(document, schema)


@pytest.mark.parametrize("document", BAD, ids=lambda document: str(document)[:60])
def test_schema_and_parser_both_refuse_what_is_bad(document: dict[str, Any]) -> None:
    assert len(mistakes(document)) == 1
    assert not accepts(OPEN, document)
    assert not accepts(CLOSED, document)


def test_only_the_closed_schema_knows_which_plugins_there_are() -> None:
    for document in ({"memory": {"backend": "mine"}}, {"memory": {"mine": {"any": "thing"}}}):
        assert accepts(OPEN, document)
        assert not accepts(CLOSED, document)
        assert len(mistakes(document)) == 1


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)
_sizes = st.sampled_from(
    [0, 1, 4096, 8192, 1 << 62, 1 << 63, "64KiB", "2M", "4 GiB\n", "1.5k", "0.3", "8EiB", "x", "-1"]
)
_words = st.sampled_from(["memfd", "hugetlb", "background", "reserved", "collapse", "advise", "mine", "/tmp", ""])
_values = st.one_of(_sizes, _words, st.lists(_words, max_size=3), _anything)
_own = st.dictionaries(
    st.sampled_from(["name", "seal", "huge", "page_size", "mount", "directory", "x"]), _values, max_size=3
)
_memory = st.dictionaries(
    st.sampled_from([*attrs.fields_dict(EngineOptions), "backend", "extensions", "plugins", "max_sise"]),
    _values,
    max_size=3,
) | st.dictionaries(st.sampled_from(BUILT_IN), _own | _values, max_size=2)
_documents = st.fixed_dictionaries(
    {},
    optional={
        "memory": _memory,
        "profile": st.dictionaries(st.text(max_size=2), st.fixed_dictionaries({"memory": _memory}), max_size=1),
    },
)

#: What only the parser knows, by its words.
_BEYOND_A_SCHEMA = (
    "no multiple of the page size",
    "no whole number of bytes",
    "is more than max_size",
    "is no possible size",  # the number that a text stands for
    "allowed are powers of two",
    "without NUL",  # a NUL, or more than 249 bytes in fewer characters
    "allowed is the path of a directory",  # an empty one, or one with a NUL
    "is no size",  # sizes within structures of the class's own
)


def _whole_floats(value: Any) -> bool:
    """JSON does not tell 1.0 from 1; the parser does."""
    if isinstance(value, dict):
        return any(map(_whole_floats, value.values()))
    if isinstance(value, list):
        return any(map(_whole_floats, value))
    return isinstance(value, float) and value.is_integer()


@given(_documents)
def test_parser_and_schema_are_in_step(document: dict[str, Any]) -> None:
    said = mistakes(document)
    accepted = accepts(CLOSED, document)
    if not said:
        assert accepted, f"the parser takes it: {document}"
    elif accepted and not _whole_floats(document):
        assert all(any(words in each for words in _BEYOND_A_SCHEMA) for each in said), said


# ---- types


class Shade(enum.StrEnum):
    LIGHT = "light"
    DARK = "dark"


@attrs.frozen
class Node:
    number: int
    """Which one."""
    share_bytes: int = 0


def _upper(value: str | Path) -> str:
    return str(value).upper()


@attrs.frozen
class Everything:
    """A field of every type that options may have."""

    name: str = "x"
    page_size: int | None = None
    ratio: float = 0.5
    shade: Shade = Shade.LIGHT
    huge: Literal["never", "advise"] = "never"
    directory: Path | None = None
    nodes: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    either: int | str = 0
    node: Node | None = None
    table: dict[str, int] = attrs.field(factory=dict)
    stream: bytes = b""
    odd: Callable[[], None] | None = None
    anything: Any = None
    said: str = attrs.field(default="", converter=_upper)
    unsaid: str = attrs.field(default="", converter=lambda value: value)


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("name", ["a"], [1, None]),
        ("page_size", [1, "2MiB", None], ["x", 1.5, -1]),
        ("ratio", [1, 0.5], ["1", True]),
        ("shade", ["dark"], ["grey", 1]),
        ("huge", ["advise"], ["always"]),
        ("directory", ["/tmp", None], [1]),
        ("nodes", [[], [1, 2]], [["1"], 1]),
        ("pair", [[1, "a"]], [[1], ["a", 1], [1, "a", 2]]),
        ("either", [1, "a"], [True, None, []]),
        ("node", [{"number": 1}, {"number": 1, "share_bytes": "4KiB"}, None], [{}, {"number": 1, "x": 2}, 3]),
        ("table", [{}, {"a": 1}], [{"a": "b"}, []]),
        ("stream", [], ["text", 1]),
        ("odd", [None], ["text", 1]),
        ("anything", [1, "a", [], None], []),
        ("said", ["a"], []),
        ("unsaid", ["a"], []),
    ],
)
def test_each_type_of_an_option_is_described_as_it_is_parsed(option: str, good: list[Any], bad: list[Any]) -> None:
    schema = configuration.document_schema({"mine": Everything}, closed=True)
    for values, right in ((good, True), (bad, False)):
        for value in values:
            document = {"memory": {"backend": "mine", "mine": {option: value}}}
            found = configuration.check(configuration.Document(document), ["mine"], lambda _: Everything)
            assert (found == [], accepts(schema, document)) == (right, right), (value, found)


def test_a_new_option_appears_by_itself_with_its_text_default_and_own_words() -> None:
    @attrs.frozen
    class Growing:
        """It grows."""

        depth: int = attrs.field(default=3, metadata={"schema": {"maximum": 9}})
        """How ``deep``, see :meth:`Memory.dump`; None: not at all."""

    option = configuration.document_schema({"mine": Growing})["$defs"]["memory"]["properties"]["mine"]["properties"][
        "depth"
    ]
    assert option == {
        "description": "How deep, see Memory.dump; without it: not at all.",
        "default": 3,
        "type": "integer",
        "maximum": 9,
    }


def test_what_is_required_has_no_default() -> None:
    assert of_type(Node)["properties"]["number"] == {"description": "Which one.", "type": "integer"}
    assert of_type(Node)["required"] == ["number"]


def test_what_only_python_can_pass_has_no_schema() -> None:
    assert of_type(Callable[[], None]) == {"not": {}}
    assert of_type(bytes) == {"not": {}}
    assert of_type(object | None) == {"type": "null"}


def test_a_wrong_value_is_refused_by_the_parser_in_any_layer() -> None:
    with pytest.raises(ConfigError):
        configuration.load(config={"memory": {"reclaim_delay": 1e10}}, environ={}, backend_names=BUILT_IN)


def test_the_file_is_plain_json_that_ends_with_a_line() -> None:
    text = configuration.SCHEMA_FILE.read_text(encoding="utf-8")
    assert json.loads(text)["$schema"].startswith("https://json-schema.org/draft/2020-12/")
    assert text.endswith("}\n")
