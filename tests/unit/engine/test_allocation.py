"""Where allocations go: first fit by address in both directions, alignment, growth, the limit, blocks."""

from __future__ import annotations

import gc
import itertools
import random
import warnings
from collections.abc import Callable

import pytest

import memplat
from memplat import FileRange
from memplat.memory import Memory
from tests.oracle import PAGE, Observer
from tests.unit.engine.helpers import (
    HUGE,
    MIB,
    allocated,
    check,
    committed,
    is_zero,
    part,
    stateful_layout,
    unchanged,
    write_all,
)

Opener = Callable[..., Memory]


def free(memory: Memory, pages: FileRange) -> None:
    """Make *pages* free at once."""
    memory.decref(pages)
    memory.reclaim()


def test_a_new_memory_costs_nothing(memory: Memory) -> None:
    usage = memory.update_usage()
    assert usage.total == 0
    assert usage.exact
    assert memory.total_usage() == 0
    assert sum(usage.allocated.values()) == 0


def test_an_allocation_is_zero_has_one_reference_and_the_kind_and_owner_asked_for(memory: Memory) -> None:
    pages = memory.allocate(3 * PAGE, kind="page_cache", owner=7)
    assert isinstance(pages, FileRange)
    assert pages.length == 3 * PAGE
    info = memory.inspect(pages.start)
    assert (info.state, info.kind, info.owner, info.refs, info.views) == ("used", "page_cache", 7, 1, 0)
    assert info.pages == pages
    assert is_zero(memory, pages)
    assert memory.read(pages) == bytes(3 * PAGE)


@pytest.mark.parametrize("kind", ["system", "anonymous", "page_cache", "tmpfs", "ramdiskfs"])
def test_every_kind_but_mapped_can_be_allocated_by_name_and_by_member(memory: Memory, kind: str) -> None:
    by_name = memory.allocate(PAGE, kind=kind)
    by_member = memory.allocate(PAGE, kind=memplat.MemoryKind(kind))
    assert memory.inspect(by_name.start).kind == memory.inspect(by_member.start).kind == kind


def test_the_defaults_are_anonymous_memory_of_nobody_that_costs_nothing(memory: Memory) -> None:
    pages = memory.allocate(PAGE)
    info = memory.inspect(pages.start)
    assert (info.kind, info.owner) == ("anonymous", 0)
    assert memory.total_usage() == 0


def test_allocations_follow_each_other_upwards(memory: Memory) -> None:
    first, second, third = (memory.allocate(count * PAGE) for count in (1, 5, 2))
    assert first.start == 0
    assert (second.start, third.start) == (first.end, second.end)


def test_allocations_follow_each_other_downwards_from_the_end_of_the_file(memory: Memory) -> None:
    first, second = (memory.allocate(count * PAGE, direction="down") for count in (3, 2))
    assert first.end == memory.total_size()
    assert second.end == first.start


def test_the_lowest_hole_that_fits_is_taken_upwards(memory: Memory) -> None:
    pages = memory.allocate(64 * PAGE)
    for first, count in ((4, 1), (10, 3), (20, 8), (40, 3)):
        free(memory, part(pages, first, count))
    assert memory.allocate(2 * PAGE) == part(pages, 10, 2)
    assert memory.allocate(3 * PAGE) == part(pages, 20, 3)
    assert memory.allocate(PAGE) == part(pages, 4)
    assert memory.allocate(PAGE) == part(pages, 12)
    assert memory.allocate(9 * PAGE).start == pages.end


def test_the_highest_hole_that_fits_is_taken_downwards_from_its_upper_end(memory: Memory) -> None:
    whole = memory.allocate(memory.round_up(memory.total_size() or 16 * MIB))
    rest = memory.total_size() - whole.end
    if rest:
        memory.allocate(rest)
    pages = part(whole, 0, 64)
    for first, count in ((4, 3), (10, 8), (20, 3), (40, 1)):
        free(memory, part(pages, first, count))
    assert memory.allocate(2 * PAGE, direction="down") == part(pages, 21, 2)
    assert memory.allocate(3 * PAGE, direction=memplat.Direction.DOWN) == part(pages, 15, 3)
    assert memory.allocate(PAGE, direction="down") == part(pages, 40)
    assert memory.allocate(PAGE, direction="down") == part(pages, 20)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("length", [HUGE, HUGE + PAGE, 2 * HUGE, 5 * MIB])
