"""What came of a run, and how it is told: a sentence, JSON, JUnit, Markdown. For people: ``render.py``."""

from __future__ import annotations

import enum
import os
import platform
import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import attrs

from memplat.conformance.registry import Check
from memplat.types import CONTRACT_LEVEL, BackendInfo, Capability


class Status(enum.StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    NOT_RUN = "not run"


@attrs.frozen
class Result:
    """One check's result."""

    check: Check
    status: Status
    message: str = ""
    """What was found and what was expected, or why it says nothing; empty if it passed."""
    hook: str | None = None
    """The hook whose result the engine refused."""
    follows: str = ""
    """The failed check that explains this failure."""
    seconds: float = 0.0
    works: bool | None = None
    """Whether it would have passed, had its capability been declared; ``None`` if that was not to be found out."""


@attrs.frozen
class Report:
    """The results of one backend."""

    title: str
    """What was tested: ``tmpfile on ext4``."""
    name: str
    info: BackendInfo | None
    """``None`` if the backend could not even introduce itself."""
    results: Sequence[Result]
    seconds: float
    without: frozenset[Capability] = frozenset()
    """Capabilities that the options switch off."""

    def count(self, status: Status) -> int:
        """How many checks came to *status*."""
        return sum(result.status is status for result in self.results)

    @property
    def conforms(self) -> bool:
        """Whether everything that could be run passed, and something was run."""
        return not self.failures and not self.count(Status.NOT_RUN) and self.count(Status.PASSED) > 0

    @property
    def failures(self) -> list[Result]:
        """The failed checks."""
        return [result for result in self.results if result.status is Status.FAILED]

    @property
    def roots(self) -> list[Result]:
        """The failures that no other one explains: what to mend first."""
        return [result for result in self.failures if not result.follows]

    @property
    def declared(self) -> list[str]:
        """The declared capabilities, by name."""
        return sorted(map(str, self.info.capabilities - self.without)) if self.info is not None else []

    @property
    def undeclared(self) -> list[str]:
        """The capabilities that are not declared and could be: all of their checks would have passed."""
        proven: dict[str, bool] = {}
        for result in self.results:
            if result.check.needs is not None and result.works is not None:
                name = str(result.check.needs)
                proven[name] = proven.get(name, True) and result.works
        return sorted(name for name, works in proven.items() if works)

    @property
    def excuses(self) -> Mapping[str, list[str]]:
        """The checks that were not applicable, by reason."""
        found: dict[str, list[str]] = {}
        for result in self.results:
            if result.status is Status.NOT_APPLICABLE:
                found.setdefault(result.message, []).append(result.check.id)
        return found

    # -- telling ------------------------------------------------------------------------------------------------------

    def statement(self) -> str:
        """The run in one line."""
        version = f" {self.info.version}" if self.info is not None else ""
        verb = "conforms" if self.conforms else "does not conform"
        level = self.info.contract_level if self.info is not None else CONTRACT_LEVEL
        return (
            f"{self.title}{version} {verb} to memplat contract level {level}: {', '.join(['core', *self.declared])}"
            f"{self._missing()}; {self.count(Status.PASSED)} passed, {self._failed()}{self._not_run()}{self._excused()}"
        )

    def _missing(self) -> str:
        if self.info is None:
            return ""
        missing = [str(one) for one in Capability if one not in self.info.capabilities]
        works = [f"{name} (works, could be declared)" if name in self.undeclared else name for name in missing]
        off = f"; switched off by the options: {', '.join(sorted(self.without))}" if self.without else ""
        return (f"; not declared: {', '.join(works)}" if works else "") + off

    def _failed(self) -> str:
        failed = f"{len(self.failures)} failed"
        if not self.failures:
            return failed
        more = len(self.failures) - len(self.roots)
        named = ", ".join(result.check.id for result in self.roots)
        return f"{failed} ({named}" + (f"; {more} more follow{'s' if more == 1 else ''})" if more else ")")

    def _not_run(self) -> str:
        return f", {self.count(Status.NOT_RUN)} not run" if self.count(Status.NOT_RUN) else ""

    def _excused(self) -> str:
        if not self.excuses:
            return ""
        reasons = "; ".join(f"{', '.join(ids)}: {reason}" for reason, ids in self.excuses.items())
        return f", {self.count(Status.NOT_APPLICABLE)} not applicable because {reasons}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "backend": self.name,
            "version": self.info.version if self.info is not None else None,
            "contract_level": self.info.contract_level if self.info is not None else None,
            "conforms": self.conforms,
            "statement": self.statement(),
            "declared": self.declared,
            "works_undeclared": self.undeclared,
            "counts": dict(Counter(str(result.status) for result in self.results)),
            "seconds": round(self.seconds, 3),
            "host": host_facts(),
            "results": [
                {
                    "id": result.check.id,
                    "sentence": result.check.sentence,
                    "area": result.check.area,
                    "rule": result.check.rule,
                    "capability": str(result.check.needs) if result.check.needs is not None else None,
                    "since": result.check.since,
                    "smoke": result.check.smoke,
                    "status": str(result.status),
                    "message": result.message,
                    "follows": result.follows or None,
                    "mend": result.check.mend if result.status is Status.FAILED else None,
                    "seconds": round(result.seconds, 4),
                }
                for result in self.results
            ],
        }

    def as_markdown(self) -> str:
        """A section of Markdown."""
        lines = [
            f"## {self.title}",
            "",
            self.statement(),
            "",
            "| check | | sentence | rule | |",
            "|---|---|---|---|---|",
        ]
        marks = {Status.PASSED: "✓", Status.FAILED: "✗", Status.NOT_APPLICABLE: "-", Status.NOT_RUN: " "}
        for result in self.results:
            what = result.message.partition("\n")[0].replace("|", "\\|")
            cause = f"follows from {result.follows}: " if result.follows else ""
            one = result.check
            lines.append(f"| {one.id} | {marks[result.status]} | {one.sentence} | {one.rule} | {cause}{what} |")
        return "\n".join([*lines, ""])


