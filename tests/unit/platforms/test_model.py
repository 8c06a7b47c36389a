"""Random operations on each address space against a model, with memory loaded by the guest itself each time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import memplat
from memplat.memory import Memory
from memplat.ranges import Address
from tests.unit.platforms.guests import NAMES, Guest, make_guest

PAGE = 4096
FILE_PAGES, GUEST_PAGES = 12, 16
PICK = st.integers(0, 99)
AT = st.integers(0, GUEST_PAGES - 1)
ACCESSES = st.sampled_from(["read", "read_write", "read_execute"])
#: What can be done, each with its arguments.
STEPS = [
    st.tuples(st.just("map"), AT, st.integers(0, FILE_PAGES - 1), st.integers(1, 5), ACCESSES),
    st.tuples(st.just("unmap"), PICK, st.integers(1, 4)),
    st.tuples(st.just("protect"), PICK, st.integers(1, 2), ACCESSES),
    st.tuples(st.just("protect"), PICK, st.just(1), ACCESSES),
    st.tuples(st.just("incref"), PICK),
    st.tuples(st.just("decref"), PICK),
    st.tuples(st.just("store"), AT, st.integers(1, 255)),
    st.tuples(st.just("recycle")),
]


class SpaceMachine(RuleBasedStateMachine):
    """The guest's pages, each with a page of the file and an access; the references of each page of the file.

    :cvar done: what was carried out, by name: refused calls, and those for which there was nothing to do, are not in it
    :cvar loads: bytes that the guest has loaded, by its own instructions
    """

    guest: Guest
    memory: Memory
    done: Counter[str]
    loads: int

    def __init__(self) -> None:
        super().__init__()
        self.pages = self.memory.allocate(FILE_PAGES * PAGE)
        self.content = list(range(1, FILE_PAGES + 1))
        for page, value in enumerate(self.content):
            self.memory.write(self.pages.part(page * PAGE, 1), bytes([value]))
        self.refs = [1] * FILE_PAGES
        self.mapped: dict[int, tuple[int, str]] = {}
        self.last = 0

    @staticmethod
    def one_of(numbers: list[int], pick: int) -> int:
        return numbers[pick % len(numbers)]

    def at(self, page: int) -> Address:
        return Address(self.guest.base + page * PAGE)

    @rule(step=st.one_of(STEPS))
    def step(self, step: tuple[Any, ...]) -> None:
        """One rule for all of them: of several, hypothesis leaves some out in each example."""
        getattr(self, step[0])(*step[1:])

    def map(self, at: int, first: int, n: int, access: str) -> None:
        n = min(n, FILE_PAGES - first, GUEST_PAGES - at)
        part = self.pages.part(first * PAGE, n * PAGE)
        if not all(self.refs[first : first + n]):
            with pytest.raises(memplat.NotAllocatedError):
                self.memory.map_into(self.guest.space, self.at(at), part, access)
            return
        self.memory.map_into(self.guest.space, self.at(at), part, access)
        self.forget(at, n)
        for page in range(n):
            self.mapped[at + page] = first + page, access
            self.refs[first + page] += 1
        self.last = at
        self.done["map"] += 1

    def unmap(self, pick: int, n: int) -> None:
        at = self.one_of(sorted(self.mapped) or [0], pick)
        self.guest.space.unmap(self.at(at), n * PAGE)
        self.done["unmap"] += at in self.mapped
        self.forget(at, n)

    def protect(self, pick: int, n: int, access: str) -> None:
        at = self.one_of(sorted(self.mapped) or [0], pick)
        pages = range(at, at + n)
        if not all(page in self.mapped for page in pages):
            with pytest.raises(memplat.NotMappedError):
                self.guest.space.protect(self.at(at), n * PAGE, access)
            return
        self.guest.space.protect(self.at(at), n * PAGE, access)
        for page in pages:
            self.mapped[page] = self.mapped[page][0], access
        self.last = at
        self.done["protect"] += 1

    def incref(self, pick: int) -> None:
        page = self.one_of([page for page in range(FILE_PAGES) if self.refs[page]] or [0], pick)
        if self.refs[page]:
            self.memory.incref(self.pages.part(page * PAGE, PAGE))
            self.refs[page] += 1
            self.done["incref"] += 1

    def decref(self, pick: int) -> None:
        """Never a reference that is the guest's."""
        held = Counter(found for found, _ in self.mapped.values())
        page = self.one_of([page for page in range(FILE_PAGES) if self.refs[page] > held[page]] or [0], pick)
        if self.refs[page] > held[page]:
            self.memory.decref(self.pages.part(page * PAGE, PAGE))
            self.refs[page] -= 1
            self.done["decref"] += 1

    def recycle(self) -> None:
        """Others allocate and write: never to what the guest still maps, though its owner may have freed it."""
        self.memory.reclaim()
        others = [self.memory.allocate(PAGE, mode="committed") for _ in range(FILE_PAGES)]
        for other in others:
            number = (other.start - self.pages.start) // PAGE
            assert not (self.pages.contains(other.start) and self.refs[number])
            self.memory.write(other, b"\xff" * PAGE)
        for other in others:
            self.memory.decref(other)

    def store(self, at: int, value: int) -> None:
        found = self.mapped.get(at)
        if found is not None and found[1] == "read_write":
            self.guest.store(self.at(at), value)
            self.content[found[0]] = value

    def forget(self, at: int, n: int) -> None:
        for page in range(at, at + n):
            found = self.mapped.pop(page, None)
            if found is not None:
                self.refs[found[0]] -= 1

    @invariant()
    def the_guest_loads_what_the_model_says(self) -> None:
        for page in {self.last, *list(self.mapped)[:2]} & self.mapped.keys():
            assert self.guest.load(self.at(page)) == self.content[self.mapped[page][0]]
            type(self).loads += 1

    @invariant()
    def the_references_are_the_models(self) -> None:
        found = [self.memory.inspect(self.pages.start + page * PAGE).refs for page in range(FILE_PAGES)]
        assert found == self.refs
        base = self.guest.base
        table = {
            (address - base) // PAGE: ((piece.offset + address - piece.start - self.pages.start) // PAGE, piece.access)
            for piece in self.guest.space.mappings()
            if piece.start >= base
            for address in range(piece.start, piece.end, PAGE)
        }
        assert table == self.mapped

    def teardown(self) -> None:
        for page, value in list(self.mapped.items()):
            assert self.guest.load(self.at(page)) == self.content[value[0]]
        self.guest.space.unmap(self.at(0), GUEST_PAGES * PAGE)
        self.forget(0, GUEST_PAGES)
        for page, count in enumerate(self.refs):
            for _ in range(count):
                self.memory.decref(self.pages.part(page * PAGE, PAGE))
        self.memory.reclaim()


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_random_operations_agree_with_the_model(name: str) -> None:
    with (
        memplat.open("memfd", config={}, max_size=64 << 20, reclaim="manual") as memory,
        make_guest(name, memory) as it,
    ):

        class Machine(SpaceMachine):
            guest = it

        Machine.memory, Machine.done, Machine.loads = memory, Counter(), 0
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=32,
                stateful_step_count=65,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert Machine.done.total() >= 1000, Machine.done
        assert min(Machine.done[name] for name in ("map", "unmap", "protect", "incref", "decref")) >= 50, Machine.done
        assert Machine.loads >= 1000
