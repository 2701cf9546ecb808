# Part of _fast.pyx: patches, the bytes that were written of a sector of which the rest is not known. Under the lock.

#     slot ──► patch ──► patch …        a sector each, and which of its bytes are known; the bytes are in the slot
#
# Such a sector is dirty and not valid. It becomes valid when the rest of it is written, or filled in; a block that is
# being stored has no patches. A write for which there are not enough of them waits: with a journal until some blocks
# are left to that or stored, without one until its own block is fetched.

cdef enum:
    # Patches for each slot: one, and one more for so many sectors.
    _PATCH_SECTORS = 32
    # One bit for each byte of a sector.
    _PATCH_BYTES = 64

cdef struct Patch:
    # The next one of the same slot, or of those that are free; -1 ends a list.
    int32_t next
    int32_t sector
    unsigned char known[_PATCH_BYTES]


cdef int32_t find_patch(Slab slab, int32_t index, Py_ssize_t sector) noexcept nogil:
    """Return the patch of a slot's sector, -1 if it has none."""
    cdef int32_t patch = slab._slot[index].patch
    while patch >= 0 and slab._patch[patch].sector != sector:
        patch = slab._patch[patch].next
    return patch


cdef bint needs_patch(Slab slab, int32_t index, Py_ssize_t sector) noexcept nogil:
    """A sector is not valid and has no patch; index -1: of a block that has no slot."""
    return index < 0 or not (slab._covers(index, sector, sector + 1) or find_patch(slab, index, sector) >= 0)


cdef bint has_patches_for(Slab slab, int32_t index, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """There are as many free patches as a write of bytes [start, stop) needs, at most one for either end."""
    cdef Py_ssize_t first = start >> _SECTOR_SHIFT, last = (stop - 1) >> _SECTOR_SHIFT
    cdef bint head = (start & (_SECTOR - 1)) != 0, tail = (stop & (_SECTOR - 1)) != 0
    cdef int32_t needed = 0
    if head or (tail and first == last):
        needed += needs_patch(slab, index, first)
    if tail and first < last:
        needed += needs_patch(slab, index, last)
    return slab.patches + needed <= slab._patch_limit


cdef int32_t take_patch(Slab slab, int32_t index, Py_ssize_t sector) noexcept nogil:
    """Give a slot's sector a patch that says that nothing of it is known; there is one."""
    cdef int32_t patch = slab._free_patch
    cdef Patch *taken = slab._patch + patch
    slab._free_patch = taken.next
    slab.patches += 1
    memset(taken, 0, sizeof(Patch))
    taken.sector, taken.next = <int32_t>sector, slab._slot[index].patch
    slab._slot[index].patch = patch
    return patch


cdef bint is_completed(Slab slab, int32_t index, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Note that bytes of one sector, a part of it, were written; return whether all of it is known then."""
    cdef Py_ssize_t sector = start >> _SECTOR_SHIFT
    cdef int32_t patch
    cdef Patch *found
    if slab._covers(index, sector, sector + 1):
        return True
    patch = find_patch(slab, index, sector)
    if patch < 0:
        patch = take_patch(slab, index, sector)
    found = slab._patch + patch
    start -= sector << _SECTOR_SHIFT
    stop -= sector << _SECTOR_SHIFT
    set_bits(found.known, start, stop)
    return next_bit(found.known, 0, _SECTOR, False) == _SECTOR


cdef void drop_patches(Slab slab, int32_t index, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Give back the patches of sectors [first, last)."""
    cdef int32_t *link = &slab._slot[index].patch
    cdef int32_t patch
    while link[0] >= 0:
        patch = link[0]
        if first <= slab._patch[patch].sector < last:
            link[0] = slab._patch[patch].next
            slab._patch[patch].next = slab._free_patch
            slab._free_patch = patch
            slab.patches -= 1
        else:
            link = &slab._patch[patch].next


cdef void fill_patches(Slab slab, int32_t index, const unsigned char *body) noexcept nogil:
    """Make every sector that has a patch valid with its part of the body, or with zeros."""
    cdef unsigned char *data = slab._data + <Py_ssize_t>index * slab._block_size
    cdef int32_t patch = slab._slot[index].patch
    cdef Py_ssize_t base, start, stop = 0
    while patch >= 0:
        base, start = <Py_ssize_t>slab._patch[patch].sector << _SECTOR_SHIFT, 0
        while True:
            start = next_bit(slab._patch[patch].known, start, _SECTOR, False)
            if start == _SECTOR:
                break
            stop = next_bit(slab._patch[patch].known, start, _SECTOR, True)
            if body:
                memcpy(data + base + start, body + base + start, stop - start)
            else:
                memset(data + base + start, 0, stop - start)
            start = stop
        set_bits(slab._map(index, _VALID), slab._patch[patch].sector, slab._patch[patch].sector + 1)
        patch = slab._patch[patch].next
    drop_patches(slab, index, 0, slab._sectors)


cdef Py_ssize_t known_run(
    Slab slab, int32_t index, Py_ssize_t start, Py_ssize_t stop, bint *known
) noexcept nogil:
    """Return up to where from ``start`` on, at most ``stop``, the bytes of a slot are known, or are not: ``known``."""
    cdef Py_ssize_t at = start, sector, base, end
    cdef int32_t patch
    cdef bint here
    while at < stop:
        sector = at >> _SECTOR_SHIFT
        base = sector << _SECTOR_SHIFT
        end = min(stop, base + _SECTOR)
        patch = -1
        here = slab._covers(index, sector, sector + 1)
        if not here:
            patch = find_patch(slab, index, sector)
        if patch >= 0:
            here = next_bit(slab._patch[patch].known, at - base, at - base + 1, True) == at - base
            end = base + next_bit(slab._patch[patch].known, at - base, end - base, not here)
        if at == start:
            known[0] = here
        elif here != known[0]:
            break
        at = end
    return at
