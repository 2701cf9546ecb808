# Part of _journal.pyx: what the journal holds of each block that is not in the bucket. Under the lock.

#     bucket ──► oldest entry of a block ──chain──► oldest entry of another block
#                  │ newer
#                  ▼
#                entry … ──► newest                in the order in which they were written

cdef int hash_bits(Py_ssize_t capacity) noexcept nogil:
    cdef int bits = 1
    while <Py_ssize_t>1 << bits < capacity:
        bits += 1
    return bits


cdef int32_t *map_link(Journal journal, uint64_t block) noexcept nogil:
    """Return the link to the block's oldest entry; it holds -1 where there is none."""
    cdef int32_t *link = journal._bucket + (block * <uint64_t>0x9E3779B97F4A7C15 >> journal._hash_shift)
    while link[0] >= 0 and journal._entry[link[0]].block != block:
        link = &journal._entry[link[0]].chain
    return link


cdef void map_drop_oldest(Journal journal, int32_t *link) noexcept nogil:
    """Forget a block's oldest entry."""
    cdef int32_t index = link[0]
    cdef Entry *entry = journal._entry + index
    cdef Entry *following
    cdef bint left = is_left(journal, index)
    if entry.newer >= 0:
        following = journal._entry + entry.newer
        following.chain, following.newest = entry.chain, entry.newest
        following.cover = entry.cover if entry.cover != index else -1
        link[0] = entry.newer
    else:
        link[0] = entry.chain
        journal.blocks -= 1
    if left and (entry.newer < 0 or not is_left(journal, entry.newer)):
        journal.left -= 1
    journal._file[entry.file].entries -= 1
    if journal._file[entry.file].entries == 0:
        pthread_cond_signal(&journal._work)
    entry.newer = journal._free
    journal._free = index
    journal.entries -= 1


cdef void map_prune(Journal journal, int32_t *link) noexcept nogil:
    """Forget what is before a durable entry that holds the whole block."""
    cdef int32_t cover = journal._entry[link[0]].cover
    if cover >= 0 and journal._entry[cover].sequence <= journal._durable_sequence:
        while link[0] != cover:
            map_drop_oldest(journal, link)


cdef int32_t new_entry(
    Journal journal, uint64_t block, uint64_t sequence, uint32_t position, uint32_t start, uint32_t stop, int32_t file,
    bint zeros
) noexcept nogil:
    """Fill in a free entry, which is no block's yet; there is one."""
    cdef int32_t index = journal._free
    cdef Entry *entry = journal._entry + index
    journal._free = entry.newer
    entry.block, entry.sequence, entry.position = block, sequence, position
    entry.start, entry.stop, entry.file, entry.zeros, entry.left = start, stop, file, zeros, False
    entry.newer = -1
    journal.entries += 1
    journal._file[file].entries += 1
    return index


cdef void map_add(
    Journal journal, uint64_t block, uint64_t sequence, uint32_t position, uint32_t start, uint32_t stop, int32_t file,
    bint zeros
) noexcept nogil:
    """Add what was written last; there is room.

    A durable entry that holds the whole block makes those before it useless.
    """
    cdef int32_t *link = map_link(journal, block)
    cdef int32_t index = new_entry(journal, block, sequence, position, start, stop, file, zeros)
    cdef Entry *entry = journal._entry + index
    cdef Entry *oldest
    if link[0] < 0:
        entry.chain, entry.newest, entry.cover = -1, index, -1
        link[0] = index
        journal.blocks += 1
    else:
        oldest = journal._entry + link[0]
        journal._entry[oldest.newest].newer = index
        oldest.newest = index
        map_prune(journal, link)
    if start == 0 and stop == journal._block_size:
        if is_left(journal, link[0]):
            journal.left -= 1
        journal._entry[link[0]].cover = index


cdef void map_add_range(
    Journal journal, uint64_t sequence, uint32_t position, uint64_t offset, uint64_t length, int32_t file, bint zeros
) noexcept nogil:
    """Add an entry for each block of a range."""
    cdef uint64_t end = offset + length, size = journal._block_size, stop, block
    while offset < end:
        block = offset >> journal._block_shift
        stop = min(end, (block + 1) << journal._block_shift)
        map_add(
            journal, block, sequence, position, offset & (size - 1), stop - (block << journal._block_shift), file, zeros
        )
        offset = stop


cdef void map_forget(Journal journal, uint64_t block, uint64_t sequence) noexcept nogil:
    """Forget a block's entries up to a sequence."""
    cdef int32_t *link = map_link(journal, block)
    while link[0] >= 0 and journal._entry[link[0]].block == block and journal._entry[link[0]].sequence <= sequence:
        map_drop_oldest(journal, link)


cdef bint is_left(Journal journal, int32_t oldest) noexcept nogil:
    """Of what the block's contents need, something is left to the journal: the oldest of it, if anything is."""
    cdef int32_t index = first_needed(journal, oldest) if journal.left > 0 else -1
    return index >= 0 and journal._entry[index].left


cdef void map_leave(Journal journal, int32_t oldest) noexcept nogil:
    """Leave all that there is of a block to the journal."""
    cdef int32_t index = oldest
    if not is_left(journal, oldest):
        journal.left += 1
    while index >= 0:
        journal._entry[index].left = True
        index = journal._entry[index].newer


cdef void map_leave_all(Journal journal) noexcept nogil:
    cdef int32_t bucket, index
    for bucket in range(<int32_t>1 << (64 - journal._hash_shift)):
        index = journal._bucket[bucket]
        while index >= 0:
            map_leave(journal, index)
            index = journal._entry[index].chain


cdef uint64_t map_next_left(Journal journal, uint64_t block, uint64_t stop) noexcept nogil:
    """Return the first block in [block, stop) of which something is left to the journal, else stop."""
    cdef int32_t bucket, index
    if journal.left == 0 or block >= stop:
        return stop
    if stop - block <= <uint64_t>1 << (64 - journal._hash_shift):
        while block < stop and not is_left(journal, map_link(journal, block)[0]):
            block += 1
        return block
    for bucket in range(<int32_t>1 << (64 - journal._hash_shift)):
        index = journal._bucket[bucket]
        while index >= 0:
            if block <= journal._entry[index].block < stop and is_left(journal, index):
                stop = journal._entry[index].block
            index = journal._entry[index].chain
    return stop


cdef Py_ssize_t map_list(Journal journal, uint64_t *found, Py_ssize_t room) noexcept nogil:
    """List up to so many blocks and return how many."""
    cdef Py_ssize_t count = 0
    cdef int32_t bucket, index
    for bucket in range(<int32_t>1 << (64 - journal._hash_shift)):
        index = journal._bucket[bucket]
        while index >= 0 and count < room:
            found[count] = journal._entry[index].block
            count += 1
            index = journal._entry[index].chain
    return count


cdef Py_ssize_t map_count(Journal journal, int32_t oldest) noexcept nogil:
    """Return how many entries a block's contents need."""
    return count_from(journal, first_needed(journal, oldest))


cdef Py_ssize_t count_from(Journal journal, int32_t index) noexcept nogil:
    """Return how many entries a block has from one on."""
    cdef Py_ssize_t count = 0
    while index >= 0:
        count += 1
        index = journal._entry[index].newer
    return count


cdef int32_t first_needed(Journal journal, int32_t oldest) noexcept nogil:
    """Return the first of a block's entries that its contents need, -1 if it has none."""
    if oldest < 0:
        return -1
    return journal._entry[oldest].cover if journal._entry[oldest].cover >= 0 else oldest
