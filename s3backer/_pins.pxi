# Part of _fast.pyx: pins, by which a reader sends straight out of the slab, without a copy and without the lock.

#     pin_range    every sector of the range is valid: its slots are pinned, and the caller gets their addresses
#     unpin        the caller has sent them
#
# A pinned slot keeps its block, and the sectors in it that are valid keep their bytes: it is not evicted, and a write
# to its block and a drop_from wait until it is unpinned. What may go on: other pins and reads, a fill (it changes
# only sectors that nobody could pin), a store.
#
# While anybody waits nothing more is pinned, so a wait is as long as the pins that were there; those who would pin
# copy instead. So few slots can be pinned that there is always one to evict, or one dirty block whose store makes one.
# Between pin_range and unpin a thread may not wait for anything that another thread of the slab's users holds.

cdef enum:
    # Pins of one slot at once.
    _MOST_PINS = 255


cdef bint is_pinned_within(Slab slab, uint64_t first, uint64_t last) noexcept nogil:
    """A block of [first, last] is pinned."""
    cdef uint64_t block
    cdef int32_t index
    if last - first < <uint64_t>slab._slots:
        for block in range(first, last + 1):
            index = slab._find(block)
            if index >= 0 and slab._slot[index].pins > 0:
                return True
        return False
    for index in range(slab._slots):
        if slab._slot[index].pins > 0 and first <= slab._slot[index].block <= last:
            return True
    return False


cdef void wait_unpinned(Slab slab, uint64_t first, uint64_t last) noexcept nogil:
    """Wait, and let go of the lock meanwhile, until no block of [first, last] is pinned."""
    if not is_pinned_within(slab, first, last):
        return
    slab.waiting += 1
    slab.waits += 1
    while is_pinned_within(slab, first, last):
        pthread_cond_wait(&slab._unpinned, &slab._lock)
    slab.waiting -= 1


cdef int pin_pieces(
    Slab slab, uint64_t offset, Py_ssize_t length, iovec *out, Py_ssize_t room, Py_ssize_t *count
) noexcept nogil:
    """Pin all of a range or nothing of it, under the lock."""
    cdef Py_ssize_t position = 0, start, stop, pieces = 0, i
    cdef int32_t index, fresh = 0
    if slab.waiting > 0:
        return _BUSY
    while position < length:
        start = (offset + position) & (slab._block_size - 1)
        stop = min(slab._block_size, start + length - position)
        index = slab._find((offset + position) >> slab._block_shift)
        if index < 0 or not slab._covers(index, start >> _SECTOR_SHIFT, (stop + _SECTOR - 1) >> _SECTOR_SHIFT):
            return _MISSING
        fresh += slab._slot[index].pins == 0
        if pieces == room or slab._slot[index].pins == _MOST_PINS or slab.pinned + fresh > slab._pin_limit:
            return _BUSY
        out[pieces].iov_base = slab._data + <Py_ssize_t>index * slab._block_size + start
        out[pieces].iov_len = stop - start
        pieces += 1
        position += stop - start
    for i in range(pieces):
        index = slot_at(slab, out[i].iov_base)
        slab._slot[index].pins += 1
        note_use(slab, index, (<Py_ssize_t>out[i].iov_len + _SECTOR - 1) >> _SECTOR_SHIFT)
    slab.pinned += fresh
    slab.read_hits += pieces
    count[0] = pieces
    return _DONE


cdef void unpin_pieces(Slab slab, const iovec *pieces, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    cdef int32_t index
    for i in range(count):
        index = slot_at(slab, pieces[i].iov_base)
        slab._slot[index].pins -= 1
        slab.pinned -= slab._slot[index].pins == 0
    if slab.waiting > 0:
        pthread_cond_broadcast(&slab._unpinned)


cdef int32_t slot_at(Slab slab, const void *address) noexcept nogil:
    """Return the slot that an address lies in."""
    return (<const unsigned char *>address - slab._data) >> slab._block_shift
