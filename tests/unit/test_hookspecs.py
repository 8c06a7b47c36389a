"""Who answers a hook: what the engine asks before it does itself what a plugin that it knows would do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pluggy
import pytest

from memplat import hookspecs
from memplat.backends import default
from memplat.hookspecs import DEFAULTS, BackendHooks, answerer, hookimpl
from memplat.types import BackingFile, Storage


class Backend:
    """Answers two hooks."""

    @hookimpl
    def memplat_storage(self, file: BackingFile) -> Storage | None:
        return None

    @hookimpl
    def memplat_create_file(self, options: Any) -> BackingFile | None:
        return None


class First:
    """Is asked before all others."""

    @hookimpl(tryfirst=True)
    def memplat_storage(self, file: BackingFile) -> Storage | None:
        return None


class Wrapper:
    """Looks on."""

    @hookimpl(wrapper=True)
    def memplat_storage(self) -> Iterator[Any]:
        return (yield)


class OldWrapper:
    """Looks on, in the way of former times."""

    @hookimpl(hookwrapper=True)
    def memplat_storage(self) -> Iterator[Any]:
        yield


@pytest.fixture
def manager() -> pluggy.PluginManager:
    """What each open memory has, with the defaults."""
    made = pluggy.PluginManager(hookspecs.PROJECT)
    made.add_hookspecs(hookspecs)
    made.register(default)
    return made


def storage_answerer(manager: pluggy.PluginManager) -> str:
    return answerer(cast(BackendHooks, manager.hook), "memplat_storage")


def test_the_defaults_answer_what_nobody_else_does(manager: pluggy.PluginManager) -> None:
    assert storage_answerer(manager) == DEFAULTS


def test_a_backend_answers_before_the_defaults_whoever_was_registered_last(manager: pluggy.PluginManager) -> None:
    manager.register(Backend(), name="mine")
    assert storage_answerer(manager) == "mine"
    manager.unregister(default)
    manager.register(default)
    assert storage_answerer(manager) == "mine"


def test_who_was_registered_last_answers_but_after_who_wants_to_be_first(manager: pluggy.PluginManager) -> None:
    manager.register(First(), name="first")
    manager.register(Backend(), name="mine")
    assert storage_answerer(manager) == "first"
    manager.unregister(name="first")
    manager.register(Backend(), name="other")
    assert storage_answerer(manager) == "other"


@pytest.mark.parametrize("wrapper", [Wrapper, OldWrapper])
def test_nobody_is_named_where_somebody_looks_on(manager: pluggy.PluginManager, wrapper: type[object]) -> None:
    manager.register(Backend(), name="mine")
    manager.register(wrapper(), name="looking on")
    assert storage_answerer(manager) == ""
    assert answerer(cast(BackendHooks, manager.hook), "memplat_create_file") == "mine", "another hook"
    manager.unregister(name="looking on")
    assert storage_answerer(manager) == "mine"


def test_nobody_is_named_where_nobody_answers(manager: pluggy.PluginManager) -> None:
    assert answerer(cast(BackendHooks, manager.hook), "memplat_out_of_memory") == ""


def test_nobody_is_named_for_hooks_that_are_no_plugin_managers() -> None:
    class Hooks:
        """Calls without pluggy."""

        @staticmethod
        def memplat_storage(file: BackingFile) -> Storage:
            return Storage(0)

    assert answerer(cast(BackendHooks, Hooks()), "memplat_storage") == ""
