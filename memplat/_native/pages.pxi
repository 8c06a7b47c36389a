# The page table: memplat/engine/pages.py, compiled. What the names mean stands there.

cdef extern from *:
    """
    #define TREE_API static
    #include "tree.c"
    """
    ctypedef struct tree_leaf:
        uint64_t start[65]
        uint64_t counts[64]
        uint32_t meta[64]
    ctypedef struct tree:
        void* root
        uint64_t size
        size_t runs
    ctypedef struct tree_spot:
        tree_leaf* leaf
        unsigned index
    int tree_init(tree*, uint64_t unit) nogil
    void tree_clear(tree*) nogil
    int tree_reserve(tree*) nogil
    size_t tree_bytes(const tree*) nogil
    tree_spot tree_find(tree*, uint64_t key) nogil
    tree_spot tree_next(tree_spot) nogil
    void tree_extend(tree*, uint64_t size, uint64_t counts, uint32_t meta) nogil
    void tree_change(tree*, tree_spot, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta, int join) nogil
    void tree_assign(tree*, uint64_t start, uint64_t end, uint64_t counts, uint32_t meta) nogil
    int tree_fit(tree*, unsigned class_, uint64_t length, int aligned, int last, tree_spot*) nogil
    int tree_next_of(tree*, unsigned class_, uint64_t key, tree_spot*) nogil
    uint64_t tree_longest(const tree*, unsigned class_) nogil
    const char* tree_check(const tree*) nogil

from cpython.ref cimport PyObject

cdef extern from "ranges.h":
    ctypedef struct PyTypeObject
    object make_range(uint64_t start, uint64_t end)
    bint read_int(PyObject*, uint64_t*) noexcept
    bint read_ends(PyObject*, uint64_t*, uint64_t*) noexcept
    void adopt_ranges(PyTypeObject*)

from memplat.errors import DoubleFreeError, NotAllocatedError, ReferenceOverflowError
from memplat.ranges import HUGE_PAGE_SIZE, MIB, FileRange
from memplat.types import MAX_REFS, MemoryKind, PageInfo, PageState

cdef enum:
    FREE = 0
    USED = 1
    WASTE = 2
    RELEASING = 3
    SMALL = 0
    HUGE = 1
    NONE = 0
    KEPT = 2
    RESERVED = 3
    # A run's meta: the state in 2 bits, the pool in 1, the account of used pages in the rest. In the tree of flags it is
    # the class of the flag; that of no flag is odd, so that it is not indexed.
    POOL_SHIFT = 2
    ACCOUNT_SHIFT = 3
    UNFLAGGED = 1

cdef uint64_t _ONE_REF = 1
cdef uint64_t _ONE_PIN = <uint64_t>1 << 32
cdef uint64_t _REFS = 0xFFFFFFFF
cdef uint64_t _MAX_PINS = 0xFFFFFFFF
cdef uint64_t _NEVER = 0xFFFFFFFFFFFFFFFF
cdef uint64_t _MAX_JOINED_GAP = 16 * MIB
cdef tuple _STATES = (PageState.FREE, PageState.USED, PageState.WASTE, PageState.RELEASING)
cdef tuple _FLAGS = ("", "retained", "kept", "reserved")

adopt_ranges(<PyTypeObject*>FileRange)


cdef inline uint32_t _flag_meta(unsigned flag) noexcept nogil:
    return flag << 1 if flag else UNFLAGGED


cdef inline object _hand_out(_Pages table, uint64_t start, uint64_t nbytes):
    """The range of pages that were taken; if there is no memory for it, they are given back."""
    try:
        return make_range(start, start + nbytes)
    except MemoryError:
        table.decref(start, start + nbytes)
        raise


