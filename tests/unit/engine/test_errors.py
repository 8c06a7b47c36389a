"""Every error of the calls on a memory: its class, what its message says, and that nothing has changed."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.naming import shown
from tests.oracle import PAGE
from tests.unit.engine.helpers import MIB, part, unchanged
from tests.unit.engine.test_lifecycle import calls

Opener = Callable[..., Memory]

ABSURD = [2**63, 2**64, 10**30]
WRONG_TYPES: list[Any] = [None, "4096", 4096.0, b"4096", [4096], object(), True]


class Case(NamedTuple):
    """A bad argument, the error that it is, and the words that its message needs."""

    value: Any
    error: type[Exception]
    words: tuple[str, ...] = ()


def refused(case: Case, call: Callable[[], object], memory: Memory, *, exact: bool = True) -> None:
    """*call* raises the error of *case*, says what it has to, and leaves *memory* as it was."""
    with unchanged(memory), pytest.raises(case.error) as caught:
        call()
    if exact:
        assert type(caught.value) is case.error, repr(caught.value)
    assert isinstance(caught.value, memplat.MemplatError)
    for word in case.words:
        assert word in str(caught.value), f"{word!r} is missing in: {caught.value}"


def ids(cases: list[Case]) -> list[str]:
    """Readable test names."""
    return [shown(case.value) for case in cases]


@pytest.fixture
def used(memory: Memory) -> FileRange:
    """Eight pages of which the sixth is free, in a memory with some more around them."""
    memory.allocate(PAGE, kind="tmpfs")
    pages = memory.allocate(8 * PAGE, owner=1, fill=b"content")
    memory.allocate(3 * PAGE, kind="system")
    memory.incref(part(pages, 2, 2))
    memory.decref(part(pages, 5))
    memory.reclaim()
    memory.update_usage()
    return pages


# -- allocate ------------------------------------------------------------------------------------------------------

LENGTHS = [
    Case(0, memplat.InvalidLengthError, ("0",)),
    Case(-1, memplat.InvalidLengthError, ("-1",)),
    Case(-PAGE, memplat.InvalidLengthError, (str(-PAGE),)),
    Case(1, memplat.InvalidLengthError, ("1", str(PAGE))),
    Case(PAGE - 1, memplat.InvalidLengthError, (str(PAGE - 1), str(PAGE))),
    Case(PAGE + 1, memplat.InvalidLengthError, (str(PAGE + 1), str(2 * PAGE))),
    Case(100_000, memplat.InvalidLengthError, ("100000", "102400")),
    *[Case(length, memplat.InvalidLengthError) for length in ABSURD],
    Case(-(2**63), memplat.InvalidLengthError),
]


@pytest.mark.parametrize("case", LENGTHS, ids=ids(LENGTHS))
@pytest.mark.parametrize("method", ["allocate", "block"])
def test_bad_lengths(memory: Memory, used: FileRange, method: str, case: Case) -> None:
    refused(case, lambda: getattr(memory, method)(case.value), memory)


@pytest.mark.parametrize("value", WRONG_TYPES, ids=shown)
@pytest.mark.parametrize("method", ["allocate", "block", "round_up"])
def test_lengths_that_are_no_integers(memory: Memory, used: FileRange, method: str, value: Any) -> None:
    case = Case(value, memplat.InvalidArgumentError)
    refused(case, lambda: getattr(memory, method)(value), memory, exact=False)


@pytest.mark.parametrize("value", [0, -1, *ABSURD])
def test_bad_lengths_to_round_up(memory: Memory, value: int) -> None:
    refused(Case(value, memplat.InvalidLengthError), lambda: memory.round_up(value), memory)


KINDS = [
    Case("nonsense", memplat.InvalidKindError, ("nonsense", "anonymous", "page_cache")),
    Case("mapped", memplat.InvalidKindError, ("mapped", "anonymous")),
    Case(memplat.MemoryKind.MAPPED, memplat.InvalidKindError, ("mapped",)),
    Case("", memplat.InvalidKindError),
    Case(None, memplat.InvalidKindError, ("None",)),
    Case(3, memplat.InvalidKindError, ("3",)),
    Case(["anonymous"], memplat.InvalidKindError),
]


@pytest.mark.parametrize("case", KINDS, ids=ids(KINDS))
def test_bad_kinds(memory: Memory, used: FileRange, case: Case) -> None:
    refused(case, lambda: memory.allocate(PAGE, kind=case.value), memory)
    refused(case, lambda: memory.block(PAGE, kind=case.value), memory)


OWNERS = [
    Case(-1, memplat.InvalidOwnerError, ("-1", str(2**32 - 1))),
    Case(2**32, memplat.InvalidOwnerError, (str(2**32),)),
    Case(2**63, memplat.InvalidOwnerError),
    Case(10**30, memplat.InvalidOwnerError),
    Case(None, memplat.InvalidOwnerError, ("None",)),
    Case("1", memplat.InvalidOwnerError, ("'1'",)),
    Case(1.0, memplat.InvalidOwnerError, ("1.0",)),
    Case(True, memplat.InvalidOwnerError, ("True",)),
    Case([1], memplat.InvalidOwnerError),
]


@pytest.mark.parametrize("case", OWNERS, ids=ids(OWNERS))
def test_bad_owners(memory: Memory, used: FileRange, case: Case) -> None:
    refused(case, lambda: memory.allocate(PAGE, owner=case.value), memory)
    refused(case, lambda: memory.transfer(part(used, 0), case.value), memory)
    refused(case, lambda: memory.account_external(1, owner=case.value), memory)


CHOICES: list[tuple[str, Case]] = [
    ("mode", Case("nonsense", memplat.InvalidArgumentError, ("nonsense", "committed", "reserved"))),
    ("mode", Case(1, memplat.InvalidArgumentError, ("1",))),
    ("mode", Case(["committed"], memplat.InvalidArgumentError)),
    ("direction", Case("sideways", memplat.InvalidArgumentError, ("sideways", "up", "down"))),
    ("direction", Case(None, memplat.InvalidArgumentError, ("None",))),
    ("fill", Case(5, memplat.InvalidArgumentError, ("int",))),
    ("fill", Case("text", memplat.InvalidArgumentError)),
    ("fill", Case(object(), memplat.InvalidArgumentError)),
    ("fill", Case(bytes(PAGE + 1), memplat.InvalidArgumentError, (str(PAGE + 1), str(PAGE)))),
    ("fill", Case(memoryview(bytes(64))[::2], memplat.InvalidArgumentError)),
]


@pytest.mark.parametrize(("name", "case"), CHOICES, ids=[f"{name}={shown(case.value)}" for name, case in CHOICES])
def test_bad_modes_directions_and_sources(memory: Memory, used: FileRange, name: str, case: Case) -> None:
    refused(case, lambda: memory.allocate(PAGE, **{name: case.value}), memory)
    refused(case, lambda: memory.block(PAGE, **{name: case.value}), memory)


def test_a_text_stream_as_a_source_is_refused_and_allocates_nothing(memory: Memory) -> None:
    before = memory.update_usage().allocated
    with pytest.raises(memplat.InvalidArgumentError):
        memory.allocate(PAGE, fill=io.StringIO("text"))  # type: ignore[arg-type]
    assert memory.update_usage().allocated == before


# -- ranges --------------------------------------------------------------------------------------------------------


class Space:
    """An address space that must never be reached."""

    def map_file(self, *arguments: object) -> None:
        raise AssertionError(f"reached with {arguments}")

    unmap = release = map_file


PAGE_METHODS: dict[str, Callable[[Memory, Any], object]] = {
    "incref": lambda memory, pages: memory.incref(pages),
    "decref": lambda memory, pages: memory.decref(pages),
    "has_unique_ref": lambda memory, pages: memory.has_unique_ref(pages),
    "first_shared_range": lambda memory, pages: memory.first_shared_range(pages),
    "transfer": lambda memory, pages: memory.transfer(pages, 3),
    "decommit": lambda memory, pages: memory.decommit(pages),
    "map_into": lambda memory, pages: memory.map_into(Space(), 0x1000, pages, "read"),
}
BYTE_METHODS: dict[str, Callable[[Memory, Any], object]] = {
    "view": lambda memory, pages: memory.view(pages),
    "view read-only": lambda memory, pages: memory.view(pages, writable=False),
    "view unpinned": lambda memory, pages: memory.view(pages, pin=False),
    "read": lambda memory, pages: memory.read(pages),
    "write": lambda memory, pages: memory.write(pages, b""),
}
ADDRESS: dict[str, Callable[[Memory, Any], object]] = {"address": lambda memory, pages: memory.address(pages)}
METHODS = {**PAGE_METHODS, **BYTE_METHODS, **ADDRESS}

#: As a function of the range that is in use and of the size of the file.
BAD_RANGES: dict[str, Callable[[FileRange, int], FileRange]] = {
    "empty": lambda used, size: FileRange(used.start, used.start),
    "reversed": lambda used, size: FileRange(used.end, used.start),
    "negative start": lambda used, size: FileRange(-PAGE, used.end),
    "negative": lambda used, size: FileRange(-2 * PAGE, -PAGE),
    "beyond the file": lambda used, size: FileRange(size, size + PAGE),
    "partly beyond the file": lambda used, size: FileRange(used.start, size + PAGE),
    "2**63": lambda used, size: FileRange(2**63, 2**63 + PAGE),
    "up to 2**63": lambda used, size: FileRange(used.start, 2**63),
    "huge": lambda used, size: FileRange(PAGE * 10**30, PAGE * 10**30 + PAGE),
    "least": lambda used, size: FileRange(-(2**63), used.end),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", BAD_RANGES)
def test_bad_ranges(memory: Memory, used: FileRange, name: str, bad: str) -> None:
    pages = BAD_RANGES[bad](used, memory.total_size())
    refused(Case(pages, memplat.InvalidRangeError), lambda: METHODS[name](memory, pages), memory)


@pytest.mark.parametrize("name", METHODS)
def test_a_range_beyond_the_file_names_the_range_and_the_size(memory: Memory, used: FileRange, name: str) -> None:
    size = memory.total_size()
    with pytest.raises(memplat.InvalidRangeError) as caught:
        METHODS[name](memory, FileRange(used.start, size + PAGE))
    text = str(caught.value)
    assert hex(size + PAGE) in text or str(size + PAGE) in text
    assert hex(size) in text or str(size) in text


@pytest.mark.parametrize("name", PAGE_METHODS)
@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 1), (1, 1), (0, -1), (512, 512), (100, 200 - PAGE)])
def test_misaligned_ranges(memory: Memory, used: FileRange, name: str, low: int, high: int) -> None:
    pages = FileRange(used.start + low, used.start + PAGE + high)
    case = Case(pages, memplat.MisalignedRangeError, (str(PAGE),))
    refused(case, lambda: PAGE_METHODS[name](memory, pages), memory)


NO_RANGES: list[Any] = [
    None,
    5,
    "ab",
    (),
    (0,),
    (0, PAGE, 2 * PAGE),
    object(),
    slice(0, PAGE),
    FileRange(None, None),  # type: ignore[arg-type]
    FileRange("0", "4096"),  # type: ignore[arg-type]
    FileRange(0.0, float(PAGE)),  # type: ignore[arg-type]
    FileRange(0, None),  # type: ignore[arg-type]
    FileRange(False, PAGE),
]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", NO_RANGES, ids=shown)
def test_what_is_no_range(memory: Memory, used: FileRange, name: str, value: Any) -> None:
    refused(Case(value, memplat.InvalidArgumentError), lambda: METHODS[name](memory, value), memory, exact=False)


FREE_ERRORS = {**dict.fromkeys(METHODS, memplat.NotAllocatedError), "decref": memplat.DoubleFreeError}
del FREE_ERRORS["address"]  # an address is a number: the contract does not say that it is refused


@pytest.mark.parametrize("name", FREE_ERRORS)
@pytest.mark.parametrize(("first", "count"), [(5, 1), (4, 2), (5, 2), (0, 8), (3, 5)])
def test_ranges_with_a_free_page_are_refused_as_a_whole(
    memory: Memory, used: FileRange, name: str, first: int, count: int
) -> None:
    pages = part(used, first, count)
    refused(Case(pages, FREE_ERRORS[name]), lambda: METHODS[name](memory, pages), memory)


@pytest.mark.parametrize("name", FREE_ERRORS)
def test_ranges_with_waste_are_refused_as_a_whole(memory: Memory, used: FileRange, name: str) -> None:
    memory.decref(part(used, 6))
    pages = part(used, 6, 2)
    refused(Case(pages, FREE_ERRORS[name]), lambda: METHODS[name](memory, pages), memory)


@pytest.mark.parametrize("name", FREE_ERRORS)
def test_a_free_page_is_named(memory: Memory, used: FileRange, name: str) -> None:
    with pytest.raises(memplat.NotAllocatedError) as caught:
        METHODS[name](memory, part(used, 3, 4))
    offset = part(used, 5).start
    assert hex(offset) in str(caught.value) or str(offset) in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_block_of_another_memory(open_memory: Opener, memory: Memory, used: FileRange, name: str) -> None:
    other = open_memory()
    with other.block(PAGE) as block:
        refused(Case(block, memplat.ForeignBlockError), lambda: METHODS[name](memory, block), memory)
        assert other.inspect(block.pages.start).refs == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_closed_block(memory: Memory, used: FileRange, name: str) -> None:
    block = memory.block(PAGE)
    block.close()
    refused(Case(block, memplat.ClosedError), lambda: METHODS[name](memory, block), memory)


def test_a_closed_block_gives_neither_view_nor_address(memory: Memory) -> None:
    block = memory.block(PAGE)
    block.close()
    with pytest.raises(memplat.ClosedError):
        _ = block.view
    with pytest.raises(memplat.ClosedError):
        _ = block.address


@pytest.mark.parametrize("offset", [-1, -PAGE, 2**63, 10**30, "size"])
def test_bad_offsets_to_inspect(memory: Memory, used: FileRange, offset: Any) -> None:
    where = memory.total_size() if offset == "size" else offset
    refused(Case(where, memplat.InvalidRangeError), lambda: memory.inspect(where), memory)


@pytest.mark.parametrize("offset", WRONG_TYPES, ids=shown)
def test_offsets_to_inspect_that_are_no_integers(memory: Memory, used: FileRange, offset: Any) -> None:
    refused(Case(offset, memplat.InvalidArgumentError), lambda: memory.inspect(offset), memory, exact=False)


# -- the rest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["text", 5, None, object(), [1, 2], memoryview(bytes(64))[::2]], ids=shown)
def test_data_that_is_no_contiguous_buffer(memory: Memory, used: FileRange, data: Any) -> None:
    refused(Case(data, memplat.InvalidArgumentError), lambda: memory.write(used, data), memory, exact=False)


@pytest.mark.parametrize("data", ["text", 5, None], ids=shown)
def test_data_that_is_no_buffer_for_a_good_range(memory: Memory, used: FileRange, data: Any) -> None:
    case = Case(data, memplat.InvalidArgumentError)
    refused(case, lambda: memory.write(part(used, 0), data), memory, exact=False)


def test_data_that_is_longer_than_the_range(memory: Memory, used: FileRange) -> None:
    pages = FileRange(used.start, used.start + 10)
    case = Case(pages, memplat.InvalidArgumentError, ("11", "10"))
    refused(case, lambda: memory.write(pages, bytes(11)), memory)
    assert memory.read(pages) == b"content\0\0\0"


@pytest.mark.parametrize("access", ["nonsense", "", None, 5, "READ WRITE"])
def test_bad_access(memory: Memory, used: FileRange, access: Any) -> None:
    case = Case(access, memplat.InvalidArgumentError)
    refused(case, lambda: memory.map_into(Space(), 0x1000, part(used, 0), access), memory)


def test_a_bad_access_is_answered_with_the_good_ones(memory: Memory, used: FileRange) -> None:
    with pytest.raises(memplat.InvalidArgumentError, match=r"nonsense.*read_write"):
        memory.map_into(Space(), 0x1000, part(used, 0), "nonsense")


@pytest.mark.parametrize("addr", [-PAGE, 1, PAGE + 1, 2**64, 2**63 + 1, None, "0x1000", 4096.0, True])
def test_bad_addresses_to_map_at(memory: Memory, used: FileRange, addr: Any) -> None:
    case = Case(addr, memplat.InvalidArgumentError)
    refused(case, lambda: memory.map_into(Space(), addr, part(used, 0), "read"), memory, exact=False)


@pytest.mark.parametrize("space", [None, object(), 5])
def test_what_is_no_address_space(memory: Memory, used: FileRange, space: Any) -> None:
    case = Case(space, memplat.InvalidArgumentError)
    refused(case, lambda: memory.map_into(space, 0x1000, part(used, 0), "read"), memory)


@pytest.mark.parametrize("value", [-1, "1", 1.5, True, [1]], ids=shown)
def test_bad_amounts_to_reclaim(memory: Memory, used: FileRange, value: Any) -> None:
    refused(Case(value, memplat.InvalidArgumentError), lambda: memory.reclaim(value), memory, exact=False)


@pytest.mark.parametrize("value", ["1", [1], float("nan")], ids=shown)
def test_bad_times_to_wait(memory: Memory, used: FileRange, value: Any) -> None:
    case = Case(value, memplat.InvalidArgumentError)
    refused(case, lambda: memory.wait_reclaimed(timeout=value), memory, exact=False)


@pytest.mark.parametrize("value", ["1", None, [1], -1, float("nan")], ids=shown)
def test_bad_ages(memory: Memory, used: FileRange, value: Any) -> None:
    case = Case(value, memplat.InvalidArgumentError)
    refused(case, lambda: memory.update_usage(max_age=value), memory, exact=False)


@pytest.mark.parametrize("value", ["1", None, 1.5, True, -1], ids=shown)
def test_bad_external_amounts(memory: Memory, used: FileRange, value: Any) -> None:
    case = Case(value, memplat.InvalidArgumentError)
    refused(case, lambda: memory.account_external(value, owner=4), memory, exact=False)


@pytest.mark.parametrize("name", sorted(calls(None, FileRange(0, PAGE))))  # type: ignore[arg-type]
def test_every_call_after_close_is_refused(open_memory: Opener, name: str) -> None:
    memory = open_memory()
    pages = memory.allocate(PAGE)
    memory.decref(pages)
    memory.close()
    with pytest.raises(memplat.ClosedError) as caught:
        calls(memory, pages)[name]()
    assert type(caught.value) is memplat.ClosedError


def test_an_unpinned_view_after_close_is_refused(open_memory: Opener) -> None:
    memory = open_memory()
    memory.decref(memory.allocate(PAGE))
    memory.close()
    with pytest.raises(memplat.ClosedError):
        memory.view(FileRange(0, PAGE), pin=False)


def test_a_block_of_a_closed_memory_can_be_closed_but_not_used(open_memory: Opener) -> None:
    memory = open_memory()
    block = memory.block(PAGE)
    with pytest.warns(ResourceWarning):
        memory.close()
    with pytest.raises(memplat.ClosedError):
        _ = block.view
    block.close()


def test_more_references_than_fit_are_an_overflow(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = memory.allocate(2 * PAGE)
    for name, module in list(sys.modules.items()):
        if name.startswith("memplat.") and hasattr(module, "MAX_REFS"):
            monkeypatch.setattr(module, "MAX_REFS", 3)
    table = memory._state.table  # type: ignore[attr-defined]
    if hasattr(table, "_max_refs"):
        table._max_refs = 3  # the compiled core's own copy
    memory.incref(part(pages, 1))
    memory.incref(part(pages, 1))
    case = Case(pages, memplat.ReferenceOverflowError)
    refused(case, lambda: memory.incref(pages), memory)
    memory.incref(part(pages, 0))


def test_errors_are_the_builtins_that_a_user_expects(open_memory: Opener) -> None:
    memory = open_memory(max_size=MIB)
    with pytest.raises(ValueError, match="4097"):
        memory.allocate(PAGE + 1)
    with pytest.raises(LookupError):
        memory.decref(part(memory.allocate(PAGE), 1))
    with pytest.raises(MemoryError):
        memory.allocate(2 * MIB)


@pytest.mark.parametrize("items", [(), (0,), (0, PAGE, 2 * PAGE)], ids=len)
@pytest.mark.parametrize("name", METHODS)
def test_a_file_range_of_another_length_is_no_range(memory: Memory, used: FileRange, name: str, items: Any) -> None:
    broken = tuple.__new__(FileRange, items)
    with unchanged(memory), pytest.raises(memplat.InvalidArgumentError, match="no range"):
        METHODS[name](memory, broken)


class Liar(FileRange):
    """Says one thing when it is checked, and another when it is used."""

    __slots__ = ()

    @property
    def start(self) -> int:
        return PAGE * 1000

    @property
    def end(self) -> int:
        return PAGE * 1001

    def __iter__(self) -> Any:
        return iter((PAGE * 1000, PAGE * 1001))


def test_a_range_of_a_subclass_is_taken_for_what_it_holds(memory: Memory) -> None:
    mine, other = memory.allocate(PAGE), memory.allocate(PAGE, fill=b"theirs")
    liar = Liar(mine.start, mine.end)
    memory.write(liar, b"mine")
    assert memory.read(mine)[:4] == b"mine"
    assert memory.read(other)[:6] == b"theirs"
    memory.decommit(liar)
    assert memory.read(mine) == bytes(PAGE)
    memory.incref(liar)
    assert memory.inspect(mine.start).refs == 2
    assert memory.total_size() < 1000 * PAGE * PAGE
    memory._check()  # type: ignore[attr-defined]
