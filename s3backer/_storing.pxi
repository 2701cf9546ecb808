# Part of _fast.pyx: how dirty blocks get into the bucket, and how blocks are forgotten. Under the lock.

cdef Py_ssize_t list_dirty(Slab slab, Slot *found, Py_ssize_t room) noexcept nogil:
    """Copy up to ``room`` dirty slots that are not being stored, oldest first; return how many."""
    cdef Py_ssize_t count = 0
    cdef int32_t index = slab._dirty.oldest
    while index >= 0 and count < room:
        if slab._slot[index].storing == 0:
            found[count] = slab._slot[index]
            count += 1
        index = slab._slot[index].newer
    return count


cdef bint start_store(Slab slab, uint64_t block, unsigned char *target, uint64_t *sequence, bint *zero) noexcept nogil:
    """Copy a block that is to be stored, unless it is all zero; False if it cannot be stored now."""
    cdef int32_t index = slab._find(block)
    cdef Slot *slot = slab._slot + index
    cdef unsigned char *data = slab._data + <Py_ssize_t>index * slab._block_size
    if index < 0 or slot.dirty == 0 or slot.storing > 0 or slot.valid != slab._sectors:
        return False
    zero[0] = s3b_zero(data, slab._block_size)
    if not zero[0]:
        memcpy(target, data, slab._block_size)
    memcpy(slab._map(index, _STORING), slab._map(index, _DIRTY), slab._map_bytes)
    memset(slab._map(index, _DIRTY), 0, slab._map_bytes)
    slot.storing, slot.dirty = slot.dirty, 0
    slot.storing_sequence, slot.storing_since = slot.first_sequence, slot.dirty_since
    sequence[0] = slot.first_sequence
    list_remove(slab._slot, &slab._dirty, index)
    slab.dirty -= 1
    slab.storing += 1
    return True


cdef bint settle_store(Slab slab, uint64_t block, bint stored) noexcept nogil:
    """The store has ended; False if there was none."""
    cdef int32_t index = slab._find(block)
    cdef Slot *slot = slab._slot + index
    cdef unsigned char *dirty
    cdef unsigned char *storing
    cdef Py_ssize_t i
    if index < 0 or slot.storing == 0:
        return False
    dirty, storing = slab._map(index, _DIRTY), slab._map(index, _STORING)
    slab.storing -= 1
    slot.storing = 0
    if not stored:
        if slot.dirty == 0:
            slab.dirty += 1
        else:
            list_remove(slab._slot, &slab._dirty, index)
        slot.first_sequence, slot.dirty_since = slot.storing_sequence, slot.storing_since
        for i in range(slab._map_bytes):
            dirty[i] |= storing[i]
        slot.dirty = count_bits(dirty, 0, slab._sectors)
        link_dirty(slab, index)
    elif slot.dirty == 0:
        slab.unsaved -= 1
        enqueue(slab, index)
    memset(storing, 0, slab._map_bytes)
    return True


cdef bint make_clean(Slab slab, uint64_t block) noexcept nogil:
    """Let a dirty block be clean: what is dirty of it is safe elsewhere; False if it is not, or is being stored."""
    cdef int32_t index = slab._find(block)
    cdef Slot *slot = slab._slot + index
    if index < 0 or slot.dirty == 0 or slot.storing > 0:
        return False
    memset(slab._map(index, _DIRTY), 0, slab._map_bytes)
    drop_patches(slab, index, 0, slab._sectors)
    slot.dirty = 0
    list_remove(slab._slot, &slab._dirty, index)
    slab.dirty -= 1
    slab.unsaved -= 1
    enqueue(slab, index)
    return True


cdef int32_t drop_slots(Slab slab, uint64_t block) noexcept nogil:
    """Forget every block from this one on and return how many; -1, and nothing done, if one is unsaved."""
    cdef int32_t index, dropped = 0
    cdef Slot *slot
    for index in range(slab._slots):
        slot = slab._slot + index
        if slot.used and slot.block >= block and (slot.dirty > 0 or slot.storing > 0):
            return -1
    for index in range(slab._slots):
        slot = slab._slot + index
        if slot.used and slot.block >= block:
            release(slab, index)
            dropped += 1
    return dropped