def test_two_mebibytes_and_more_begin_on_a_boundary_of_two_mebibytes(
    memory: Memory, direction: str, length: int
) -> None:
    memory.allocate(PAGE, direction=direction)
    pages = memory.allocate(length, direction=direction)
    assert pages.start % HUGE == 0
    assert pages.length == length
    again = memory.allocate(length, direction=direction)
    assert again.start % HUGE == 0


@pytest.mark.parametrize("direction", ["up", "down"])
def test_less_than_two_mebibytes_is_packed_without_gaps(memory: Memory, direction: str) -> None:
    first = memory.allocate(PAGE, direction=direction)
    second = memory.allocate(HUGE - PAGE, direction=direction)
    assert (second.start == first.end) if direction == "up" else (second.end == first.start)


def test_a_gap_left_by_alignment_is_used_by_smaller_allocations(memory: Memory) -> None:
    memory.allocate(PAGE)
    large = memory.allocate(HUGE)
    small = memory.allocate(HUGE - PAGE)
    assert (large.start, small.start) == (HUGE, PAGE)


def test_an_aligned_request_passes_over_gaps_that_are_large_enough_only_misaligned(memory: Memory) -> None:
    whole = memory.allocate(8 * MIB)
    free(memory, FileRange(whole.start + PAGE, whole.start + PAGE + 3 * MIB))  # no aligned 2 MiB in it
    free(memory, FileRange(whole.start + 4 * MIB, whole.start + 6 * MIB))
    assert memory.allocate(HUGE).start == whole.start + 4 * MIB


def naive_fit(free_pages: list[bool], count: int, direction: str) -> int | None:
    """The first page of the first fit, by trying every page."""
    step = HUGE // PAGE if count * PAGE >= HUGE else 1
    candidates = range(0, len(free_pages) - count + 1, step)
    for first in candidates if direction == "up" else reversed(candidates):
        if all(free_pages[first : first + count]):
            return first
    return None


