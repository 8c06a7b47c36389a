"""Puts specimens through the suite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from memplat.conformance.registry import Check, all_checks
from memplat.conformance.report import Report
from memplat.conformance.runner import Runner
from memplat.conformance.subject import Subject
from tests import hostparts
from tests.meta.specimens.base import MIB, Specimen

#: What a specimen may require, each with how it is made; what it yields is the directory of the specimen, if any.
HOSTS: Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "swap": lambda: hostparts.swap_file(64 * MIB),
    "hugetlb": lambda: hostparts.hugetlb_pool(16),
    "tmpfs": lambda: hostparts.tmpfs_mount(32 * MIB),
    "tiny": lambda: hostparts.tmpfs_mount(8 * MIB),
    "noexec": lambda: hostparts.mounted("tmpfs", "noexec"),
}


@contextlib.contextmanager
def provided(specimen: type[Specimen]) -> Iterator[str]:
    """What *specimen* requires of the host, for as long as it lasts; its directory."""
    if not specimen.requires:
        yield ""
        return
    with HOSTS[specimen.requires]() as made:
        yield "" if specimen.requires in ("swap", "hugetlb") else str(made)


def run(specimen: type[Specimen], *, broken: bool, checks: list[Check], gated: bool = True) -> Report:
    """The report on a specimen, or on its repaired twin."""
    with provided(specimen) as directory:
        plugin = specimen(broken=broken, directory=directory)
        with Runner(Subject(plugin, title=specimen.label())) as runner:
            return runner.run(checks, gated=gated)


def named(specimen: type[Specimen]) -> list[Check]:
    """The checks that have to fail; all of the smoke tier if it is there that it fails."""
    failing = [check for check in all_checks() if check.id in specimen.fails]
    return [check for check in all_checks() if check.smoke] if all(check.smoke for check in failing) else failing


def roots(report: Report) -> set[str]:
    """The failures that no other one explains."""
    return {result.check.id for result in report.roots}


def told(report: Report) -> str:
    """Everything that failed, for messages."""
    return "\n".join(
        f"{result.check.id} {f'(follows from {result.follows}) ' if result.follows else ''}{result.message}"
        for result in report.failures
    )
