# The page table's other half: waste on its way back to the host, flags, owners, and looking.

from cpython cimport array

cdef array.array _no_extents = array.array("q")

#: Of so many owners it is kept what they use.
cdef Py_ssize_t _MAX_WATCHED = 64


cdef uint64_t _in_units(uint64_t nbytes, uint64_t unit, unsigned shift) noexcept nogil:
    """Bytes as pages, rounded up to at least one whole unit of bytes."""
    return (max(<uint64_t>1, nbytes // unit + (nbytes % unit != 0)) * unit) >> shift


cdef class PageTable(_Pages):
    """What is known about every page; see :class:`memplat.engine.pages.PageTable`. Guarded by the memory's lock."""

    # -- reclaiming ---------------------------------------------------------------------------------------------------

    def take_waste(self, max_bytes, max_ranges=1024):
        cdef uint64_t limit = min(max(0, max_bytes), 1 << 62)
        cdef size_t most = max(0, max_ranges), index
        cdef uint64_t waste
        cdef _Parts parts = _Parts()
        cdef Batch taken = _batch_of(parts)
        waste = self._find_small(parts, limit, most)
        for index in range(parts.count):
            self._reserve()
            tree_assign(&self._segments, parts.items[index].first, parts.items[index].last, 0, RELEASING)
        self._book(parts, 0, waste)
        index = parts.count
        waste = self._take_huge(parts, limit, waste, most)
        self._book(parts, index, waste)
        taken._settle(self._shift)
        self.changes += parts.count != 0
        return taken

    cdef void _book(self, _Parts parts, size_t index, uint64_t waste) noexcept:
        self.waste -= waste
        while index < parts.count:
            self.releasing += (parts.items[index].last - parts.items[index].first) << self._shift
            index += 1

    cdef uint64_t _find_small(self, _Parts parts, uint64_t max_bytes, size_t max_ranges) except? 0xFFFFFFFFFFFFFFFF:
        """Which parts to take of the small pool; the bytes of waste in them."""
        cdef uint64_t limit = _in_units(max_bytes, self.page_size, self._shift), pages = 0, position = 0
        cdef uint64_t first, last
        cdef tree_spot at
        while tree_next_of(&self._segments, WASTE >> 1, position, &at):
            first = at.leaf.start[at.index]
            last = min(at.leaf.start[at.index + 1], first + (limit - pages))
            pages += last - first
            if parts.count and self._is_joinable(parts.items[parts.count - 1].last, first):
                parts.items[parts.count - 1].last = last
            else:
                parts.add(first, last)
            position = last
            if pages >= limit or parts.count >= max_ranges:
                break
        return pages << self._shift

    cdef bint _is_joinable(self, uint64_t first, uint64_t last) noexcept nogil:
        """Whether between two pieces of waste there is one run of free pages, none of them flagged."""
        cdef tree_spot at
        if (last - first) << self._shift > _MAX_JOINED_GAP:
            return False
        at = tree_find(&self._segments, first)
        if at.leaf.meta[at.index] != FREE or at.leaf.start[at.index] != first or at.leaf.start[at.index + 1] != last:
            return False
        if not self.has_flags:
            return True
        at = tree_find(&self._flags, first)
        return at.leaf.meta[at.index] == UNFLAGGED and at.leaf.start[at.index + 1] >= last

    cdef uint64_t _take_huge(
        self, _Parts parts, uint64_t max_bytes, uint64_t waste, size_t max_ranges
    ) except? 0xFFFFFFFFFFFFFFFF:
        """Take whole huge pages of waste, or of waste and free pages; the bytes of waste in them."""
        cdef uint64_t first = 0, last = 0, taken = 0, position = 0, done = 0
        cdef size_t before = parts.count
        while waste + taken < max_bytes and parts.count < max_ranges:
            if not self._next_huge(&position, &done, &first, &last):
                break
            last = min(last, first + _in_units(max_bytes - waste - taken, self.huge_unit, self._shift))
            taken += self._waste_within(first, last) << self._shift
            if parts.count > before and parts.items[parts.count - 1].last == first:
                parts.items[parts.count - 1].last = last
            else:
                parts.add(first, last)
        for index in range(before, parts.count):
            self._reserve()
            if self.has_flags:
                if tree_reserve(&self._flags):
                    raise MemoryError
                self._clear_flags(parts.items[index].first, parts.items[index].last, RESERVED)
            tree_assign(
                &self._segments, parts.items[index].first, parts.items[index].last, 0, RELEASING | (1 << POOL_SHIFT)
            )
        return taken

    cdef bint _next_huge(self, uint64_t* position, uint64_t* done, uint64_t* found, uint64_t* found_end) noexcept nogil:
        """The next whole huge pages of waste, or of waste and free pages: nobody uses any part of them."""
        cdef uint64_t unit = self._unit, size = self.size >> self._shift, start, end, first, last
        cdef tree_spot at
        while tree_next_of(&self._segments, (WASTE >> 1) | (HUGE << 1), position[0], &at):
            start = at.leaf.start[at.index]
            end = at.leaf.start[at.index + 1]
            position[0] = end
            first = max(done[0], start & ~(unit - 1))
            last = min((end + unit - 1) & ~(unit - 1), size)
            if first < start and not self._is_idle(first, min(first + unit, last)):
                first += unit
            if last > end and last > first and not self._is_idle((last - 1) & ~(unit - 1), last):
                last = (last - 1) & ~(unit - 1)
            if last > first:
                done[0] = found_end[0] = last
                found[0] = first
                return True
        return False

    def has_releasable_waste(self):
        cdef uint64_t position = 0, done = 0, first = 0, last = 0
        if not self.waste:
            return False
        return tree_longest(&self._segments, WASTE >> 1) > 0 or self._next_huge(&position, &done, &first, &last)

    def release(self, ranges):
        self._end_all(ranges, FREE)

    def take_back(self, ranges):
        self._end_all(ranges, WASTE)

    def free_waste(self, uint64_t start, uint64_t end):
        cdef uint64_t position = start >> self._shift, stop
        cdef uint32_t meta
        cdef tree_spot at
        self._check_range(start, end)
        while position < end >> self._shift:
            self._reserve()
            at = tree_find(&self._segments, position)
            stop = min(at.leaf.start[at.index + 1], end >> self._shift)
            meta = at.leaf.meta[at.index]
            if meta & 3 == WASTE:
                self.waste -= (stop - position) << self._shift
                tree_change(&self._segments, at, position, stop, 0, (meta & (1 << POOL_SHIFT)) | FREE, True)
            position = stop
        self.changes += 1

    cdef int _end_all(self, ranges, uint32_t state) except -1:
        cdef uint64_t start, end
        cdef size_t index
        cdef _Parts parts
        if type(ranges) is Batch:
            parts = (<Batch>ranges)._parts
            for index in range(parts.count):
                self._check_range(parts.items[index].first, parts.items[index].last)
            for index in range(parts.count):
                self._reserve()
                self._end_releasing(
                    parts.items[index].first >> self._shift, parts.items[index].last >> self._shift, state
                )
            self.changes += 1
            return 0
        for start, end in ranges:
            self._check_range(start, end)
        for start, end in ranges:
            self._reserve()
            self._end_releasing(start >> self._shift, end >> self._shift, state)
        self.changes += 1
        return 0

    cdef void _end_releasing(self, uint64_t first, uint64_t last, uint32_t state) noexcept nogil:
        """Give what is releasing of these pages another state. After _reserve."""
        cdef uint64_t position = first, stop
        cdef uint32_t meta
        cdef tree_spot at
        while position < last:
            at = tree_find(&self._segments, position)
            stop = min(at.leaf.start[at.index + 1], last)
            meta = at.leaf.meta[at.index]
            if meta & 3 == RELEASING:
                self.releasing -= (stop - position) << self._shift
                if state == WASTE:
                    self.waste += (stop - position) << self._shift
                tree_change(&self._segments, at, position, stop, 0, (meta & (1 << POOL_SHIFT)) | state, True)
            position = stop

    def take_free(self, ranges, *, bint to_waste=False):
        cdef _Parts parts = _Parts()
        cdef uint64_t start, end, position, stop
        cdef uint32_t meta, state = WASTE if to_waste else RELEASING
        cdef size_t index
        cdef tree_spot at
        cdef Batch taken
        for start, end in ranges:
            if start < end:
                self._check_range(start, end)
        for start, end in ranges:
            position = start >> self._shift
            while position < end >> self._shift:
                at = tree_find(&self._segments, position)
                stop = min(at.leaf.start[at.index + 1], end >> self._shift)
                if at.leaf.meta[at.index] & 3 == FREE:
                    parts.add(position, stop)
                position = stop
        taken = _batch_of(parts)
        for index in range(parts.count):
            self._reserve()
            if self.has_flags and tree_reserve(&self._flags):
                raise MemoryError
            position = parts.items[index].first
            stop = parts.items[index].last
            if self.has_flags:
                self._clear_flags(position, stop, NONE)
            at = tree_find(&self._segments, position)
            meta = at.leaf.meta[at.index]
            tree_change(&self._segments, at, position, stop, 0, (meta & (1 << POOL_SHIFT)) | state, True)
            if to_waste:
                self.waste += (stop - position) << self._shift
            else:
                self.releasing += (stop - position) << self._shift
        taken._settle(self._shift)
        self.changes += parts.count != 0
        return taken

    # -- flags --------------------------------------------------------------------------------------------------------

    def flag(self, uint64_t start, uint64_t end, unsigned flag):
        self._check_range(start, end)
        if flag > 3:
            raise IndexError(f"no flag {flag}")
        if flag != NONE or self.has_flags:
            self._need_flags()
            if tree_reserve(&self._flags):
                raise MemoryError
            tree_assign(&self._flags, start >> self._shift, end >> self._shift, 0, _flag_meta(flag))
            self.has_flags = flag != NONE or self._flags.runs > 1

    def flagged(self, unsigned flag, uint64_t start=0, end=None):
        cdef uint64_t position = start >> self._shift
        cdef uint64_t last = (self.size if end is None else min(end, self.size)) >> self._shift
        cdef _Parts parts = _Parts()
        cdef tree_spot at
        if not NONE < flag <= RESERVED:
            raise IndexError(f"no flag {flag}")
        if self.has_flags and position < last:
            at = tree_find(&self._flags, position)
            if at.leaf.meta[at.index] == flag << 1:  # else the next one begins behind
                parts.add(position, min(at.leaf.start[at.index + 1], last))
                position = at.leaf.start[at.index + 1]
            while tree_next_of(&self._flags, flag, position, &at) and at.leaf.start[at.index] < last:
                position = at.leaf.start[at.index + 1]
                parts.add(at.leaf.start[at.index], min(position, last))
        return self._as_extents(parts)

    # -- owners -------------------------------------------------------------------------------------------------------

    def ranges_of(self, owner):
        """What *owner* uses, as extents: what was found last time, if nothing has changed since."""
        found = self.watched.pop(owner, None)
        if found is None or found[0] != self.changes:
            if found is None and len(self.watched) >= _MAX_WATCHED:
                del self.watched[next(iter(self.watched))]
            found = self.changes, self._walk_for(owner)
        self.watched[owner] = found
        return found[1][:]

    cdef array.array _walk_for(self, uint32_t owner):
        cdef _Parts parts = _Parts()
        cdef tree_spot at
        cdef uint32_t meta
        cdef uint64_t start, end
        if self.size:
            at = tree_find(&self._segments, 0)
            while at.leaf != NULL:
                meta = at.leaf.meta[at.index]
                if meta & 3 == USED and self._accounts.items[meta >> ACCOUNT_SHIFT].owner == owner:
                    start = at.leaf.start[at.index]
                    end = at.leaf.start[at.index + 1]
                    if parts.count and parts.items[parts.count - 1].last == start:
                        parts.items[parts.count - 1].last = end
                    else:
                        parts.add(start, end)
                at = tree_next(at)
        return self._as_extents(parts)

    cdef array.array _as_extents(self, _Parts parts):
        cdef array.array extents = array.clone(_no_extents, 2 * <Py_ssize_t>parts.count, False)
        cdef size_t index
        for index in range(parts.count):
            extents.data.as_longlongs[2 * index] = <long long>(parts.items[index].first << self._shift)
            extents.data.as_longlongs[2 * index + 1] = <long long>(parts.items[index].last << self._shift)
        return extents

    # -- looking ------------------------------------------------------------------------------------------------------

    def runs(self, uint64_t start=0, end=None):
        """Runs of equal pages within ``[start, end)``, in bytes."""
        cdef uint64_t stop = self.size if end is None else end
        if start < stop:
            self._check_range(start, stop)
        return _RunIterator(self, start >> self._shift, stop >> self._shift, self._shift, False)

    def inspect(self, uint64_t offset):
        cdef tree_spot at
        self._check_range(offset, offset + 1)
        at = tree_find(&self._segments, offset >> self._shift)
        state, refs, pins, kind, owner, _ = self._value(at.leaf.counts[at.index], at.leaf.meta[at.index])
        return PageInfo(
            state=_STATES[state],
            kind=MemoryKind(kind) if kind else None,
            owner=owner,
            refs=refs,
            views=pins,
            pages=make_range(at.leaf.start[at.index] << self._shift, at.leaf.start[at.index + 1] << self._shift),
        )

    def first_shared(self, uint64_t start, uint64_t end):
        """The first run of pages with more than one reference, those of views included."""
        found = None
        for first, last, (_, refs, pins, *_) in self.runs(start, end):
            if refs + pins > 1:
                found = FileRange(found.start if found else first, last)
            elif found:
                break
        return found

    def free_bytes(self):
        return self.size - self._used - self.waste - self.releasing

    def largest_free(self):
        cdef uint64_t small = tree_longest(&self._segments, FREE), huge = tree_longest(&self._segments, HUGE << 1)
        return max(small, huge) << self._shift

    cdef tuple _value(self, uint64_t counts, uint32_t meta):
        cdef unsigned state = meta & 3, pool = (meta >> POOL_SHIFT) & 1
        cdef Account* account
        if state != USED:
            return state, 0, 0, "", 0, pool
        account = &self._accounts.items[meta >> ACCOUNT_SHIFT]
        return state, counts & _REFS, counts >> 32, self._kinds[account.kind], account.owner, pool

    def _check(self):
        """Assert every invariant. O(n)."""
        cdef const char* fault = tree_check(&self._segments)
        self._need_flags()
        if fault != NULL:
            raise AssertionError((<bytes>fault).decode())
        fault = tree_check(&self._flags)
        if fault != NULL:
            raise AssertionError("flags: " + (<bytes>fault).decode())
        self._check_sums()
        self._check_flags()

    cdef int _check_sums(self) except -1:
        if not self.size == self._segments.size << self._shift == self._flags.size << self._shift:
            raise AssertionError("the sizes differ")
        sums = [0, 0, 0, 0]
        allocated = {}
        for start, end, (state, refs, pins, kind, owner, _) in self.runs():
            sums[state] += end - start
            if (refs + pins > 0) != (state == USED):
                raise AssertionError(f"{_STATES[state]} with {refs} references, {pins} pins")
            if state == USED:
                allocated[kind, owner] = allocated.get((kind, owner), 0) + end - start
        if allocated != self.allocated:
            raise AssertionError(f"allocated is {self.allocated}, the pages say {allocated}")
        figures = [self.free_bytes(), self._used, self.waste, self.releasing]
        if sums != figures:
            raise AssertionError(f"free, used, waste, releasing are {figures}, the pages say {sums}")
        if len(allocated) != self._accounts.live:
            raise AssertionError(f"{self._accounts.live} accounts are kept for {len(allocated)}")
        return 0

    cdef int _check_flags(self) except -1:
        for start, end, flag in self.flags.runs():
            if flag not in (NONE, RESERVED):
                for _, _, value in _RunIterator(self, start, end, 0, False):
                    if value[0] != FREE:
                        raise AssertionError(f"{_FLAGS[flag]} page that is {_STATES[value[0]]}")
        return 0