cdef class Allocated:
    """The bytes in use by (kind, owner), as a mapping that is always up to date."""

    cdef _Pages _table

    def __cinit__(self, _Pages table not None):
        self._table = table

    cdef dict _copy(self):
        cdef dict found = {}
        cdef Accounts* accounts = &self._table._accounts
        cdef uint32_t index
        for index in range(accounts.count):
            if accounts.items[index].is_live:
                key = self._table._kinds[accounts.items[index].kind], accounts.items[index].owner
                found[key] = accounts.items[index].nbytes
        return found

    def get(self, key, default=None):
        """The bytes of one kind and owner."""
        kind, owner = key
        number = self._table._kind_ids.get(kind)
        if number is None or not 0 <= owner <= 0xFFFFFFFF:
            return default
        cdef uint32_t account = find_account(&self._table._accounts, number, owner)
        return default if account == NO_ACCOUNT else self._table._accounts.items[account].nbytes

    def __getitem__(self, key):
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key):
        return self.get(key) is not None

    def __len__(self):
        return self._table._accounts.live

    def __iter__(self):
        return iter(self._copy())

    def keys(self):
        """The kinds and owners."""
        return self._copy().keys()

    def values(self):
        """The bytes."""
        return self._copy().values()

    def items(self):
        """Both."""
        return self._copy().items()

    def __eq__(self, other):
        return self._copy() == ((<Allocated>other)._copy() if isinstance(other, Allocated) else other)

    def __repr__(self):
        return repr(self._copy())


