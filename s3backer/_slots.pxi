# Part of _fast.pyx: what a slot goes through: given to a block, filled, written, dirty, given back. Under the lock.

cdef int32_t allocate(Slab slab, uint64_t block, bint ahead) noexcept nogil:
    """Return an empty slot for the block, -1 if every slot is unsaved or pinned."""
    cdef int32_t index = slab._free
    cdef bint known
    cdef Slot *slot
    cdef int32_t *head
    if index >= 0:
        slab._free = slab._slot[index].chain
        known = not ahead and ghosts_take(&slab._ghosts, block)
    else:
        index = find_victim(slab)
        if index < 0:
            return -1
        known = not ahead and ghosts_take(&slab._ghosts, block)
        evict(slab, index)
        unhash(slab, index)
        slab.used -= 1
    slot = slab._slot + index
    memset(slot, 0, sizeof(Slot))
    memset(slab._map(index, _VALID), 0, 3 * slab._map_bytes)
    head = slab._head(block)
    slot.block = block
    slot.patch = -1
    slot.used = 1
    slot.chain = head[0]
    head[0] = index
    slab.used += 1
    welcome(slab, index, ahead, known)
    return index


cdef void unhash(Slab slab, int32_t index) noexcept nogil:
    cdef int32_t *link = slab._head(slab._slot[index].block)
    while link[0] != index:
        link = &slab._slot[link[0]].chain
    link[0] = slab._slot[index].chain


cdef void release(Slab slab, int32_t index) noexcept nogil:
    """Give a clean slot back."""
    dequeue(slab, index)
    slab.ahead -= slab._slot[index].ahead
    unhash(slab, index)
    slab._slot[index].used = 0
    slab._slot[index].chain = slab._free
    slab._free = index
    slab.used -= 1


cdef void link_dirty(Slab slab, int32_t index) noexcept nogil:
    """Put a slot into the list of dirty ones: nearly always at its end."""
    cdef uint64_t sequence = slab._slot[index].first_sequence
    cdef int32_t older = slab._dirty.newest
    if older >= 0 and slab._slot[older].first_sequence > sequence:
        older = -1
        while slab._slot[newer_dirty(slab, older)].first_sequence <= sequence:
            older = newer_dirty(slab, older)
    list_insert(slab._slot, &slab._dirty, index, older)


cdef int32_t newer_dirty(Slab slab, int32_t index) noexcept nogil:
    """Return the dirty slot behind this one, the oldest behind -1."""
    return slab._slot[index].newer if index >= 0 else slab._dirty.oldest


cdef void mark_valid(Slab slab, int32_t index, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Set sectors [first, last) valid: all of their bytes are known."""
    cdef unsigned char *valid = slab._map(index, _VALID)
    if first >= last:
        return
    slab._slot[index].valid += last - first - count_bits(valid, first, last)
    set_bits(valid, first, last)
    if slab._slot[index].patch >= 0:
        drop_patches(slab, index, first, last)


cdef void mark_dirty(Slab slab, int32_t index, Py_ssize_t first, Py_ssize_t last, double now) noexcept nogil:
    """Set sectors [first, last) dirty, as of the current sequence."""
    cdef Slot *slot = slab._slot + index
    cdef unsigned char *dirty = slab._map(index, _DIRTY)
    if slot.dirty == 0:
        slot.first_sequence = slab.sequence
        slot.dirty_since = now
        slab.dirty += 1
        if slot.storing == 0:
            slab.unsaved += 1
            dequeue(slab, index)
        link_dirty(slab, index)
    slot.dirty += last - first - count_bits(dirty, first, last)
    set_bits(dirty, first, last)


cdef void mark_written(Slab slab, int32_t index, Py_ssize_t start, Py_ssize_t stop, double now) noexcept nogil:
    """Bytes [start, stop) were written; there are patches for the sectors of which the rest is not known."""
    cdef Py_ssize_t first = start >> _SECTOR_SHIFT, last = (stop + _SECTOR - 1) >> _SECTOR_SHIFT
    cdef Py_ssize_t valid_from = first, valid_to = last
    if start & (_SECTOR - 1) and not is_completed(slab, index, start, min(stop, (first + 1) << _SECTOR_SHIFT)):
        valid_from += 1
    if stop & (_SECTOR - 1) and (last - 1 > first or start & (_SECTOR - 1) == 0):
        if not is_completed(slab, index, max(start, (last - 1) << _SECTOR_SHIFT), stop):
            valid_to -= 1
    mark_valid(slab, index, valid_from, valid_to)
    mark_dirty(slab, index, first, last, now)


cdef void fill_gaps(Slab slab, int32_t index, const unsigned char *body) noexcept nogil:
    """Make every invalid sector valid with its part of the body, or with zeros; what was written of it stays."""
    cdef unsigned char *valid = slab._map(index, _VALID)
    cdef unsigned char *data = slab._data + <Py_ssize_t>index * slab._block_size
    cdef Py_ssize_t first = 0, last, start, length
    if slab._slot[index].patch >= 0:
        fill_patches(slab, index, body)
    while True:
        first = next_bit(valid, first, slab._sectors, False)
        if first == slab._sectors:
            break
        last = next_bit(valid, first, slab._sectors, True)
        start, length = first << _SECTOR_SHIFT, (last - first) << _SECTOR_SHIFT
        if body:
            memcpy(data + start, body + start, length)
        else:
            memset(data + start, 0, length)
        first = last
    set_bits(valid, 0, slab._sectors)
    slab._slot[index].valid = slab._sectors


cdef int write_piece(
    Slab slab, uint64_t block, Py_ssize_t start, Py_ssize_t stop, const unsigned char *data, double now, bint *changed
) noexcept nogil:
    """Write one block's part, or zeros where there is no data; return _DONE or why it cannot be done."""
    cdef int32_t index = slab._find(block)
    cdef unsigned char *target
    if index >= 0:
        if slab._slot[index].dirty == 0 and slab._slot[index].storing == 0 and slab.unsaved >= slab._dirty_limit:
            return _NO_SLOT
    else:
        if data and stop - start == slab._block_size and s3b_zero(data, slab._block_size):
            return _ZERO_BLOCK
        if slab.unsaved >= slab._dirty_limit:
            return _NO_SLOT
    if (start | stop) & (_SECTOR - 1) and not has_patches_for(slab, index, start, stop):
        return _NO_PATCH
    if index >= 0:
        slab.write_hits += 1
    else:
        index = allocate(slab, block, False)
        if index < 0:
            return _NO_SLOT
        slab.write_misses += 1
    if not changed[0]:
        changed[0] = True
        slab.sequence += 1
    target = slab._data + <Py_ssize_t>index * slab._block_size + start
    if data:
        memcpy(target, data, stop - start)
    else:
        memset(target, 0, stop - start)
    note_use(slab, index, ((stop + _SECTOR - 1) >> _SECTOR_SHIFT) - (start >> _SECTOR_SHIFT))
    mark_written(slab, index, start, stop, now)
    return _DONE
