# The runs of a page table, shown one by one.

cdef class _RunIterator:
    """Runs, one by one. Finds its place anew each time, so that a change in between only shows what is there then."""

    cdef PageTable _table
    cdef uint64_t _position, _end
    cdef unsigned _shift
    cdef bint _of_flags

    def __cinit__(self, PageTable table not None, uint64_t start, uint64_t end, unsigned shift, bint of_flags):
        self._table = table
        self._position = start
        self._end = end
        self._shift = shift
        self._of_flags = of_flags
        if of_flags:
            table._need_flags()

    def __iter__(self):
        return self

    def __next__(self):
        cdef tree* runs = &self._table._flags if self._of_flags else &self._table._segments
        cdef uint64_t start = self._position, stop
        cdef tree_spot at
        if start >= min(self._end, runs.size):
            raise StopIteration
        at = tree_find(runs, start)
        stop = self._position = min(at.leaf.start[at.index + 1], self._end)
        if self._of_flags:
            return start << self._shift, stop << self._shift, at.leaf.meta[at.index] >> 1
        value = self._table._value(at.leaf.counts[at.index], at.leaf.meta[at.index])
        return start << self._shift, stop << self._shift, value


cdef class Runs:
    """The runs of a page table, or those of its flags, by page number: what a ``SegmentSet`` shows."""

    cdef PageTable _table
    cdef bint _of_flags

    def __cinit__(self, PageTable table not None, bint of_flags):
        self._table = table
        self._of_flags = of_flags
        if of_flags:
            table._need_flags()

    def __len__(self):
        return self._table._flags.runs if self._of_flags else self._table._segments.runs

    @property
    def size(self):
        """The number of pages."""
        return self._table._flags.size if self._of_flags else self._table._segments.size

    def runs(self, uint64_t start=0, end=None):
        """The runs that overlap ``[start, end)``, clipped to it, upwards: start, end, value."""
        cdef uint64_t size = self._table._segments.size
        return _RunIterator(self._table, start, size if end is None else min(size, end), 0, self._of_flags)

    def columns(self):
        """All runs at once: their starts, upwards, and their values."""
        cdef tree* runs = &self._table._flags if self._of_flags else &self._table._segments
        cdef list starts = [], values = []
        cdef dict known = {}  # equal values are one object
        cdef tree_spot at
        cdef uint64_t counts, position = 0
        cdef uint32_t meta
        while position < runs.size:  # what is made here may set off the collector, and that may change the table
            at = tree_find(runs, position)
            starts_here = at.leaf.start[at.index]
            counts = at.leaf.counts[at.index]
            meta = at.leaf.meta[at.index]
            position = at.leaf.start[at.index + 1]
            key = (<object>counts << 32) | meta
            value = known.get(key)
            if value is None:
                value = known[key] = meta >> 1 if self._of_flags else self._table._value(counts, meta)
            starts.append(starts_here)
            values.append(value)
        return starts, values

    def find(self, uint64_t key):
        """The run around *key*: start, end, value."""
        cdef tree* runs = &self._table._flags if self._of_flags else &self._table._segments
        cdef tree_spot at
        if key >= runs.size:
            raise IndexError(f"no page {key}")
        at = tree_find(runs, key)
        if self._of_flags:
            return at.leaf.start[at.index], at.leaf.start[at.index + 1], at.leaf.meta[at.index] >> 1
        value = self._table._value(at.leaf.counts[at.index], at.leaf.meta[at.index])
        return at.leaf.start[at.index], at.leaf.start[at.index + 1], value
