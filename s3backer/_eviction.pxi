# Part of _fast.pyx: which block has to go. S3-FIFO; docs/cache.md says why, and what differs here.

#     small    new blocks, in the order they came; a tenth of the clean slots, in small caches more. At its end a block
#              that was used again goes to main, any other is evicted and leaves a ghost
#     main     blocks that were used again, and those that came back while their ghost was there. At its end a
#              block that was used since goes round once more
#
# Only clean slots are in these queues, so no look for a victim passes unsaved ones. A slot that becomes clean joins
# the queue that it left, as its newest.
#
# Uses that follow each other closely are one use: a block that is read piece by piece was needed once. How closely is
# counted in the sectors read and written meanwhile, of whatever block. What was read ahead has not been used at all
# before somebody comes for it.

cdef enum:
    # A use counts no further.
    _MOST_HITS = 3
    # Uses after the first with which a block is worth keeping.
    _KEPT_HITS = 2
    # Small has one in so many of the clean slots; but this number, or half of them, where that is more: a tenth of
    # 30 blocks is evicted while it is still being read (21.8 % misses instead of 17.8 in a trace of ext4).
    _SMALL_SHARE = 10
    _SMALL_LEAST = 32
    # Slots passed over in one search; then the next one goes. So no search is long; on average it is one or two.
    _PATIENCE = 128
    # A use is one of its own when, since the last, so many blocks' worth was used; small caches: one in so many slots.
    _BURST_BLOCKS = 16
    _BURST_SHARE = 64
    # What was read ahead and not used yet may have one in so many of the slots beside the share of small.
    _AHEAD_SHARE = 4


cdef void list_insert(Slot *slots, SlotList *queue, int32_t index, int32_t older) noexcept nogil:
    """Put a slot into a list behind ``older``, -1: as its oldest."""
    cdef int32_t newer = slots[older].newer if older >= 0 else queue.oldest
    slots[index].older = older
    slots[index].newer = newer
    if older >= 0:
        slots[older].newer = index
    else:
        queue.oldest = index
    if newer >= 0:
        slots[newer].older = index
    else:
        queue.newest = index
    queue.count += 1


cdef void list_remove(Slot *slots, SlotList *queue, int32_t index) noexcept nogil:
    cdef int32_t older = slots[index].older, newer = slots[index].newer
    if older >= 0:
        slots[older].newer = newer
    else:
        queue.oldest = newer
    if newer >= 0:
        slots[newer].older = older
    else:
        queue.newest = older
    queue.count -= 1


cdef SlotList *queue_of(Slab slab, int32_t index) noexcept nogil:
    """Return the queue that a slot belongs to while it is clean."""
    return &slab._main if slab._slot[index].main else &slab._small


cdef void enqueue(Slab slab, int32_t index) noexcept nogil:
    """A slot has become clean."""
    cdef SlotList *queue = queue_of(slab, index)
    list_insert(slab._slot, queue, index, queue.newest)


cdef void dequeue(Slab slab, int32_t index) noexcept nogil:
    """A slot is no longer clean, or no longer used."""
    list_remove(slab._slot, queue_of(slab, index), index)


cdef void note_use(Slab slab, int32_t index, Py_ssize_t sectors) noexcept nogil:
    """So many sectors of a slot are read or written."""
    cdef Slot *slot = slab._slot + index
    slab._moved += <uint32_t>sectors
    if slot.ahead:
        slot.ahead = 0
        slab.ahead -= 1
        slot.counted = slab._moved
        if ghosts_take(&slab._ghosts, slot.block):
            slab.ghost_hits += 1
            slot.hits = _KEPT_HITS
    elif slab._moved - slot.counted > slab._burst:
        slot.counted = slab._moved
        if slot.hits < _MOST_HITS:
            slot.hits += 1


cdef void welcome(Slab slab, int32_t index, bint ahead, bint known) noexcept nogil:
    """A slot has been given to another block: read ahead, or one that had a ghost."""
    cdef Slot *slot = slab._slot + index
    slab._moved += <uint32_t>slab._sectors
    slot.counted = slab._moved
    slot.ahead = ahead
    slot.main = known
    slab.ahead += ahead
    slab.ghost_hits += known
    enqueue(slab, index)


cdef bint small_is_large(Slab slab) noexcept nogil:
    """The next victim is in small."""
    cdef int32_t waiting = min(slab.ahead, slab._slots / _AHEAD_SHARE)
    cdef int32_t clean = slab._small.count + slab._main.count
    cdef int32_t share = max(clean / _SMALL_SHARE, min(clean / 2, <int32_t>_SMALL_LEAST))
    return slab._main.count == 0 or slab._small.count - waiting > share


cdef int32_t find_victim(Slab slab) noexcept nogil:
    """Return the clean slot that is worth least, -1 if all of them are pinned or there is none. It stays queued."""
    cdef int32_t index, steps = 0
    cdef SlotList *queue
    cdef SlotList *other
    cdef Slot *slot
    while steps < _PATIENCE and slab._small.count + slab._main.count > 0:
        steps += 1
        queue = &slab._small if small_is_large(slab) else &slab._main
        index = queue.oldest
        slot = slab._slot + index
        if slot.pins == 0:
            if slot.hits < (1 if slot.main else _KEPT_HITS):
                return index
            list_remove(slab._slot, queue, index)
            slot.hits = slot.hits - 1 if slot.main else 0
            slot.main = 1
            enqueue(slab, index)
        else:
            list_remove(slab._slot, queue, index)
            enqueue(slab, index)
    queue = &slab._small if small_is_large(slab) else &slab._main
    other = &slab._main if queue == &slab._small else &slab._small
    index = queue.oldest
    while index >= 0 and slab._slot[index].pins > 0:
        index = slab._slot[index].newer
    if index < 0:
        index = other.oldest
        while index >= 0 and slab._slot[index].pins > 0:
            index = slab._slot[index].newer
    return index


cdef void evict(Slab slab, int32_t index) noexcept nogil:
    """Take a clean slot from its block."""
    cdef Slot *slot = slab._slot + index
    dequeue(slab, index)
    if slot.ahead:
        slab.ahead -= 1
    elif not slot.main:
        ghosts_add(&slab._ghosts, slot.block)
    slab.evictions += 1
