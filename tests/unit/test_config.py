"""The layers of the configuration, strictness, and where errors point."""

from __future__ import annotations

import enum
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplat import config as configuration
from memplat.config import Document, Origin
from memplat.config.structure import UnfitError, build, structure_option
from memplat.errors import ConfigError, MemplatError, UnknownBackendError
from memplat.types import AllocationMode, EngineOptions, ReclaimMode

NAMES = ("memfd", "tmpfile", "hugetlb", "my-own")


class Shade(enum.StrEnum):
    LIGHT = "light"
    DARK = "dark"


@attrs.frozen
class Node:
    number: int
    share_bytes: int = 0


@attrs.frozen
class Options:
    """Something of every type that a backend's options may have."""

    name: str = "x"
    page_size: int | None = None
    count: int = 1
    ratio: float = 0.5
    fast: bool = False
    shade: Shade = Shade.LIGHT
    huge: Literal["never", "advise"] = "never"
    directory: Path | None = None
    nodes: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    either: int | str = 0
    node: Node | None = None
    table: dict[str, int] = attrs.field(factory=dict)
    limit: int = attrs.field(default=0, metadata={"size": True})
    odd: Callable[[], None] | None = None
    stream: bytes = b""
    level: int = attrs.field(default=1, validator=attrs.validators.in_([1, 2, 3]))
    even: int = attrs.field(default=2)
    low: int = 0
    high: int = 9

    @even.validator
    def _check_even(self, attribute: Any, value: int) -> None:
        if value % 2:
            raise ValueError(f"{value} is odd")

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


@attrs.frozen
class Required:
    where: str