cdef class _Pages:
    """References and free pages. The rest of the page table is in the class below, because one file would be too long."""

    cdef tree _segments
    cdef tree _flags  # without nodes until _need_flags; there if has_flags
    cdef Accounts _accounts
    cdef unsigned _shift
    cdef uint64_t _unit  # pages of a huge page
    cdef uint64_t _used  # bytes
    cdef list _kinds
    cdef dict _kind_ids
    cdef readonly uint64_t page_size, huge_unit, size, waste, releasing
    cdef readonly uint64_t allocations, frees
    cdef public uint64_t changes
    cdef readonly bint has_flags
    cdef public bint kept_is_reserved
    cdef readonly dict watched  # by owner: the changes when it was found what he uses, and the extents
    cdef public uint64_t _max_refs  # tests make it small

    def __cinit__(self, page_size):
        if not 0 < page_size < 1 << 40 or page_size & (page_size - 1):
            raise ValueError(f"page size {page_size} is no power of two")
        self.page_size = page_size
        self._shift = <unsigned>(page_size.bit_length() - 1)
        self.huge_unit = max(HUGE_PAGE_SIZE, page_size)
        self._max_refs = MAX_REFS
        self._unit = self.huge_unit >> self._shift
        self._kinds = []
        self._kind_ids = {}
        self.watched = {}
        for kind in MemoryKind:
            self._kind_id(str(kind))
        init_accounts(&self._accounts)
        if tree_init(&self._segments, self._unit):
            raise MemoryError

    def __dealloc__(self):
        tree_clear(&self._segments)
        tree_clear(&self._flags)
        clear_accounts(&self._accounts)

    @property
    def torn(self):
        """Never: a change is not interrupted by anything."""
        return 0

    @property
    def segments(self):
        """The runs of equal pages; see :class:`Runs`."""
        return Runs(self, False)

    @property
    def flags(self):
        """The runs of pages with equal flags; see :class:`Runs`."""
        return Runs(self, True)

    @property
    def allocated(self):
        """Bytes in use by (kind, owner); see :class:`Allocated`."""
        return Allocated(self)

    def __sizeof__(self):
        cdef size_t nbytes = object.__sizeof__(self)
        nbytes += tree_bytes(&self._segments) + tree_bytes(&self._flags)
        return nbytes + self._accounts.capacity * sizeof(Account) + (<size_t>self._accounts.mask + 1) * sizeof(uint32_t)

    # -- inside -------------------------------------------------------------------------------------------------------

    cdef uint32_t _kind_id(self, str kind) except? 0xFFFFFFFF:
        found = self._kind_ids.get(kind)
        if found is None:
            found = len(self._kinds)
            self._kinds.append(kind)
            self._kind_ids[kind] = found
        return found

    cdef int _check_range(self, uint64_t start, uint64_t end) except -1:
        if start >= end or end > self.size:
            raise IndexError(f"[{start}, {end}) is not within the {self.size} bytes of the page table")
        return 0

    cdef int _reserve(self) except -1:
        if tree_reserve(&self._segments):
            raise MemoryError
        return 0

    cdef int _need_flags(self) except -1:
        """Flags are rare: there is no tree of them before the first."""
        if self._flags.root == NULL:
            if tree_init(&self._flags, 1):
                raise MemoryError
            if self.size:
                tree_extend(&self._flags, self.size >> self._shift, 0, UNFLAGGED)
        return 0

    cdef inline bint _all_used(self, uint64_t first, uint64_t last) noexcept nogil:
        """Whether each page has a reference."""
        cdef tree_spot at = tree_find(&self._segments, first)
        while True:
            if not at.leaf.counts[at.index] & _REFS:
                return False
            if at.leaf.start[at.index + 1] >= last:
                return True
            at = tree_next(at)

    cdef inline bint _all_pinned(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef tree_spot at = tree_find(&self._segments, first)
        while True:
            if not at.leaf.counts[at.index] >> 32:
                return False
            if at.leaf.start[at.index + 1] >= last:
                return True
            at = tree_next(at)

    cdef inline bint _has_room_for(self, uint64_t first, uint64_t last, uint64_t refs, uint64_t pins) noexcept nogil:
        """Whether so many references and pins may still be added to each page."""
        cdef tree_spot at = tree_find(&self._segments, first)
        while True:
            if (at.leaf.counts[at.index] & _REFS) + refs > self._max_refs:
                return False
            if (at.leaf.counts[at.index] >> 32) + pins > _MAX_PINS:
                return False
            if at.leaf.start[at.index + 1] >= last:
                return True
            at = tree_next(at)

    cdef bint _is_idle(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef tree_spot at = tree_find(&self._segments, first)
        while True:
            if at.leaf.meta[at.index] & 1:
                return False
            if at.leaf.start[at.index + 1] >= last:
                return True
            at = tree_next(at)

    cdef uint64_t _waste_within(self, uint64_t first, uint64_t last) noexcept nogil:
        cdef tree_spot at = tree_find(&self._segments, first)
        cdef uint64_t found = 0
        while True:
            if at.leaf.meta[at.index] & 3 == WASTE:
                found += min(at.leaf.start[at.index + 1], last) - max(at.leaf.start[at.index], first)
            if at.leaf.start[at.index + 1] >= last:
                return found
            at = tree_next(at)

    cdef inline void _uncharge(self, uint32_t account, uint64_t nbytes) noexcept nogil:
        """Pages of an account became waste."""
        self._accounts.items[account].nbytes -= nbytes
        if not self._accounts.items[account].nbytes:
            give_up_account(&self._accounts, account)
        self._used -= nbytes
        self.waste += nbytes
        self.frees += 1
        self.changes += 1

    cdef inline void _count(self, uint64_t first, uint64_t last, uint64_t more) noexcept nogil:
        """Change references and pins. Pages that are left with none become waste. After _reserve."""
        cdef uint64_t position = first, stop, counts
        cdef uint32_t meta
        cdef tree_spot at
        while position < last:
            at = tree_find(&self._segments, position)
            stop = min(at.leaf.start[at.index + 1], last)
            counts = at.leaf.counts[at.index] + more
            meta = at.leaf.meta[at.index]
            if not counts:
                self._uncharge(meta >> ACCOUNT_SHIFT, (stop - position) << self._shift)
                meta = (meta & (1 << POOL_SHIFT)) | WASTE
            tree_change(&self._segments, at, position, stop, counts, meta, stop == last)
            position = stop

    cdef inline int _try_count(
        self, uint64_t first, uint64_t last, uint64_t more_refs, uint64_t more_pins, uint64_t wake_at
    ) noexcept nogil:
        """Add references or pins (all ones: take one away). 0, and no change, if that is not possible, or would make so
        much waste that the reclaimer has to be woken. -1 if there is no memory. 2 if one whole run became waste; else 1.
        """
        cdef tree_spot at = tree_find(&self._segments, first)
        cdef uint64_t counts = at.leaf.counts[at.index], more = more_refs + (more_pins << 32)
        if tree_reserve(&self._segments):
            return -1
        if at.leaf.start[at.index + 1] < last:
            return self._try_count_all(first, last, more_refs, more_pins, wake_at)
        if not (counts >> 32 if more_pins + 1 == 0 else counts & _REFS):
            return 0
        if (more_refs == 1 and counts & _REFS >= self._max_refs) or (more_pins == 1 and counts >> 32 >= _MAX_PINS):
            return 0
        if counts + more:
            tree_change(&self._segments, at, first, last, counts + more, at.leaf.meta[at.index], True)
            return 1
        if self.waste + ((last - first) << self._shift) >= wake_at:
            return 0
        cdef bint whole = at.leaf.start[at.index] == first and at.leaf.start[at.index + 1] == last
        cdef uint32_t meta = at.leaf.meta[at.index]
        self._uncharge(meta >> ACCOUNT_SHIFT, (last - first) << self._shift)
        tree_change(&self._segments, at, first, last, 0, (meta & (1 << POOL_SHIFT)) | WASTE, True)
        return 2 if whole else 1

    cdef bint _is_last(self, uint64_t first, uint64_t last, uint64_t less) noexcept nogil:
        """Whether these pages are of one run, and that (a reference or a view) is all that they have."""
        cdef tree_spot at = tree_find(&self._segments, first)
        return at.leaf.start[at.index + 1] >= last and at.leaf.counts[at.index] == less

    cdef void _free_at_once(self, uint64_t first, uint64_t last) noexcept nogil:
        """Pages of one run that are zero lose all that they have, and are free. After _reserve."""
        cdef tree_spot at = tree_find(&self._segments, first)
        cdef uint32_t meta = at.leaf.meta[at.index]
        self._uncharge(meta >> ACCOUNT_SHIFT, (last - first) << self._shift)
        self.waste -= (last - first) << self._shift
        tree_change(&self._segments, at, first, last, 0, (meta & (1 << POOL_SHIFT)) | FREE, True)

    cdef int _try_count_all(
        self, uint64_t first, uint64_t last, uint64_t more_refs, uint64_t more_pins, uint64_t wake_at
    ) noexcept nogil:
        """As :meth:`_try_count`, of several runs. After _reserve."""
        if not (self._all_pinned(first, last) if more_pins + 1 == 0 else self._all_used(first, last)):
            return 0
        if more_refs == 1 or more_pins == 1:
            if not self._has_room_for(first, last, more_refs, more_pins):
                return 0
        elif self.waste + ((last - first) << self._shift) >= wake_at:
            return 0
        self._count(first, last, more_refs + (more_pins << 32))
        return 1

    cdef inline bint _take(
        self, uint64_t count, uint32_t account, bint down, bint huge, unsigned source, uint64_t* start
    ) noexcept nogil:
        """Find pages of a source, mark them used, account for them. After _reserve, and one of _flags if there are."""
        cdef tree_spot at
        cdef bint aligned = count >= self._unit > 1
        cdef uint64_t first, nbytes = count << self._shift
        if not tree_fit(&self._segments, (source >> 1) | (<unsigned>huge << 1), count, aligned, down, &at):
            return False
        if down:
            first = at.leaf.start[at.index + 1] - count
            if aligned:
                first &= ~(self._unit - 1)
        else:
            first = at.leaf.start[at.index]
            if aligned:
                first = (first + self._unit - 1) & ~(self._unit - 1)
        tree_change(
            &self._segments, at, first, first + count, _ONE_REF,
            USED | (<uint32_t>huge << POOL_SHIFT) | (account << ACCOUNT_SHIFT), True,
        )
        if self.has_flags:
            if source == WASTE:
                self._clear_flags(first, first + count, RESERVED)
            else:
                self._change_flags(first, first + count, NONE, RESERVED if self.kept_is_reserved else NONE)
        if source == WASTE:
            self.waste -= nbytes
        self._accounts.items[account].nbytes += nbytes
        self._used += nbytes
        self.allocations += 1
        self.changes += 1
        start[0] = first
        return True

    cdef void _clear_flags(self, uint64_t first, uint64_t last, unsigned keep) noexcept nogil:
        self._change_flags(first, last, keep, NONE)

    cdef void _change_flags(self, uint64_t first, uint64_t last, unsigned keep, unsigned into) noexcept nogil:
        """Clear the flags but *keep*. What was kept committed gets *into*."""
        cdef uint64_t position = first, stop
        cdef uint32_t meta, kept = _flag_meta(keep)
        cdef tree_spot at
        while position < last:
            at = tree_find(&self._flags, position)
            stop = min(at.leaf.start[at.index + 1], last)
            meta = at.leaf.meta[at.index]
            if meta != kept and meta != UNFLAGGED:
                meta = _flag_meta(into) if meta == _flag_meta(KEPT) else UNFLAGGED
                tree_change(&self._flags, at, position, stop, 0, meta, True)
            position = stop

    # -- growing and allocating ---------------------------------------------------------------------------------------

    def extend(self, uint64_t size, *, bint huge, uint64_t dirty_end=0):
        cdef uint32_t pool = <uint32_t>huge << POOL_SHIFT
        if size < self.size or (size | dirty_end) & (self.page_size - 1) or size >> 62:
            raise IndexError(f"the page table of {self.size} bytes cannot be extended to {size}, dirty up to {dirty_end}")
        if size == self.size:
            return
        dirty_end = min(dirty_end, size)
        self._reserve()
        if self._flags.root != NULL and tree_reserve(&self._flags):
            raise MemoryError
        if dirty_end > self.size:
            self.waste += dirty_end - self.size
            tree_extend(&self._segments, dirty_end >> self._shift, 0, WASTE | pool)
        if size > max(dirty_end, self.size):
            tree_extend(&self._segments, size >> self._shift, 0, FREE | pool)
        if self._flags.root != NULL:
            tree_extend(&self._flags, size >> self._shift, 0, UNFLAGGED)
        self.size = size
        self.changes += 1

    def allocate(
        self, uint64_t length, str kind, uint32_t owner, *, bint down=False, bint huge=False, unsigned source=FREE
    ):
        cdef uint64_t start = 0
        cdef uint32_t account
        cdef bint found
        if not length or length & (self.page_size - 1) or source not in (FREE, WASTE):
            raise IndexError(f"no {length} bytes can be taken from pages in the state {source}")
        self._reserve()
        if self.has_flags and tree_reserve(&self._flags):
            raise MemoryError
        account = make_account(&self._accounts, self._kind_id(kind), owner)
        found = self._take(length >> self._shift, account, down, huge, source, &start)
        if not found:
            give_up_account(&self._accounts, account)
            return None
        return _hand_out(self, start << self._shift, length)

    def tail(self, *, bint huge):
        cdef tree_spot at
        if not self.size:
            return 0
        at = tree_find(&self._segments, (self.size >> self._shift) - 1)
        if at.leaf.meta[at.index] != (FREE | (<uint32_t>huge << POOL_SHIFT)):
            return self.size
        return at.leaf.start[at.index] << self._shift

    def borrow(self, uint64_t length, *, bint huge):
        cdef uint64_t count = ((length >> self._shift) + self._unit - 1) // self._unit * self._unit, start
        cdef tree_spot at
        self._reserve()
        if not tree_fit(&self._segments, <unsigned>(not huge) << 1, count, self._unit > 1, True, &at):
            return False
        start = (at.leaf.start[at.index + 1] - count) & ~(self._unit - 1)
        tree_change(&self._segments, at, start, start + count, 0, FREE | (<uint32_t>huge << POOL_SHIFT), True)
        return True

    # -- references ---------------------------------------------------------------------------------------------------

    def incref(self, uint64_t start, uint64_t end):
        cdef int done
        self._check_range(start, end)
        done = self._try_count(start >> self._shift, end >> self._shift, 1, 0, _NEVER)
        if done < 0:
            raise MemoryError
        if not done:
            for _, _, value in self.runs(start, end):
                if not value[1]:
                    raise NotAllocatedError(self._not_allocated("incref", start, end))
                if value[1] >= self._max_refs:
                    raise ReferenceOverflowError(
                        f"a page of {FileRange(start, end)} has {value[1]} references, the most"
                    )
        self.changes += 1

    def decref(self, uint64_t start, uint64_t end):
        cdef int done
        self._check_range(start, end)
        done = self._try_count(start >> self._shift, end >> self._shift, -1, 0, _NEVER)
        if done < 0:
            raise MemoryError
        if not done:
            raise DoubleFreeError(self._not_allocated("decref", start, end))
        self.changes += done == 1

    def pin(self, uint64_t start, uint64_t end, str what):
        cdef int done
        self._check_range(start, end)
        done = self._try_count(start >> self._shift, end >> self._shift, 0, 1, _NEVER)
        if done < 0:
            raise MemoryError
        if not done:
            if not self._all_used(start >> self._shift, end >> self._shift):
                raise NotAllocatedError(self._not_allocated(what, start, end))
            raise OverflowError(f"a page of {FileRange(start, end)} has {_MAX_PINS} views, the most")
        self.changes += 1

    def unpin(self, uint64_t start, uint64_t end):
        cdef int done
        self._check_range(start, end)
        done = self._try_count(start >> self._shift, end >> self._shift, 0, -1, _NEVER)
        if done < 0:
            raise MemoryError
        if not done:
            raise IndexError(f"a page of {FileRange(start, end)} has no view")
        self.changes += 1

    def transfer(self, uint64_t start, uint64_t end, uint32_t owner):
        cdef uint64_t first = start >> self._shift, last = end >> self._shift
        cdef uint32_t kind
        self.require(start, end, "transfer")
        self._reserve()
        try:
            kind = 0
            for _, _, value in self.runs(start, end):
                make_account(&self._accounts, self._kind_id(value[3]), owner)
            self._transfer(first, last, owner)
        finally:
            for kind in range(<uint32_t>len(self._kinds)):  # those that were made for nothing
                self._give_up_if_empty(kind, owner)
        self.changes += 1

    cdef void _give_up_if_empty(self, uint32_t kind, uint32_t owner) noexcept nogil:
        cdef uint32_t account = find_account(&self._accounts, kind, owner)
        if account != NO_ACCOUNT:
            give_up_account(&self._accounts, account)

    cdef void _transfer(self, uint64_t first, uint64_t last, uint32_t owner) noexcept nogil:
        """All accounts are there. After _reserve."""
        cdef uint64_t position = first, stop, nbytes
        cdef uint32_t old, new, meta
        cdef tree_spot at
        while position < last:
            at = tree_find(&self._segments, position)
            stop = min(at.leaf.start[at.index + 1], last)
            meta = at.leaf.meta[at.index]
            old = meta >> ACCOUNT_SHIFT
            new = find_account(&self._accounts, self._accounts.items[old].kind, owner)
            nbytes = (stop - position) << self._shift
            self._accounts.items[new].nbytes += nbytes
            self._accounts.items[old].nbytes -= nbytes
            give_up_account(&self._accounts, old)
            meta = (meta & ((1 << ACCOUNT_SHIFT) - 1)) | (new << ACCOUNT_SHIFT)
            tree_change(&self._segments, at, position, stop, at.leaf.counts[at.index], meta, stop == last)
            position = stop

    def require(self, uint64_t start, uint64_t end, str what):
        self._check_range(start, end)
        if not self._all_used(start >> self._shift, end >> self._shift):
            raise NotAllocatedError(self._not_allocated(what, start, end))

    def _not_allocated(self, what, start, end):
        for first, last, (state, refs, pins, *_) in self.runs(start, end):
            if not refs:
                held = f", held only by {pins} view(s)" if pins else ""
                return (
                    f"{what} of {FileRange(start, end)}: {FileRange(first, last)} is {_STATES[state]}{held}; "
                    "allowed are pages that have a reference, from allocate or incref"
                )
        raise AssertionError("every page has a reference")
