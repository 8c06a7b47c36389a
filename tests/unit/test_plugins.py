"""Discovery by entry point, and everything that is refused: with the plugin's name, the hook and the remedy."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import attrs
import pluggy
import pytest

from memplat import hookspecs, plugins
from memplat.errors import PluginError, UnknownBackendError
from memplat.hookspecs import hookimpl
from memplat.plugins.checks import specifications
from memplat.types import Availability, BackendInfo, BackingFile, EngineOptions

BUILT_INS = {"memfd", "tmpfile", "hugetlb"}


class Good:
    """A backend that is an object; other tests break it in one way each."""

    info = BackendInfo(name="good", version="1.0")

    @hookimpl
    def memplat_backend_info(self) -> BackendInfo:
        return self.info

    @hookimpl
    def memplat_create_file(self, options: object) -> BackingFile:
        return BackingFile(fd=os.memfd_create("good"), page_size=4096, backend="good")


class Wrapper:
    @hookimpl(wrapper=True)
    def memplat_backend_info(self):
        return (yield)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path: its metadata, its entry points, and the module that they name."""

    def install_distribution(
        name: str, points: str, module: str = "", *, version: str = "1.0", directory: str = "site"
    ) -> None:
        site = Path(tmp_path, directory)
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[memplat]\n{points}\n")
        module_name = f"module_of_{name.replace('-', '_')}"
        (site / f"{module_name}.py").write_text(textwrap.dedent(module))
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module_name, raising=False)

    before = set(sys.modules)
    yield install_distribution
    for module_name in set(sys.modules) - before:
        if module_name.startswith("module_of_"):
            del sys.modules[module_name]


GOOD_MODULE = """
    import os
    from memplat.hookspecs import hookimpl
    from memplat.types import Availability, BackendInfo, BackingFile

    @hookimpl
    def memplat_backend_info():
        return BackendInfo(name="third", version="2.0")

    @hookimpl
    def memplat_create_file(options):
        return BackingFile(fd=os.memfd_create("third"), page_size=4096, backend="third")
    """


def record_of(name: str) -> plugins.PluginRecord:
    (record,) = [record for record in plugins.list_plugins() if record.name == name]
    return record


# ---- discovery


def test_who_states_no_level_was_built_for_the_first() -> None:
    assert BackendInfo(name="good", version="1").contract_level == 1


def test_the_built_in_backends_are_listed_also_where_nothing_is_installed():
    built_in = {record.name for record in plugins.list_plugins() if record.source == "built-in"}
    assert built_in == BUILT_INS


def test_a_plugin_is_listed_with_its_distribution_and_not_imported(install):
    install("third-party", "third = module_of_third_party", "raise SystemExit('imported')")
    assert record_of("third") == plugins.PluginRecord(
        name="third",
        value="module_of_third_party",
        distribution="third-party",
        version="1.0",
        source="third-party 1.0",
    )
    assert "module_of_third_party" not in sys.modules


def test_what_is_installed_while_the_process_runs_is_found(install):
    install("third-party", "third = module_of_third_party")
    assert record_of("third").distribution == "third-party"
    install("later", "fourth = module_of_later")
    assert record_of("fourth").distribution == "later"


def test_a_plugin_is_loaded_by_its_name_alone(install):
    install("third-party", "third = module_of_third_party", GOOD_MODULE)
    install("bad", "bad = module_of_bad", "raise RuntimeError('must not be imported')")
    backend = plugins.load("third")
    assert (backend.name, backend.info.version, backend.source) == ("third", "2.0", "third-party 1.0")
    assert "module_of_bad" not in sys.modules


@pytest.mark.parametrize("value", ["Plugin", "plugin"])
def test_an_entry_point_may_name_a_class_or_an_object(install, value):
    module = """
        import os
        from memplat.hookspecs import hookimpl
        from memplat.types import Availability, BackendInfo, BackingFile
        class Plugin:
            @hookimpl
            def memplat_backend_info(self):
                return BackendInfo(name="third", version="2.0")
            @hookimpl
            def memplat_create_file(self, options):
                return BackingFile(fd=os.memfd_create("third"), page_size=4096, backend="third")
        plugin = Plugin()
        """
    install("third-party", f"third = module_of_third_party:{value}", module)
    assert plugins.load("third").name == "third"


