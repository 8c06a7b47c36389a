# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, binding=False, embedsignature=False, nonecheck=False, auto_pickle=False
"""System calls in batches, without the GIL: punching, populating, zeroing.

What each does, and the man pages, stand with its twin in Python: :func:`memplat.linux.punching.punch_batch`,
:func:`memplat.linux.memory.populate_write`, :func:`memplat.linux.memory.zero_present`. Nothing is raised here but by
signal handlers, which run between steps; the host's errors are returned, and worded in Python.
"""

from cpython.array cimport array as Array, clone
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.types cimport off_t

from array import array as _array

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/mman.h>
    /* Of <asm-generic/mman-common.h>, for which the C library may be too old. */
    enum { POPULATE_WRITE = 23 };
    #define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    """
    int fallocate(int fd, int mode, off_t offset, off_t length) nogil
    int madvise(void* address, size_t length, int advice) nogil
    const int POPULATE_WRITE, PUNCH

cdef extern from "together.h":
    ctypedef struct Pair "memplat_pair":
        int64_t start, end
    ctypedef struct Together "memplat_together":
        int is_open
    struct iovec:
        void* iov_base
        size_t iov_len
    const int MEMPLAT_REMOVE
    long memplat_advise(const iovec* vector, size_t count, int advice) nogil
    void memplat_unmap_together(Together* state, char* base, const Pair* items, size_t count) nogil
    void memplat_map_again(Together* state, char* base) nogil
    void memplat_end_together(Together* state) nogil

cdef extern from "present.h":
    bint memplat_all_present(char* address, size_t length, long owner) nogil

cdef enum:
    VECTOR = 1024  # IOV_MAX
    #: Ranges and bytes whose punch takes about 40 us: less than it may cost to get the GIL back.
    FEW = 8
    LITTLE = 256 << 10
    #: import_iovec() in the kernel cuts a vector off at 2 GiB less a page, wherever that is within a huge page.
    VECTOR_BYTES = 1 << 30
    #: A populating call that a signal interrupts begins again: at 32 MiB (20 ms) no timer can keep it from getting on.
    POPULATE_STEP = 32 << 20
    #: What is zeroed with the GIL held: 2 us.
    SMALL = 64 << 10

cdef Array _offsets = _array("q")


