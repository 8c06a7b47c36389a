"""The state machine: any sequence of operations does what a naive model says."""

from __future__ import annotations

from memplat.conformance.case import Case
from memplat.conformance.registry import check


@check(
    "MODEL-01",
    rule="17.1",
    after="ALLOC-03 ZERO-02 ZERO-03 REF-01 VIEW-03 ACCT-02 ACCT-05 "
    "DECOM-03 DECOM-04 DECOM-05 DECOM-07 DECOM-09 PROBE-02 PROBE-04 PROBE-05 PROBE-11",
    seconds=180.0,
)
def any_sequence_of_operations_does_what_a_naive_model_says(case: Case) -> None:
    """The steps that led to the difference are listed: something depends on the history of the pages."""
    try:
        from memplat.conformance.machine import run
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        case.skip("hypothesis is not installed (pip install 'memplat[conformance]')")
    run(case)
