# Part of _journal.pyx: writing what keeps the oldest file once more, so that one block does not keep them all.

cdef Py_ssize_t map_keepers(Journal journal, uint64_t *found, Py_ssize_t room, Py_ssize_t most) noexcept nogil:
    """List up to so many blocks that have something in the oldest file; -1 if they would take more bytes than that.

    An entry in it is the oldest of its block.
    """
    cdef Py_ssize_t count = 0, bytes = 0
    cdef int32_t bucket, index
    for bucket in range(<int32_t>1 << (64 - journal._hash_shift)):
        index = journal._bucket[bucket]
        while index >= 0:
            if journal._entry[index].file == journal._oldest:
                bytes += carried_bytes(journal, index)
                if count == room or bytes > most:
                    return -1
                found[count] = journal._entry[index].block
                count += 1
            index = journal._entry[index].chain
    return count


cdef Py_ssize_t carried_bytes(Journal journal, int32_t oldest) noexcept nogil:
    """Return the most bytes that a block takes when it is carried."""
    cdef Py_ssize_t count = 0, length = 0
    cdef int32_t index = first_needed(journal, oldest)
    while index >= 0:
        count += 1
        length += journal._entry[index].stop - journal._entry[index].start
        index = journal._entry[index].newer
    return most_bytes(journal, count, min(length, journal._block_size))


cdef bint carry(
    Journal journal, uint64_t block, const unsigned char *body, const Py_ssize_t *ends, Py_ssize_t count,
    uint64_t first, uint64_t last
) noexcept nogil:
    """Append ranges of a block, [start, stop) after [start, stop), in place of its entries; False where it did not.

    They are all that is needed of it, if ``first`` and ``last`` are still the sequences of its entries.
    """
    cdef int32_t index = map_link(journal, block)[0], carried = journal._free
    cdef uint64_t offset
    cdef Py_ssize_t i, length = 0
    cdef bint left = is_left(journal, index), zeros
    if index < 0 or journal._entry[index].sequence != first:
        return False
    if journal._entry[journal._entry[index].newest].sequence != last:
        return False
    for i in range(count):
        length += ends[2 * i + 1] - ends[2 * i]
    if reserve(journal, most_bytes(journal, count, length), count, FOR_CARRYING) != _DONE:
        return False
    for i in range(count):
        offset = (block << journal._block_shift) + ends[2 * i]
        length = ends[2 * i + 1] - ends[2 * i]
        zeros = all_zero(body + ends[2 * i], length)
        if append(
            journal, _ZEROS if zeros else _DATA, last, offset, NULL if zeros else body + ends[2 * i], length
        ) != _DONE:
            # What was appended says what the entries before it say.
            return False
    while map_link(journal, block)[0] != carried:
        map_drop_oldest(journal, map_link(journal, block))
    if left:
        map_leave(journal, carried)
    return True
