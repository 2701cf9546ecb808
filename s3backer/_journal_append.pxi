# Part of _journal.pyx: how records get into the files. Under the lock.

#     page     │ records … tail │ record ┬ payload ┬ zeros to 8 │ record … │ zeros to the page's end │
#              └─ written again ─┴───────── new ─────────────────────────────────────────────────────┘
#
# Only whole pages are written. A part of a page that is not in the page cache would be read from the disk first:
# 14 000 instead of 240 000 records of 4 KiB a second on ext4.

cdef Py_ssize_t most_bytes(Journal journal, Py_ssize_t records, Py_ssize_t length) noexcept nogil:
    """Return the most bytes that so many records of so much data take."""
    return records * (<Py_ssize_t>sizeof(DiskRecord) + 8 + journal._tag) + length


cdef void fail(Journal journal, int error, const char *call, int32_t file) noexcept nogil:
    """Never write or sync again: after an error nobody knows what the disk holds."""
    if not journal._failure:
        journal._failure, journal._failed_call = error, call
        journal._failed_file = journal._file[file].number
    pthread_cond_broadcast(&journal._synced)
    pthread_cond_broadcast(&journal._work)


cdef int32_t files_for_data(Journal journal) noexcept nogil:
    """Return in how many files data may be written: not in the last one of all, unless they are very few."""
    return journal._data_limit - (journal._data_limit >= _FEW_FILES)


cdef Py_ssize_t entries_for_data(Journal journal) noexcept nogil:
    """Return how many entries data may take, which leaves some to what is carried."""
    return journal._capacity - (JOURNAL_BATCH if journal._capacity >= 16 * JOURNAL_BATCH else 0)


cdef Py_ssize_t kept_free(Journal journal, Purpose purpose) noexcept nogil:
    """Return how many bytes at the end of the last file are left to others.

    Where files are very few the end of the last one is all that is left to what is carried: a quarter of the file.
    """
    if purpose == FOR_NOTES:
        return _MARKS
    if purpose == FOR_CARRYING:
        return journal._reserve >> 1
    return journal._reserve << (journal._data_limit < _FEW_FILES)


cdef double filled(Journal journal) noexcept nogil:
    """Return how full it is, from 0 on: of the bytes for data or of the map, whichever is scarcer."""
    cdef double used = journal._position if journal._current >= 0 else 0
    used += <double>journal._file_bytes * (journal.files - (journal._current >= 0))
    used /= <double>journal._file_bytes * files_for_data(journal) - kept_free(journal, FOR_DATA)
    return max(used, <double>journal.entries / entries_for_data(journal))


cdef bint is_kept(Journal journal, Purpose purpose) noexcept nogil:
    """The only spare is left to what is carried: nobody knows yet whether the disk has room for another one."""
    return (
        purpose != FOR_CARRYING and journal.spares == 1 and journal._current >= 0 and journal._data_limit >= _FEW_FILES
    )


cdef int reserve(Journal journal, Py_ssize_t need, Py_ssize_t entries, Purpose purpose) noexcept nogil:
    """Make sure that so many bytes and entries fit into the current file and the map; return why not, or _DONE.

    The last file is left to what is carried, so that one block does not keep all files. Where no file is ready for what
    comes, the end of this one is left to notes, so that they get to the disk when there is no room for data; and of
    that the last bytes to MARKs, without which no file can be freed, nor damage to what was synced last be told from an
    end.
    """
    cdef Py_ssize_t kept, most_entries = entries_for_data(journal) if purpose == FOR_DATA else journal._capacity
    cdef bint last
    cdef int32_t spare, files = journal._limit if purpose == FOR_CARRYING else files_for_data(journal)
    if need > journal._file_bytes - JOURNAL_PAGE - <Py_ssize_t>sizeof(DiskRecord) - kept_free(journal, purpose):
        return JOURNAL_FULL_REASON
    while True:
        last = journal.files >= files
        spare = -1 if last or is_kept(journal, purpose) else next_file(journal, journal._newest_used)
        if journal._failure:
            return JOURNAL_FAILED_REASON
        if entries > most_entries - journal.entries:
            journal.refused += purpose == FOR_DATA
            return JOURNAL_FULL_REASON
        kept = _MARKS if spare >= 0 else kept_free(journal, purpose)
        if (
            journal._current >= 0 and journal.files <= files
            and journal._position + need <= journal._file_bytes - kept
        ):
            return _DONE
        if last and not can_free(journal):
            journal.refused += purpose == FOR_DATA
            return JOURNAL_FULL_REASON
        if spare < 0:
            pthread_cond_signal(&journal._work)
            return JOURNAL_BUSY_REASON
        if not cut_off(journal):
            return JOURNAL_FAILED_REASON if journal._failure else JOURNAL_BUSY_REASON
        begin_file(journal, spare)
        pthread_cond_signal(&journal._work)


