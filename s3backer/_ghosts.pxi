# Part of _fast.pyx: the ghosts, which are the numbers of the blocks that were evicted last and were used only once.

#     ring       block of each of the last ``size`` ghosts, overwritten in turn; a hole where one was taken
#     chain      next position of the same hash bucket, -1 at its end, -2 in a hole
#     bucket     first position of each hash bucket, -1 if there is none

cdef enum:
    _HOLE = -2


cdef bint ghosts_make(Ghosts *ghosts, int32_t size, int hash_shift) noexcept nogil:
    """Get the memory; False if there is none. ``ghosts_end`` gives it back in any case."""
    cdef size_t buckets = <size_t>1 << (64 - hash_shift)
    cdef int32_t position
    ghosts.block = <uint64_t *>calloc(size, sizeof(uint64_t))
    ghosts.chain = <int32_t *>calloc(size, sizeof(int32_t))
    ghosts.bucket = <int32_t *>calloc(buckets, sizeof(int32_t))
    ghosts.size = size
    ghosts.hash_shift = hash_shift
    if not (ghosts.block and ghosts.chain and ghosts.bucket):
        return False
    memset(ghosts.bucket, 0xFF, buckets * sizeof(int32_t))
    for position in range(size):
        ghosts.chain[position] = _HOLE
    return True


cdef void ghosts_end(Ghosts *ghosts) noexcept nogil:
    free(ghosts.block)
    free(ghosts.chain)
    free(ghosts.bucket)


cdef int32_t *ghosts_link(Ghosts *ghosts, uint64_t block) noexcept nogil:
    """Return what points to the block's ghost, or to the end of its hash bucket."""
    cdef int32_t *link = ghosts.bucket + spread(block, ghosts.hash_shift)
    while link[0] >= 0 and ghosts.block[link[0]] != block:
        link = ghosts.chain + link[0]
    return link


cdef bint ghosts_take(Ghosts *ghosts, uint64_t block) noexcept nogil:
    """Return whether the block has a ghost, and remove it."""
    cdef int32_t *link = ghosts_link(ghosts, block)
    cdef int32_t position = link[0]
    if position < 0:
        return False
    link[0] = ghosts.chain[position]
    ghosts.chain[position] = _HOLE
    ghosts.count -= 1
    return True


cdef void ghosts_add(Ghosts *ghosts, uint64_t block) noexcept nogil:
    """Remember a block that has no ghost, in the place of the oldest."""
    cdef int32_t position = ghosts.next
    cdef int32_t *link
    if ghosts.chain[position] != _HOLE:
        ghosts_take(ghosts, ghosts.block[position])
    link = ghosts_link(ghosts, block)
    ghosts.block[position] = block
    ghosts.chain[position] = -1
    link[0] = position
    ghosts.count += 1
    ghosts.next = position + 1 if position + 1 < ghosts.size else 0


cdef bint ghosts_hold(Ghosts *ghosts) noexcept nogil:
    """Return whether each of them is found by its block, and none besides."""
    cdef int32_t position, count = 0
    for position in range(ghosts.size):
        if ghosts.chain[position] != _HOLE:
            count += 1
            if ghosts_link(ghosts, ghosts.block[position])[0] != position:
                return False
    return count == ghosts.count