cdef class _Ranges:
    """Ranges as an array in C: a buffer of 64-bit offsets as it is, pairs copied."""

    cdef Py_buffer _buffer
    cdef bint _is_view
    cdef Array _copy
    cdef Pair* items
    cdef size_t count

    def __cinit__(self, ranges):
        cdef size_t index = 0
        if PyObject_CheckBuffer(ranges):
            PyObject_GetBuffer(ranges, &self._buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            self._is_view = True
            if self._buffer.itemsize != 8 or self._buffer.len % 16 or self._buffer.format != b"q":
                raise TypeError("the buffer is none of pairs of 64-bit offsets")
            self.items = <Pair*>self._buffer.buf
            self.count = <size_t>self._buffer.len // sizeof(Pair)
            return
        found = [*ranges]
        self.count = len(found)
        self._copy = clone(_offsets, 2 * <Py_ssize_t>self.count, False)
        self.items = <Pair*>self._copy.data.as_longlongs
        for start, end in found:
            self.items[index].start = start
            self.items[index].end = end
            index += 1

    def __dealloc__(self):
        if self._is_view:
            PyBuffer_Release(&self._buffer)


cdef int _punch_one(int fd, Pair* at) noexcept nogil:
    """0, or the error; EINTR after an interruption by a signal."""
    return errno if fallocate(fd, PUNCH, at.start, at.end - at.start) else 0


cdef size_t _fill_vector(iovec* vector, char* base, Pair* items, size_t count) noexcept nogil:
    """The ranges that go into one call; none if the first one alone is too long for it."""
    cdef size_t index = 0
    cdef uint64_t nbytes = 0
    while index < count and index < VECTOR:
        nbytes += <uint64_t>(items[index].end - items[index].start)
        if nbytes > VECTOR_BYTES:
            break
        vector[index].iov_base = base + items[index].start
        vector[index].iov_len = <size_t>(items[index].end - items[index].start)
        index += 1
    return index


cdef size_t _whole(Pair* items, size_t count, long nbytes) noexcept nogil:
    """How many ranges so much progress covers whole: one that is done in part has to be done again."""
    cdef size_t index = 0
    while index < count and items[index].end - items[index].start <= nbytes:
        nbytes -= items[index].end - items[index].start
        index += 1
    return index


cdef int _punch_some(
    int fd, char* base, bint* by_vector, Together* together, _Ranges ranges, size_t* done
) noexcept nogil:
    """Punch up to a vector's worth of ranges from *done* on. 0, or the error of the range that *done* stands at then;
    EINTR after an interruption by a signal.
    """
    cdef iovec vector[VECTOR]
    cdef Pair* items = ranges.items + done[0]
    cdef size_t count = min(ranges.count - done[0], <size_t>VECTOR), batch, finished
    cdef long advised
    cdef int code
    if by_vector[0]:
        batch = _fill_vector(vector, base, items, count)
        if together != NULL:
            memplat_unmap_together(together, base, items, batch)
        advised = memplat_advise(vector, batch, MEMPLAT_REMOVE) if batch else 0
        code = errno
        if together != NULL:
            memplat_map_again(together, base)
        if advised < 0 and code == EINTR:
            return EINTR
        finished = _whole(items, batch, advised) if advised > 0 else 0
        done[0] += finished
        if batch and finished == batch:
            return 0
        by_vector[0] = advised >= 0
        items += finished
        count = 1  # fallocate decides about this very range
    while count:
        code = _punch_one(fd, items)
        if code:
            return code
        done[0] += 1
        items += 1
        count -= 1
    return 0


def punch(int fd, address, ranges, bint together=False):
    """Punch all *ranges*, in order. How many are done, and the error of the next one: 0 if there is none.

    :param ranges: pairs of offsets, or a buffer of them (``"q"``)
    :param together: take those that lie close together out of the page tables at one go
    """
    cdef Together state
    memset(&state, 0, sizeof(Together))
    try:
        return _punch(fd, address, ranges, &state if together else NULL)
    finally:
        memplat_end_together(&state)


cdef tuple _punch(int fd, object address, object ranges, Together* together):
    cdef _Ranges pairs = _Ranges(ranges)
    cdef char* base = <char*><uintptr_t>(0 if address is None else address)
    cdef bint by_vector = address is not None and pairs.count > 1
    cdef size_t done = 0, index
    cdef int64_t nbytes = 0
    cdef int code = 0
    for index in range(min(pairs.count, <size_t>FEW + 1)):
        nbytes += pairs.items[index].end - pairs.items[index].start
    while done < pairs.count:
        if pairs.count <= FEW and nbytes <= LITTLE:
            code = _punch_some(fd, base, &by_vector, together, pairs, &done)
        else:
            with nogil:
                code = _punch_some(fd, base, &by_vector, together, pairs, &done)
            PyErr_CheckSignals()
        if code == EINTR:
            PyErr_CheckSignals()
        elif code:
            break
    return done, code


cdef int _populate(char* address, size_t length) except -1:
    """0, or the error."""
    cdef size_t step
    cdef int code = 0
    while length:
        step = min(length, <size_t>POPULATE_STEP)
        with nogil:
            code = errno if madvise(address, step, POPULATE_WRITE) else 0
        PyErr_CheckSignals()
        if code == EINTR or code == EAGAIN:
            continue
        if code:
            return code
        address += step
        length -= step
    return 0


def populate(address, size_t length):
    """Make pages present and writable. 0, or the error; a part may be populated then."""
    return _populate(<char*><uintptr_t>address, length)


cdef int _zero(char* at, size_t length, long owner) except -1:
    """Step by step, so that what was made present is still there. 0, or the error."""
    cdef size_t step
    cdef bint done
    cdef int code
    while length:
        step = min(length, <size_t>POPULATE_STEP)
        if step <= SMALL:
            done = memplat_all_present(at, step, owner)
            if done:
                memset(at, 0, step)
        else:
            with nogil:
                done = memplat_all_present(at, step, owner)
                if done:
                    memset(at, 0, step)
            PyErr_CheckSignals()
        if not done:
            code = _populate(at, step)
            if code:
                return code
            with nogil:
                memset(at, 0, step)
            PyErr_CheckSignals()
        at += step
        length -= step
    return 0


def zero(address, extents, long owner):
    """Zero parts of a mapping. 0, or the error of the first that the host cannot supply; those before it are zero.

    :param extents: their distances from the address: start, end, start, end, as a buffer (``"q"``) or not
    :param owner: who owns the file, if it is shmem: to him it can be told what is present, which need not be populated.
        -1: nobody
    """
    cdef Array offsets = extents if isinstance(extents, Array) and extents.typecode == "q" else _array("q", extents)
    cdef char* base = <char*><uintptr_t>address
    cdef long long* at = offsets.data.as_longlongs
    cdef Py_ssize_t index
    cdef int code
    if len(offsets) % 2:
        raise ValueError("an odd number of offsets")
    for index in range(0, len(offsets), 2):
        code = _zero(base + at[index], <size_t>(at[index + 1] - at[index]), owner)
        if code:
            return code
    return 0