def load(backend: Any = None, *, environ: dict[str, str] | None = None, **kwargs: Any) -> configuration.Config:
    return configuration.load(backend, environ=environ or {}, backend_names=NAMES, **kwargs)


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "memplat.toml") -> Path:
        path = Path(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_file


# ---- layers


def test_without_anything_the_defaults_are_in_force_and_say_so():
    config = load()
    assert config.backends == ("memfd",)
    assert config.engine == EngineOptions()
    assert config.extensions == ()
    assert config.allowed_plugins is None
    assert {str(setting.source) for setting in config.settings.values()} == {"default"}
    assert set(attrs.fields_dict(EngineOptions)) < set(config.settings)


def test_the_example_of_the_design_is_understood(write):
    path = write("""\
        [memory]
        backend = ["hugetlb", "memfd"]
        max_size = "4GiB"
        reclaim = "background"
        [memory.hugetlb]
        page_size = "2MiB"
        [profile.browser.memory]
        backend = "tmpfile"
        """)
    config = load(config=path)
    assert config.backends == ("hugetlb", "memfd")
    assert config.engine.max_size == 4 << 30
    assert config.engine.reclaim is ReclaimMode.BACKGROUND
    assert config.backend_options("hugetlb", Options).page_size == 2 << 20
    assert load(config=path, profile="browser").backends == ("tmpfile",)
    assert load(config=path, profile="browser").engine.max_size == 4 << 30


def test_each_layer_overrides_the_one_before_key_by_key(write):
    path = write("""\
        [memory]
        backend = "memfd"
        keep = "1MiB"
        reclaim_delay = 1
        [memory.memfd]
        name = "file"
        count = 2
        [profile.p.memory]
        keep = 8192
        [profile.p.memory.memfd]
        count = 3
        """)
    env = {"MEMPLAT_BACKEND": "tmpfile, memfd"}
    config = load(config=path, profile="p", environ=env, options={"reclaim_delay": 2, "memfd": {"ratio": 1}})
    assert config.backends == ("tmpfile", "memfd")
    assert config.engine.keep == 8192
    assert config.engine.reclaim_delay == 2
    own = config.backend_options("memfd", Options)
    assert (own.name, own.count, own.ratio) == ("file", 3, 1)
    assert load("hugetlb", config=path, environ=env).backends == ("hugetlb",)


def test_every_value_knows_where_it_comes_from(write):
    path = write("""\
        [memory]
        keep = "1MiB"
        memfd.name = "a"

        [profile.p.memory]
        max_size = "1GiB"
        """)
    options = {"prealloc": 4096, "hugetlb": {"page_size": 1}, "shade": "dark"}
    config = load(config=path, profile="p", environ={"MEMPLAT_BACKEND": "memfd"}, options=options)
    sources = {key: str(setting.source) for key, setting in config.settings.items()}
    assert sources["keep"] == f"{path}:2"
    assert sources["memfd.name"] == f"{path}:3"
    assert sources["max_size"] == f"{path}:6"
    assert sources["backend"] == "environment MEMPLAT_BACKEND"
    assert sources["prealloc"] == "argument prealloc"
    assert sources["hugetlb.page_size"] == "argument hugetlb.page_size"
    assert sources["shade"] == "argument shade"
    assert sources["reclaim"] == "default"
    assert config.settings["max_size"].source.key == "profile.p.memory.max_size"
    assert load(config={"memory": {"keep": 1}}).settings["keep"].source.origin is Origin.MAPPING


def test_the_argument_goes_before_the_variable_and_the_variable_before_the_users_own_file(write, tmp_path):
    argument = write("[memory]\nkeep = 1\n", "argument.toml")
    variable = write("[memory]\nkeep = 2\n", "variable.toml")
    write("[memory]\nkeep = 3\n", "xdg/memplat/memplat.toml")
    write("[memory]\nkeep = 4\n", "home/.config/memplat/memplat.toml")
    env = {
        "MEMPLAT_CONFIG": str(variable),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "HOME": str(tmp_path / "home"),
    }
    assert load(config=argument, environ=env).engine.keep == 1
    assert load(config=str(argument), environ=env).engine.keep == 1
    assert load(config={}, environ=env).engine.keep == 0
    assert load(environ=env).engine.keep == 2
    assert load(environ=env | {"MEMPLAT_CONFIG": ""}).engine.keep == 3
    del env["MEMPLAT_CONFIG"]
    assert load(environ=env).engine.keep == 3
    assert load(environ=env | {"XDG_CONFIG_HOME": "relative"}).engine.keep == 4
    assert load(environ={"HOME": str(tmp_path / "home")}).engine.keep == 4
    assert load(environ={"HOME": str(tmp_path)}).engine.keep == 0
    assert load(environ={}).engine.keep == 0


def test_the_working_directorys_file_is_not_picked_up_unless_it_is_named(write, monkeypatch):
    monkeypatch.chdir(write("[memory]\nkeep = 1\n").parent)
    assert load().engine.keep == 0
    assert load(environ={"MEMPLAT_CONFIG": "./memplat.toml"}).engine.keep == 1


def test_plugins_can_be_allowed_by_name_or_all_be_shut_out(write):
    assert load(config={"memory": {"plugins": []}}).allowed_plugins == frozenset()
    assert load(config={"memory": {"plugins": ["a"]}}).allowed_plugins == frozenset({"a"})
    for value, disabled in {"1": True, "true": True, "YES": True, "0": False, "": False, "off": False}.items():
        assert load(environ={"MEMPLAT_DISABLE_PLUGINS": value}).plugins_disabled is disabled
    with pytest.raises(ConfigError, match="MEMPLAT_DISABLE_PLUGINS: 'maybe' is neither 1 nor 0"):
        load(environ={"MEMPLAT_DISABLE_PLUGINS": "maybe"})


def test_in_python_backends_and_extensions_may_be_the_plugins_themselves():
    plugin, extension = object(), object()
    config = load([plugin, "memfd"], options={"extensions": [extension, "my-own"]})
    assert config.backends == (plugin, "memfd")
    assert config.extensions == (extension, "my-own")
    assert load(plugin).backends == (plugin,)


def test_profiles_are_listed():
    assert configuration.profile_names(Document({"profile": {"b": {}, "a": {"memory": {}}}})) == ["a", "b"]


# ---- errors point at file, line and key


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("[memory]\nmax_sise = 1\n", 2, "memory.max_sise", 'did you mean "max_size"'),
        ("[memroy]\n", 1, "memroy", 'did you mean "memory"'),
        ("[memory]\n\n[memory.memfs]\n", 3, "memory.memfs", 'did you mean "memfd"'),
        ("[memory]\nbackend = ['memfd',\n 'hugtlb']\n", 3, "memory.backend", 'did you mean "hugetlb"'),
        ("[memory]\nbackend = 3\n", 2, "memory.backend", "expected a name or a list of names"),
        ("[memory]\nbackend = []\n", 2, "memory.backend", "names no backend"),
        ("[memory]\nbackend = ['memfd', 1]\n", 2, "memory.backend", "expected a name, got 1"),
        ("[memory]\nbackend = ['memfd', 'memfd']\n", 2, "memory.backend", "twice"),
        ("[memory]\nmax_size = true\n", 2, "memory.max_size", "expected a size"),
        ("[memory]\nmax_size = 1.5\n", 2, "memory.max_size", "expected a size"),
        ("[memory]\nmax_size = '4 giraffes'\n", 2, "memory.max_size", "is no size"),
        ("[memory]\nmax_size = 0\n", 2, "memory.max_size", "at least a page"),
        ("[memory]\nmax_size = -4096\n", 2, "memory.max_size", "no possible size"),
        ("[memory]\nmax_size = 5000\n", 2, "memory.max_size", "the next one is 8192"),
        ("[memory]\nmax_size = '8EiB'\n", 2, "memory.max_size", "2**63"),
        ("[memory]\nmax_size = 9223372036854775808\n", 2, "memory.max_size", "2**63"),
        ("[memory]\nkeep = -1\n", 2, "memory.keep", "no possible size"),
        ("[memory]\nprealloc = 1\n", 2, "memory.prealloc", "multiple of the page size"),
        ("[memory]\nmax_size = '4KiB'\nprealloc = '8KiB'\n", 3, "memory.prealloc", "more than max_size"),
        ("[memory]\nreclaim = 'backgrund'\n", 2, "memory.reclaim", 'did you mean "background"'),
        ("[memory]\nreclaim = 1\n", 2, "memory.reclaim", "expected one of 'background', 'manual'"),
        ("[memory]\nreclaim_delay = -1\n", 2, "memory.reclaim_delay", "no possible delay"),
        ("[memory]\nreclaim_delay = inf\n", 2, "memory.reclaim_delay", "no finite number"),
        ("[memory]\nreclaim_delay = true\n", 2, "memory.reclaim_delay", "expected a number"),
        ("[memory]\nreclaim_delay = '1'\n", 2, "memory.reclaim_delay", "expected a number"),
        ("[memory]\ncore_dump = 1\n", 2, "memory.core_dump", "expected true or false"),
        ("[memory]\ndefault_mode = 'commited'\n", 2, "memory.default_mode", 'did you mean "committed"'),
        ("[memory]\nmemfd = 1\n", 2, "memory.memfd", "expected a table"),
        ("memory = 1\n", 1, "memory", "expected a table"),
        ("[[memory]]\nkeep = 1\n", 1, "memory", "expected a table"),
        ("[profile.p.memroy]\n", 1, "profile.p.memroy", 'did you mean "memory"'),
        ("[profile]\np = 1\n", 2, "profile.p", "expected a table"),
        ("[memory]\nplugins = [1]\n", 2, "memory.plugins", "expected a name"),
        ("[memory]\nextensions = {}\n", 2, "memory.extensions", "expected a name or a list"),
        ("[memory]\nname = 'x'\n", 2, "memory.name", "is no key of [memory]"),
    ],
)
def test_a_mistake_in_a_file_is_an_error_with_file_line_and_key(write, text, line, key, says):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(config=path)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(path), line, key)
    assert str(error).startswith(f"{path}:{line}: {key}: ")
    assert says in str(error)