@pytest.mark.parametrize("seed", range(4))
def test_first_fit_is_what_trying_every_page_finds(open_memory: Opener, seed: int) -> None:
    memory = open_memory(max_size=16 * MIB)
    chance = random.Random(seed)
    memory.allocate(PAGE)  # page 0 stays; the file grows
    assert memory.total_size() == 16 * MIB, "a file of 16 MiB at most is grown in one step: 16 MiB come first"
    free_pages = [False] + [True] * (16 * MIB // PAGE - 1)
    live: list[FileRange] = []
    for _ in range(400):
        if live and chance.random() < 0.45:
            victim = live.pop(chance.randrange(len(live)))
            first = chance.randrange(victim.length // PAGE)
            count = chance.randint(1, victim.length // PAGE - first)
            live += [
                kept
                for kept in (part(victim, 0, first), FileRange(victim.start + (first + count) * PAGE, victim.end))
                if kept.length
            ]
            gone = part(victim, first, count)
            free(memory, gone)
            free_pages[gone.start // PAGE : gone.end // PAGE] = [True] * count
            continue
        count = chance.choice((1, 1, 2, 3, 8, 30, 100, 511, 512, 513, 700))
        direction = chance.choice(("up", "down"))
        fit = naive_fit(free_pages, count, direction)
        if fit is None:
            with pytest.raises(memplat.OutOfMemory):
                memory.allocate(count * PAGE, direction=direction)
            continue
        pages = memory.allocate(count * PAGE, direction=direction)
        assert pages == FileRange(fit * PAGE, (fit + count) * PAGE), f"{count} pages {direction}\n{memory.dump()}"
        free_pages[fit : fit + count] = [False] * count
        live.append(pages)
    check(memory)


def test_the_file_grows_in_place_and_old_contents_addresses_and_views_stay(open_memory: Opener) -> None:
    memory = open_memory(max_size=256 * MIB)
    first = memory.allocate(PAGE)
    view = memory.view(first)
    view[:5] = b"hello"
    size, address = memory.total_size(), memory.address(first)
    last = memory.allocate(100 * MIB)
    assert memory.total_size() >= last.end
    assert memory.total_size() > size
    assert memory.address(first) == address
    assert memory.address(last) - address == last.start - first.start, "one contiguous mapping"
    assert bytes(view[:5]) == b"hello"
    with memory.view(FileRange(last.end - PAGE, last.end)) as tail:
        tail[:] = b"z" * PAGE
    assert memory.read(FileRange(last.end - 1, last.end)) == b"z"
    view.release()


def test_the_file_grows_by_16_mebibytes_then_doubles_and_by_a_gibibyte_at_most(open_memory: Opener) -> None:
    memory = open_memory(max_size=6 << 30)
    sizes = [memory.total_size()]
    for _ in range(5 << 10):
        memory.allocate(MIB)
        if memory.total_size() != sizes[-1]:
            sizes.append(memory.total_size())
    grown = [later - earlier for earlier, later in itertools.pairwise(sizes)]
    assert sizes[0] in (0, 16 * MIB)
    assert sizes[1] in (16 * MIB, 32 * MIB)
    assert all(step in (size, 1 << 30, 16 * MIB) for size, step in zip(sizes, grown, strict=False))
    assert max(grown) == 1 << 30
    assert memory.total_usage() == 0


def test_the_file_never_grows_beyond_max_size(open_memory: Opener) -> None:
    memory = open_memory(max_size=5 * MIB)
    pages = memory.allocate(5 * MIB - PAGE)
    assert memory.total_size() <= 5 * MIB
    memory.allocate(PAGE)
    with unchanged(memory), pytest.raises(memplat.OutOfMemory) as caught:
        memory.allocate(PAGE, owner=3)
    assert caught.value.requested == PAGE
    assert caught.value.limit == 5 * MIB
    assert caught.value.used == 5 * MIB
    memory.decref(part(pages, 17))
    assert memory.allocate(PAGE) == part(pages, 17), "waste is reclaimed before memory is called out"


def test_more_than_max_size_is_out_of_memory_and_changes_nothing(memory: Memory) -> None:
    memory.allocate(PAGE)
    with unchanged(memory), pytest.raises(memplat.OutOfMemory) as caught:
        memory.allocate(65 * MIB)
    assert caught.value.requested == 65 * MIB


def test_out_of_memory_is_a_memory_error(open_memory: Opener) -> None:
    with pytest.raises(MemoryError):
        open_memory(max_size=MIB).allocate(2 * MIB)


def test_every_page_of_a_small_file_can_be_handed_out_and_is_disjoint(open_memory: Opener) -> None:
    memory = open_memory(max_size=MIB)
    chance = random.Random(1)
    seen: set[int] = set()
    for _ in range(MIB // PAGE):
        pages = memory.allocate(PAGE, direction=chance.choice(("up", "down")))
        assert pages.start not in seen
        seen.add(pages.start)
    assert len(seen) == MIB // PAGE
    assert stateful_layout(memory) == [(0, MIB, "used")]


def test_a_page_that_was_freed_dirty_is_zero_when_it_is_handed_out_again(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    write_all(memory, pages)
    free(memory, pages)
    assert memory.total_usage() == 0
    assert memory.allocate(4 * PAGE) == pages
    assert is_zero(memory, pages)


def test_an_uncommitted_allocation_never_gets_dirty_waste(memory: Memory) -> None:
    pages = memory.allocate(4 * PAGE)
    write_all(memory, pages)
    memory.decref(pages)
    for _ in range(8):
        again = memory.allocate(PAGE, mode="uncommitted")
        assert is_zero(memory, again)


def test_pages_that_a_peer_wrote_beyond_our_size_are_zero_when_the_file_grows_over_them(open_memory: Opener) -> None:
    memory = open_memory(max_size=64 * MIB)
    memory.allocate(PAGE)
    size = memory.total_size()
    with Observer(memory.fileno()) as peer:
        peer.write(size + 3 * PAGE, b"dirt")
        peer.write(size + HUGE + 5, b"dirt")
        while memory.total_size() == size:
            pages = memory.allocate(MIB)
        tail = memory.allocate(16 * MIB)
        assert peer.is_zero(pages.start, pages.length)
        assert peer.is_zero(tail.start, tail.length)
        memory.reclaim()
        assert not peer.nonzero_pages(range(memory.total_size() // PAGE)), "what was not handed out was waste"


def test_a_peer_that_grew_the_file_does_not_keep_it_from_growing(open_memory: Opener) -> None:
    memory = open_memory(max_size=64 * MIB)
    with Observer(memory.fileno()) as peer:
        peer.write(63 * MIB, b"x")
        assert memory.total_size() < 63 * MIB, "total_size is what the memory has grown itself"
        pages = memory.allocate(40 * MIB)
        assert memory.allocate(20 * MIB).start >= pages.end


def test_a_block_owns_one_reference_for_as_long_as_the_with_statement_lasts(memory: Memory) -> None:
    with memory.block(2 * PAGE, kind="tmpfs", owner=4) as block:
        assert block.memory is memory
        assert block.pages.length == 2 * PAGE
        assert memory.inspect(block.pages.start).refs == 1
        assert memory.inspect(block.pages.start).owner == 4
        assert block.address == memory.address(block.pages)
        view = block.view
        view[:2] = b"ab"
        assert len(view) == 2 * PAGE
        assert memory.read(FileRange(block.pages.start, block.pages.start + 3)) == b"ab\0"
        view.release()
        pages = block.pages
    assert memory.inspect(pages.start).refs == 0
    assert allocated(memory) == 0


def test_a_block_gives_a_new_view_each_time(memory: Memory) -> None:
    with memory.block(PAGE) as block:
        first, second = block.view, block.view
        assert first is not second
        first.release()
        second[0] = 1
        second.release()


def test_a_block_is_closed_once_however_often_close_is_called(memory: Memory) -> None:
    block = memory.block(PAGE)
    memory.incref(block)
    pages = block.pages
    block.close()
    block.close()
    assert memory.inspect(pages.start).refs == 1


def test_a_block_stands_for_its_range_in_every_call(memory: Memory) -> None:
    with memory.block(4 * PAGE) as block:
        memory.incref(block)
        assert memory.first_shared_range(block) == block.pages
        memory.decref(block)
        assert memory.has_unique_ref(block)
        memory.transfer(block, 9)
        memory.write(block, b"data")
        assert memory.read(block)[:4] == b"data"
        assert memory.address(block) == memory.address(block.pages)
        with memory.view(block) as view:
            assert len(view) == 4 * PAGE
        memory.decommit(block)
        assert memory.read(block) == bytes(4 * PAGE)


def test_a_block_of_huge_filled_committed_memory_takes_the_same_arguments_as_allocate(memory: Memory) -> None:
    with memory.block(PAGE, kind="tmpfs", owner=2, mode="committed", direction="down", fill=b"abc") as block:
        assert block.pages.end == memory.total_size()
        assert memory.read(block)[:4] == b"abc\0"
        assert committed(memory) == {"tmpfs": PAGE}


def test_a_block_that_is_dropped_without_close_gives_its_reference_back(memory: Memory) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        block = memory.block(PAGE)
        pages = block.pages
        del block
        gc.collect()
    assert memory.inspect(pages.start).refs == 0


def test_a_memory_is_a_memory(memory: Memory) -> None:
    assert isinstance(memory, memplat.Memory)


def test_page_size_and_round_up(memory: Memory) -> None:
    assert memory.page_size == PAGE
    assert [memory.round_up(length) for length in (1, PAGE - 1, PAGE, PAGE + 1, 100_000)] == [
        PAGE,
        PAGE,
        PAGE,
        2 * PAGE,
        102_400,
    ]


def test_the_memory_says_which_backend_it_uses_and_that_it_was_asked_for(memory: Memory) -> None:
    assert memory.backend.name == "memfd"
    assert [candidate.name for candidate in memory.backend.selection if candidate.taken] == ["memfd"]


def test_dump_lists_every_segment_readably(memory: Memory) -> None:
    pages = memory.allocate(3 * PAGE, kind="ramdiskfs", owner=77)
    memory.allocate(2 * PAGE, kind="tmpfs", owner=8)
    memory.incref(part(pages, 1))
    text = memory.dump()
    for word in ("ramdiskfs", "tmpfs", "77", "free"):
        assert word in text
    assert len(text.splitlines()) >= 4
