# Recycling: waste for somebody who is about to write all of it, zeroed and handed out in one go.
#
# Only if all of it is in RAM, so that zeroing takes no fault and asks the host for nothing; and only so little that the
# GIL need not be released meanwhile, which keeps everybody from closing the memory. All else is
# memplat/engine/allocation.py's.

from cpython.dict cimport PyDict_SetItem
from libc.string cimport memset

#: 6 us if it is in the cache, 25 us if not: less than it may take to get the GIL back.
cdef uint64_t _MAX_HELD = 256 * 1024


cdef bint _take_present(HotState state, uint64_t count, uint32_t account, uint64_t* start) noexcept:
    """Zero and take the first waste that fits. False, and no change, if there is none, or it is not in RAM."""
    cdef PageTable table = state.table
    cdef uint64_t nbytes = count << table._shift
    cdef tree_spot at
    cdef char* address
    if nbytes > _MAX_HELD or count >= table._unit > 1:
        return False
    if not tree_fit(&table._segments, WASTE >> 1, count, False, False, &at):
        return False
    address = state._base + (at.leaf.start[at.index] << table._shift)
    if not memplat_all_present(address, nbytes, state._owner):
        return False
    memset(address, 0, nbytes)
    return table._take(count, account, False, False, WASTE, start)


cdef bint _take_kept(HotState state, uint64_t count, uint32_t account, uint64_t* start) noexcept:
    """Take the first free pages that fit, if all of them were kept committed: nobody need reserve them. False, and no
    change, if that is not so.
    """
    cdef PageTable table = state.table
    cdef tree_spot at
    cdef uint64_t first
    if not table.has_flags or state.peers or table._unit > 1:
        return False
    if not tree_fit(&table._segments, FREE >> 1, count, False, False, &at):
        return False
    first = at.leaf.start[at.index]
    at = tree_find(&table._flags, first)
    if at.leaf.meta[at.index] != _flag_meta(KEPT) or at.leaf.start[at.index + 1] < first + count:
        return False
    return table._take(count, account, False, False, FREE, start)


cdef object _recycled_bytes = "recycled_bytes"


cdef void _count_recycled(HotState state, uint64_t nbytes) noexcept:
    """Count it without asking the class of the counters, which has a slow way of its own to set one."""
    cdef PyObject* known = PyDict_GetItemWithError(state.counters, _recycled_bytes)
    PyDict_SetItem(state.counters, _recycled_bytes, (<object>known if known != NULL else 0) + nbytes)
