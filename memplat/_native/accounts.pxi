# Kinds and owners as small integers, and the bytes that each pair has allocated.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc


cdef struct Account:
    uint64_t nbytes
    uint32_t owner
    uint32_t kind
    uint32_t next_free  # the next account that is free, if this one is
    bint is_live


cdef extern from *:
    """
    #define NO_ACCOUNT UINT32_MAX
    #define MAX_ACCOUNTS (UINT32_C(1) << 29) /* the meta of a run has 29 bits for the account */
    """
    const uint32_t NO_ACCOUNT
    const uint32_t MAX_ACCOUNTS


cdef struct Accounts:
    Account* items
    uint32_t count, capacity, live
    uint32_t first_free
    uint32_t* slots  # a hash table of indexes + 1; 0 is empty
    uint32_t mask


cdef inline uint32_t _slot_of(Accounts* self, uint32_t kind, uint32_t owner) noexcept nogil:
    cdef uint64_t mixed = ((<uint64_t>kind << 32) | owner) * <uint64_t>0x9E3779B97F4A7C15
    return <uint32_t>(mixed >> 32) & self.mask


cdef uint32_t find_account(Accounts* self, uint32_t kind, uint32_t owner) noexcept nogil:
    """The account of the pair, or NO_ACCOUNT."""
    cdef uint32_t slot = _slot_of(self, kind, owner), index
    while self.slots[slot]:
        index = self.slots[slot] - 1
        if self.items[index].owner == owner and self.items[index].kind == kind:
            return index
        slot = (slot + 1) & self.mask
    return NO_ACCOUNT


cdef void _place(Accounts* self, uint32_t index) noexcept nogil:
    cdef uint32_t slot = _slot_of(self, self.items[index].kind, self.items[index].owner)
    while self.slots[slot]:
        slot = (slot + 1) & self.mask
    self.slots[slot] = index + 1


cdef int init_accounts(Accounts* self) except -1:
    self.items = NULL
    self.count = self.capacity = self.live = 0
    self.first_free = NO_ACCOUNT
    self.mask = 63
    self.slots = <uint32_t*>calloc(self.mask + 1, sizeof(uint32_t))
    if self.slots == NULL:
        raise MemoryError
    return 0


cdef void clear_accounts(Accounts* self) noexcept:
    free(self.items)
    free(self.slots)
    self.items = NULL
    self.slots = NULL


cdef int _grow_slots(Accounts* self) except -1:
    cdef uint32_t mask = self.mask * 2 + 1, index
    cdef uint32_t* slots = <uint32_t*>calloc(<size_t>mask + 1, sizeof(uint32_t))
    if slots == NULL:
        raise MemoryError
    free(self.slots)
    self.slots = slots
    self.mask = mask
    for index in range(self.count):
        if self.items[index].is_live:
            _place(self, index)
    return 0


cdef int _grow_items(Accounts* self) except -1:
    cdef uint32_t capacity = self.capacity * 2 if self.capacity else 16
    if self.capacity >= MAX_ACCOUNTS:
        raise MemoryError("more kinds and owners at a time than the page table can tell apart")
    cdef Account* items = <Account*>realloc(self.items, capacity * sizeof(Account))
    if items == NULL:
        raise MemoryError
    self.items = items
    self.capacity = capacity
    return 0


cdef uint32_t make_account(Accounts* self, uint32_t kind, uint32_t owner) except? 0xFFFFFFFF:
    """The account of the pair, made if there is none. One without bytes has to be given up again."""
    cdef uint32_t index = find_account(self, kind, owner)
    if index != NO_ACCOUNT:
        return index
    if 2 * self.live >= self.mask:
        _grow_slots(self)
    if self.first_free == NO_ACCOUNT and self.count == self.capacity:
        _grow_items(self)
    if self.first_free != NO_ACCOUNT:
        index = self.first_free
        self.first_free = self.items[index].next_free
    else:
        index = self.count
        self.count += 1
    self.items[index].nbytes = 0
    self.items[index].owner = owner
    self.items[index].kind = kind
    self.items[index].next_free = NO_ACCOUNT
    self.items[index].is_live = True
    self.live += 1
    _place(self, index)
    return index


cdef void give_up_account(Accounts* self, uint32_t index) noexcept nogil:
    """Forget an account if it has no bytes."""
    if self.items[index].nbytes:
        return
    cdef uint32_t slot = _slot_of(self, self.items[index].kind, self.items[index].owner), hole, home
    while self.slots[slot] != index + 1:
        slot = (slot + 1) & self.mask
    # What lies behind moves up, unless it would come to lie before its own place.
    hole = slot
    while True:
        slot = (slot + 1) & self.mask
        if not self.slots[slot]:
            break
        home = _slot_of(self, self.items[self.slots[slot] - 1].kind, self.items[self.slots[slot] - 1].owner)
        if ((slot - home) & self.mask) >= ((slot - hole) & self.mask):
            self.slots[hole] = self.slots[slot]
            hole = slot
    self.slots[hole] = 0
    self.items[index].is_live = False
    self.items[index].next_free = self.first_free
    self.first_free = index
    self.live -= 1
