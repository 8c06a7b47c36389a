# The quick ways of update_usage: memplat/engine/turns.py and commit.py, compiled as far as what has to be asked of the
# host takes microseconds.
#
# Either nothing is new, or so little is committed (or all of it) that the file proves by itself what it holds. All is
# found out before any Python object is made: with the GIL nobody gets in between, and without one both locks are held.
# Whatever is out of the ordinary is left to Python, and nothing has changed then.

from libc.string cimport memcpy, memmove

cdef extern from "probe.h":
    int64_t memplat_now() nogil
    int memplat_status(int fd, int64_t* storage, int64_t* size) nogil
    int memplat_seek_few(int fd, int64_t storage, int64_t* edges, int most) nogil

cdef extern from "Python.h":
    int PyObject_GenericSetDict(object, object, void*) except -1
    bint PyFloat_CheckExact(object)
    double PyFloat_AS_DOUBLE(object)

from cpython.dict cimport PyDict_Copy, PyDict_SetItem

from memplat.types import Usage

cdef enum:
    FEW_EXTENTS = 16
    FEW_EDGES = 64
    FEW_DECOMMITS = 16
    FEW_ACCOUNTS = 64
    FEW_RUNS = 4096
cdef int64_t _SOUGHT_BYTES = 64 * 1024

cdef object _update_usage
cdef object _new_usage = object.__new__
cdef object _usage_class = Usage
cdef dict _nothing = dict.fromkeys(map(str, MemoryKind), 0)
cdef dict _counter_names = {
    method: (("scans", f"scans_{method}"), ("scan_ns", f"scan_ns_{method}"))
    for method in ("unchanged", "known", "st_blocks", "seek_data")
}


cdef class HotScanner:
    """What of a memory's scanner the quick ways look at; see :class:`memplat.engine.hot.HotScanner`."""

    cdef public unsigned long _runner
    cdef public object _known
    cdef public int64_t _known_total
    cdef public int64_t _seen_changes
    cdef public int64_t _whole_ns
    cdef object _last
    cdef double _as_of  # of the last figures; negative without any
    cdef int _fd
    # Of its parts; dictionaries that are never replaced:
    cdef object _figures
    cdef dict _external, _peak_committed, _peak_allocated, _figures_of

    def __cinit__(self, *args):
        self._as_of = -1
        self._fd = -1

    @property
    def last(self):
        """The last figures."""
        return self._last

    @last.setter
    def last(self, usage):
        self._as_of = -1 if usage is None or usage.method == "none" else usage.as_of
        self._last = usage


