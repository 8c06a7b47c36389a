"""Filling new memory from buffers and readers, and plain read and write."""

from __future__ import annotations

import array
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.hostparts import tmpfs_mount
from tests.oracle import PAGE, Observer
from tests.unit.engine.helpers import MIB, allocated, check, part, unchanged, within, write_all

Opener = Callable[..., Memory]

TEXT = b"The quick brown fox. " * 300  # 6,300 bytes


class Dripping(io.RawIOBase):
    """A reader that returns a few bytes at a time."""

    def __init__(self, data: bytes, at_once: int = 7) -> None:
        self.data = io.BytesIO(data)
        self.at_once = at_once

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.data.read(min(self.at_once, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)


class ReadOnlyMethod:
    """The least reader there is: ``read`` and nothing else."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.data.read(size)


class Failing(ReadOnlyMethod):
    """Fails after the first piece."""

    def __init__(self) -> None:
        super().__init__(TEXT)
        self.calls = 0

    def read(self, size: int = -1) -> bytes:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionResetError("the source went away")
        return super().read(100)


SOURCES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: TEXT,
    "bytearray": lambda: bytearray(TEXT),
    "memoryview": lambda: memoryview(TEXT),
    "BytesIO": lambda: io.BytesIO(TEXT),
    "dripping": lambda: Dripping(TEXT),
    "read only": lambda: ReadOnlyMethod(TEXT),
    "buffered": lambda: io.BufferedReader(Dripping(TEXT, 100)),
}


@pytest.mark.parametrize("mode", ["uncommitted", "will_commit", "reserved", "committed"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_front_is_filled_and_the_rest_is_zero(memory: Memory, source: str, mode: str) -> None:
    dirt = memory.allocate(4 * PAGE)
    write_all(memory, dirt)
    memory.decref(dirt)  # waste, for the modes that recycle
    pages = memory.allocate(4 * PAGE, fill=SOURCES[source](), mode=mode)
    assert memory.read(pages) == TEXT + bytes(4 * PAGE - len(TEXT))


def test_an_empty_source_leaves_zeros(memory: Memory) -> None:
    assert memory.read(memory.allocate(PAGE, fill=b"")) == bytes(PAGE)
    assert memory.read(memory.allocate(PAGE, fill=io.BytesIO())) == bytes(PAGE)


def test_a_source_of_exactly_the_length_fills_all_of_it(memory: Memory) -> None:
    data = os.urandom(2 * PAGE)
    assert memory.read(memory.allocate(2 * PAGE, fill=data)) == data
    assert memory.read(memory.allocate(2 * PAGE, fill=io.BytesIO(data))) == data


def test_a_real_file_fills_memory_and_is_read_no_further_than_needed(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "source"
    data = os.urandom(3 * MIB)
    path.write_bytes(data)
    with path.open("rb") as file:
        pages = memory.allocate(2 * MIB, fill=file)
        assert memory.read(pages) == data[: 2 * MIB]
        assert file.tell() == 2 * MIB
    with path.open("rb", buffering=0) as raw:
        assert memory.read(memory.allocate(MIB, fill=raw)) == data[:MIB]


def test_a_buffer_of_wider_items_is_measured_in_bytes(memory: Memory) -> None:
    numbers = array.array("I", range(PAGE // 4))
    pages = memory.allocate(PAGE, fill=memoryview(numbers))
    assert memory.read(pages) == numbers.tobytes()
    too_long = array.array("I", range(PAGE // 4 + 1))
    with pytest.raises(memplat.InvalidArgumentError):
        memory.allocate(PAGE, fill=memoryview(too_long))


@pytest.mark.parametrize("make", [bytes, bytearray, lambda data: memoryview(data)])
def test_a_buffer_longer_than_the_range_is_a_value_error_and_allocates_nothing(
    memory: Memory, make: Callable[[bytes], Any]
) -> None:
    memory.allocate(PAGE)
    with unchanged(memory), pytest.raises(memplat.InvalidArgumentError, match=str(PAGE + 1)) as caught:
        memory.allocate(PAGE, fill=make(bytes(PAGE + 1)))
    assert isinstance(caught.value, ValueError)
    assert str(PAGE) in str(caught.value)


def test_an_error_of_the_source_frees_the_range_and_propagates(memory: Memory) -> None:
    with pytest.raises(ConnectionResetError, match="the source went away"):
        memory.allocate(4 * PAGE, fill=Failing())  # type: ignore[arg-type]
    assert allocated(memory) == 0
    memory.reclaim()
    assert memory.total_usage() == 0
    pages = memory.allocate(4 * PAGE)
    assert memory.read(pages) == bytes(4 * PAGE)
    check(memory)


def test_a_keyboard_interrupt_in_the_source_frees_the_range_too(memory: Memory) -> None:
    class Interrupted(ReadOnlyMethod):
        def read(self, size: int = -1) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.allocate(4 * PAGE, fill=Interrupted(b""))  # type: ignore[arg-type]
    assert allocated(memory) == 0


class Overflowing:
    """Returns more than it was asked for."""

    def read(self, size: int = -1) -> bytes:
        return b"!" * (size + 10)


class TextReader:
    """Returns text."""

    def read(self, size: int = -1) -> str:
        return "text"


class LyingReadInto(io.RawIOBase):
    """Says that it wrote more than the buffer holds."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return len(buffer) + 1


@pytest.mark.parametrize("reader", [Overflowing, TextReader, LyingReadInto])
def test_a_reader_that_breaks_its_contract_is_refused_and_harms_no_neighbour(
    memory: Memory, reader: Callable[[], Any]
) -> None:
    before = memory.allocate(PAGE, fill=b"b" * PAGE)
    between = memory.allocate(PAGE)
    after = memory.allocate(PAGE, fill=b"a" * PAGE)
    memory.decref(between)
    memory.reclaim()
    used = allocated(memory)
    with pytest.raises((memplat.InvalidArgumentError, OSError, TypeError, ValueError)):
        memory.allocate(PAGE, fill=reader())
    assert allocated(memory) == used
    assert memory.read(before) == b"b" * PAGE
    assert memory.read(after) == b"a" * PAGE
    check(memory)


def test_a_reader_may_use_the_memory_itself(memory: Memory) -> None:
    source = memory.allocate(PAGE, fill=b"inner")

    pieces = [b"", b"outer", memory.read(FileRange(source.start, source.start + 5))]

    class Nested:
        def read(self, size: int = -1) -> bytes:
            memory.decref(memory.allocate(PAGE))
            return pieces.pop()

    pages = within(lambda: memory.allocate(PAGE, fill=Nested()))  # type: ignore[arg-type]
    assert memory.read(pages)[:11] == b"innerouter\0"


def test_memory_can_be_filled_from_a_view_of_the_same_memory(memory: Memory) -> None:
    source = memory.allocate(2 * PAGE, fill=TEXT)
    with memory.view(source) as view:
        assert memory.read(memory.allocate(2 * PAGE, fill=view)) == memory.read(source)


def test_filling_takes_what_it_needs_and_no_page_more(memory: Memory) -> None:
    memory.allocate(16 * PAGE, fill=b"x" * (PAGE + 1), mode="uncommitted")
    assert memory.total_usage() == 2 * PAGE


def test_read_and_write_take_any_byte_range(memory: Memory) -> None:
    pages = memory.allocate(3 * PAGE)
    memory.write(FileRange(pages.start + PAGE - 2, pages.start + PAGE + 2), b"abcd")
    assert memory.read(FileRange(pages.start + PAGE - 3, pages.start + PAGE + 3)) == b"\0abcd\0"


def test_write_fills_the_front_and_leaves_the_rest(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    write_all(memory, pages)
    memory.write(pages, b"xyz")
    memory.write(pages, b"")
    assert memory.read(pages) == b"xyz" + b"\xa5" * (PAGE - 3)


def test_write_takes_every_contiguous_buffer_and_measures_it_in_bytes(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    numbers = array.array("H", [1, 2, 3])
    memory.write(FileRange(pages.start, pages.start + 6), memoryview(numbers))
    assert memory.read(FileRange(pages.start, pages.start + 8)) == numbers.tobytes() + b"\0\0"
    with unchanged(memory), pytest.raises(memplat.InvalidArgumentError):
        memory.write(FileRange(pages.start, pages.start + 5), memoryview(numbers))
    assert memory.read(FileRange(pages.start, pages.start + 8)) == numbers.tobytes() + b"\0\0"


def test_reading_by_system_call_commits_nothing(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(8 * PAGE)
    assert memory.read(pages) == bytes(8 * PAGE)
    assert observer.blocks == 0


def test_read_and_write_and_views_see_the_same_pages(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(2 * PAGE)
    with memory.view(pages) as view:
        view[PAGE : PAGE + 3] = b"abc"
        assert memory.read(FileRange(pages.start + PAGE, pages.start + PAGE + 3)) == b"abc"
        memory.write(part(pages, 1), b"xyz")
        assert bytes(view[PAGE : PAGE + 3]) == b"xyz"
        observer.write(pages.start, b"peer")
        assert bytes(view[:4]) == b"peer"


def test_large_reads_and_writes_are_complete(open_memory: Opener) -> None:
    memory = open_memory(max_size=128 * MIB)
    data = os.urandom(MIB) * 40
    pages = memory.allocate(40 * MIB)
    memory.write(pages, data)
    assert memory.read(pages) == data


def test_writing_to_pages_that_nobody_holds_is_refused(memory: Memory, observer: Observer) -> None:
    pages = memory.allocate(4 * PAGE)
    memory.decref(part(pages, 2))
    memory.reclaim()
    with unchanged(memory), pytest.raises(memplat.NotAllocatedError):
        memory.write(pages, b"x" * 4 * PAGE)
    assert observer.blocks == 0


def test_flush_of_a_memfd_does_nothing_and_is_no_error(memory: Memory) -> None:
    memory.allocate(PAGE, fill=b"x")
    memory.flush()


def test_a_host_that_refuses_the_content_is_a_typed_error_and_nothing_stays_allocated() -> None:
    with (
        tmpfs_mount(1 * MIB) as directory,
        memplat.open("tmpfile", tmpfile={"directory": str(directory)}, reclaim="manual") as memory,
    ):
        before = memory.usage().allocated
        with pytest.raises(memplat.HostError, match="fill"):
            memory.allocate(2 * MIB, fill=b"x" * (2 * MIB), mode="uncommitted")
        assert memory.usage().allocated == before
