# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, binding=False, embedsignature=False, nonecheck=False, auto_pickle=False
"""Probing, and extents, in C: what :mod:`memplat.linux.pagemap`, :mod:`memplat.linux.files` (along the data of a file),
:mod:`memplat.linux.fiemap` and :mod:`memplat.linux.extents` do in Python.

Nothing is raised here but by signal handlers and for want of memory; the host's errors are returned, and worded in
Python. What is wrong with extents is said there, too.
"""

from cpython.array cimport array as Array, clone
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from array import array as _array

cdef extern from "probe.h":
    ctypedef struct memplat_region:
        pass
    ctypedef struct memplat_extents:
        int64_t* edges
        size_t count, capacity
    const int MEMPLAT_REGIONS
    int memplat_status(int fd, int64_t* storage, int64_t* size) nogil
    int64_t memplat_pagemap(
        int pagemap, uint64_t address, uint64_t end, uint64_t categories, uint64_t* position, memplat_region* regions,
        memplat_extents* found
    ) nogil
    int MEMPLAT_WALKED, MEMPLAT_MORE
    ctypedef struct memplat_walk:
        int64_t position, end, missing
        int stalled
    int memplat_seek(int fd, memplat_walk* walk, size_t steps, memplat_extents* found) nogil
    ctypedef struct memplat_fiemap:
        pass
    ctypedef struct memplat_blocks:
        int64_t start, end, position
        size_t count, delayed
    int memplat_map_blocks(
        int fd, memplat_blocks* walk, size_t calls, memplat_fiemap* map, memplat_extents* found
    ) nogil
    int64_t memplat_measure(const int64_t* edges, size_t count, int64_t start, int64_t end, int64_t page_mask) nogil

cdef extern from *:
    """
    #include <fcntl.h>
    #include <unistd.h>
    """
    int open(const char* path, int flags) nogil
    int close(int fd) nogil
    const int O_RDONLY, O_CLOEXEC

cdef enum:
    #: Between two looks for signals: what takes 10 to 60 ms.
    SEEKS = 1 << 14
    FIEMAPS = 16

cdef Array _offsets = _array("q")


cdef Array _as_array(memplat_extents* found):
    cdef Array made = clone(_offsets, <Py_ssize_t>found.count, False)
    if found.count:
        memcpy(made.data.as_longlongs, found.edges, found.count * sizeof(int64_t))
    return made


def pagemap(int fd, uint64_t address, uint64_t start, uint64_t end, bint held, uint64_t categories):
    """What the page tables of this process have, as (extents, bytes); an errno where the kernel refuses.

    :param fd: of /proc/self/pagemap
    :param held: keep the GIL
    :param categories: any of PAGE_IS_PRESENT, PAGE_IS_SWAPPED
    """
    cdef memplat_extents found
    cdef memplat_region* regions = <memplat_region*>malloc(MEMPLAT_REGIONS * 3 * sizeof(uint64_t))
    cdef uint64_t position = start
    cdef int64_t total
    cdef int code = ENOMEM
    found.edges = NULL
    found.count = found.capacity = 0
    if regions == NULL:
        raise MemoryError
    try:
        while True:
            if held:
                total = memplat_pagemap(fd, address, end, categories, &position, regions, &found)
                code = errno
            else:
                with nogil:
                    total = memplat_pagemap(fd, address, end, categories, &position, regions, &found)
                    code = errno
            if total >= 0:
                return _as_array(&found), total
            if code != EINTR:
                if code == ENOMEM:
                    raise MemoryError
                return code
            PyErr_CheckSignals()
    finally:
        free(regions)
        free(found.edges)


