# Part of _journal.pyx: the list of files. Under the lock.

#     oldest ──next──► … ──► newest in use ──► spare ──► last spare

cdef int32_t next_file(Journal journal, int32_t file) noexcept nogil:
    """Return the file behind this one, behind -1 the first of all; -1 if there is none."""
    return journal._file[file].next if file >= 0 else journal._oldest


cdef void begin_file(Journal journal, int32_t file) noexcept nogil:
    """Go on in a spare file. Its START record is written together with the first one behind it."""
    journal._file[file].state = FILE_USED
    journal._current = journal._newest_used = file
    journal.files += 1
    journal.spares -= 1
    journal._position = JOURNAL_PAGE
    if journal._tag and journal._crypto.encrypt_init(
        journal._context, journal._crypto.cipher, NULL, journal._file[file].key, NULL
    ) != 1:
        fail(journal, EIO, b"encrypted", file)
    make_record(journal, <DiskRecord *>journal._tail, _START, journal._sequence, oldest_needed(journal), 0)
    seal_record(journal, <DiskRecord *>journal._tail, NULL, 0)
    journal._file[file].first = journal.number
    journal._position += sizeof(DiskRecord)


cdef bint add_file(
    Journal journal, int fd, uint64_t number, uint32_t seed, const unsigned char *key, uint64_t first, FileState state
) noexcept nogil:
    """Put a file at the end of the list; False if it cannot be there."""
    cdef int32_t index = 0
    cdef JournalFile *file
    if journal.files + journal.spares == journal.most_files:
        return False
    if journal._last >= 0 and journal._file[journal._last].number >= number:
        return False
    if state == FILE_USED and (journal.spares > 0 or journal._current >= 0):
        return False
    while journal._file[index].state != FILE_ABSENT:
        index += 1
    file = journal._file + index
    memset(file, 0, sizeof(JournalFile))
    file.fd, file.number, file.seed, file.first, file.state, file.next = fd, number, seed, first, state, -1
    file.linked = s3b_is_linked(fd)
    if journal._tag:
        memcpy(file.key, key, _KEY)
    if journal._last >= 0:
        journal._file[journal._last].next = index
    else:
        journal._oldest = index
    journal._last = index
    if state == FILE_USED:
        file.unsynced = 1
        journal._newest_used = index
        journal.files += 1
    else:
        journal.spares += 1
    if journal.files + journal.spares > journal._data_limit:
        journal._data_limit = journal.most_files
    return True


cdef uint64_t oldest_needed(Journal journal) noexcept nogil:
    """Return the number of the oldest file in use that is needed; the newest one always is."""
    cdef int32_t file = journal._oldest
    while file != journal._newest_used and journal._file[file].entries == 0:
        file = journal._file[file].next
    return journal._file[file].number


cdef bint is_unneeded(Journal journal) noexcept nogil:
    """Nothing of the oldest file is needed, and nobody reads it."""
    cdef int32_t file = journal._oldest
    return (
        journal._newest_used >= 0
        and file != journal._newest_used
        and journal._file[file].entries == 0
        and journal._file[file].users == 0
        and not journal._held
    )


cdef bint is_named(Journal journal) noexcept nogil:
    """A record on the disk says that a younger file than the oldest is the oldest that is needed.

    So who finds the journal after a loss of power knows whether its beginning is there, and the first record of the
    oldest file that is left is on the disk: it is before that record.
    """
    return journal._file[journal._oldest].number < journal._named_durable


cdef bint can_free(Journal journal) noexcept nogil:
    """The oldest file can be given back, at most after a sync."""
    return (
        not journal._failure
        and is_unneeded(journal)
        and (
            is_named(journal)
            or (not journal._no_room and (mark_fits(journal, 1) or next_file(journal, journal._newest_used) >= 0))
        )
    )


cdef bint remove_oldest(Journal journal, uint64_t *number, int *fd) noexcept nogil:
    """Take the oldest file out of the list, if nothing of it is needed."""
    cdef JournalFile *file = journal._file + journal._oldest
    if journal._failure or not is_unneeded(journal) or not is_named(journal):
        return False
    number[0], fd[0] = file.number, file.fd
    file.state = FILE_ABSENT
    journal._oldest = file.next
    journal.files -= 1
    return True


cdef bint wants_spare(Journal journal, int32_t spares) noexcept nogil:
    """There are fewer spares, and there may be one more."""
    return journal.spares < spares and journal.files + journal.spares < journal._limit


cdef bint has_work(Journal journal, int32_t spares) noexcept nogil:
    """There is something to do for who prepares files, or never again."""
    return journal._failure != 0 or wants_spare(journal, spares) or can_free(journal)
