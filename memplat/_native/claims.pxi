# The claims table and the owner's slots: memplat/claims.py, memplat/linux/locks.py and memplat/engine/slots.py, compiled.

cdef extern from "fcntl.h":
    """
    /* What peers see has to be seen in this order. */
    static inline uint8_t read_state(const uint8_t *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline void write_state(uint8_t *at, uint8_t value) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); }
    static inline uint64_t read_word(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline void write_word(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); }
    """
    cdef struct flock:
        short l_type
        short l_whence
        long l_start
        long l_len
        int l_pid
    const int F_OFD_SETLK, F_OFD_GETLK
    const short F_WRLCK, F_UNLCK
    int fcntl(int fd, int what, flock* lock) nogil
    uint8_t read_state(const uint8_t*) nogil
    void write_state(uint8_t*, uint8_t) nogil
    uint64_t read_word(const uint64_t*) nogil
    void write_word(uint64_t*, uint64_t) nogil

from cpython.buffer cimport PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memchr

cdef enum:
    SLOT_FREE = 0
    SLOT_OFFERED = 1
    SLOT_ATTACHED = 2
    SLOT_ENDED = 3
    SLOT_LEASED = 4


cdef class HotClaims:
    """What of a claims table is looked at in calls that are made often; see :class:`memplat.claims.HotClaims`."""

    cdef public int fd
    cdef uint8_t* _states  # NULL when it is not mapped
    cdef uint64_t* _numbers
    cdef uint64_t* _wanted
    cdef long _first  # the byte that is locked for slot 0
    cdef long _slots

    def _adopt(self, whole, long states, long numbers):
        """The table is mapped: where the states and the numbers begin."""
        cdef Py_buffer buffer
        PyObject_GetBuffer(whole, &buffer, PyBUF_WRITABLE)
        self._wanted = <uint64_t*>buffer.buf
        self._states = <uint8_t*>buffer.buf + states
        self._numbers = <uint64_t*>(<uint8_t*>buffer.buf + numbers)
        PyBuffer_Release(&buffer)
        self._first = states
        self._slots = numbers - states

    def _leave(self):
        """It is about to be unmapped."""
        self._states = NULL

    cdef int _lock(self, int what, short kind, long slot, flock* lock) noexcept:
        memset(lock, 0, sizeof(flock))
        lock.l_type = kind
        lock.l_start = self._first + slot
        lock.l_len = 1
        return fcntl(self.fd, what, lock)

    cdef bint _try_lock(self, long slot) noexcept:
        """Whether the slot is locked for us now. False for an error, too."""
        cdef flock lock
        return self._lock(F_OFD_SETLK, F_WRLCK, slot, &lock) == 0

    cdef bint _unlock(self, long slot) noexcept:
        """Whether that could be done."""
        cdef flock lock
        return self._lock(F_OFD_SETLK, F_UNLCK, slot, &lock) == 0

    cdef bint _is_free(self, long slot) noexcept:
        """Whether nobody else holds the slot. False for an error, too."""
        cdef flock lock
        return self._lock(F_OFD_GETLK, F_WRLCK, slot, &lock) == 0 and lock.l_type == F_UNLCK

    cdef bint _is_offered(self, long slot, uint64_t number) noexcept:
        return read_state(self._states + slot) == SLOT_OFFERED and read_word(self._numbers + slot) == number


cdef class HotShare:
    """The fields of a share; see :class:`memplat.engine.leases.HotShare`."""

    cdef public object _service, _shares, _done, number, pages, lease
    cdef public bint _ended, writable, taken, late
    cdef public long slot

    cdef int _tell(self) except -1:
        """As has_ended()."""
        self._ended = True
        if self._done is not None:
            self._done.set()
        return 0


cdef class HotSlots:
    """The owner's slots; see :class:`memplat.engine.slots.HotSlots`."""

    cdef public HotClaims _claims
    cdef public list _shares
    cdef public list _free

    def offer(self, HotShare share not None, uint64_t number):
        """As :meth:`memplat.engine.slots.HotSlots.offer`."""
        return self._offer(share, number)

    cdef long _offer(self, HotShare share, uint64_t number) except -2:
        cdef HotClaims claims = self._claims
        cdef long slot = self._free.pop() if self._free else self._new_slot()
        if slot < 0 or claims._states == NULL:
            return -1
        self._shares[slot] = share
        write_word(claims._numbers + slot, number)
        write_state(claims._states + slot, SLOT_OFFERED)
        return slot

    def collect(self):
        """As :meth:`memplat.engine.slots.HotSlots.collect`."""
        return self._collect() or []

    cdef list _collect(self):
        """``None`` if there are none."""
        cdef HotClaims claims = self._claims
        cdef list shares = self._shares, found = None
        cdef long end = len(shares), slot = 0
        cdef uint8_t* at
        cdef object item
        if claims._states == NULL:
            return found
        while slot < end:
            at = <uint8_t*>memchr(claims._states + slot, SLOT_ENDED, end - slot)
            if at == NULL:
                break
            slot = at - claims._states
            item = shares[slot]
            if item is None or (<HotShare?>item).taken:
                write_state(claims._states + slot, SLOT_FREE if item is None else SLOT_LEASED)
            elif claims._is_free(slot):
                write_state(claims._states + slot, SLOT_FREE)
                shares[slot] = None
                self._free.append(slot)
                if found is None:
                    found = [item]
                else:
                    found.append(item)
            slot += 1
        return found