def test_a_name_that_nobody_has_is_an_unknown_backend_with_the_nearest_one():
    with pytest.raises(UnknownBackendError, match="no plugin is named 'memfs'; did you mean \"memfd\""):
        plugins.load("memfs")
    with pytest.raises(UnknownBackendError, match="no plugin is named"):
        plugins.load_extension("memfs")


def test_a_name_claimed_twice_is_an_error_that_names_both_distributions(install):
    install("one", "same = module_of_one", GOOD_MODULE)
    install("two", "same = module_of_two\nthird = module_of_two", GOOD_MODULE, version="3.1")
    claimed = [record for record in plugins.list_plugins() if record.name == "same"]
    assert len(claimed) == 2
    assert all("one 1.0 and two 3.1" in record.problem for record in claimed)
    with pytest.raises(PluginError, match=r"claimed by one 1\.0 and two 3\.1; uninstall all of them but one") as caught:
        plugins.load("same")
    assert caught.value.plugin == "same"
    assert plugins.load("third").name == "third"


def test_a_stranger_cannot_take_a_built_in_name(install):
    install("impostor", "memfd = module_of_impostor", GOOD_MODULE)
    with pytest.raises(PluginError, match=r"claimed by impostor 1\.0 and memplat.*; uninstall impostor$"):
        plugins.load("memfd")
    assert "module_of_impostor" not in sys.modules


def test_a_distribution_that_stands_on_the_path_twice_counts_once(install):
    install("third-party", "third = module_of_third_party", GOOD_MODULE, version="0.9", directory="behind")
    install("Third.Party", "third = module_of_third_party", GOOD_MODULE, version="1.0", directory="before")
    assert record_of("third").version == "1.0"


def test_metadata_that_cannot_be_read_is_logged_and_breaks_nothing(install, tmp_path, caplog):
    install("third-party", "third = module_of_third_party", GOOD_MODULE)
    broken = tmp_path / "site" / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_bytes(b"[memplat]\nx = \xff\n")
    nameless = tmp_path / "site" / "nameless-1.0.dist-info"
    nameless.mkdir()
    (nameless / "entry_points.txt").write_text("[memplat]\nx = y\n")
    with caplog.at_level(logging.WARNING, "memplat"):
        assert plugins.load("third").name == "third"
    assert len(caplog.records) == 2
    assert f"a distribution in {tmp_path / 'site'}" in caplog.text


# ---- who may be loaded


def test_a_plugin_outside_of_the_allow_list_is_not_imported(install):
    install("third-party", "third = module_of_third_party", "raise SystemExit('imported')")
    with pytest.raises(PluginError, match='does not name it; add "third" to use it'):
        plugins.load("third", plugins.Policy(allowed=frozenset({"fourth"})))
    with pytest.raises(PluginError, match="MEMPLAT_DISABLE_PLUGINS shuts out"):
        plugins.load("third", plugins.Policy(disabled=True))
    with pytest.raises(PluginError, match="MEMPLAT_DISABLE_PLUGINS shuts out"):
        plugins.load_extension("third", plugins.Policy(disabled=True))


def test_an_allowed_plugin_and_the_built_in_ones_may_be_loaded(install):
    install("third-party", "third = module_of_third_party", GOOD_MODULE)
    assert plugins.load("third", plugins.Policy(allowed=frozenset({"third"}))).name == "third"
    assert plugins.load("memfd", plugins.Policy(disabled=True, allowed=frozenset())).source == "built-in"


# ---- what breaks when it is imported


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_an_error_that_names_it(install, module, says):
    install("third-party", "third = module_of_third_party", module)
    with pytest.raises(PluginError) as caught:
        plugins.load("third")
    message = str(caught.value)
    assert says in message
    assert "plugin 'third' (third-party 1.0) cannot be imported from 'module_of_third_party'" in message
    assert "uninstall third-party" in message


def test_an_entry_point_that_names_nothing_is_an_error(install):
    install("third-party", "third = module_of_third_party:missing")
    with pytest.raises(PluginError, match="has no attribute 'missing'"):
        plugins.load("third")


def test_a_class_that_wants_arguments_is_an_error():
    class Demanding(Good):
        def __init__(self, wanted):
            raise AssertionError("never called")

    with pytest.raises(PluginError, match="cannot be instantiated without arguments"):
        plugins.load_object(Demanding)


# ---- what a backend says about itself


