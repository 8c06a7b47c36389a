"""Reports: what conforms, what is said, and in which form."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import attrs
import pytest
from rich.console import Console

from memplat.conformance.registry import Check, all_checks
from memplat.conformance.render import show
from memplat.conformance.report import Report, Result, Status, as_junit
from memplat.conformance.runner import explain
from memplat.types import BackendInfo, Capability


def of(name: str) -> Check:
    return next(check for check in all_checks() if check.id == name)


def passed(name: str) -> Result:
    return Result(of(name), Status.PASSED, seconds=0.5)


def failed(name: str, message: str = "wrong\nand more", hook: str | None = None) -> Result:
    return Result(of(name), Status.FAILED, message, hook=hook)


def excused(name: str, reason: str, works: bool | None = None) -> Result:
    return Result(of(name), Status.NOT_APPLICABLE, reason, works=works)


def report(*results: Result, capabilities: Sequence[str] = ("share",), without: Sequence[Capability] = ()) -> Report:
    info = BackendInfo(name="mine", version="1.2.0", capabilities=frozenset(map(Capability, capabilities)))
    return Report("mine", "mine", info, explain(results), 1.5, frozenset(without))


def test_a_backend_conforms_if_everything_that_ran_passed():
    assert report(passed("LIFE-01"), excused("SEC-05", "seal is not declared")).conforms


@pytest.mark.parametrize(
    "result",
    [failed("SEC-01"), Result(of("SEC-01"), Status.NOT_RUN, "not run, because LIFE-01 failed: mend that first")],
)
def test_a_failure_or_what_was_not_run_is_no_conformance(result: Result):
    assert not report(passed("LIFE-01"), result).conforms


def test_a_run_of_nothing_is_no_conformance():
    assert not report().conforms
    assert not report(excused("SEC-05", "seal is not declared")).conforms


def test_the_statement_is_one_line_with_everything_that_matters():
    statement = report(
        passed("LIFE-01"),
        passed("LIFE-02"),
        excused("SEC-05", "seal is not declared", works=False),
        excused("SEC-06", "seal is not declared", works=False),
        excused("EXH-01", "reserve is not declared", works=True),
        excused("PROBE-06", "the host has no swap"),
        capabilities=["share", "swap_exact"],
    ).statement()
    assert "\n" not in statement
    assert statement.startswith(
        "mine 1.2.0 conforms to memplat contract level 1: core, share, swap_exact; not declared: "
    )
    assert "reserve (works, could be declared)" in statement
    assert "seal, " in statement
    assert statement.endswith(
        "; 2 passed, 0 failed, 4 not applicable because SEC-05, SEC-06: seal is not declared; "
        "EXH-01: reserve is not declared; PROBE-06: the host has no swap"
    )


def test_the_statement_names_root_causes_and_counts_the_rest():
    statement = report(passed("LIFE-01"), failed("PROBE-02"), failed("ACCT-02"), failed("ACCT-03")).statement()
    assert "does not conform" in statement
    assert "3 failed (PROBE-02; 2 more follow)" in statement


def test_what_options_switch_off_is_said():
    told = report(passed("LIFE-01"), capabilities=["share", "seal"], without=[Capability.SEAL])
    assert told.declared == ["share"]
    assert "switched off by the options: seal" in told.statement()


def test_a_failure_follows_from_what_its_check_builds_on():
    explained = {result.check.id: result.follows for result in explain([failed("DECOM-04"), failed("REF-01")])}
    assert explained == {"DECOM-04": "", "REF-01": "DECOM-04"}


def test_a_failure_of_a_hooks_form_follows_from_the_check_of_that_form():
    hook = "memplat_probe_committed"
    explained = explain([failed("PROBE-08", hook=hook), failed("SHARE-03", hook=hook), failed("SEC-01")])
    assert [result.follows for result in explained] == ["", "PROBE-08", ""]


def test_a_capability_works_only_if_none_of_its_checks_failed():
    mixed = report(excused("SEC-05", "", works=True), excused("SEC-06", "", works=False))
    assert mixed.undeclared == []
    assert report(excused("SEC-05", "", works=True), excused("SEC-06", "", works=None)).undeclared == ["seal"]


def test_json_has_everything():
    data = json.loads(json.dumps(report(passed("LIFE-01"), failed("SEC-01")).as_dict()))
    assert data["conforms"] is False
    assert data["counts"] == {"passed": 1, "failed": 1}
    good, bad = data["results"]
    assert (good["id"], good["status"], good["rule"], good["smoke"]) == ("LIFE-01", "passed", "1.1", True)
    assert bad["message"] == "wrong\nand more"
    assert bad["mend"] == of("SEC-01").mend
    assert {"kernel", "python", "root"} <= data["host"].keys()


def test_junit_counts_and_explains():
    root = ET.fromstring(
        as_junit([report(passed("LIFE-01"), failed("SEC-01", "a < b"), excused("SEC-05", "seal is not declared"))])
    )
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    good, bad, skip = suite
    assert (good.get("classname"), good.get("name")) == ("mine.lifecycle", "LIFE-01 a backend introduces itself")
    (failure,) = bad
    assert "to mend" in (failure.text or "")
    assert skip[0].get("message") == "seal is not declared"


def test_junit_says_what_was_left_out_and_why():
    (suite,) = ET.fromstring(as_junit([], {"tmpfile on xfs": "needs root: mounting xfs"}))
    assert (suite.get("name"), suite.get("skipped")) == ("tmpfile on xfs", "1")
    assert suite[0][0].get("message") == "needs root: mounting xfs"


def test_markdown_is_a_table():
    lines = report(passed("LIFE-01"), failed("SEC-01", "a | b")).as_markdown().splitlines()
    assert lines[0] == "## mine"
    assert "| LIFE-01 | ✓ | a backend introduces itself | 1.1 |  |" in lines
    assert any("SEC-01" in line and "a \\| b" in line for line in lines)


def shown(one: Report, *, verbose: bool = False) -> str:
    console = Console(file=io.StringIO(), width=120)
    show(console, one, verbose=verbose)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_people_see_what_to_mend_first():
    text = shown(report(passed("LIFE-01"), failed("DECOM-04", "changed pages"), failed("REF-01")))
    assert "1 passed" in text
    assert f"to mend (rule 6.4): {of('DECOM-04').mend}" in " ".join(text.split())
    assert "these follow from it: REF-01" in text
    assert text.count("to mend") == 1


def test_passed_checks_are_listed_on_demand():
    one = report(passed("LIFE-01"), excused("SEC-05", "seal is not declared"))
    assert "a backend introduces itself" not in shown(one)
    assert "a backend introduces itself" in shown(one, verbose=True)
    assert "seal is not declared" in shown(one)


def test_what_was_not_run_is_one_line():
    held = [
        Result(of(name), Status.NOT_RUN, "not run, because LIFE-01 failed: mend that first")
        for name in ("SEC-01", "SEC-02")
    ]
    assert "2 others" in shown(report(failed("LIFE-01"), *held))


def test_a_backend_that_cannot_be_asked_has_a_report_too():
    one = attrs.evolve(report(failed("LIFE-01")), info=None)
    assert one.statement().startswith("mine does not conform to memplat contract level 1: core; 0 passed, 1 failed")
    assert one.as_dict()["version"] is None
