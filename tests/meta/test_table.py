"""docs/conformance-table.md, which takes minutes to write, is as old as the checks and the broken backends."""

from __future__ import annotations

import re

from memplat.conformance.registry import all_checks
from tests.meta.specimens import SPECIMENS
from tests.meta.table import TABLE

REMEDY = "run python -m tests.meta.table"


def rows() -> dict[str, tuple[str, list[str]]]:
    found = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| ([A-Z]+-\d\d) \| (.*) \| (.*) \|", line):
            found[match[1]] = match[2], [name for name in match[3].split(", ") if name]
    return found


def test_every_check_is_in_the_table_with_its_sentence():
    assert {name: sentence for name, (sentence, _) in rows().items()} == {
        check.id: check.sentence for check in all_checks()
    }, REMEDY


def test_every_check_is_failed_by_a_broken_backend():
    assert [name for name, (_, failing) in rows().items() if not failing] == []


def test_each_broken_backend_fails_exactly_the_checks_that_are_named_for_it():
    named = {
        (check, backend.strip("*"))
        for check, (_, failing) in rows().items()
        for backend in failing
        if backend.startswith("**")
    }
    assert named == {(check, specimen.__name__) for specimen in SPECIMENS for check in specimen.fails}, REMEDY