def test_a_backend_may_be_given_as_object_class_or_module():
    module = types.ModuleType("a_module")
    module.memplat_backend_info = hookimpl(lambda: BackendInfo(name="good", version="1"))  # type: ignore[attr-defined]
    module.memplat_create_file = hookimpl(lambda options: None)  # type: ignore[attr-defined]
    for plugin in (Good(), Good, module):
        backend = plugins.load_object(plugin)
        assert backend.name == "good"
        assert backend.source.startswith("given in Python (")


@attrs.frozen
class Unresolvable:
    field: NoSuchName = None  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (None, "returned None"),
        ({"name": "good"}, "which is no memplat.BackendInfo"),
        (BackendInfo(name="keep", version="1"), "option of every memory. Remedy: choose another name"),
        (BackendInfo(name="good", version="1", contract_level=99), "contract level 99, and this memplat implements 1"),
        (BackendInfo(name="good", version="1", contract_level=0), "allowed are 1 to 1"),
        (BackendInfo(name="good", version="1", contract_level=True), "allowed are 1 to 1"),
        (BackendInfo(name="good", version="1", options=dict), "a class made with attrs"),
        (BackendInfo(name="good", version="1", options=EngineOptions()), "a class made with attrs"),  # type: ignore[arg-type]
        (BackendInfo(name="good", version="1", options=Unresolvable), "cannot be resolved"),
    ],
)
def test_a_backend_info_that_breaks_the_contract_is_refused(info, says):
    plugin = Good()
    plugin.info = info
    with pytest.raises(PluginError) as caught:
        plugins.load_object(plugin)
    assert says in str(caught.value)
    assert caught.value.hook == "memplat_backend_info"
    assert caught.value.plugin in str(caught.value)


def test_a_backend_info_that_raises_is_refused():
    class Raises(Good):
        @hookimpl
        def memplat_backend_info(self):
            return BackendInfo(name="good", version="1", capabilities={"fly"})

    with pytest.raises(PluginError, match="raised ValueError: 'fly' is not a valid Capability"):
        plugins.load_object(Raises())


def test_a_name_that_differs_from_the_entry_point_is_refused(install):
    install("third-party", "other = module_of_third_party", GOOD_MODULE)
    with pytest.raises(PluginError, match="name='third', but its entry point is named 'other'"):
        plugins.load("other")


# ---- hooks that are not what the specification says


def function_named(name: str, source: str) -> Callable[..., object]:
    namespace: dict[str, Callable[..., object]] = {}
    exec(source, namespace)
    return namespace[name]


@pytest.mark.parametrize(
    ("hook", "source", "options", "problem", "remedy"),
    [
        ("memplat_grwo", "def memplat_grwo(file): ...", {}, "did you mean 'memplat_grow'", "rename it"),
        ("memplat_grow", "def memplat_grow(fil, size): ...", {}, "did you mean 'file'", "it has: file, size"),
        ("memplat_grow", "def memplat_grow(file, by): ...", {}, "an argument 'by'", "it has: file, size"),
        (
            "memplat_grow",
            "def memplat_grow(file, size=0): ...",
            {},
            "size=0 would never be passed",
            "without a default",
        ),
        ("memplat_grow", "def memplat_grow(file, *, size): ...", {}, "size would never be passed", "a plain argument"),
        ("memplat_grow", "def memplat_grow(**kwargs): ...", {}, "**kwargs is never filled", "file, size"),
        ("memplat_grow", "def memplat_grow(*args): ...", {}, "*args is never filled", "file, size"),
        ("memplat_grow", "async def memplat_grow(file): ...", {}, "asynchronous", "plain function"),
        ("memplat_grow", "def memplat_grow(file): yield", {}, "is a generator", "wrapper=True"),
        ("memplat_grow", "def memplat_grow(file): ...", {"wrapper": True}, "without a yield", "result = yield"),
        ("memplat_grow", "def memplat_grow(file): yield", {"hookwrapper": True}, "old-style", "wrapper=True"),
        ("memplat_grow", "def memplat_grow(file): ...", None, "not marked", "decorate it"),
    ],
)
def test_a_wrong_hook_is_refused_with_plugin_hook_definition_and_remedy(hook, source, options, problem, remedy):
    function = function_named(hook, source)
    plugin = Good()
    setattr(plugin, hook, function if options is None else hookimpl(**options)(function))
    with pytest.raises(PluginError) as caught:
        plugins.load_object(plugin)
    message = str(caught.value)
    assert problem in message
    assert remedy in message.partition("Remedy: ")[2]
    assert f"It is defined as {hook}(" in message
    assert (caught.value.plugin, caught.value.hook) == (plugins.loading._label(plugin), hook)
    assert f"plugin {caught.value.plugin!r}, hook {hook!r}" in message


