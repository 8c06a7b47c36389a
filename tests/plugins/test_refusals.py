"""What is wrong with a stranger's plugin is an error that names plugin, hook and remedy, and is the same wherever it is
told: raised, kept as the reason in the selection, logged once, and shown by the commands.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memplat
from memplat.doctor import survey
from tests.unit.conformance import strangers
from tests.unit.conformance.strangers import GOOD, put

INFO, CREATE, CHECK = "memplat_backend_info", "memplat_create_file", "memplat_check"


def says(old: str, new: str) -> str:
    """The good backend with one thing changed."""
    assert old in GOOD
    return GOOD.replace(old, new)


def with_hook(source: str) -> str:
    return GOOD + "\n" + "\n".join(f"    {line}" for line in source.splitlines())


#: A module, the hook that is to be named, the problem, and the remedy.
BROKEN: dict[str, tuple[str, str | None, str, str]] = {
    "missing-library": ("import nothing_of_that_name", None, "No module named 'nothing_of_that_name'", "uninstall"),
    "newer-memplat": ("from memplat import Teleporter", None, "cannot import name 'Teleporter'", "suits this memplat"),
    "newer-module": ("import memplat.teleport", None, "No module named 'memplat.teleport'", "suits this memplat"),
    "syntax": ("1 +", None, "SyntaxError", "mend or uninstall syntax"),
    "exits": ("raise SystemExit(3)", None, "SystemExit: 3", "mend or uninstall exits"),
    "no-hooks": ("", INFO, "is no backend", "add a function memplat_backend_info that is marked"),
    "no-create": (
        says("@hookimpl\n    def memplat_create_file", "def create_file"),
        CREATE,
        "no backend",
        "add a function",
    ),
    "argument": (
        says("create_file(options)", "create_file(option)"),
        CREATE,
        "did you mean 'options'?",
        "it has: options",
    ),
    "unknown-hook": (
        with_hook("@hookimpl\ndef memplat_grwo(file): ..."),
        "memplat_grwo",
        "'memplat_grow'?",
        "rename it",
    ),
    "unmarked": (with_hook("def memplat_grow(file, size): ..."), "memplat_grow", "not marked", "decorate it"),
    "too-new": (says('"0.1"', '"0.1", contract_level=2'), INFO, "contract level 2", "install a newer memplat"),
    "too-old": (says('"0.1"', '"0.1", contract_level=0'), INFO, "contract_level=0", "say the one it was built for"),
    "newer-field": (says('"0.1"', '"0.1", flavour="x"'), INFO, "argument 'flavour'", "built for this memplat"),
    "newer-capability": (says('"share"', '"teleport"'), INFO, "'teleport' is not a valid", "built for this memplat"),
    "other-name": (
        says('name="{name}"', 'name="another"'),
        INFO,
        "entry point is named 'other-name'",
        "let them agree",
    ),
    "options-no-class": (says('"0.1"', '"0.1", options=dict'), INFO, "options=<class 'dict'>", "made with attrs"),
    "check-raises": (with_hook("@hookimpl\ndef memplat_check(options): 1 / 0"), CHECK, "ZeroDivisionError", "mend"),
    "check-lies": (with_hook("@hookimpl\ndef memplat_check(options): return True"), CHECK, "no Availability", "mend"),
    "create-lies": (
        says("fd = os.memfd_create", "return 3; fd = os.memfd_create"),
        CREATE,
        "returned 3, which is no BackingFile",
        "mend",
    ),
    "page-size": (says("page_size=4096", "page_size=4095"), CREATE, "page_size=4095", "name another backend"),
    "descriptor": (says("(fd=fd", "(fd=987654"), CREATE, "no open descriptor", "name another backend"),
}


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in which this interpreter looks for distributions; and no configuration of the user's."""
    for name in [name for name in os.environ if name.startswith("MEMPLAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def everywhere(name: str, caplog: pytest.LogCaptureFixture, **options: Any) -> memplat.PluginError:
    """The error for a plugin, after making sure that it is told in full wherever it has to be."""
    with pytest.raises(memplat.PluginError) as caught:
        memplat.open(name, **options)
    message = str(caught.value)
    with caplog.at_level(logging.INFO, "memplat"), memplat.open([name, "memfd"], **options) as memory:
        refused, taken = memory.backend.selection
    assert (refused.name, refused.taken, refused.reason) == (name, False, message)
    assert (taken.name, taken.taken) == ("memfd", True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().count(message) == 1
    assert "took memfd" in record.getMessage()
    return caught.value


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_an_error_with_plugin_hook_and_remedy(
    site: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    module, hook, problem, remedy = BROKEN[name]
    put(site, name.replace("-", "_"), module)
    metadata = site / f"{name.replace('-', '_')}-0.1.dist-info"
    (metadata / "entry_points.txt").write_text(f"[memplat]\n{name} = {name.replace('-', '_')}_backend\n")
    source = site / f"{name.replace('-', '_')}_backend.py"
    source.write_text(source.read_text().replace(f'"{name.replace("-", "_")}"', f'"{name}"'))
    error = everywhere(name, caplog)
    message = str(error)
    assert (error.plugin, error.hook) == (name, hook)
    assert f"plugin {name!r}" in message
    assert problem in message
    assert remedy in message.partition(problem)[2]
    assert hook is None or hook in message
    (row,) = [row for row in survey(None, None).rows if row.name == name]
    assert row.status == "broken" or (hook == CREATE and row.status == "available")
    assert row.reason == message or row.status == "available"


def test_an_entry_point_that_names_nothing_is_an_error(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(site, "gone", GOOD)
    (site / "gone-0.1.dist-info" / "entry_points.txt").write_text("[memplat]\ngone = gone_backend:Nothing\n")
    message = str(everywhere("gone", caplog))
    assert "cannot be imported from 'gone_backend:Nothing'" in message
    assert "mend or uninstall gone" in message


def test_a_name_that_two_claim_is_an_error_that_names_both(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(site, "mine", GOOD)
    put(site, "theirs", GOOD)
    (site / "theirs-0.1.dist-info" / "entry_points.txt").write_text("[memplat]\nmine = theirs_backend\n")
    message = str(everywhere("mine", caplog))
    assert "its name is claimed by mine 0.1 and theirs 0.1; uninstall all of them but one" in message


def test_the_allow_list_and_the_switch_are_errors_with_their_remedies(
    site: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site, "mine", GOOD)
    assert 'add "mine" to use it' in str(everywhere("mine", caplog, plugins=["other"]))
    caplog.clear()
    monkeypatch.setenv("MEMPLAT_DISABLE_PLUGINS", "1")
    assert "MEMPLAT_DISABLE_PLUGINS shuts out all plugins that are not built in; unset it" in str(
        everywhere("mine", caplog, plugins=["mine"])
    )
    assert "mine_backend" not in sys.modules


def test_an_extension_that_cannot_be_loaded_is_an_error_and_never_left_out(site: Path) -> None:
    put(site, "watch", "import nothing_of_that_name")
    put(site, "mine", GOOD)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"extensions": "watch"}, "mend or uninstall watch"),
        ({"extensions": "mine"}, "or name the plugin under backend"),
        ({"extensions": "watch", "plugins": []}, 'add "watch" to use it'),
    ]
    for options, told in cases:
        with pytest.raises(memplat.PluginError, match=told):
            memplat.open(["memfd", "tmpfile"], **options)
    with pytest.raises(
        memplat.UnknownBackendError, match="extensions: no plugin is named 'wach'; did you mean \"watch\""
    ):
        memplat.open(extensions="wach")


def test_every_candidate_is_logged_once_with_taken_or_why_not(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(site, "broken", "1 +")
    put(site, "full", strangers.GOOD.replace("fd = os", "raise OSError(28, 'it is full'); fd = os"))
    put(site, "spare", GOOD)
    wanted = ["broken", "full", "tmpfile", "memfd", "spare"]
    with (
        caplog.at_level(logging.INFO, "memplat"),
        memplat.open(wanted, tmpfile={"directory": "/nonexistent"}) as memory,
    ):
        selection = memory.backend.selection
    assert [(each.name, each.taken) for each in selection] == [
        ("broken", False),
        ("full", False),
        ("tmpfile", False),
        ("memfd", True),
    ], "what stands behind the one that was taken was not looked at"
    assert all(each.reason and each.source for each in selection)
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith("memplat: asked for broken, full, tmpfile, memfd, spare (argument backend), took memfd: ")
    for each in selection:
        assert told.count(f"{each.name}: {each.reason}") == 1
    assert "(remedy: mkdir -p /nonexistent)" in told
    assert "spare_backend" not in sys.modules
