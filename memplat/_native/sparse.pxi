# Pages that nobody has touched, or hardly any, are free with their last reference: memplat/engine/sparse.py, compiled.

from libc.string cimport memset

cdef extern from "probe.h":
    int memplat_few_touched(int fd, int64_t start, int64_t end, int64_t page, int64_t* edges, int most) nogil

cdef extern from "present.h":
    bint memplat_all_present(char* address, size_t length, long owner) nogil

cdef enum:
    SPARSE = 1 << 20
    MOST_TOUCHED = 16
    FEW_KEPT = 32


cdef bint _free_sparse(HotState state, uint64_t start, uint64_t end, uint64_t less) noexcept:
    """Free pages that lose all that they have, if hardly any was touched. False: nothing has changed. Under the lock."""
    cdef PageTable table = state.table
    cdef int64_t edges[2 * MOST_TOUCHED]
    cdef int count
    if not state.may_prove or state.peers or state._fd < 0 or table._shift >= 20:
        return False
    if not table._is_last(start >> table._shift, end >> table._shift, less):
        return False
    # What was reserved and not touched has no data, but costs storage; and the kernel goes through it page by page.
    if table.has_flags and tree_longest(&table._flags, RESERVED):
        return False
    if not state.gate.begin():  # whoever decommits keeps the kernel's lock of the file
        return False
    count = memplat_few_touched(
        state._fd, <int64_t>start, <int64_t>end, <int64_t>table.page_size, edges, MOST_TOUCHED
    )
    state.gate.end()
    if count < 0 or (count and not _may_keep(state, edges, count)) or tree_reserve(&table._segments):
        return False
    _keep(state, edges, count)
    table._free_at_once(start >> table._shift, end >> table._shift)
    return True


cdef bint _may_keep(HotState state, const int64_t* edges, int count) noexcept:
    """Whether these pages are in RAM, and there is room for them among those that are kept committed."""
    cdef PageTable table = state.table
    cdef uint64_t position = 0, kept = 0
    cdef int index, runs = 0
    cdef tree_spot at
    if not state.keep:
        return False
    if table._flags.root == NULL:
        try:
            table._need_flags()
        except MemoryError:
            return False
    if tree_reserve(&table._flags):
        return False
    for index in range(0, count, 2):
        kept += edges[index + 1] - edges[index]
        if not memplat_all_present(state._base + edges[index], edges[index + 1] - edges[index], state._owner):
            return False
    while table.has_flags and tree_next_of(&table._flags, KEPT, position, &at):
        runs += 1
        if runs > FEW_KEPT:
            return False
        position = at.leaf.start[at.index + 1]
        kept += (position - at.leaf.start[at.index]) << table._shift
    return kept <= state.keep


cdef void _keep(HotState state, const int64_t* edges, int count) noexcept:
    """Zero them, and note that they stay committed. What could not be noted is found by a scan."""
    cdef PageTable table = state.table
    cdef int index
    for index in range(0, count, 2):
        memset(state._base + edges[index], 0, edges[index + 1] - edges[index])
        if not tree_reserve(&table._flags):
            tree_assign(
                &table._flags, edges[index] >> table._shift, edges[index + 1] >> table._shift, 0, _flag_meta(KEPT)
            )
            table.has_flags = True