def seek(int fd, int64_t start, int64_t end, int64_t at_most, bint held):
    """The data of a file, as (extents, how it ended, errno); ``None`` if the file cannot be opened again.

    :param held: keep the GIL
    """
    cdef memplat_extents found
    cdef memplat_walk walk
    cdef int ended, code, own
    cdef bytes path = b"/proc/self/fd/%d" % fd
    own = open(path, O_RDONLY | O_CLOEXEC)
    if own < 0:
        return None
    found.edges = NULL
    found.count = found.capacity = 0
    walk.position, walk.end, walk.missing, walk.stalled = start, end, at_most, 0
    try:
        while True:
            if held:
                ended = memplat_seek(own, &walk, SEEKS, &found)
                code = errno
            else:
                with nogil:
                    ended = memplat_seek(own, &walk, SEEKS, &found)
                    code = errno
            if ended != MEMPLAT_MORE:
                if ended != MEMPLAT_WALKED and code == ENOMEM:
                    raise MemoryError
                return _as_array(&found), ended - MEMPLAT_MORE if ended != MEMPLAT_WALKED else 0, code
            PyErr_CheckSignals()
    finally:
        close(own)
        free(found.edges)


def fiemap(int fd, int64_t start, int64_t end):
    """What has disk blocks, as (extents, the file system's own extents, how many of these are delayed); an errno where
    the file system refuses.
    """
    cdef memplat_extents found
    cdef memplat_blocks walk
    cdef int more, code
    cdef memplat_fiemap* map = <memplat_fiemap*>malloc(sizeof(memplat_fiemap))
    if map == NULL:
        raise MemoryError
    found.edges = NULL
    found.count = found.capacity = 0
    walk.start = walk.position = start
    walk.end = end
    walk.count = walk.delayed = 0
    try:
        while True:
            with nogil:
                more = memplat_map_blocks(fd, &walk, FIEMAPS, map, &found)
                code = errno
            if not more:
                return _as_array(&found), walk.count, walk.delayed
            if more < 0 and code != EINTR:
                if code == ENOMEM:
                    raise MemoryError
                return code
            PyErr_CheckSignals()
    finally:
        free(map)
        free(found.edges)


def measure(Array extents not None, int64_t start, int64_t end, int64_t page_size):
    """The bytes in all extents; -1 if they are no proper answer of a probe of ``[start, end)``."""
    if extents.ob_descr.typecode != c"q":
        return -1
    return memplat_measure(<int64_t*>extents.data.as_longlongs, <size_t>len(extents), start, end, page_size - 1)


def total(Array extents not None):
    """The bytes in all extents."""
    cdef Py_ssize_t index, count = len(extents) // 2
    cdef long long* edges = extents.data.as_longlongs
    cdef long long found = 0
    for index in range(count):
        found += edges[2 * index + 1] - edges[2 * index]
    return found


cdef bint _is_proper(long long* edges, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t index
    for index in range(1, count):
        if edges[index - 1] >= edges[index]:
            return False
    return not count % 2


def combine(Array a not None, Array b not None, bint either):
    """What is in *a* or in *b*, or, unless *either*, in both; ``None`` if one of them is not sorted."""
    cdef long long* x = a.data.as_longlongs
    cdef long long* y = b.data.as_longlongs
    cdef Py_ssize_t n = len(a), m = len(b), i = 0, j = 0, count = 0
    cdef int wanted = 1 if either else 2, inside = 0, before
    cdef long long edge
    cdef Array made
    cdef long long* edges
    if a.ob_descr.typecode != c"q" or b.ob_descr.typecode != c"q" or not _is_proper(x, n) or not _is_proper(y, m):
        return None
    made = clone(_offsets, n + m, False)
    edges = made.data.as_longlongs
    while i < n or j < m:
        before = inside
        edge = min(x[i], y[j]) if i < n and j < m else x[i] if i < n else y[j]
        if i < n and x[i] == edge:  # odd edges are ends
            inside += -1 if i % 2 else 1
            i += 1
        if j < m and y[j] == edge:
            inside += -1 if j % 2 else 1
            j += 1
        if (before >= wanted) != (inside >= wanted):
            edges[count] = edge
            count += 1
    return made[:count]
