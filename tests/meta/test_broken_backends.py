"""The suite is tested with backends that it has to find fault with: each fails the checks that are named for it,
nothing fails that these do not explain, and the same backend written right passes them.

All checks are run on one specimen of each kind here, and on every one of them by ``python -m tests.meta.table``.
"""

from __future__ import annotations

import pytest

from memplat.conformance.registry import all_checks
from memplat.conformance.report import Status
from tests.meta import bench
from tests.meta.specimens import SPECIMENS, decommitting, growing, hosting, lifecycle, probing
from tests.meta.specimens.base import Specimen

each_specimen = pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.__name__)


def test_there_are_enough_of_them():
    assert len(SPECIMENS) >= 25


def test_each_specimen_names_checks_that_exist():
    known = {check.id for check in all_checks()}
    assert {name for specimen in SPECIMENS for name in specimen.fails} <= known


@each_specimen
def test_a_broken_backend_fails_its_own_checks(specimen: type[Specimen]):
    report = bench.run(specimen, broken=True, checks=bench.named(specimen))
    assert bench.roots(report) == set(specimen.fails), bench.told(report)
    assert not report.conforms


@each_specimen
def test_its_repaired_twin_passes_them(specimen: type[Specimen]):
    report = bench.run(specimen, broken=False, checks=bench.named(specimen), gated=False)
    assert not report.failures, bench.told(report)


@pytest.mark.parametrize(
    "specimen",
    [
        lifecycle.CloseDoesNotClose,
        growing.GrowthAllocates,
        decommitting.DecommitJoinsItsRanges,
        probing.ProbeSeesOnlyThisMapping,
        hosting.ReserveLiesOnAFullHost,
    ],
    ids=lambda specimen: specimen.__name__,
)
def test_a_broken_backend_fails_no_unrelated_check(specimen: type[Specimen]):
    report = bench.run(specimen, broken=True, checks=list(all_checks()))
    assert bench.roots(report) == set(specimen.fails), bench.told(report)
    assert len(report.failures) > len(report.roots), "nothing follows: choose another specimen for this test"


def test_what_fails_in_the_smoke_tier_keeps_the_rest_from_being_run():
    report = bench.run(decommitting.DecommitDoesNothing, broken=True, checks=list(all_checks()))
    held = [result for result in report.results if result.status is Status.NOT_RUN]
    assert len(held) == sum(not check.smoke for check in all_checks())
    assert all("DECOM-01" in result.message and "mend" in result.message for result in held)
