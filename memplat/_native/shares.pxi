# The owner's end of shares: Memory.share, compiled as far as peers know the memory, and what share() looks at.

from heapq import heappop as _heappop, heappush as _heappush

cdef extern from "time.h":
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    const int CLOCK_MONOTONIC
    int clock_gettime(int, timespec*) nogil

cdef object _share_class = None
#: Longer than anybody waits; what is longer is checked in Python.
cdef double _LONGEST_EXPIRY = 1e6


def install_shares(share_class):
    """Say what a share is."""
    global _share_class
    _share_class = share_class


cdef inline double _now() noexcept:
    """As time.monotonic()."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class HotLooking:
    """What of the service is looked at in share(); see :class:`memplat.engine.looking.HotLooking`."""

    cdef public Lock lock
    cdef public object numbers, address, _order
    cdef public list _times
    cdef public Py_ssize_t _tidy_at
    cdef public double _next_time

    cdef bint _may_wait(self, double when) except -1:
        """Whether a share can be noted to end then, without waking the thread or tidying up. Forgets those that have ended
        and would be next.
        """
        while self._times and type(self._times[0][2]) is _share_class and (<HotShare>self._times[0][2])._ended:
            _heappop(self._times)
        return len(self._times) < self._tidy_at and when >= self._next_time


cdef class HotShares:
    """All shares of one memory; see :class:`memplat.engine.sharing.HotShares`."""

    cdef public dict _keys, living
    cdef public HotLooking _service
    cdef public object _weak
    cdef public bint _closed, _trust_needed
    cdef public HotSlots slots

    cdef bint _is_open(self, bint writable) noexcept:
        """Whether there is nothing more to ask before pages are shared."""
        return not self._closed and self.slots is not None and not (writable and self._trust_needed)

    cdef HotHandle _offer(
        self, object pages, bint writable, object key, double when, list over, bint* given
    ):
        """A handle of pages that carry a reference, which is the share's once it is *given*. Under the service's lock.
        Puts into *over* what peers let go, and a share that there is no memory for.
        """
        cdef HotLooking waiting = self._service
        cdef HotShare share = memplat_new(_share_class)
        cdef HotHandle handle = memplat_new(_handle_class)
        number = next(waiting.numbers)
        share._service = waiting
        share._shares = self._weak
        share.number = number
        share.pages = pages
        share.writable = writable
        share.slot = -1
        self.living[number] = share
        given[0] = True
        try:
            return self._fill(handle, share, key, when, over)
        except BaseException:
            self.give_up(share)
            over.append(share)
            raise

    cdef HotHandle _fill(self, HotHandle handle, HotShare share, object key, double when, list over):
        cdef HotLooking waiting = self._service
        cdef Token token
        ended = self.slots._collect()
        if ended is not None:
            over.extend(ended)
        share.slot = self.slots._offer(share, share.number)
        _heappush(waiting._times, (when, next(waiting._order), share))
        memcpy(token.key, PyBytes_AS_STRING(key), KEY)
        token.slot = share.slot
        token.number = share.number
        handle._address = waiting.address
        handle._token = PyBytes_FromStringAndSize(<char*>&token, TOKEN)
        handle.pages = share.pages
        handle.writable = True if share.writable else False
        handle._shared = share
        return handle