def test_what_merely_looks_wrong_is_accepted():
    class Fine(Good):
        memplat_note = "no function"

        def memplat_helper(self, anything):
            """No hook has this name."""

        @hookimpl
        def memplat_grow(self, size, file, _cache=()):
            """Another order, and an argument of its own with a default."""

        @hookimpl(optionalhook=True)
        def memplat_of_the_future(self, whatever):
            """For another version of memplat."""

        @hookimpl(specname="memplat_close_file")
        def close(self):
            """Under a name of its own, and without arguments."""

        @property
        def memplat_decommit(self):
            raise RuntimeError("a property is not to be evaluated")

    assert plugins.load_object(Fine()).name == "good"


def test_a_specification_that_was_imported_or_inherited_is_no_unmarked_hook():
    module = types.ModuleType("imports_specs")
    vars(module).update({name: getattr(hookspecs, name) for name in specifications()})
    module.memplat_backend_info = Good().memplat_backend_info  # type: ignore[attr-defined]
    module.memplat_create_file = Good().memplat_create_file  # type: ignore[attr-defined]
    assert plugins.load_object(module).name == "good"


@pytest.mark.parametrize("missing", ["memplat_backend_info", "memplat_create_file"])
def test_a_required_hook_that_is_missing_is_named(missing):
    plugin = type("Lacking", (Good,), {missing: None})()
    with pytest.raises(PluginError, match=f"does not implement {missing}") as caught:
        plugins.load_object(plugin)
    assert caught.value.hook == missing
    assert "add a function" in str(caught.value)


def test_an_extension_under_backend_is_told_where_it_belongs():
    with pytest.raises(PluginError, match="belongs under extensions"):
        plugins.load_object(Wrapper())


def test_a_backend_under_extensions_is_told_where_it_belongs():
    with pytest.raises(PluginError, match="would take the backend's place"):
        plugins.load_extension(Good())
    with pytest.raises(PluginError, match="implements no hook"):
        plugins.load_extension(object())


def test_an_extension_is_loaded_by_name_or_as_an_object(install):
    install("third-party", "trace = module_of_third_party", """
        from memplat.hookspecs import hookimpl
        @hookimpl(wrapper=True)
        def memplat_grow(file, size):
            return (yield)
        """)  # fmt: skip
    assert plugins.load_extension("trace").source == "third-party 1.0"
    assert plugins.load_extension(Wrapper).name.endswith("Wrapper")


# ---- the manager of one memory


def test_defaults_come_last_and_each_extension_wraps_those_before_it():
    calls = []

    def wrapper(label):
        class Trace:
            @hookimpl(wrapper=True)
            def memplat_backend_info(self):
                calls.append(f"{label} in")
                result = yield
                calls.append(f"{label} out")
                return result

        return Trace()

    manager = plugins.build_manager(Good(), [wrapper("first"), wrapper("second")])
    info = plugins.hooks_of(manager).memplat_backend_info()
    assert info is not None
    assert info.name == "good"
    assert calls == ["second in", "first in", "first out", "second out"]
    assert plugins.hooks_of(manager).memplat_check(options=None) is not None


def test_a_backends_hook_goes_before_the_default():
    class Own(Good):
        @hookimpl
        def memplat_check(self, options):
            return Availability(False, "own")

    assert plugins.hooks_of(plugins.build_manager(Own())).memplat_check(options=None) == Availability(False, "own")


def test_the_same_plugin_twice_is_an_error():
    wrapper = Wrapper()
    with pytest.raises(PluginError, match="already registered"):
        plugins.build_manager(Good(), [wrapper, wrapper])


def test_a_manager_refuses_what_pluggy_refuses():
    class Unknown(Good):
        @hookimpl
        def memplat_unknown(self):
            """No such hook."""

    with pytest.raises(PluginError, match="unknown hook 'memplat_unknown'"):
        plugins.build_manager(Unknown())


def test_managers_share_nothing():
    first, second = plugins.build_manager(Good()), plugins.build_manager(Good())
    assert isinstance(first, pluggy.PluginManager)
    assert first is not second
    first.register(Wrapper(), "extra")
    assert not second.has_plugin("extra")
