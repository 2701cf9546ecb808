# Part of _journal.pyx: writing once more what keeps the oldest file, so that one block does not keep them all.

#     listed ─► loaded ─► appended, not in the map ─► synced ─► in the map, in place of what stood before
#                         if nothing was written                if nothing of that was forgotten

cdef Py_ssize_t map_keepers(Journal journal, uint64_t *found, Py_ssize_t room) noexcept nogil:
    """List up to so many blocks that are worth carrying; 0 if that would not help, or not fit.

    They are those that have something in the oldest file, where a quarter of what the files hold is not needed; an
    entry in it is the oldest of its block. And those that take four times the entries that they need.
    """
    cdef Py_ssize_t count = 0, crowded = 0, held = 0, needed = 0, length, ranges
    cdef int32_t bucket, index
    cdef int32_t *link
    cdef bint crowd, older = journal._oldest != journal._newest_used
    # The less room there is in the map, the fewer are a crowd.
    cdef Py_ssize_t least = _CROWD if journal.entries < journal._capacity // 4 * 3 else 1
    for bucket in range(<int32_t>1 << (64 - journal._hash_shift)):
        link = journal._bucket + bucket
        while link[0] >= 0:
            map_prune(journal, link)
            index = link[0]
            length = touched_bytes(journal, index, &ranges)
            length = most_bytes(journal, ranges, length)
            needed += length
            crowd = count_from(journal, index) >= max(least, 4 * ranges)
            if crowd or (older and journal._entry[index].file == journal._oldest):
                if count == room:
                    return 0
                found[count] = journal._entry[index].block
                if crowd:
                    # These come first.
                    found[count], found[crowded] = found[crowded], found[count]
                    crowded += 1
                else:
                    held += length
                count += 1
            link = &journal._entry[index].chain
    if needed > <Py_ssize_t>(journal.files - 1) * (journal._file_bytes // 4) * 3 or held > room_to_carry(journal):
        return crowded
    return count


cdef Py_ssize_t touched_bytes(Journal journal, int32_t oldest, Py_ssize_t *ranges) noexcept nogil:
    """Return how many bytes the journal has of a block, and in how many ranges they are."""
    cdef int32_t index = first_needed(journal, oldest), needed = index
    cdef unsigned char *touched = journal._touched
    cdef Entry *entry = journal._entry + index
    # What lies in whole sectors is counted in these.
    cdef Py_ssize_t first = journal._block_size, last = 0, length = 0, start, stop, edges = 0
    cdef int shift
    ranges[0] = 1
    if entry.newer < 0:
        return entry.stop - entry.start
    while index >= 0:
        entry = journal._entry + index
        first, last = min(first, <Py_ssize_t>entry.start), max(last, <Py_ssize_t>entry.stop)
        edges |= entry.start | entry.stop
        index = entry.newer
    shift = _SECTOR_SHIFT if edges & ((1 << _SECTOR_SHIFT) - 1) == 0 else 0
    first, last, index = first >> shift, last >> shift, needed
    while index >= 0:
        entry = journal._entry + index
        set_bits(touched, entry.start >> shift, entry.stop >> shift)
        index = entry.newer
    ranges[0], start = 0, first
    while start < last:
        stop = next_bit(touched, start, last, False)
        ranges[0] += 1
        length += stop - start
        start = next_bit(touched, stop, last, True)
    clear_bits(touched, first, last)
    return length << shift


cdef Py_ssize_t room_to_carry(Journal journal) noexcept nogil:
    """Return how many bytes of records fit into the rest of the current file and the spares.

    For sure, if no block is in more ranges than every other sector of it would be.
    """
    cdef Py_ssize_t ranges = 1 + (journal._block_size >> (_SECTOR_SHIFT + 1))
    cdef Py_ssize_t end = journal._block_size + ranges * <Py_ssize_t>sizeof(DiskRecord) + _MARKS
    cdef Py_ssize_t whole = journal._file_bytes - JOURNAL_PAGE - <Py_ssize_t>sizeof(DiskRecord) - end
    cdef Py_ssize_t room = journal.spares * whole - kept_free(journal, FOR_CARRYING)
    if journal._current >= 0:
        room += max(0, journal._file_bytes - journal._position - end)
    return room


cdef bint append_carried(
    Journal journal, uint64_t block, const unsigned char *body, const Py_ssize_t *ends, Py_ssize_t count,
    uint64_t first, uint64_t last, uint32_t *positions
) noexcept nogil:
    """Append ranges of a block, [start, stop) after [start, stop), and say where; False where it did not.

    They are all that is needed of it, if ``first`` and ``last`` are still the sequences of its entries.
    """
    cdef int32_t index = map_link(journal, block)[0]
    cdef Py_ssize_t i, start, length = 0
    cdef bint zeros
    if index < 0 or journal._entry[index].sequence != first:
        return False
    if journal._entry[journal._entry[index].newest].sequence != last:
        # What was written since stands before what would be appended.
        return False
    for i in range(count):
        length += ends[2 * i + 1] - ends[2 * i]
    if reserve(journal, most_bytes(journal, count, length), 0, FOR_CARRYING) != _DONE:
        return False
    for i in range(count):
        start, length = ends[2 * i], ends[2 * i + 1] - ends[2 * i]
        zeros = all_zero(body + start, length)
        positions[i] = journal._position
        if append(
            journal, _ZEROS if zeros else _DATA, last, (block << journal._block_shift) + start,
            NULL if zeros else body + start, length, False
        ) != _DONE:
            # What was appended says what the entries say.
            return False
        positions[i] |= <uint32_t>zeros
    return True


cdef bint map_replace(
    Journal journal, uint64_t block, const Py_ssize_t *ends, Py_ssize_t count, uint64_t first, uint64_t last,
    uint64_t number, const uint32_t *positions
) noexcept nogil:
    """Put what was appended in place of the block's entries up to its sequence, if all of those are still there."""
    cdef int32_t file = journal._oldest, index = map_link(journal, block)[0]
    cdef Py_ssize_t i, room = journal._capacity - journal.entries
    cdef bint left
    while file >= 0 and journal._file[file].number != number:
        file = journal._file[file].next
    if file < 0 or index < 0 or journal._entry[index].sequence != first:
        return False
    left = is_left(journal, index)
    while index >= 0 and journal._entry[index].sequence <= last:
        room += 1
        index = journal._entry[index].newer
    if journal._failure or count > room:
        return False
    map_forget(journal, block, last)
    for i in range(count - 1, -1, -1):
        map_put_first(
            journal, block, last, positions[i] & ~<uint32_t>1, ends[2 * i], ends[2 * i + 1], file, positions[i] & 1,
            left
        )
    return True


cdef void map_put_first(
    Journal journal, uint64_t block, uint64_t sequence, uint32_t position, uint32_t start, uint32_t stop, int32_t file,
    bint zeros, bint left
) noexcept nogil:
    """Add an entry before all others of its block; there is room."""
    cdef int32_t *link = map_link(journal, block)
    cdef int32_t index = new_entry(journal, block, sequence, position, start, stop, file, zeros)
    cdef Entry *entry = journal._entry + index
    cdef Entry *oldest
    if is_left(journal, link[0]):
        journal.left -= 1
    entry.left, entry.newer = left, link[0]
    if link[0] < 0:
        entry.chain, entry.newest, entry.cover = -1, index, -1
        journal.blocks += 1
    else:
        oldest = journal._entry + link[0]
        entry.chain, entry.newest, entry.cover = oldest.chain, oldest.newest, oldest.cover
    link[0] = index
    if entry.cover < 0 and start == 0 and stop == journal._block_size:
        entry.cover = index
    journal.left += journal._entry[first_needed(journal, index)].left
