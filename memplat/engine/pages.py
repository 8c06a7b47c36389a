"""The page table: state, references, kind and owner of every page of the backing file.

The state machine, written once:

=========  ====  =======  ==================  ========================================================
state      refs  content  committed           leaves it by
=========  ====  =======  ==================  ========================================================
(void)     --    --       no                  :meth:`PageTable.extend` -> free
free       0     zeros    no, unless flagged  :meth:`~PageTable.allocate` -> used
used       >= 1  user's   unknown             last :meth:`~PageTable.decref` and unpin -> waste
waste      0     unknown  unknown             :meth:`~PageTable.take_waste` -> releasing;
                                              :meth:`~PageTable.allocate` -> used
releasing  0     dropped  unknown             :meth:`~PageTable.release` -> free
=========  ====  =======  ==================  ========================================================

A live pinned view is counted apart from the references (*pins*), so that dropping a reference too many is an error even
while a view keeps the page. Pages flagged *retained* (the host refused the decommit), *kept* (committed on purpose) or
*reserved* (fallocated; perhaps never touched) are noted beside the states.

Every page belongs to one of two pools. The huge pool's waste is released in whole huge pages only.

Arguments are bytes, already checked; nothing here locks, calls a hook or a system call. What is wrong with a call is
found out before anything changes. Only an exception from outside (KeyboardInterrupt, MemoryError) can end a change
halfway; it leaves the table *torn*, and nobody may trust it any more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from memplat.engine.segments import SegmentSet
from memplat.errors import DoubleFreeError, NotAllocatedError, ReferenceOverflowError
from memplat.linux import extents as flat
from memplat.ranges import HUGE_PAGE_SIZE, MIB, FileRange
from memplat.types import MAX_REFS, MemoryKind, PageInfo, PageState

FREE: Final = 0
USED: Final = 1
WASTE: Final = 2
RELEASING: Final = 3
STATES: Final = (PageState.FREE, PageState.USED, PageState.WASTE, PageState.RELEASING)

SMALL: Final = 0
HUGE: Final = 1

NONE: Final = 0
RETAINED: Final = 1
KEPT: Final = 2
RESERVED: Final = 3
FLAGS: Final = ("", "retained", "kept", "reserved")

#: So many ranges are released at a time, which is what one process_madvise takes; the lock is held meanwhile.
MAX_RANGES: Final = 1024

#: A free gap up to this size between two pieces of waste is released with them: one system call instead of two.
MAX_JOINED_GAP: Final = 16 * MIB

#: State, references, pins (live views), kind, owner, pool.
Value: TypeAlias = tuple[int, int, int, str, int, int]

_FREE: Final[tuple[Value, Value]] = ((FREE, 0, 0, "", 0, SMALL), (FREE, 0, 0, "", 0, HUGE))
_WASTE: Final[tuple[Value, Value]] = ((WASTE, 0, 0, "", 0, SMALL), (WASTE, 0, 0, "", 0, HUGE))
_RELEASING: Final[tuple[Value, Value]] = ((RELEASING, 0, 0, "", 0, SMALL), (RELEASING, 0, 0, "", 0, HUGE))


_SOURCES: Final = {FREE: _FREE, WASTE: _WASTE}

#: Beyond so many kinds and owners the values of new pages are made anew.
_MAX_INTERNED: Final = 1 << 12

#: Of so many owners it is kept what they use, for scans of their pages alone.
_MAX_WATCHED: Final = 64

#: Makes a FileRange of a pair in half the time of calling the class.
_file_range = tuple.__new__


class PageTable:
    """What is known about every page. Guarded by the memory's lock.

    :ivar size: the bytes of the file that are in the table
    :ivar allocated: bytes in use by (kind, owner)
    :ivar waste: bytes of waste, whatever the pool; *releasing* is not part of it
    :ivar releasing: bytes in the state releasing, joined gaps included
    :ivar changes: goes up with every change
    :ivar has_flags: whether any page carries a flag
    :ivar kept_is_reserved: pages that were kept committed are flagged as reserved when they are taken
    :ivar watched: what those owners use whose ranges were asked for; see :meth:`ranges_of`
    :ivar torn: how many changes were begun and not ended: for those who hold the lock, how many were cut off
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._shift = page_size.bit_length() - 1
        self.huge_unit = max(HUGE_PAGE_SIZE, page_size)
        self.segments: SegmentSet[Value] = SegmentSet(
            indexed=(*_FREE, *_WASTE), alignment=self.huge_unit >> self._shift
        )
        self.flags: SegmentSet[int] = SegmentSet(indexed=(RETAINED, KEPT, RESERVED))
        self.allocated: dict[tuple[str, int], int] = {}
        self.size = 0
        self.waste = 0
        self.releasing = 0
        self.allocations = 0
        self.frees = 0
        self.changes = 0
        self.has_flags = False
        self.kept_is_reserved = False
        self.torn = 0
        self.watched: dict[int, array[int]] = {}
        self._used: tuple[dict[tuple[str, int], Value], dict[tuple[str, int], Value]] = ({}, {})

    # -- growing and allocating ---------------------------------------------------------------------------------------

    def extend(self, size: int, *, huge: bool, dirty_end: int = 0) -> None:
        """Add ``[self.size, size)`` to a pool: free, but waste up to *dirty_end*, where a peer may have written."""
        self.torn += 1
        dirty_end = min(dirty_end, size)
        if dirty_end > self.size:
            self.waste += dirty_end - self.size
            self.segments.extend(dirty_end >> self._shift, _WASTE[huge])
        if size > max(dirty_end, self.size):
            self.segments.extend(size >> self._shift, _FREE[huge])
        self.flags.extend(size >> self._shift, NONE)
        self.size = size
        self.changes += 1
        self.torn -= 1

    def allocate(
        self, length: int, kind: str, owner: int, *, down: bool = False, huge: bool = False, source: int = FREE
    ) -> FileRange | None:
        """Take free pages, first fit by address, with one reference; or pages of another *source*: nobody knows the
        content of waste. ``None`` if nothing fits.
        """
        shift = self._shift
        key = kind, owner
        value = self._used[huge].get(key) or self._fresh(key, huge)
        aligned = length >= self.huge_unit > self.page_size
        self.torn += 1
        start = self.segments.take(_SOURCES[source][huge], length >> shift, value, aligned=aligned, last=down)
        if start < 0:
            self.torn -= 1
            return None
        start <<= shift
        end = start + length
        if self.has_flags:
            self._clear_flags(start >> shift, end >> shift, keep=RESERVED if source == WASTE else NONE, taken=True)
        if source == WASTE:
            self.waste -= length
        allocated = self.allocated
        allocated[key] = allocated.get(key, 0) + length
        if owner in self.watched:
            flat.add(self.watched[owner], start, end)
        self.allocations += 1
        self.changes += 1
        self.torn -= 1
        return _file_range(FileRange, (start, end))

    def _fresh(self, key: tuple[str, int], huge: bool) -> Value:
        """The value of newly allocated pages, one object for all."""
        interned = self._used[huge]
        if len(interned) >= _MAX_INTERNED:
            interned.clear()
        value = interned[key] = (USED, 1, 0, *key, int(huge))
        return value

    def _clear_flags(self, start: int, end: int, *, keep: int, taken: bool = False) -> None:
        kept = RESERVED if taken and self.kept_is_reserved else NONE
        self.flags.update(start, end, lambda flag: flag if flag == keep else kept if flag == KEPT else NONE)

    def tail(self, *, huge: bool) -> int:
        """Where the free run of the pool begins that ends at the end of the file; the size if there is none."""
        if not self.size:
            return 0
        start, _, value = self.segments.find((self.size >> self._shift) - 1)
        return start << self._shift if value == _FREE[huge] else self.size

    def borrow(self, length: int, *, huge: bool) -> bool:
        """Move free, whole huge pages from the other pool to this one, enough for *length*. False if there are none."""
        unit = self.huge_unit >> self._shift
        count = -(-(length >> self._shift) // unit) * unit
        self.torn += 1  # also a search brings indexes up to date
        start = self.segments.find_fit(_FREE[not huge], count, aligned=unit > 1, last=True)
        if start >= 0:
            self.segments.assign(start, start + count, _FREE[huge])
        self.torn -= 1
        return start >= 0

    # -- references ---------------------------------------------------------------------------------------------------

    def incref(self, start: int, end: int) -> None:
        """One more reference to each page; all or none."""
        first, last = start >> self._shift, end >> self._shift
        value = self.segments.exact(first, last)
        if value is not None and 0 < value[1] < MAX_REFS:
            self._count_run(first, last, value, 1, 0)
            return
        runs = self._runs_of(start, end)
        for _, _, value in runs:
            if not value[1]:
                raise NotAllocatedError(self._not_allocated("incref", start, end))
            if value[1] >= MAX_REFS:
                raise ReferenceOverflowError(f"a page of {FileRange(start, end)} has {value[1]} references, the most")
        self._count(runs, 1, 0)

    def decref(self, start: int, end: int) -> None:
        """One reference less to each page; all or none. Pages without references and pins become waste."""
        shift = self._shift
        first, last = start >> shift, end >> shift
        value = self.segments.exact(first, last)
        if value is not None and value[1] == 1 and not value[2]:
            # By far the most frequent case: a whole allocation.
            self.torn += 1
            self.segments.assign_run(first, last, value, _WASTE[value[5]])
            self._uncharge((value[3], value[4]), start, end)
            self.torn -= 1
            return
        if value is not None and value[1]:
            self._count_run(first, last, value, -1, 0)
            return
        runs = self._runs_of(start, end)
        if not all(run[2][1] for run in runs):
            raise DoubleFreeError(self._not_allocated("decref", start, end))
        self._count(runs, -1, 0)

    def pin(self, start: int, end: int, what: str) -> None:
        """Count a view of each page; all or none."""
        first, last = start >> self._shift, end >> self._shift
        value = self.segments.exact(first, last)
        if value is not None and value[1]:
            self._count_run(first, last, value, 0, 1)
            return
        runs = self._runs_of(start, end)
        if not all(run[2][1] for run in runs):
            raise NotAllocatedError(self._not_allocated(what, start, end))
        self._count(runs, 0, 1)

    def unpin(self, start: int, end: int) -> None:
        """A view of each page is gone. Pages without references and pins become waste."""
        first, last = start >> self._shift, end >> self._shift
        value = self.segments.exact(first, last)
        if value is not None:
            self._count_run(first, last, value, 0, -1)
        else:
            self._count(list(self.segments.runs(first, last)), 0, -1)

    def _runs_of(self, start: int, end: int) -> list[tuple[int, int, Value]]:
        """The runs of ``[start, end)``, as they are now; quick if it is one."""
        first, last = start >> self._shift, end >> self._shift
        value = self.segments.exact(first, last)
        return [(first, last, value)] if value is not None else list(self.segments.runs(first, last))

    def _count_run(self, first: int, last: int, value: Value, more_refs: int, more_pins: int) -> None:
        """As :meth:`_count`, of one whole run."""
        state, refs, pins, kind, owner, pool = value
        refs += more_refs
        pins += more_pins
        self.torn += 1
        if refs or pins:
            self.segments.assign_run(first, last, value, (state, refs, pins, kind, owner, pool))
        else:
            self.segments.assign_run(first, last, value, _WASTE[pool])
            self._uncharge((kind, owner), first << self._shift, last << self._shift)
        self.changes += 1
        self.torn -= 1

    def _count(self, runs: list[tuple[int, int, Value]], more_refs: int, more_pins: int) -> None:
        """Change the references and pins of the runs. Pages that are left with none become waste."""
        self.torn += 1
        for first, last, value in runs:
            state, refs, pins, kind, owner, pool = value
            refs += more_refs
            pins += more_pins
            if refs or pins:
                new = (state, refs, pins, kind, owner, pool)
            else:
                new = _WASTE[pool]
                self._uncharge((kind, owner), first << self._shift, last << self._shift)
            self._replace(first, last, value, new)
        self.changes += 1
        self.torn -= 1

    def _replace(self, first: int, last: int, old: Value, new: Value) -> None:
        """Give the keys, which all have the value *old*, another one."""
        if self.segments.exact(first, last) is not None:
            self.segments.assign_run(first, last, old, new)
        else:
            self.segments.assign(first, last, new)

    def transfer(self, start: int, end: int, owner: int) -> None:
        """Make *owner* the owner of each page."""
        self.require(start, end, "transfer")
        shift, allocated = self._shift, self.allocated
        self.torn += 1
        for first, last, (state, refs, pins, kind, old, pool) in list(self.segments.runs(start >> shift, end >> shift)):
            length = (last - first) << shift
            allocated[kind, old] -= length
            if not allocated[kind, old]:
                del allocated[kind, old]
            allocated[kind, owner] = allocated.get((kind, owner), 0) + length
            if old in self.watched:
                flat.remove(self.watched[old], first << shift, last << shift)
            if owner in self.watched:
                flat.add(self.watched[owner], first << shift, last << shift)
            self.segments.assign(first, last, (state, refs, pins, kind, owner, pool))
        self.changes += 1
        self.torn -= 1

    def require(self, start: int, end: int, what: str) -> None:
        """Make sure that each page has a reference."""
        if not all(value[1] for _, _, value in self.segments.runs(start >> self._shift, end >> self._shift)):
            raise NotAllocatedError(self._not_allocated(what, start, end))

    def _uncharge(self, key: tuple[str, int], start: int, end: int) -> None:
        """Pages that (kind, owner) used became waste."""
        length = end - start
        if key[1] in self.watched:
            flat.remove(self.watched[key[1]], start, end)
        left = self.allocated[key] - length
        if left:
            self.allocated[key] = left
        else:
            del self.allocated[key]
        self.waste += length
        self.frees += 1
        self.changes += 1

    def _not_allocated(self, what: str, start: int, end: int) -> str:
        for first, last, (state, refs, pins, *_) in self.runs(start, end):
            if not refs:
                held = f", held only by {pins} view(s)" if pins else ""
                return (
                    f"{what} of {FileRange(start, end)}: {FileRange(first, last)} is {STATES[state]}{held}; "
                    "allowed are pages that have a reference, from allocate or incref"
                )
        raise AssertionError("every page has a reference")

    # -- reclaiming ---------------------------------------------------------------------------------------------------

    def take_waste(self, max_bytes: int, max_ranges: int = MAX_RANGES) -> Sequence[FileRange]:
        """Turn waste into releasing pages, from the lowest address on, until they are at least *max_bytes* or that many
        ranges. Pieces with only unflagged free pages between them come as one range; those pages are held back with
        them. To be called while no page is releasing.
        """
        shift = self._shift
        self.torn += 1
        small, waste = self.segments.sweep(
            _WASTE[SMALL],
            _RELEASING[SMALL],
            limit=self._in_pool_units(max_bytes, SMALL),
            max_runs=max_ranges,
            between=_FREE[SMALL],
            may_join=self._is_joinable,
        )
        waste <<= shift
        huge: list[tuple[int, int]] = []
        for start, run_end in self._releasable_huge():
            if waste >= max_bytes or len(small) + len(huge) >= max_ranges:
                break
            end = min(run_end, start + self._in_pool_units(max_bytes - waste, HUGE))
            waste += self._waste_within(start, end)
            if huge and huge[-1][1] == start:
                huge[-1] = huge[-1][0], end
            else:
                huge.append((start, end))
        for start, end in huge:
            if self.has_flags:
                self._clear_flags(start, end, keep=RESERVED)  # of free pages in between: they are tried again
            self.segments.assign(start, end, _RELEASING[HUGE])
        taken = [_file_range(FileRange, (start << shift, end << shift)) for start, end in (*small, *huge)]
        self.releasing += sum(end - start for start, end in taken)
        self.waste -= waste
        self.changes += bool(taken)
        self.torn -= 1
        return taken

    def _releasable_huge(self) -> Iterator[tuple[int, int]]:
        """Whole huge pages of waste, or of waste and free pages: nobody uses any part of them."""
        unit = self.huge_unit >> self._shift
        done = 0
        for start, end in self.segments.indexed_runs(_WASTE[HUGE]):
            first = max(done, start // unit * unit)
            last = min(-(-end // unit) * unit, self.segments.size)
            if first < start and not self._is_idle(first, min(first + unit, last)):
                first += unit
            if last > end and last > first and not self._is_idle((last - 1) // unit * unit, last):
                last = (last - 1) // unit * unit
            if last > first:
                done = last
                yield first, last

    def _is_idle(self, start: int, end: int) -> bool:
        return all(value[0] in (FREE, WASTE) for _, _, value in self.segments.runs(start, end))

    def _waste_within(self, start: int, end: int) -> int:
        runs = self.segments.runs(start, end)
        return sum(last - first for first, last, value in runs if value[0] == WASTE) << self._shift

    def _in_pool_units(self, nbytes: int, pool: int) -> int:
        unit = self.huge_unit if pool == HUGE else self.page_size
        return max(1, -(-nbytes // unit)) * unit >> self._shift

    def _is_joinable(self, start: int, end: int) -> bool:
        if (end - start) << self._shift > MAX_JOINED_GAP:
            return False
        return not self.has_flags or all(flag == NONE for _, _, flag in self.flags.runs(start, end))

    def has_releasable_waste(self) -> bool:
        """Whether :meth:`take_waste` would return anything."""
        return self.waste > 0 and (self.segments.has(_WASTE[SMALL]) or next(self._releasable_huge(), None) is not None)

    def release(self, ranges: Sequence[FileRange]) -> None:
        """Turn releasing pages, or parts of such ranges, into free ones; they are zero now."""
        shift, segments = self._shift, self.segments
        self.torn += 1
        for start, end in ranges:
            first, last = start >> shift, end >> shift
            value = segments.exact(first, last)
            if value is not None and value[0] == RELEASING:  # by far the most frequent case: as it was taken
                segments.assign_run(first, last, value, _FREE[value[5]])
                self.releasing -= end - start
                continue
            for run in self._releasing_runs([FileRange(start, end)]):
                self._replace(*run, _FREE[run[2][5]])
        self.changes += 1
        self.torn -= 1

    def free_waste(self, start: int, end: int) -> None:
        """Turn the waste of ``[start, end)`` into free pages: it is known to be zero."""
        self.torn += 1
        for first, last, value in self._runs_of(start, end):
            if value[0] == WASTE:
                self._replace(first, last, value, _FREE[value[5]])
                self.waste -= (last - first) << self._shift
        self.changes += 1
        self.torn -= 1

    def take_back(self, ranges: Sequence[FileRange]) -> None:
        """Turn what is still releasing of *ranges* into waste again: nothing is known about it."""
        self.torn += 1
        for first, last, value in self._releasing_runs(ranges):
            self._replace(first, last, value, _WASTE[value[5]])
            self.waste += (last - first) << self._shift
        self.changes += 1
        self.torn -= 1

    def _releasing_runs(self, ranges: Sequence[FileRange]) -> Iterator[tuple[int, int, Value]]:
        for start, end in ranges:
            for run in self._runs_of(start, end):
                if run[2][0] == RELEASING:
                    self.releasing -= (run[1] - run[0]) << self._shift
                    yield run

    def take_free(self, ranges: Sequence[FileRange], *, to_waste: bool = False) -> Sequence[FileRange]:
        """Turn those parts of *ranges* that are free into releasing pages, or into waste; returns these parts."""
        shift = self._shift
        taken: list[FileRange] = []
        self.torn += 1
        for pages in ranges:
            for first, last, value in list(self.segments.runs(pages.start >> shift, pages.end >> shift)):
                if value[0] == FREE:
                    if self.has_flags:
                        self._clear_flags(first, last, keep=NONE)
                    self.segments.assign(first, last, (_WASTE if to_waste else _RELEASING)[value[5]])
                    taken.append(FileRange(first << shift, last << shift))
        nbytes = sum(pages.length for pages in taken)
        if to_waste:
            self.waste += nbytes
        else:
            self.releasing += nbytes
        self.changes += bool(taken)
        self.torn -= 1
        return taken

    # -- flags --------------------------------------------------------------------------------------------------------

    def flag(self, start: int, end: int, flag: int) -> None:
        """Set the flag of each page, or clear it with :data:`NONE`."""
        if flag != NONE or self.has_flags:
            self.torn += 1
            self.flags.assign(start >> self._shift, end >> self._shift, flag)
            self.has_flags = flag != NONE or len(self.flags) > 1
            self.torn -= 1

    def flagged(self, flag: int, start: int = 0, end: int | None = None) -> array[int]:
        """What of ``[start, end)`` carries the flag, as extents. What lies outside costs nothing."""
        if not self.has_flags:
            return flat.empty()
        shift = self._shift
        runs: Iterable[tuple[int, int]]
        if start == 0 and (end is None or end >= self.size):
            runs = self.flags.indexed_runs(flag)
        else:
            last = (self.size if end is None else min(end, self.size)) >> shift
            runs = ((low, high) for low, high, here in self.flags.runs(start >> shift, last) if here == flag)
        return array("q", [edge << shift for run in runs for edge in run])

    # -- owners -------------------------------------------------------------------------------------------------------

    def ranges_of(self, owner: int) -> array[int]:
        """What *owner* uses, as extents. O(segments) when first asked for this owner; from then on it is kept up to
        date, until others were asked for more lately.
        """
        ranges = self.watched.pop(owner, None)
        if ranges is None:
            ranges = self._walk_for(owner)
            if len(self.watched) >= _MAX_WATCHED:
                del self.watched[next(iter(self.watched))]
        self.watched[owner] = ranges  # the one asked for last comes last
        return ranges[:]

    def _walk_for(self, owner: int) -> array[int]:
        ranges = flat.empty()
        for start, end, value in self.runs():
            if value[0] == USED and value[4] == owner:
                if ranges and ranges[-1] == start:
                    ranges[-1] = end
                else:
                    ranges.extend((start, end))
        return ranges

    # -- looking ------------------------------------------------------------------------------------------------------

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, Value]]:
        """Runs of equal pages within ``[start, end)``, in bytes."""
        shift = self._shift
        for first, last, value in self.segments.runs(start >> shift, (self.size if end is None else end) >> shift):
            yield first << shift, last << shift, value

    def inspect(self, offset: int) -> PageInfo:
        """What is known about the page at *offset*."""
        start, end, (state, refs, pins, kind, owner, _) = self.segments.find(offset >> self._shift)
        return PageInfo(
            state=STATES[state],
            kind=MemoryKind(kind) if kind else None,
            owner=owner,
            refs=refs,
            views=pins,
            pages=FileRange(start << self._shift, end << self._shift),
        )

    def first_shared(self, start: int, end: int) -> FileRange | None:
        """The first run of pages with more than one reference, those of views included."""
        found: FileRange | None = None
        for first, last, (_, refs, pins, *_) in self.runs(start, end):
            if refs + pins > 1:
                found = FileRange(found.start if found else first, last)
            elif found:
                break
        return found

    def free_bytes(self) -> int:
        """Bytes of free pages."""
        return self.size - sum(self.allocated.values()) - self.waste - self.releasing

    def largest_free(self) -> int:
        """The longest run of free pages, in bytes."""
        self.torn += 1  # as in borrow
        longest = max(self.segments.longest(_FREE[SMALL]), self.segments.longest(_FREE[HUGE]))
        self.torn -= 1
        return longest << self._shift

    def _check(self) -> None:
        """Assert every invariant. O(n)."""
        self.segments._check()
        self.flags._check()
        assert self.segments.size << self._shift == self.flags.size << self._shift == self.size, "the sizes differ"
        sums = [0, 0, 0, 0]
        allocated: dict[tuple[str, int], int] = {}
        for start, end, (state, refs, pins, kind, owner, _) in self.runs():
            sums[state] += end - start
            assert (refs + pins > 0) == (state == USED), f"{STATES[state]} with {refs} references, {pins} pins"
            if state == USED:
                allocated[kind, owner] = allocated.get((kind, owner), 0) + end - start
        assert allocated == self.allocated, f"allocated is {self.allocated}, the pages say {allocated}"
        assert sums[WASTE] == self.waste, f"waste is {self.waste}, the pages say {sums[WASTE]}"
        assert sums[RELEASING] == self.releasing, f"releasing is {self.releasing}, the pages say {sums[RELEASING]}"
        assert sums[FREE] == self.free_bytes(), f"free is {self.free_bytes()}, the pages say {sums[FREE]}"
        for owner, ranges in self.watched.items():
            assert ranges == self._walk_for(owner), f"what owner {owner} uses is not what was kept of it"
        for start, end, flag in self.flags.runs():
            if flag in (RETAINED, KEPT):
                for _, _, value in self.segments.runs(start, end):
                    assert value[0] == FREE, f"{FLAGS[flag]} page that is {STATES[value[0]]}"
