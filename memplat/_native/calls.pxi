# The fast ways of a memory's hot calls: memplat/engine/memoryfile.py, compiled as far as nothing is out of the ordinary.
#
# Each does the whole call if nothing needs the memory's lock now, nothing has to be settled, refused, grown or woken,
# and the arguments are plain and right. Otherwise nothing has changed, and the Python method does it from the
# beginning: the errors are raised there, too.

from cpython.dict cimport PyDict_GetItemWithError
from libc.stdint cimport uintptr_t

import memplat.types
from memplat.types import AllocationMode, Direction

cdef extern from "Python.h":
    Py_ssize_t PyTuple_GET_SIZE(object)
    PyObject* PyTuple_GET_ITEM(object, Py_ssize_t)  # borrowed

cdef object _UNCOMMITTED = AllocationMode.UNCOMMITTED
cdef object _RESERVED = AllocationMode.RESERVED
cdef object _WILL_COMMIT = AllocationMode.WILL_COMMIT
cdef object _will_commit = "will_commit"
cdef object _UP = Direction.UP
cdef object _KIND = MemoryKind
cdef object _range_class = FileRange
cdef object _anonymous = "anonymous"
#: The kinds that can be allocated, each with its number in every page table.
cdef dict _allowed_kinds = {str(kind): number for number, kind in enumerate(MemoryKind) if kind is not MemoryKind.MAPPED}
cdef uint32_t _anonymous_id = _allowed_kinds[_anonymous]
cdef object _allocate, _incref, _decref, _view, _share, _round_up


def install(memory_file):
    """Say which class has the methods that do what the fast ways do not."""
    global _allocate, _incref, _decref, _view, _share, _round_up
    _allocate = memory_file.allocate
    _incref = memory_file.incref
    _decref = memory_file.decref
    _view = memory_file.view
    _share = memory_file.share
    _round_up = memory_file.round_up


cdef enum:
    NO_WAY = 0  # but Python's
    TAKE_FREE = 1
    TAKE_PRESENT = 2  # waste that is in RAM
    TAKE_KEPT = 3  # free pages that are reserved, because they are kept committed


cdef inline int _way_of(HotState state, object mode) noexcept:
    """The fast way to allocate in a mode."""
    if mode is _WILL_COMMIT or mode is _will_commit:
        return TAKE_PRESENT
    if state.reserves_always:
        return TAKE_KEPT if mode is _RESERVED and state.stays_reserved else NO_WAY
    return TAKE_FREE if mode is _UNCOMMITTED else NO_WAY


cdef inline bint _read_range(object pages, uint64_t size, uint64_t mask, uint64_t* start, uint64_t* end) noexcept:
    """The ends of a FileRange within the file, whose bits in the mask are not set. False if it is not that."""
    if type(pages) is not _range_class or PyTuple_GET_SIZE(pages) != 2:
        return False
    if not read_ends(<PyObject*>pages, start, end):
        return False
    return start[0] < end[0] <= size and not (start[0] | end[0]) & mask


