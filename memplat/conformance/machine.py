"""A hypothesis state machine: random operations on a memory and on a model that keeps one record a page.

The sequences are the same in every run, so that a failure can be repeated.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NoReturn

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from memplat.conformance.case import Case, by_owner, stamp
from memplat.conformance.verdict import CheckFailedError
from memplat.errors import OutOfMemory
from memplat.memory import Memory
from memplat.ranges import HUGE_PAGE_SIZE, FileRange
from memplat.types import AllocationMode, Capability

_PAGES: Final = 24
#: Huge pages take a while to be written and compared.
_HUGE_PAGES: Final = 10
_LONGEST: Final = 6
_EXAMPLES: Final = 60
_STEPS: Final = 30

_SETTINGS: Final = settings(
    max_examples=_EXAMPLES,
    stateful_step_count=_STEPS,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class _Page:
    """What the model knows of a page that somebody holds."""

    __slots__ = ("owner", "refs", "salt")

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.refs = 1
        self.salt: int | None = None  # ``None``: zeros


class _Machine(RuleBasedStateMachine):
    """Operations on the memory and on the model."""

    def __init__(self, case: Case, room: int) -> None:
        super().__init__()
        self._case = case
        self._memory: Memory = case.open(max_size=case.max_size())
        self._observer = case.observer(self._memory)
        self._size = self._memory.page_size
        self._room = room
        self._pages: dict[int, _Page] = {}
        self._salt = 0
        self._changed = False  # since the last reclaim or account: without it these two are most of the steps
        self._steps: list[str] = []

    # -- operations ---------------------------------------------------------------------------------------------------

    @rule(
        count=st.sampled_from([4, 1, 2, 3, 5, 6]),
        owner=st.integers(0, 3),
        mode=st.sampled_from(AllocationMode),
        down=st.booleans(),
        filled=st.sampled_from([True, False]),
    )
    def allocate(self, count: int, owner: int, mode: AllocationMode, down: bool, filled: bool) -> None:
        """New pages: nobody's before, and zero. Often with content at once: what is lost without it is not missed."""
        if len(self._pages) + count > self._room:
            return
        if mode is AllocationMode.RESERVED and not self._case.declares(Capability.RESERVE):
            mode = AllocationMode.UNCOMMITTED
        self._say(f"allocate({count} pages, owner={owner}, mode={mode}, direction={'down' if down else 'up'})")
        direction = "down" if down else "up"
        try:
            got = self._memory.allocate(count * self._size, owner=owner, mode=mode, direction=direction)
        except OutOfMemory as error:
            self._fail(f"out of memory with {len(self._pages)} pages in use: {error}")
        for number in self._numbers(got):
            if number in self._pages:
                self._fail(f"page {number} was handed out although it is in use")
            self._pages[number] = _Page(owner)
        self._look(got)
        if filled:
            self._put(got, by_call=True)

    @precondition(lambda self: self._pages)
    @rule(data=st.data())
    def incref(self, data: Any) -> None:
        """Another reference."""
        part = self._choose(data)
        self._say(f"incref({part})")
        self._memory.incref(part)
        for number in self._numbers(part):
            self._pages[number].refs += 1

    @precondition(lambda self: self._pages)
    @rule(data=st.data())
    def decref(self, data: Any) -> None:
        """A reference less; pages without one are anybody's."""
        part = self._choose(data)
        self._say(f"decref({part})")
        self._memory.decref(part)
        for number in self._numbers(part):
            page = self._pages[number]
            page.refs -= 1
            if not page.refs:
                del self._pages[number]

    @precondition(lambda self: self._pages)
    @rule(data=st.data(), by_call=st.booleans())
    def write(self, data: Any, by_call: bool) -> None:
        """Content that no other page has."""
        self._put(self._choose(data), by_call=by_call)

    def _put(self, part: FileRange, *, by_call: bool) -> None:
        self._salt += 1
        self._say(f"{'write' if by_call else 'view'}({part}) with salt {self._salt}")
        for number in self._numbers(part):
            one = FileRange(number * self._size, (number + 1) * self._size)
            content = stamp(one.start, self._salt, self._size)
            if by_call:
                self._memory.write(one, content)
            else:
                self._memory.view(one)[:] = content
            self._pages[number].salt = self._salt

    @precondition(lambda self: self._pages)
    @rule(data=st.data())
    def decommit(self, data: Any) -> None:
        """Zeros, that cost nothing."""
        part = self._choose(data)
        self._say(f"decommit({part})")
        before = self._observer.data_bytes()
        told = self._memory.decommit(part, release=True)
        given = before - self._observer.data_bytes()
        if told != given:
            self._fail(f"decommit said {told} bytes, the host has got {given} back")
        for number in self._numbers(part):
            self._pages[number].salt = None
        self._look(part)

    @precondition(lambda self: self._changed)
    @rule()
    def reclaim(self) -> None:
        """Waste goes back to the host."""
        self._say("reclaim()")
        self._changed = False
        self._memory.reclaim(sys.maxsize)

    @precondition(lambda self: self._changed)
    @rule()
    def account(self) -> None:
        """The figures are those of the host, owner by owner, and everything still holds its content."""
        self._say("update_usage()")
        self._changed = False
        usage = self._memory.update_usage()
        told = by_owner(usage)
        if usage.total != self._observer.total():
            self._fail(f"usage says {usage.total} bytes, fstat {self._observer.total()}")
        if self._observer.extents() is not None:
            for owner in {page.owner for page in self._pages.values()} - {0}:
                self._compare(owner, told.get(owner, 0))
        for number in self._pages:
            self._look(FileRange(number * self._size, (number + 1) * self._size))

    # -- inside -------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Look at everything once more, free it all, and see that it has gone back."""
        if self._steps and self._steps[-1] != "failed":
            self.account()
            self._say("free everything")
            for number, page in sorted(self._pages.items()):
                for _ in range(page.refs):
                    self._memory.decref(FileRange(number * self._size, (number + 1) * self._size))
            self._case.give_back(self._memory)
            left = self._observer.data_bytes()
            if left:
                self._fail(f"everything was freed, and {left} bytes are still committed")
        self._case.close_all()

    def _compare(self, owner: int, told: int) -> None:
        costs = 0
        found = self._observer.extents() or []
        for number, page in self._pages.items():
            if page.owner == owner:
                start, end = number * self._size, (number + 1) * self._size
                costs += sum(max(0, min(end, high) - max(start, low)) for low, high in found)
        if told < costs:  # reserved pages cost storage that SEEK_DATA does not show
            self._fail(f"owner {owner} has {costs} bytes committed, usage says {told}")

    def _choose(self, data: Any) -> FileRange:
        """A part of a run of pages that are in use."""
        numbers = sorted(self._pages)
        first = data.draw(st.sampled_from(numbers))
        longest = 1
        while first + longest in self._pages and longest < _LONGEST:
            longest += 1
        count = data.draw(st.sampled_from(range(longest, 0, -1)))
        return FileRange(first * self._size, (first + count) * self._size)

    def _numbers(self, pages: FileRange) -> range:
        return range(pages.start // self._size, pages.end // self._size)

    def _look(self, pages: FileRange) -> None:
        """The file has to hold what the model says."""
        for number in self._numbers(pages):
            salt = self._pages[number].salt
            start = number * self._size
            wanted = bytes(self._size) if salt is None else stamp(start, salt, self._size)
            if self._observer.read(start, self._size) != wanted:
                self._fail(
                    f"page {number} should hold {'zeros' if salt is None else f'what was written with salt {salt}'}"
                )

    def _say(self, step: str) -> None:
        self._steps.append(step)
        self._changed = True

    def _fail(self, what: str) -> NoReturn:
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(self._steps, 1))
        self._steps.append("failed")
        raise CheckFailedError(f"{what}, after\n{steps}")


def run(case: Case) -> None:
    """Run the state machine on memories that *case* opens.

    :raises CheckFailedError: with the steps that led to a difference
    """
    memory = case.open()
    room = case.pages(memory, _PAGES if memory.page_size < HUGE_PAGE_SIZE else _HUGE_PAGES, 8)
    case.close_all()
    machine: Any = lambda: _Machine(case, room)  # noqa: E731 -- hypothesis calls what it is told is a class
    run_state_machine_as_test(machine, settings=_SETTINGS)


__all__ = ["run"]
