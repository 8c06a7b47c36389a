# Ranges that are made and taken many at a time.

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_WRITABLE

from collections.abc import Sequence as _Sequence


cdef struct Part:
    uint64_t first, last


cdef class _Parts:
    """A growing array of ranges of pages."""

    cdef Part* items
    cdef size_t count, capacity

    def __dealloc__(self):
        free(self.items)

    cdef int add(self, uint64_t first, uint64_t last) except -1:
        cdef Part* items
        cdef size_t capacity
        if self.count == self.capacity:
            capacity = 2 * self.capacity if self.capacity else 64
            items = <Part*>realloc(self.items, capacity * sizeof(Part))
            if items == NULL:
                raise MemoryError
            self.items = items
            self.capacity = capacity
        self.items[self.count].first = first
        self.items[self.count].last = last
        self.count += 1
        return 0

    cdef list as_ranges(self, unsigned shift):
        cdef size_t index
        return [make_range(self.items[index].first << shift, self.items[index].last << shift)
                for index in range(self.count)]


cdef char* _OFFSET = b"q"
cdef _Parts _no_parts = _Parts()  # of a batch that somebody else makes


cdef class Batch:
    """Ranges of the file, as a sequence of :class:`FileRange` that are only made when somebody looks at them. It is a
    buffer of their offsets, too: start, end, start, end (``"q"``).
    """

    cdef _Parts _parts  # in bytes, and not changed any more
    cdef list _made
    cdef Py_ssize_t _length, _step

    def __cinit__(self):
        self._parts = _no_parts

    cdef void _settle(self, unsigned shift) noexcept:
        """The parts, which are in pages yet, will not change any more."""
        cdef size_t index
        for index in range(self._parts.count):
            self._parts.items[index].first <<= shift
            self._parts.items[index].last <<= shift
        self._length = 2 * <Py_ssize_t>self._parts.count
        self._step = sizeof(uint64_t)

    cdef list _all(self):
        if self._made is None:
            self._made = self._parts.as_ranges(0)
        return self._made

    def __len__(self):
        return <Py_ssize_t>self._parts.count

    def __getitem__(self, index):
        return self._all()[index]

    def __iter__(self):
        return iter(self._all())

    def __contains__(self, item):
        return item in self._all()

    def __reversed__(self):
        return reversed(self._all())

    def index(self, *args):
        """As that of a list."""
        return self._all().index(*args)

    def count(self, item):
        """As that of a list."""
        return self._all().count(item)

    def __eq__(self, other):
        if isinstance(other, Batch):
            return self._all() == (<Batch>other)._all()
        return self._all() == other if isinstance(other, list) else NotImplemented

    __hash__ = None

    def __repr__(self):
        return repr(self._all())

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("ranges cannot be written to")
        buffer.buf = <void*>self._parts.items
        buffer.obj = self
        buffer.len = self._length * self._step
        buffer.itemsize = self._step
        buffer.readonly = True
        buffer.ndim = 1
        buffer.format = _OFFSET if flags & PyBUF_FORMAT else NULL
        buffer.shape = &self._length
        buffer.strides = &self._step
        buffer.suboffsets = NULL
        buffer.internal = NULL


_Sequence.register(Batch)


cdef Batch _batch_of(_Parts parts):
    cdef Batch made = Batch.__new__(Batch)
    made._parts = parts
    return made