cdef class Calls:
    """The fast ways, as a base class before the Python one. Until :meth:`_attach` everything takes the Python way."""

    cdef HotState _hot
    cdef HotReclaimer _hot_reclaimer
    cdef HotShares _hot_shares
    cdef int _default_way  # of the default mode
    cdef uint64_t _mask  # of the offset in a page

    def _attach(
        self, HotState state not None, HotReclaimer reclaimer not None, HotShares shares not None, mapping, default_mode
    ):
        state._owner = mapping.owner
        state._reclaimer = reclaimer
        state._mapping = mapping
        state._leases = mapping.leases
        state._base = <char*><uintptr_t>mapping.base
        state._fd = state.file.fd
        self._hot_reclaimer = reclaimer
        self._hot_shares = shares
        self._default_way = _way_of(state, default_mode)
        self._mask = state.table.page_size - 1
        self._hot = state

    def round_up(self, length):
        """See :meth:`Memory.round_up`."""
        cdef uint64_t wanted
        if self._hot is not None and self._hot.refuse is None and read_int(<PyObject*>length, &wanted):
            if 0 < wanted < <uint64_t>1 << 62:
                return (wanted + self._mask) & ~self._mask
        return _round_up(self, length)

    def allocate(
        self,
        length,
        *,
        kind="anonymous",
        owner=0,
        mode=None,
        direction=memplat.types.Direction.UP,  # in full: inspect.signature looks it up from here
        huge=False,
        fill=None,
    ):
        """See :meth:`Memory.allocate`."""
        cdef HotState state = self._hot
        cdef uint64_t start = 0, nbytes
        cdef int way
        if state is not None and direction is _UP and huge is False and fill is None:
            way = self._default_way if mode is None else _way_of(state, mode)
            if way != NO_WAY and self._try_allocate(state, length, kind, owner, way, &start, &nbytes):
                return _hand_out(state.table, start, nbytes)
        return _allocate(
            self, length, kind=kind, owner=owner, mode=mode, direction=direction, huge=huge, fill=fill
        )

    cdef int _try_allocate(
        self,
        HotState state,
        object length,
        object kind,
        object owner,
        int way,
        uint64_t* start,
        uint64_t* nbytes,
    ) except -1:
        cdef PageTable table = state.table
        cdef uint64_t wanted, payer
        cdef int done = 0
        cdef PyObject* number
        cdef uint32_t account, kind_id = _anonymous_id
        if not read_int(<PyObject*>length, &wanted) or not wanted or wanted & self._mask:
            return 0
        if not read_int(<PyObject*>owner, &payer) or payer > 0xFFFFFFFF:
            return 0
        if kind is not _anonymous:
            if type(kind) is not str and type(kind) is not _KIND:
                return 0
            number = PyDict_GetItemWithError(_allowed_kinds, kind)
            if number == NULL:
                return 0
            kind_id = <uint32_t><object>number
        if not state._begin():
            return 0
        try:
            if PyDict_Size(state.limits) if way == TAKE_PRESENT else not state._may_allocate():
                return 0
            table._reserve()
            if table.has_flags and tree_reserve(&table._flags):
                raise MemoryError
            account = make_account(&table._accounts, kind_id, <uint32_t>payer)
            if way == TAKE_PRESENT:
                done = _take_present(state, wanted >> table._shift, account, start)
            elif way == TAKE_KEPT:
                done = _take_kept(state, wanted >> table._shift, account, start)
            else:
                done = table._take(wanted >> table._shift, account, False, False, FREE, start)
            if not done:
                give_up_account(&table._accounts, account)
        finally:
            state.lock.end()
        nbytes[0] = wanted
        start[0] <<= table._shift
        if way == TAKE_PRESENT and done:
            _count_recycled(state, nbytes[0])
        return done

    def incref(self, pages):
        """See :meth:`Memory.incref`."""
        if not self._count(pages, 1):
            _incref(self, pages)

    def decref(self, pages):
        """See :meth:`Memory.decref`."""
        if not self._count(pages, -1):
            _decref(self, pages)

    cdef bint _count(self, object pages, int by) except -1:
        """A reference more or less, if there is nothing out of the ordinary; else nothing has changed."""
        cdef HotState state = self._hot
        cdef PageTable table
        cdef uint64_t start = 0, end = 0
        cdef int done
        if state is None or (by < 0 and self._hot_reclaimer.needs_thread):
            return False
        table = state.table
        if not _read_range(pages, table.size, self._mask, &start, &end) or not state._begin():
            return False
        if by < 0 and end - start >= SPARSE and _free_sparse(state, start, end, _ONE_REF):
            state.lock.end()
            return True
        done = table._try_count(
            start >> table._shift, end >> table._shift, <uint64_t><int64_t>by, 0, _NEVER if by > 0 else self._hot_reclaimer.wake_at
        )
        table.changes += done == 1
        state.lock.end()
        return done > 0

    def view(self, range, *, writable=True, pin=True):
        """See :meth:`Memory.view`."""
        cdef HotState state = self._hot
        cdef uint64_t start = 0, end = 0
        cdef bint for_writing, pinned
        cdef Exporter exporter
        if state is not None and (writable is True or writable is False) and (pin is True or pin is False):
            for_writing = writable
            pinned = pin
            # A pinned view that dies may leave waste, and cannot start the reclaimer's thread.
            if not (pinned and self._hot_reclaimer.needs_thread) and _read_range(range, state.table.size, 0, &start, &end):
                exporter = self._try_view(state, start, end, for_writing, pinned)
                if exporter is not None:
                    return PyMemoryView_FromObject(exporter)
        return _view(self, range, writable=writable, pin=pin)

    cdef Exporter _try_view(self, HotState state, uint64_t start, uint64_t end, bint writable, bint pin):
        cdef PageTable table = state.table
        cdef uint64_t first = start & ~self._mask, last = (end + self._mask) & ~self._mask
        cdef Exporter exporter = Exporter.__new__(Exporter)
        cdef bint done
        exporter._address = state._base + start
        exporter._length = <Py_ssize_t>(end - start)
        exporter._readonly = not writable
        if not state._begin():
            return None
        if pin:
            done = table._try_count(first >> table._shift, last >> table._shift, 0, 1, _NEVER) > 0
            table.changes += done
        else:
            done = table._all_used(first >> table._shift, last >> table._shift)
            state.exposed = state.exposed or (done and writable)
        state.lock.end()
        if not done:
            return None
        if pin:
            exporter._start = first
            exporter._end = last
        memplat_add(state._leases._count, 1)
        exporter._state = state
        return exporter

    def share(self, pages, *, writable=False, trusted=False, expires=60.0):
        """See :meth:`Memory.share`."""
        cdef HotHandle handle
        if (
            self._hot is not None
            and (writable is True or writable is False)
            and (trusted is True or trusted is False)
            and type(expires) is float
            and 0.0 <= <double>expires <= _LONGEST_EXPIRY
        ):
            handle = self._try_share(pages, writable, expires)
            if handle is not None:
                return handle
        return _share(self, pages, writable=writable, trusted=trusted, expires=expires)

    cdef HotHandle _try_share(self, object pages, bint writable, double expires):
        cdef HotShares shares = self._hot_shares
        cdef HotLooking waiting = shares._service
        cdef HotHandle handle = None
        cdef PyObject* key = PyDict_GetItemWithError(shares._keys, True if writable else False)
        cdef double when
        cdef bint counted = False, given = False
        cdef list over = []
        if key == NULL or waiting is None or not waiting.lock._take(-1, False):
            return None
        try:
            when = _now() + expires
            if shares._is_open(writable) and waiting._may_wait(when):
                counted = self._count(pages, 1)
                if counted:
                    handle = shares._offer(pages, writable, <object>key, when, over, &given)
        finally:
            waiting.lock._give()
            if counted and not given:
                self.decref(pages)
            for share in over:
                self._end(shares, share)
        return handle

    cdef int _end(self, HotShares shares, HotShare share) except -1:
        """Drop the reference of a share that a peer has let go, once."""
        if shares.living.pop(share.number, None) is None:
            return 0
        if self._count(share.pages, -1):
            return share._tell()
        shares.drop(share)
        return 0
