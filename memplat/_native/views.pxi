# Views: memplat/linux/exporter.py, compiled; and what of a memory's state the fast ways look at.

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject

cimport cython

cdef extern from *:
    """
    #define memplat_add(place, more) __atomic_add_fetch(&(place), (more), __ATOMIC_ACQ_REL)
    """
    Py_ssize_t memplat_add(Py_ssize_t place, Py_ssize_t more) nogil

import sys as _sys

#: An interpreter that ends may have emptied the modules already, and needs to hear nothing of views that die then.
cdef object _is_finalizing = _sys.is_finalizing

cdef extern from "Python.h":
    Py_ssize_t PyDict_Size(object) except -1
    Py_ssize_t PyObject_Size(object) except -1


cdef class Leases:
    """The live views of a mapping, counted; the twin is a set of their numbers."""

    cdef Py_ssize_t _count

    def add(self, number):
        """One more."""
        memplat_add(self._count, 1)

    def discard(self, number):
        """One less."""
        memplat_add(self._count, -1)

    def __len__(self):
        return self._count


cdef class HotReclaimer:
    """What of the reclaimer the fast ways look at; see :class:`memplat.engine.hot.HotReclaimer`."""

    cdef public uint64_t wake_at
    cdef public bint needs_thread


cdef class HotState:
    """What of a memory's state the fast ways look at; see :class:`memplat.engine.hot.HotState`.

    Whatever makes calls behave otherwise has to be asked in :meth:`_begin` or in :meth:`_may_allocate`.
    """

    cdef public PageTable table
    cdef public Lock lock
    cdef public object refuse
    cdef public object dropped
    cdef public bint exposed
    cdef public dict limits
    cdef public object counters
    cdef public Lock gate
    cdef public object decommitted
    cdef public bint peers, may_prove
    cdef public bint reserves_always, stays_reserved
    cdef public uint64_t keep
    # What compiled views need after their memory is gone:
    cdef HotReclaimer _reclaimer
    cdef object _mapping
    cdef Leases _leases
    cdef char* _base
    cdef long _owner  # of the file, if it is shmem; else -1
    cdef int _fd

    def __cinit__(self, *args):
        self._fd = -1

    cdef inline bint _begin(self) except -1:
        """Whether the fast way is open: nobody has the lock, nothing is refused, and nothing was left behind that has to
        be settled first. If so, ``lock.end()`` has to follow.
        """
        if not self.lock.begin():
            return False
        if self.refuse is None and not PyObject_Size(self.dropped):
            return True
        self.lock.end()
        return False

    cdef inline bint _may_allocate(self) except -1:
        """Nobody may have written to free pages, and no owner has limits."""
        return not self.exposed and not PyDict_Size(self.limits)

    cdef int _view_died(self, uint64_t start, uint64_t end) except -1:
        """Unpin the pages, now or as soon as nobody has the lock."""
        cdef PageTable table = self.table
        cdef int done = 0
        if self._begin():
            if end - start >= SPARSE and _free_sparse(self, start, end, _ONE_PIN):
                self.lock.end()
                return 0
            done = table._try_count(start >> table._shift, end >> table._shift, 0, -1, self._reclaimer.wake_at)
            table.changes += done > 0
            self.lock.end()
        if done <= 0 and not _is_finalizing():
            self.view_dropped(start, end)
        return 0


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Exporter:
    """What a memoryview is made of. Takes no part in garbage collection; :mod:`memplat.linux.exporter` tells why."""

    cdef char* _address
    cdef Py_ssize_t _length
    cdef bint _readonly
    cdef object _release  # whom to tell, or None
    # Of views that the fast way makes:
    cdef HotState _state
    cdef uint64_t _start, _end  # what is pinned: nothing, if they are equal

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._address, self._length, self._readonly, flags)

    def __dealloc__(self):
        cdef HotState state = self._state
        if state is None:
            if self._release is not None and not _is_finalizing():
                self._release()
            return
        cdef Py_ssize_t left = memplat_add(state._leases._count, -1)
        try:
            if self._start < self._end:
                state._view_died(self._start, self._end)
        finally:
            if not left and state._mapping.closed and not state._leases._count and not _is_finalizing():
                state._mapping.unmap()

    def __repr__(self):
        return f"<exporter of {self._length} bytes>"


def export(address, Py_ssize_t length, *, bint writable, release=None):
    """As :func:`memplat.linux.exporter.export`."""
    cdef Exporter exporter = Exporter.__new__(Exporter)
    exporter._address = <char*><uintptr_t>address
    exporter._length = length
    exporter._readonly = not writable
    exporter._release = release
    return PyMemoryView_FromObject(exporter)
