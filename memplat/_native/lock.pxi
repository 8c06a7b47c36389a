# The memory's lock: what threading.RLock is, with an owner that compiled code can read.

from cpython.exc cimport PyErr_CheckSignals

import time as _time

cdef extern from "pythread.h":
    ctypedef void* PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock)
    int PyThread_acquire_lock(PyThread_type_lock, int) nogil
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock, long long microseconds, int intr_flag) nogil
    void PyThread_release_lock(PyThread_type_lock) nogil
    unsigned long PyThread_get_thread_ident() nogil

cdef extern from *:
    """
    #if defined(Py_GIL_DISABLED) || defined(MEMPLAT_TAKE_LOCK)
    #define MEMPLAT_TAKES_LOCK 1
    #else
    #define MEMPLAT_TAKES_LOCK 0
    #endif
    #define memplat_load(place) __atomic_load_n(&(place), __ATOMIC_RELAXED)
    #define memplat_store(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELAXED)
    """
    const bint MEMPLAT_TAKES_LOCK
    unsigned long memplat_load(unsigned long place) nogil
    void memplat_store(unsigned long place, unsigned long value) nogil

#: The longest wait that the C interface knows how to express, in seconds.
cdef double _MAX_TIMEOUT = 9.0e9


cdef class Lock:
    """A re-entrant lock that knows its owner, as :class:`threading.RLock`."""

    cdef PyThread_type_lock _handle
    cdef unsigned long _owner  # 0 if nobody has it
    cdef unsigned long _count  # guarded by the lock itself

    def __cinit__(self):
        self._handle = PyThread_allocate_lock()
        if self._handle == NULL:
            raise MemoryError("no lock")
        self._owner = 0
        self._count = 0

    def __dealloc__(self):
        if self._handle != NULL:
            if self._count:
                PyThread_release_lock(self._handle)
            PyThread_free_lock(self._handle)

    cdef inline bint begin(self) noexcept:
        """Whether a change of some nanoseconds that runs no Python code may begin. If so, :meth:`end` has to follow.

        With the GIL nobody else can come in between, so it is enough that nobody has the lock now.
        """
        if not MEMPLAT_TAKES_LOCK:
            return self._owner == 0
        if memplat_load(self._owner) or not PyThread_acquire_lock(self._handle, 0):
            return False
        memplat_store(self._owner, PyThread_get_thread_ident())
        self._count = 1
        return True

    cdef inline void end(self) noexcept:
        if MEMPLAT_TAKES_LOCK:
            self._count = 0
            memplat_store(self._owner, 0)
            PyThread_release_lock(self._handle)

    cdef bint _take(self, double timeout, bint blocking) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef PyLockStatus status
        cdef long long microseconds
        cdef double deadline = 0
        if memplat_load(self._owner) == me:
            self._count += 1
            return True
        if not PyThread_acquire_lock(self._handle, 0):
            if not blocking:
                return False
            if timeout >= 0:
                deadline = _time.monotonic() + timeout
            while True:
                microseconds = -1
                if timeout >= 0:
                    microseconds = max(0, <long long>((deadline - <double>_time.monotonic()) * 1e6))
                with nogil:
                    status = PyThread_acquire_lock_timed(self._handle, microseconds, 1)
                if status == PY_LOCK_ACQUIRED:
                    break
                if status == PY_LOCK_FAILURE:
                    return False
                PyErr_CheckSignals()  # interrupted
        memplat_store(self._owner, me)
        self._count = 1
        return True

    cdef int _give(self) except -1:
        if memplat_load(self._owner) != PyThread_get_thread_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            memplat_store(self._owner, 0)
            PyThread_release_lock(self._handle)
        return 0

    def acquire(self, bint blocking=True, double timeout=-1):
        """As :meth:`threading.RLock.acquire`."""
        if timeout != -1 and (not blocking or timeout < 0):
            raise ValueError("a timeout is for a blocking call, and not negative")
        if timeout > _MAX_TIMEOUT:
            raise OverflowError("timeout value is too large")
        return self._take(timeout, blocking)

    def release(self):
        """As :meth:`threading.RLock.release`."""
        self._give()

    def __enter__(self):
        self._take(-1, True)
        return True

    def __exit__(self, exc_type, exc, traceback):
        self._give()

    def _is_owned(self):
        return memplat_load(self._owner) == PyThread_get_thread_ident()

    def _release_save(self):
        cdef unsigned long count = self._count
        if memplat_load(self._owner) != PyThread_get_thread_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._count = 0
        memplat_store(self._owner, 0)
        PyThread_release_lock(self._handle)
        return count

    def _acquire_restore(self, unsigned long count):
        with nogil:
            PyThread_acquire_lock(self._handle, 1)  # not to be interrupted: whoever waits has to have it afterwards
        memplat_store(self._owner, PyThread_get_thread_ident())
        self._count = count

    def __repr__(self):
        return f"<{'locked' if self._owner else 'unlocked'} memplat lock owner={self._owner} count={self._count}>"