cdef class _Finding:
    """What is found out about a memory without making any Python object but this one, which is made before."""

    cdef str method
    cdef int64_t began, ended, storage
    cdef int64_t edges[FEW_EDGES + 4 * FEW_DECOMMITS + 2]
    cdef int count
    cdef uint64_t changes, size, free_bytes, largest, allocations, frees, waste
    cdef _Charges charges
    cdef uint32_t owners[FEW_ACCOUNTS]
    cdef uint32_t kinds[FEW_ACCOUNTS]
    cdef uint64_t committed[FEW_ACCOUNTS]
    cdef uint64_t allocated[FEW_ACCOUNTS]
    cdef uint32_t accounts

    cdef bint subtract(self, int64_t start, int64_t end) noexcept:
        """Take a range out of the edges. False if there is no room."""
        cdef int low = 0, high, index, kept = 0
        cdef int64_t edges[2]
        while low < self.count and self.edges[low] < start:
            low += 1
        high = low
        while high < self.count and self.edges[high] <= end:
            high += 1
        if low % 2:
            edges[kept] = start
            kept += 1
        if high % 2:
            edges[kept] = end
            kept += 1
        if self.count + kept > <int>(sizeof(self.edges) // sizeof(int64_t)):
            return False
        memmove(&self.edges[low + kept], &self.edges[high], (self.count - high) * sizeof(int64_t))
        for index in range(kept):
            self.edges[low + index] = edges[index]
        self.count += low + kept - high
        return True

    cdef int64_t total(self) noexcept:
        cdef int64_t found = 0
        cdef int index
        for index in range(0, self.count, 2):
            found += self.edges[index + 1] - self.edges[index]
        return found

    cdef bint note_table(self, PageTable table, bint with_accounts) noexcept:
        """What the page table says now. False if there are too many accounts."""
        cdef uint32_t index
        cdef Account* account
        self.changes = table.changes
        self.allocations = table.allocations
        self.frees = table.frees
        if not with_accounts:
            return True
        self.size = table.size
        self.free_bytes = table.size - table._used - table.waste - table.releasing
        self.largest = max(tree_longest(&table._segments, FREE), tree_longest(&table._segments, HUGE << 1))
        self.largest <<= table._shift
        self.accounts = 0
        for index in range(table._accounts.count):
            account = &table._accounts.items[index]
            if not account.is_live:
                continue
            if self.accounts == FEW_ACCOUNTS:
                return False
            self.owners[self.accounts] = account.owner
            self.kinds[self.accounts] = account.kind
            self.allocated[self.accounts] = account.nbytes
            self.committed[self.accounts] = self.charges.by_account[index] << table._shift
            self.accounts += 1
        self.waste = self.charges.idle << table._shift
        return True


cdef bint _is_as_seen(HotState state, HotScanner scanner) except -1:
    return (
        <int64_t>state.table.changes == scanner._seen_changes
        and scanner._known is not None
        and type(state.decommitted) is list
        and not PyObject_Size(state.decommitted)
    )


cdef bint _take_known(HotState state, HotScanner scanner, _Finding found) except -1:
    """What is known, less what was decommitted since. False if that is not known, or too much for here."""
    cdef array.array known = scanner._known
    cdef uint64_t start = 0, end = 0
    cdef Py_ssize_t index
    if known is None or len(known) > FEW_EDGES or type(state.decommitted) is not list:
        return False
    if PyObject_Size(state.decommitted) > FEW_DECOMMITS:
        return False
    found.count = <int>len(known)
    if found.count:  # an empty array has no address, and memcpy may be given none
        memcpy(found.edges, known.data.as_longlongs, found.count * sizeof(int64_t))
    for pages in <list>state.decommitted:
        if not _read_range(pages, <uint64_t>-1 >> 1, 0, &start, &end) or not found.subtract(start, end):
            return False
    return True


cdef bint _prove(HotState state, HotScanner scanner, _Finding found) except -1:
    """Whether it is known, or told by the file itself, which pages are committed."""
    cdef int64_t storage = 0, size = 0
    cdef bint is_known = _take_known(state, scanner, found)
    if memplat_status(scanner._fd, &found.storage, &size):
        return False
    if is_known and found.total() == found.storage:
        found.method = "known"
        return True
    if scanner._known is not None and not is_known:
        return False
    if not found.storage or found.storage == size:
        found.method = "st_blocks"
        found.count = 2 if found.storage else 0
        found.edges[0] = 0
        found.edges[1] = size
        return True
    if found.storage > _SOUGHT_BYTES:
        return False
    found.method = "seek_data"
    found.count = memplat_seek_few(scanner._fd, found.storage, found.edges, FEW_EXTENTS)
    return found.count > 0 and not memplat_status(scanner._fd, &storage, &size) and storage == found.storage


cdef int _look(HotState state, HotScanner scanner, _Finding found, array.array known, list log) except -1:
    """1 if nothing is new; 2 if all was found out and noted; 0, and no change, if that is not for here."""
    cdef PageTable table = state.table
    cdef int64_t size = 0
    found.began = memplat_now()
    if _is_as_seen(state, scanner) and scanner._last is not None:
        if memplat_status(scanner._fd, &found.storage, &size):
            return 0
        if found.storage == scanner._known_total:
            found.note_table(table, False)
            found.ended = memplat_now()
            _count(state, "unchanged", found.ended - found.began)
            return 1
    if table.has_flags or PyDict_Size(state.limits) or PyDict_Size(scanner._external):
        return 0
    if max(PyDict_Size(scanner._peak_committed), PyDict_Size(scanner._peak_allocated)) > scanner._figures.max_owners:
        return 0  # those of owners that have nothing are to be forgotten
    if not _prove(state, scanner, found):
        return 0
    if found.count and found.edges[found.count - 1] > <int64_t>table.size:
        return 0
    found.charges.prepare(table)
    if found.charges.add(table, found.edges, found.count, FEW_RUNS) or found.charges.free_bytes:
        return 0
    if not found.note_table(table, True):
        return 0
    array.resize(known, found.count)
    if found.count:
        memcpy(known.data.as_longlongs, found.edges, found.count * sizeof(int64_t))
    scanner._known = known
    scanner._known_total = found.storage
    scanner._seen_changes = <int64_t>found.changes
    state.decommitted = log
    found.ended = memplat_now()
    scanner._whole_ns = found.ended - found.began
    _count(state, found.method, scanner._whole_ns)
    return 2


cdef int _count(HotState state, str method, int64_t nanoseconds) except -1:
    cdef dict counters = <dict>state.counters  # as a mere dictionary: a Counter would run Python code for what is missing
    cdef tuple names = <tuple>_counter_names[method]
    for name in <tuple>names[0]:
        PyDict_SetItem(counters, name, counters.get(name, 0) + 1)
    for name in <tuple>names[1]:
        PyDict_SetItem(counters, name, counters.get(name, 0) + nanoseconds)
    return 0


cdef dict _counters(HotState state, _Finding found):
    cdef dict copy = PyDict_Copy(state.counters)
    copy["allocations"] = found.allocations
    copy["frees"] = found.frees
    return copy


cdef object _renewed(HotState state, HotScanner scanner, _Finding found):
    cdef object usage = _new_usage(_usage_class)
    cdef dict fields = (<object>scanner._last).__dict__.copy()
    fields["as_of"] = <double>found.began / 1e9
    fields["method"] = "unchanged"
    fields["reserved"] = 0
    fields["counters"] = _counters(state, found)
    PyObject_GenericSetDict(usage, fields, NULL)
    return usage


cdef int _raise(dict peaks, object key, object value) except -1:
    known = peaks.get(key)
    if (known is None and value) or (known is not None and value > known):
        peaks[key] = value
    return 0


cdef object _told(HotState state, HotScanner scanner, _Finding found):
    """The figures of a scan of all; see :meth:`memplat.engine.figures.Figures.whole_locked`."""
    cdef dict committed = _nothing.copy(), allocated = _nothing.copy(), by_owner = {}, allocated_of = {}, kinds
    cdef list names = state.table._kinds
    cdef object usage
    cdef uint32_t index
    for index in range(found.accounts):
        owner = found.owners[index]
        kind = names[found.kinds[index]]
        allocated[kind] += found.allocated[index]
        allocated_of[owner] = allocated_of.get(owner, 0) + found.allocated[index]
        if found.committed[index]:
            committed[kind] += found.committed[index]
            kinds = by_owner.setdefault(owner, {})
            kinds[kind] = kinds.get(kind, 0) + found.committed[index]
    if found.waste:
        committed["system"] += found.waste
        kinds = by_owner.setdefault(0, {})
        kinds["system"] = kinds.get("system", 0) + found.waste
    _raise(scanner._peak_committed, None, found.storage)
    for owner, kinds in by_owner.items():
        _raise(scanner._peak_committed, owner, sum(kinds.values()))
    _raise(scanner._peak_allocated, None, sum(allocated.values()))
    for owner, nbytes in allocated_of.items():
        _raise(scanner._peak_allocated, owner, nbytes)
    usage = _new_usage(_usage_class)
    fields = {
        "as_of": <double>found.began / 1e9,
        "method": found.method,
        "exact": True,
        "committed": committed,
        "committed_by_owner": by_owner,
        "allocated": allocated,
        "waste": found.waste,
        "retained": 0,
        "free_committed": 0,
        "reserved": 0,
        "overhead": 0,
        "foreign": 0,
        "total": found.storage,
        "file_size": found.size,
        "free": found.free_bytes,
        "largest_free": found.largest,
        "fragmentation": 1 - <double>found.largest / <double>found.free_bytes if found.free_bytes else 0.0,
        "peak_committed": scanner._peak_committed[None],
        "peak_allocated": scanner._peak_allocated[None],
        "counters": _counters(state, found),
    }
    PyObject_GenericSetDict(usage, fields, NULL)
    return usage


cdef object _scan_quickly(HotState state, HotScanner scanner):
    """The figures of now, or ``None`` if Python has to find them."""
    cdef _Finding found
    cdef _Charges charges
    cdef array.array known
    cdef int done = 0
    if scanner._runner or state.peers or not state.may_prove:
        return None
    found = _Finding.__new__(_Finding)
    charges = found.charges = _Charges.__new__(_Charges)
    known = array.clone(_no_extents, FEW_EDGES + 4 * FEW_DECOMMITS + 2, False)
    log = []
    last = scanner._last
    if not state._begin():
        return None
    if not state.gate.begin():
        state.lock.end()
        return None
    try:
        if not scanner._runner and not state.peers:
            done = _look(state, scanner, found, known, log)
    finally:
        state.gate.end()
        state.lock.end()
    if not done:
        return None
    usage = _renewed(state, scanner, found) if done == 1 else _told(state, scanner, found)
    if scanner._last is last and not scanner._runner:  # else the collector ran something in between
        scanner._last = usage
        scanner._as_of = <double>found.began / 1e9
        if done == 2:
            scanner._figures_of.clear()
    return usage


cdef class Polls(Calls):
    """The fast way of :meth:`Memory.update_usage`, beside those of :class:`Calls`."""

    cdef HotScanner _hot_scanner

    def _attach_scanner(self, HotScanner scanner not None, figures, dict figures_of not None, int fd):
        scanner._figures = figures
        scanner._external = figures.external
        scanner._peak_committed = figures.peak_committed
        scanner._peak_allocated = figures.peak_allocated
        scanner._figures_of = figures_of
        scanner._fd = fd
        self._hot_scanner = scanner

    def update_usage(self, *, owner=None, max_age=0):
        """See :meth:`Memory.update_usage`."""
        cdef HotState state = self._hot
        cdef HotScanner scanner = self._hot_scanner
        cdef double age = -1
        cdef object usage
        if owner is None and scanner is not None and memplat_load(state.lock._owner) != PyThread_get_thread_ident():
            if PyFloat_CheckExact(max_age):
                age = PyFloat_AS_DOUBLE(max_age)
            elif type(max_age) is int and max_age == 0:
                age = 0
            if age > 0 and state.refuse is None and scanner._as_of >= 0 and memplat_now() / 1e9 - scanner._as_of <= age:
                return scanner._last
            if age >= 0:
                usage = _scan_quickly(state, scanner)
                if usage is not None:
                    return usage
        return _update_usage(self, owner=owner, max_age=max_age)


def install_polls(memory_file):
    """Say which class has the method that does what the fast way does not."""
    global _update_usage
    _update_usage = memory_file.update_usage