cdef bint cut_off(Journal journal) noexcept nogil:
    """See to it that nothing stands behind the end of the current file, before another one is begun; False: not now.

    Of a record of which a full disk took a part the rest may stand there already: a reader would take it for the next.
    """
    cdef Py_ssize_t start = journal._position & (JOURNAL_PAGE - 1)
    cdef int count = 0
    if journal._torn:
        add_piece(journal._piece, &count, journal._tail, start)
        add_piece(journal._piece, &count, NO_BYTES, JOURNAL_PAGE - start)
        journal._file[journal._current].unsynced = 1
        if write_pieces(journal, count, journal._position - start, True) != _DONE:
            return False
        journal._torn = False
    return True


cdef void make_record(
    Journal journal, DiskRecord *record, uint32_t kind, uint64_t sequence, uint64_t offset, uint64_t length
) noexcept nogil:
    """Fill in the record that begins at the current position, all but its CRCs, and count it."""
    journal.number += 1
    record.magic, record.kind = htole32(_MAGIC), htole32(kind)
    record.number, record.sequence, record.durable = (
        htole64(journal.number), htole64(sequence), htole64(journal._durable)
    )
    record.offset, record.length, record.position = htole64(offset), htole64(length), htole64(journal._position)


cdef void seal_record(
    Journal journal, DiskRecord *record, const unsigned char *payload, Py_ssize_t stored
) noexcept nogil:
    """Fill in its CRCs; ``payload`` as it will stand in the file."""
    cdef uint32_t seed = journal._file[journal._current].seed
    record.payload_crc = htole32(s3b_crc32c(seed, payload, stored, 0))
    record.crc = htole32(s3b_crc32c(seed, <const unsigned char *>record, sizeof(DiskRecord) - 4, 0))


cdef inline void add_piece(iovec *pieces, int *count, const void *base, size_t length) noexcept nogil:
    if length:
        pieces[count[0]].iov_base, pieces[count[0]].iov_len = <void *>base, length
        count[0] += 1


