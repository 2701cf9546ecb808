# Part of _fast.pyx: what is always true of a slab, for tests.

cdef const char *find_broken(Slab slab) noexcept nogil:
    """Return what is wrong, NULL if nothing is."""
    cdef const char *wrong = find_broken_slot(slab)
    if not wrong:
        wrong = find_broken_count(slab)
    if not wrong:
        wrong = find_broken_list(slab, &slab._dirty)
    if not wrong:
        wrong = find_broken_list(slab, &slab._small)
    if not wrong:
        wrong = find_broken_list(slab, &slab._main)
    if not wrong:
        wrong = find_broken_patch(slab)
    if not wrong and not ghosts_hold(&slab._ghosts):
        wrong = b"a ghost is not found by its block, or they are counted wrong"
    return wrong


cdef const char *find_broken_slot(Slab slab) noexcept nogil:
    cdef int32_t index
    cdef Slot *slot
    cdef Py_ssize_t i
    for index in range(slab._slots):
        slot = slab._slot + index
        if not slot.used:
            if slot.pins > 0:
                return b"a free slot is pinned"
            continue
        if slab._find(slot.block) != index:
            return b"a used slot is not found by its block"
        if slot.valid != count_bits(slab._map(index, _VALID), 0, 8 * slab._map_bytes):
            return b"a count of valid sectors is wrong"
        if slot.dirty != count_bits(slab._map(index, _DIRTY), 0, 8 * slab._map_bytes):
            return b"a count of dirty sectors is wrong"
        if slot.storing != count_bits(slab._map(index, _STORING), 0, 8 * slab._map_bytes):
            return b"a count of storing sectors is wrong"
        for i in range(slab._map_bytes):
            if slab._map(index, _STORING)[i] & ~slab._map(index, _VALID)[i]:
                return b"a sector is storing and not valid"
        if slot.storing > 0 and slot.valid != slab._sectors:
            return b"a block that is being stored is not fully valid"
        if slot.hits > _MOST_HITS:
            return b"a slot has more hits than are counted"
        if slot.ahead and (slot.main or slot.hits > 0 or slot.dirty > 0 or slot.storing > 0):
            return b"a slot that was read ahead and not used has signs of use"
        if not slot.ahead and ghosts_link(&slab._ghosts, slot.block)[0] >= 0:
            return b"a cached block has a ghost"
    return NULL


cdef const char *find_broken_patch(Slab slab) noexcept nogil:
    cdef int32_t index, patch, patches = 0, unused = 0
    cdef Py_ssize_t sector, patched
    cdef unsigned char *known
    for index in range(slab._slots):
        if not slab._slot[index].used:
            continue
        patched = 0
        patch = slab._slot[index].patch
        while patch >= 0:
            sector, known = slab._patch[patch].sector, slab._patch[patch].known
            patched += 1
            if patched > slab._sectors or find_patch(slab, index, sector) != patch:
                return b"a sector has two patches"
            if slab._covers(index, sector, sector + 1) or not 0 < count_bits(known, 0, _SECTOR) < _SECTOR:
                return b"a patch is of a sector that is valid, or empty, or full"
            if next_bit(slab._map(index, _DIRTY), sector, sector + 1, True) != sector:
                return b"a sector that is known in part is not dirty"
            patch = slab._patch[patch].next
        for sector in range(slab._sectors):
            patched -= (
                next_bit(slab._map(index, _DIRTY), sector, sector + 1, True) == sector
                and not slab._covers(index, sector, sector + 1)
            )
        if patched:
            return b"a sector is dirty, neither valid nor known in part"
        patch = slab._slot[index].patch
        while patch >= 0:
            patches += 1
            patch = slab._patch[patch].next
    patch = slab._free_patch
    while patch >= 0 and unused <= slab._patch_count:
        unused += 1
        patch = slab._patch[patch].next
    if patches != slab.patches or patches + unused != slab._patch_count:
        return b"patches are counted wrong, or lost"
    return NULL


cdef const char *find_broken_count(Slab slab) noexcept nogil:
    cdef int32_t index, used = 0, dirty = 0, storing = 0, unsaved = 0, pinned = 0, ahead = 0, unused = 0
    cdef Slot *slot
    for index in range(slab._slots):
        slot = slab._slot + index
        if slot.used:
            used += 1
            dirty += slot.dirty > 0
            storing += slot.storing > 0
            unsaved += slot.dirty > 0 or slot.storing > 0
            pinned += slot.pins > 0
            ahead += slot.ahead
    if used != slab.used or dirty != slab.dirty or storing != slab.storing or unsaved != slab.unsaved:
        return b"a counter is wrong"
    if pinned != slab.pinned or ahead != slab.ahead:
        return b"the counter of pinned slots, or of those read ahead, is wrong"
    if dirty != slab._dirty.count or used - unsaved != slab._small.count + slab._main.count:
        return b"a slot is not in the list that it belongs to"
    index = slab._free
    while index >= 0:
        unused += 1
        if unused > slab._slots or slab._slot[index].used:
            return b"the list of free slots holds one that is not"
        index = slab._slot[index].chain
    if used + unused != slab._slots:
        return b"a slot is neither used nor free"
    return NULL


cdef const char *find_broken_list(Slab slab, SlotList *queue) noexcept nogil:
    """Go through the dirty slots, or through a queue of clean ones."""
    cdef bint of_dirty = queue == &slab._dirty
    cdef int32_t index = queue.oldest, older = -1, listed = 0
    cdef Slot *slot
    while index >= 0:
        slot = slab._slot + index
        listed += 1
        if listed > queue.count or not slot.used:
            return b"a list holds more than it counts, or a free slot"
        if slot.older != older:
            return b"a list is torn"
        if of_dirty:
            if slot.dirty == 0:
                return b"the list of dirty slots holds one that is not"
            if older >= 0 and slab._slot[older].first_sequence > slot.first_sequence:
                return b"the list of dirty slots is out of order"
        elif slot.dirty > 0 or slot.storing > 0:
            return b"a queue of clean slots holds one that is not"
        elif queue_of(slab, index) != queue:
            return b"a slot is in the other queue"
        older, index = index, slot.newer
    if older != queue.newest or listed != queue.count:
        return b"a list has another end, or another length"
    return NULL
