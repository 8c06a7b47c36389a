"""Backends that are odd and right pass: larger pages, a slow or a small host, a quota, modesty."""

from __future__ import annotations

import pytest

from memplat.conformance.registry import all_checks
from memplat.types import Capability
from tests.meta import bench
from tests.meta.specimens import odd
from tests.meta.specimens.base import Specimen


@pytest.mark.parametrize("specimen", odd.ODD, ids=lambda specimen: specimen.__name__)
def test_an_odd_backend_that_is_right_conforms(specimen: type[Specimen]):
    report = bench.run(specimen, broken=False, checks=list(all_checks()))
    assert report.conforms, bench.told(report)


def test_what_works_and_is_not_declared_is_reported():
    checks = [check for check in all_checks() if check.smoke or check.needs is not None]
    report = bench.run(odd.Modest, broken=False, checks=checks)
    assert report.conforms, bench.told(report)
    assert {Capability.RESERVE, Capability.SHARE, Capability.EXECUTE} <= set(report.undeclared)
    assert not {Capability.SEAL, Capability.HUGE_PAGES, Capability.FLUSH} & set(report.undeclared)
    assert "share (works, could be declared)" in report.statement()