cdef int append(
    Journal journal, uint32_t kind, uint64_t sequence, uint64_t offset, const unsigned char *data, Py_ssize_t length,
    bint mapped
) noexcept nogil:
    """Append data, a record a block, or one record of another kind; room was reserved. Returns _DONE or why it failed.

    ``length`` is that of the range on the volume, for a note that of its payload. ``mapped``: data gets into the map.
    """
    cdef Py_ssize_t before = journal._position, start = before & (JOURNAL_PAGE - 1), done = 0, step, stored
    cdef uint64_t last = journal.number
    cdef int count = 0, records = 0, i, reason
    cdef DiskRecord *record
    cdef const unsigned char *payload
    add_piece(journal._piece, &count, journal._tail, start)
    while True:
        step = length - done
        if kind == _DATA:
            step = min(step, journal._block_size - <Py_ssize_t>((offset + done) & (journal._block_size - 1)))
        stored = step if data else 0
        payload = data + done if data else NULL
        record = journal._record + records
        make_record(journal, record, kind, sequence, offset + done, step)
        if kind == _DATA and journal._tag:
            payload = journal._encrypted + done + records * journal._tag
            if not encrypt(&journal._crypto, journal._context, record, data + done, step, <unsigned char *>payload):
                fail(journal, EIO, b"encrypted", journal._current)
                return JOURNAL_FAILED_REASON
            stored += journal._tag
        seal_record(journal, record, payload, stored)
        records += 1
        add_piece(journal._piece, &count, record, sizeof(DiskRecord))
        add_piece(journal._piece, &count, payload, stored)
        add_piece(journal._piece, &count, NO_BYTES, -stored & 7)
        journal._position += sizeof(DiskRecord) + stored + (-stored & 7)
        done += step
        if done == length:
            break
    make_tail(journal, count, before - start)
    add_piece(journal._piece, &count, NO_BYTES, -journal._position & (JOURNAL_PAGE - 1))
    journal._file[journal._current].unsynced = 1
    reason = write_pieces(journal, count, before - start, records == 1 and not journal._tag)
    if reason != _DONE:
        journal.number, journal._position = last, before
        return reason
    journal._tail, journal._next_tail = journal._next_tail, journal._tail
    journal._written, journal._no_room, journal._torn = journal.number, False, False
    journal._told = journal._durable
    if kind != _MARK:
        journal._wanted = journal.number
    if kind == _DATA or kind == _ZEROS:
        # What is carried has the sequence of an earlier write.
        journal._sequence = max(journal._sequence, sequence)
    if mapped:
        for i in range(records):
            record = journal._record + i
            map_add_range(
                journal, sequence, le64toh(record.position), le64toh(record.offset), le64toh(record.length),
                journal._current, kind == _ZEROS
            )
    journal.crowded = filled(journal) > _CROWDED_FILL
    return _DONE


cdef void make_tail(Journal journal, int count, Py_ssize_t position) noexcept nogil:
    """Copy the page that holds the journal's new end, up to there; the pieces begin at ``position`` with a tail."""
    cdef Py_ssize_t page = journal._position & ~<Py_ssize_t>(JOURNAL_PAGE - 1), skip
    cdef int i
    for i in range(count):
        skip = max(0, page - position)
        if skip < <Py_ssize_t>journal._piece[i].iov_len:
            memcpy(
                journal._next_tail + position + skip - page,
                <unsigned char *>journal._piece[i].iov_base + skip,
                journal._piece[i].iov_len - skip,
            )
        position += journal._piece[i].iov_len


cdef int write_pieces(Journal journal, int count, Py_ssize_t position, bint partly) noexcept nogil:
    """Write all pieces to the current file from a position on, return _DONE or why not.

    BUSY: there is no room on the disk (which a file that was written before needs where it is not written in place, as
    on btrfs and ZFS), and it can be tried again: nothing was written, or, where ``partly`` allows that, not all. Of
    many records the later ones could fit what is appended in place of the first; a nonce is used for one text only.
    """
    cdef iovec *piece = journal._piece
    cdef Py_ssize_t begin = position
    cdef ssize_t written
    while count:
        written = journal._pwritev(journal._file[journal._current].fd, piece, count, position)
        if written < 0 and errno == EINTR:
            continue
        if written < 0 and (partly or position == begin) and (errno == ENOSPC or errno == EDQUOT):
            journal._no_room = True
            journal._torn = journal._torn or position != begin
            pthread_cond_signal(&journal._work)
            return JOURNAL_BUSY_REASON
        if written <= 0:
            fail(journal, errno if written < 0 else ENOSPC, b"written", journal._current)
            return JOURNAL_FAILED_REASON
        position += written
        while count and written >= <ssize_t>piece.iov_len:
            written -= piece.iov_len
            piece += 1
            count -= 1
        if written:
            piece.iov_base = <unsigned char *>piece.iov_base + written
            piece.iov_len -= written
    return _DONE
