"""Random operations on each address space against a model, with memory loaded by the guest itself each time."""

from __future__ import annotations

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
ACCESSES = st.sampled_from(["read", "read_write", "read_execute"])


class SpaceMachine(RuleBasedStateMachine):
    """The guest's pages, each with a page of the file and an access; the references of each page of the file."""

    guest: Guest
    memory: Memory
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.pages = self.memory.allocate(FILE_PAGES * PAGE)
        self.content = list(range(1, FILE_PAGES + 1))
        for page, value in enumerate(self.content):
            self.memory.write(self.pages.part(page * PAGE, 1), bytes([value]))
        self.refs = [1] * FILE_PAGES
        self.mapped: dict[int, tuple[int, str]] = {}
        self.last = 0

    def at(self, page: int) -> Address:
        return Address(self.guest.base + page * PAGE)

    @rule(
        at=st.integers(0, GUEST_PAGES - 1), first=st.integers(0, FILE_PAGES - 1), n=st.integers(1, 5), access=ACCESSES
    )
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

    @rule(at=st.integers(0, GUEST_PAGES - 1), n=st.integers(1, 6))
    def unmap(self, at: int, n: int) -> None:
        self.guest.space.unmap(self.at(at), n * PAGE)
        self.forget(at, n)

    @rule(at=st.integers(0, GUEST_PAGES - 1), n=st.integers(1, 4), access=ACCESSES)
    def protect(self, at: int, n: int, access: str) -> None:
        pages = range(at, at + n)
        if not all(page in self.mapped for page in pages):
            with pytest.raises(memplat.NotMappedError):
                self.guest.space.protect(self.at(at), n * PAGE, access)
            return
        self.guest.space.protect(self.at(at), n * PAGE, access)
        for page in pages:
            self.mapped[page] = self.mapped[page][0], access
        self.last = at

    @rule(page=st.integers(0, FILE_PAGES - 1))
    def incref(self, page: int) -> None:
        if self.refs[page]:
            self.memory.incref(self.pages.part(page * PAGE, PAGE))
            self.refs[page] += 1

    @rule(page=st.integers(0, FILE_PAGES - 1))
    def decref(self, page: int) -> None:
        """Never a reference that is the guest's."""
        if self.refs[page] > sum(found == page for found, _ in self.mapped.values()):
            self.memory.decref(self.pages.part(page * PAGE, PAGE))
            self.refs[page] -= 1

    @rule(at=st.integers(0, GUEST_PAGES - 1), value=st.integers(1, 255))
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
        type(self).operations += 1
        for page in {self.last, *list(self.mapped)[:2]} & self.mapped.keys():
            assert self.guest.load(self.at(page)) == self.content[self.mapped[page][0]]

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

        Machine.memory = memory
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=30,
                stateful_step_count=50,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert Machine.operations >= 1000