def host_facts() -> dict[str, Any]:
    """What a report has to say about where it was made."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "root": os.geteuid() == 0,
    }


def as_junit(reports: Iterable[Report], left_out: Mapping[str, str] = types.MappingProxyType({})) -> str:
    """JUnit XML, one suite a report, and one for each of *left_out*: what could not be tested, and why.

    A skip over something that the host lacks reads ``needs FEATURE: REASON``.
    """
    root = ET.Element("testsuites", name="memplat conformance")
    for report in reports:
        skipped = report.count(Status.NOT_APPLICABLE) + report.count(Status.NOT_RUN)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=report.title,
            tests=str(len(report.results)),
            failures=str(len(report.failures)),
            skipped=str(skipped),
            errors="0",
            time=f"{report.seconds:.3f}",
        )
        for result in report.results:
            _add_case(suite, report, result)
    for title, reason in left_out.items():
        suite = ET.SubElement(root, "testsuite", name=title, tests="1", failures="0", skipped="1", errors="0", time="0")
        case = ET.SubElement(suite, "testcase", classname=title, name="all checks", time="0")
        ET.SubElement(case, "skipped", message=reason)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def _add_case(suite: ET.Element, report: Report, result: Result) -> None:
    one = result.check
    name = f"{one.id} {one.sentence}"
    case = ET.SubElement(
        suite, "testcase", classname=f"{report.title}.{one.area}", name=name, time=f"{result.seconds:.3f}"
    )
    if result.status is Status.FAILED:
        first = result.message.partition("\n")[0]
        cause = f"follows from {result.follows}: " if result.follows else ""
        failure = ET.SubElement(case, "failure", message=f"{cause}{first}")
        failure.text = f"{result.message}\n\nrule {one.rule}; to mend: {one.mend}"
    elif result.status is not Status.PASSED:
        ET.SubElement(case, "skipped", message=result.message)


__all__ = ["Report", "Result", "Status", "as_junit", "host_facts"]