def test_a_mistake_that_a_later_layer_overrides_is_still_an_error(write):
    path = write("[memory]\nkeep = 'much'\n[profile.p.memory]\nkeep = 1\n")
    with pytest.raises(ConfigError, match="is no size"):
        load(config=path, profile="p", options={"keep": 2})


def test_an_unknown_backend_is_an_unknown_backend_error_wherever_it_is_named(write):
    with pytest.raises(UnknownBackendError, match="backend: no plugin is named 'x'") as caught:
        load("x")
    assert isinstance(caught.value, LookupError)
    assert all(name in str(caught.value) for name in NAMES)
    with pytest.raises(UnknownBackendError, match="MEMPLAT_BACKEND"):
        load(environ={"MEMPLAT_BACKEND": "memfd,x"})
    with pytest.raises(UnknownBackendError):
        load(config=write("[memory.x]\n"))
    with pytest.raises(UnknownBackendError, match=r":2: memory.extensions: no plugin is named 'memfs'; did you mean"):
        load(config=write("[memory]\nextensions = 'memfs'\n"))


def test_a_file_that_cannot_be_used_is_an_error_that_names_it(write, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(config=tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(environ={"MEMPLAT_CONFIG": str(tmp_path)})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(config="nul\0byte")
    (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
    with pytest.raises(ConfigError, match="no UTF-8"):
        load(config=tmp_path / "latin.toml")
    with pytest.raises(ConfigError) as caught:
        load(config=write("[memory]\nkeep = = 1\n"))
    assert caught.value.line == 2
    with pytest.raises(ConfigError) as caught:
        load(config=write("[memory]\nkeep = [\n"))
    assert caught.value.line == 3
    with pytest.raises(ConfigError, match="too deeply"):
        load(config=write("x = " + "[" * 20000 + "]" * 20000))
    with pytest.raises(ConfigError, match="neither a path nor a mapping"):
        load(config=3)


def test_a_profile_that_does_not_exist_is_an_error_with_the_nearest_one(write):
    with pytest.raises(ConfigError, match='did you mean "browser"'):
        load(config=write("[profile.browser]\n"), profile="browsr")
    with pytest.raises(ConfigError, match="there are none"):
        load(config=write("[memory]\n"), profile="p")
    with pytest.raises(ConfigError, match="no configuration file"):
        load(profile="p")
    with pytest.raises(ConfigError, match="expected the name of a profile"):
        load(config={}, profile=3)


def test_sizes_are_integers_in_python_and_the_error_says_which(write):
    assert load(options={"max_size": 1 << 30}).engine.max_size == 1 << 30
    assert load(options={"max_size": None}).engine.max_size is None
    with pytest.raises(ConfigError, match="max_size: '1MiB' is text, and sizes in Python are integers: write 1048576"):
        load(options={"max_size": "1MiB"})
    assert load(config={"memory": {"max_size": "1MiB"}}).engine.max_size == 1 << 20
    assert load(options={"default_mode": "committed"}).engine.default_mode is AllocationMode.COMMITTED
    assert load(options={"default_mode": AllocationMode.COMMITTED}).engine.default_mode is AllocationMode.COMMITTED


def test_keys_of_a_mapping_must_be_text():
    with pytest.raises(ConfigError, match="keys are texts"):
        load(config={"memory": {1: 2}})


@pytest.mark.parametrize("backend", [3, {}, [], [None], [""], "", ["memfd", "memfd"], True])
def test_a_backend_argument_that_names_nothing_is_an_error(backend):
    with pytest.raises(ConfigError):
        load(backend)


def test_an_environment_variable_that_names_nothing_is_an_error():
    with pytest.raises(ConfigError, match="MEMPLAT_BACKEND: names no backend"):
        load(environ={"MEMPLAT_BACKEND": " , "})
    assert load(environ={"MEMPLAT_BACKEND": ""}).backends == ("memfd",)


# ---- a backend's own options


def test_a_backends_options_are_structured_into_its_class(write):
    path = write("""\
        [memory.memfd]
        name = "n"
        page_size = "2MiB"
        limit = "1KiB"
        ratio = 1
        fast = true
        shade = "dark"
        huge = "advise"
        directory = "/tmp"
        nodes = [1, 2]
        pair = [1, "a"]
        either = "x"
        node = {number = 3, share_bytes = "4KiB"}
        table = {a = 1}
        """)
    assert load(config=path).backend_options("memfd", Options) == Options(
        name="n", page_size=2 << 20, limit=1024, ratio=1.0, fast=True, shade=Shade.DARK, huge="advise",
        directory=Path("/tmp"), nodes=(1, 2), pair=(1, "a"), either="x", node=Node(3, 4096), table={"a": 1},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        ("nmae = 'x'", "nmae", 'did you mean "name"'),
        ("name = 1", "name", "expected a text, got 1"),
        ("count = '3'", "count", "expected an integer"),
        ("count = '3KiB'", "count", "expected an integer"),
        ("count = true", "count", "expected an integer, got True"),
        ("count = 1.0", "count", "expected an integer"),
        ("fast = 'yes'", "fast", "expected true or false"),
        ("shade = 'drak'", "shade", 'did you mean "dark"'),
        ("huge = 'advice'", "huge", 'did you mean "advise"'),
        ("huge = 1", "huge", "expected one of 'never', 'advise'"),
        ("directory = 1", "directory", "expected a path"),
        ("nodes = 'abc'", "nodes", "expected a list"),
        ("nodes = [1, '2']", "nodes", "expected an integer, got '2'"),
        ("pair = [1]", "pair", "a list of 2"),
        ("either = 1.5", "either", "expected an integer or a text"),
        ("node = 1", "node", "expected a table"),
        ("node = {numbr = 1}", "node.numbr", 'did you mean "number"'),
        ("node = {number = true}", "node.number", "expected an integer"),
        ("node = {share_bytes = 1}", "node.number", "required and missing"),
        ("table = 1", "table", "expected a table"),
        ("table = {a = 'x'}", "table.a", "expected an integer"),
        ("odd = 1", "odd", "cannot be configured"),
        ("stream = 1", "stream", "expected bytes"),
        ("page_size = 'big'", "page_size", "is no size"),
        ("level = 4", "level", "'level' must be in [1, 2, 3]"),
        ("even = 3", "even", "3 is odd"),
        ("low = 3\nhigh = 2", "", "low is above high"),
    ],
)
def test_a_wrong_option_of_a_backend_is_an_error_with_its_line(write, line, key, says):
    path = write(f"[memory.memfd]\n\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load(config=path).backend_options("memfd", Options)
    assert says in str(caught.value)
    assert caught.value.file == str(path)
    assert caught.value.key == f"memory.memfd.{key}".rstrip(".")
    # A table itself stands in its header's line, and so does what it lacks.
    assert caught.value.line == {"": 1}.get(key, 3)


def test_a_backend_without_options_takes_none():
    assert load().backend_options("memfd", None) is None
    with pytest.raises(ConfigError, match=r"memfd\.name: is no option of backend 'memfd'; there are none"):
        load(options={"memfd": {"name": "x"}}).backend_options("memfd", None)


def test_a_required_option_that_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"memory\.memfd\.where: is required and missing"):
        load().backend_options("memfd", Required)
    assert load(options={"where": "x"}).backend_options("memfd", Required) == Required("x")


def test_flat_options_go_to_every_listed_backend_that_has_them():
    config = load(options={"shade": "dark", "where": "x"})
    config.check_flat({"memfd": Options, "tmpfile": Required, "hugetlb": None})
    assert config.backend_options("memfd", Options).shade is Shade.DARK
    assert config.backend_options("tmpfile", Required).where == "x"
    assert config.backend_options("hugetlb", None) is None


def test_a_flat_option_that_suits_nobody_is_an_error():
    with pytest.raises(ConfigError, match="shad: is no option of memplat, nor of 'memfd'; did you mean \"shade\""):
        load(options={"shad": "dark"}).check_flat({"memfd": Options})
    with pytest.raises(ConfigError, match='did you mean "max_size"'):
        load(options={"maxsize": 1}).check_flat({"memfd": None})


def test_an_option_given_both_flat_and_nested_is_an_error_but_flat_overrides_the_file():
    with pytest.raises(ConfigError, match=r"given twice: here, and as memfd\.name"):
        load(options={"name": "a", "memfd": {"name": "b"}}).backend_options("memfd", Options)
    config = load(config={"memory": {"memfd": {"name": "b"}}}, options={"name": "a"})
    assert config.backend_options("memfd", Options).name == "a"


def test_a_class_with_a_converter_decides_itself_what_it_takes():
    @attrs.frozen
    class Converting:
        upper: str = attrs.field(default="", converter=lambda value: value.upper())

    assert structure_option(Converting, "upper", "a", text_sizes=True) == "a"
    assert build(Converting, {"upper": "a"}).upper == "A"

    @attrs.frozen
    class Picky:
        number: int = attrs.field(default=0, converter=int)

    with pytest.raises(UnfitError, match="invalid literal"):
        build(Picky, {"number": "x"})
    # A converter that is the type itself is there for convenience, and no reason to be less strict.
    with pytest.raises(UnfitError, match="expected an integer"):
        structure_option(Picky, "number", "3", text_sizes=True)


# ---- the lines of keys


def test_lines_are_found_for_every_way_to_write_a_key():
    text = textwrap.dedent("""\
        # a comment with [brackets] and "quotes"
        top = 1
        dotted.key = 2
        "quoted.key" = 3
        'literal'."mix" = 4

        [table] # comment
        text = \"\"\"
        [not.a.table]
        x = 1
        \"\"\"
        after = '''
        y = [
        '''
        list = [
          1, # comment ]
          "]",
        ]
        end = { inner = { deep = 1 } }
        [table."sub table".x]
        z = 1979-05-27
        [[array]]
        a = 1
        [[array]]
        a = 2
        b = 3
        """)
    document = Document(tomllib.loads(text), "f", text)
    expected = {
        ("top",): 2,
        ("dotted",): 3,
        ("dotted", "key"): 3,
        ("quoted.key",): 4,
        ("literal", "mix"): 5,
        ("table",): 7,
        ("table", "text"): 8,
        ("table", "after"): 12,
        ("table", "list"): 15,
        ("table", "end"): 19,
        ("table", "end", "inner", "deep"): 19,
        ("table", "sub table"): 20,
        ("table", "sub table", "x", "z"): 21,
        ("array",): 22,
        ("array", "a"): 23,
        ("array", "b"): 26,
        ("table", "x"): None,
        ("table", "not"): None,
        ("y",): None,
    }
    assert {path: document.line_of(path) for path in expected} == expected


def test_lines_are_right_with_carriage_returns_and_without_a_last_newline(tmp_path):
    path = tmp_path / "crlf.toml"
    path.write_bytes(b'[memory]\r\nbackend = """\r\nx"""\r\nkeep = -1')
    with pytest.raises(ConfigError) as caught:
        load(config=path)
    assert caught.value.line == 2
    path.write_bytes(b"[memory]\r\nbackend = [\r\n'memfd']\r\nkeep = -1")
    with pytest.raises(ConfigError) as caught:
        load(config=path)
    assert caught.value.line == 4


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_keys = st.sampled_from([*attrs.fields_dict(EngineOptions), "backend", "extensions", "plugins", "memfd"]) | st.text()


@given(st.dictionaries(_keys, _json, max_size=4), st.sampled_from(["config", "options"]))
def test_whatever_the_values_are_the_answer_is_a_configuration_or_an_error_of_ours(values, way):
    try:
        config = load(config={"memory": values}) if way == "config" else load(options=values)
        config.backend_options("memfd", Options)
    except MemplatError:
        return
    assert isinstance(config.engine, EngineOptions)


@given(st.sampled_from(sorted(attrs.fields_dict(Options))), _json)
def test_no_option_is_coerced_in_silence(name, value):
    config = load(options={"memfd": {name: value}})
    try:
        options = config.backend_options("memfd", Options)
    except ConfigError:
        return
    taken = getattr(options, name)
    if isinstance(taken, bool | int | str | float | type(None)):
        assert taken == value
        assert isinstance(taken, bool) == isinstance(value, bool)
