# Who pays for which committed page: memplat/engine/accounting.py, straight over the tree.


cdef class _Charges:
    """Committed bytes by account, of what nobody uses any more, and the committed parts of free runs."""

    cdef uint64_t* by_account
    cdef uint32_t count  # of accounts
    cdef uint64_t idle, free_bytes  # waste and releasing; free
    cdef _Parts free_parts  # in pages; None: not wanted

    def __dealloc__(self):
        free(self.by_account)

    cdef int prepare(self, PageTable table) except -1:
        """Make room. Nothing may change the accounts from now on until the charges are read."""
        free(self.by_account)
        self.count = table._accounts.count
        self.by_account = <uint64_t*>calloc(max(self.count, 1), sizeof(uint64_t))
        if self.by_account == NULL:
            raise MemoryError
        self.idle = self.free_bytes = 0
        return 0

    cdef int add(self, PageTable table, int64_t* edges, size_t count, size_t max_runs) except -1:
        """Charge extents, given as so many edges, all of them within the table. 1 if that takes more than so many runs.
        """
        cdef tree* runs = &table._segments
        cdef unsigned shift = table._shift
        cdef uint64_t position, stop, end
        cdef uint32_t meta
        cdef size_t index = 0
        cdef tree_spot at
        at.leaf = NULL
        while index < count:
            position = <uint64_t>edges[index] >> shift
            end = <uint64_t>edges[index + 1] >> shift
            index += 2
            if at.leaf == NULL or position >= at.leaf.start[at.index + 1]:
                at = tree_find(runs, position)
            while True:
                if not max_runs:
                    return 1
                max_runs -= 1
                stop = min(end, at.leaf.start[at.index + 1])
                meta = at.leaf.meta[at.index]
                if meta & 3 == USED:
                    self.by_account[meta >> ACCOUNT_SHIFT] += stop - position
                elif meta & 3 == FREE:
                    self.free_bytes += stop - position
                    if self.free_parts is not None:
                        self._add_free(position, stop)
                else:
                    self.idle += stop - position
                position = stop
                if position >= end:
                    break
                at = tree_next(at)
        return 0


    cdef int _add_free(self, uint64_t first, uint64_t last) except -1:
        cdef _Parts parts = self.free_parts
        if parts.count and parts.items[parts.count - 1].last == first:  # of another pool
            parts.items[parts.count - 1].last = last
        else:
            parts.add(first, last)
        return 0


def charge(PageTable table not None, array.array extents not None):
    """What :func:`memplat.engine.accounting.attribute` needs: (owner, kind, bytes) of what is used; the bytes of waste, and
    the committed parts of free runs, as extents. Under the memory's lock.
    """
    cdef _Charges found = _Charges()
    cdef array.array parts
    cdef uint32_t index
    cdef size_t part
    cdef list used = []
    cdef Py_ssize_t count = len(extents)
    if extents.ob_descr.typecode != c"q" or count % 2:
        raise TypeError("no extents")
    if count and not 0 <= extents.data.as_longlongs[0] < extents.data.as_longlongs[count - 1] <= <int64_t>table.size:
        raise IndexError("the extents are not within the page table")
    found.free_parts = _Parts()
    found.prepare(table)
    found.add(table, <int64_t*>extents.data.as_longlongs, count, <size_t>-1)
    sums = []
    for index in range(found.count):  # read out before anything is made that may set off the collector
        if found.by_account[index]:
            used.append((index, table._accounts.items[index].owner, table._accounts.items[index].kind))
    for index, owner, kind in used:
        sums.append((owner, table._kinds[kind], found.by_account[index] << table._shift))
    parts = array.clone(_no_extents, 2 * <Py_ssize_t>found.free_parts.count, False)
    for part in range(found.free_parts.count):
        parts.data.as_longlongs[2 * part] = <int64_t>(found.free_parts.items[part].first << table._shift)
        parts.data.as_longlongs[2 * part + 1] = <int64_t>(found.free_parts.items[part].last << table._shift)
    return sums, found.idle << table._shift, parts
