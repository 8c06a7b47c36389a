"""The runner: smoke first, capabilities both ways, levels, and crashes that do not end it."""

from __future__ import annotations

import ctypes
from typing import Any

import attrs
import pytest

from memplat.conformance.case import Case
from memplat.conformance.registry import Check, all_checks
from memplat.conformance.report import Status
from memplat.conformance.runner import Runner
from memplat.conformance.subject import Subject
from memplat.conformance.values import parse_options
from memplat.conformance.verdict import expect
from memplat.errors import ConfigError, UnknownBackendError
from memplat.types import Capability
from tests.meta.specimens.base import Specimen


def of(name: str) -> Check:
    return next(check for check in all_checks() if check.id == name)


def made(function: Any, **changes: Any) -> Check:
    """A check of our own."""
    return attrs.evolve(of("SEC-01"), **{"id": "TRIAL-01", "function": function, "after": (), **changes})


def result_of(check: Check, backend: object = "memfd", **options: Any) -> Any:
    with Runner(Subject(backend, options)) as runner:
        return runner.check(check)


def test_a_check_that_returns_has_passed():
    assert result_of(made(lambda case: None)).status is Status.PASSED


def test_a_check_that_expects_in_vain_has_failed_and_shows_the_memory():
    def fail(case: Case) -> None:
        memory = case.open()
        memory.allocate(memory.page_size, owner=77)
        expect(False, "not as expected")

    result = result_of(made(fail))
    assert result.status is Status.FAILED
    assert result.message.startswith("not as expected\n")
    assert "owner=77" in result.message


def test_an_unexpected_exception_is_a_failure_that_says_where():
    result = result_of(made(lambda case: 1 // 0))
    assert result.status is Status.FAILED
    assert "unexpected ZeroDivisionError" in result.message
    assert "test_runner.py" in result.message


def test_a_crash_is_a_failure_and_the_next_check_is_run():
    crash = made(lambda case: ctypes.string_at(8))
    fine = made(lambda case: case.share(case.open()), id="TRIAL-02")
    with Runner(Subject("memfd")) as runner:
        report = runner.run([crash, fine])
    first, second = report.results
    assert "SIGSEGV" in first.message
    assert second.status is Status.PASSED


def test_a_hang_is_a_failure():
    result = result_of(made(lambda case: __import__("threading").Event().wait(), seconds=0.3))
    assert "it hangs" in result.message


def test_a_reason_not_to_judge_is_kept():
    result = result_of(made(lambda case: case.skip("no such thing here")))
    assert (result.status, result.message) == (Status.NOT_APPLICABLE, "no such thing here")


def test_a_failed_smoke_tier_keeps_the_rest_from_being_run():
    smoke = made(lambda case: case.fail("broken"), smoke=True)
    rest = made(lambda case: None, id="TRIAL-02")
    with Runner(Subject("memfd")) as runner:
        report = runner.run([smoke, rest])
        lifted = runner.run([smoke, rest], gated=False)
    assert report.results[1].status is Status.NOT_RUN
    assert "TRIAL-01 failed: mend that first" in report.results[1].message
    assert lifted.results[1].status is Status.PASSED


@pytest.mark.parametrize(("function", "works"), [(lambda case: None, True), (lambda case: case.fail("no"), False)])
def test_a_capability_that_is_not_declared_is_tried_and_not_required(function: Any, works: bool):
    result = result_of(made(function, needs=Capability.FLUSH))
    assert (result.status, result.message) == (Status.NOT_APPLICABLE, "flush is not declared")
    assert result.works is works


def test_a_capability_that_is_declared_is_required():
    assert result_of(made(lambda case: case.fail("no"), needs=Capability.SHARE)).status is Status.FAILED


def test_a_capability_that_the_options_switch_off_is_not_required():
    with Runner(Subject("memfd", {"seal": False}, without=["seal"])) as runner:
        result = runner.check(of("SEC-05"))
    assert (result.status, result.message) == (Status.NOT_APPLICABLE, "seal is switched off by the options")


def test_a_check_of_a_later_level_is_not_required():
    result = result_of(made(lambda case: case.fail("no"), since=2))
    assert result.status is Status.NOT_APPLICABLE
    assert "required since contract level 2" in result.message


def test_results_are_told_as_they_come():
    told: list[str] = []
    with Runner(Subject("memfd")) as runner:
        runner.run([made(lambda case: None)], tell=lambda result: told.append(result.check.id))
    assert told == ["TRIAL-01"]


def test_checks_can_be_run_in_this_process_for_a_debugger():
    seen: list[Case] = []
    with Runner(Subject("memfd"), isolated=False) as runner:
        assert runner.check(made(seen.append)).status is Status.PASSED
    assert len(seen) == 1


def test_a_plugin_that_cannot_be_loaded_is_a_report():
    class Wordless(Specimen):
        def info(self) -> Any:
            raise RuntimeError("no comment")

    with Runner(Subject(Wordless())) as runner:
        report = runner.run([of("LIFE-01"), of("LIFE-03"), of("SEC-01")])
    assert [result.status for result in report.results] == [Status.FAILED, Status.FAILED, Status.NOT_RUN]
    assert [result.check.id for result in report.roots] == ["LIFE-01"]
    assert "no comment" in report.results[0].message
    assert report.info is None


def test_options_reach_the_backend_also_as_text():
    seen = Subject("memfd", {"name": "from-here", "reclaim_delay": 0.5, "huge": "collapse"})
    assert seen.own_options().name == "from-here"
    with seen.open() as memory:
        assert memory.backend.options.huge == "collapse"
    assert Subject("hugetlb", {"page_size": "2MiB"}).own_options().page_size == 2 << 20


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="directry"):
        Subject("tmpfile", {"directry": "/tmp"}).own_options()
    with pytest.raises(ConfigError, match="has no options of its own"):
        Subject(Specimen(), {"size": 1}).own_options()
    with pytest.raises(UnknownBackendError):
        Subject("nobody").load()


def test_no_configuration_of_the_user_has_a_say(tmp_path, monkeypatch: pytest.MonkeyPatch):
    config = tmp_path / "memplat.toml"
    config.write_text('[memory]\nbackend = "tmpfile"\n[memory.memfd]\nname = "of-the-user"\n')
    monkeypatch.setenv("MEMPLAT_CONFIG", str(config))
    with Subject("memfd").open() as memory:
        assert memory.backend.name == "memfd"
        assert memory.backend.options.name != "of-the-user"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=true", True),
        ("a=false", False),
        ("a=2MiB", "2MiB"),
        ("a=", ""),
        ("a=x=y", "x=y"),
    ],
)
def test_options_on_a_command_line_are_values(text: str, value: object):
    parsed = parse_options([text])["a"]
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize("text", ["a", "=1"])
def test_what_is_no_option_is_refused(text: str):
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_options([text])
