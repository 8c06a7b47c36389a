"""The register of checks, and docs/contract.md, which has to be in step with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memplat.conformance.registry import AREAS, all_checks, check
from memplat.types import CONTRACT_LEVEL, Capability

CONTRACT = (Path(__file__).parents[3] / "docs" / "contract.md").read_text(encoding="utf-8")


def rules() -> dict[str, str]:
    """The numbered rules of the contract, each with its text."""
    parts = re.split(r"^\*\*(\d+\.\d+)\*\* ", CONTRACT, flags=re.MULTILINE)
    return {number: text.split("\n\n")[0] for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_the_rules_are_numbered_without_gaps():
    by_section: dict[int, list[int]] = {}
    for rule in rules():
        section, number = map(int, rule.split("."))
        by_section.setdefault(section, []).append(number)
    assert list(by_section) == list(range(1, len(by_section) + 1))
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_section.values())


def test_each_rule_names_the_checks_that_enforce_it():
    named = {rule: sorted(re.findall(r"[A-Z]+-\d\d", text)) for rule, text in rules().items()}
    enforced: dict[str, list[str]] = {}
    for one in all_checks():
        enforced.setdefault(one.rule, []).append(one.id)
    assert named == {rule: sorted(checks) for rule, checks in enforced.items()}


def test_a_rule_of_a_capability_says_so():
    for one in all_checks():
        marked = re.match(r"\*(\w+)\*:", rules()[one.rule])
        assert (marked[1] if marked else None) == one.needs, one.id


def test_every_area_and_every_capability_has_a_check():
    assert {one.area for one in all_checks()} == set(AREAS)
    assert {one.needs for one in all_checks()} - {None} == set(Capability)


def test_checks_have_sentences_and_remedies_and_levels_that_exist():
    for one in all_checks():
        assert len(one.sentence.split()) >= 3, one.id
        assert len(one.mend) > 20, one.id
        assert one.mend.endswith("."), one.id
        assert 1 <= one.since <= CONTRACT_LEVEL, one.id


def test_what_explains_a_failure_exists_and_does_not_go_in_circles():
    known = {one.id: one for one in all_checks()}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"{' -> '.join([*path, name])} explain each other"
        if name not in finished:
            for cause in known[name].after:
                visit(cause, (*path, name))
            finished.add(name)

    for name in known:
        visit(name, ())


def test_each_hook_whose_form_is_checked_belongs_to_one_check():
    hooks = [one.forms for one in all_checks() if one.forms]
    assert len(hooks) == len(set(hooks))


def test_the_smoke_tier_comes_first():
    tiers = [one.smoke for one in all_checks()]
    assert tiers == sorted(tiers, reverse=True)
    assert 5 <= sum(tiers) <= 15


def test_test_names_are_names_and_differ():
    names = [one.test_name for one in all_checks()]
    assert len(names) == len(set(names))
    assert all(name.isidentifier() and name.startswith("test_") for name in names)


@pytest.mark.parametrize(
    ("identifier", "module", "doc", "fault"),
    [
        ("LIFE-1", "x.areas.lifecycle", "Mend it.", "is no identifier"),
        ("ZERO-99", "x.areas.lifecycle", "Mend it.", "whose checks are LIFE-NN"),
        ("LIFE-01", "x.areas.lifecycle", "Mend it.", "is taken"),
        ("LIFE-99", "x.areas.lifecycle", "", "what to mend"),
    ],
)
def test_a_check_that_is_registered_wrongly_is_refused(identifier: str, module: str, doc: str, fault: str):
    def something_holds(case: object) -> None: ...

    something_holds.__module__ = module
    something_holds.__doc__ = doc
    all_checks()
    with pytest.raises(ValueError, match=fault):
        check(identifier, rule="1.1")(something_holds)
