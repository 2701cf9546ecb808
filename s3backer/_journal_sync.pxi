# Part of _journal.pyx: group commit. Under the lock, which is not held while the disk works.

cdef int sync_up_to_now(Journal journal) noexcept nogil:
    """Return 0 when all that has been appended is on the disk, else the error with which the journal failed.

    One thread syncs for all who asked before it began; the others wait for it. What is durable then is told to nobody
    yet: see ``tell_durable``.
    """
    cdef uint64_t target = journal._wanted
    if journal._failure:
        return journal._failure
    journal.waiting += 1
    while journal._durable < target and not journal._failure:
        if journal._syncing:
            pthread_cond_wait(&journal._synced, &journal._lock)
        else:
            lead_sync(journal)
    journal.waiting -= 1
    return 0 if journal._durable >= target else journal._failure


cdef void lead_sync(Journal journal) noexcept nogil:
    """Sync every file that was written since its last sync, the oldest first, and let go of the lock meanwhile."""
    cdef uint64_t number = journal._written, sequence = journal._sequence, named = journal._named
    cdef int32_t file = journal._oldest, failed = -1
    cdef Py_ssize_t count = 0, i
    cdef int error = 0
    cdef const char *call = b"synced"
    journal._syncing = True
    while True:
        if journal._file[file].unsynced:
            journal._file[file].unsynced = 0
            journal._file[file].users += 1
            journal._to_sync[count] = file
            count += 1
        if file == journal._newest_used:
            break
        file = journal._file[file].next
    pthread_mutex_unlock(&journal._lock)
    for i in range(count):
        file = journal._to_sync[i]
        while journal._fdatasync(journal._file[file].fd) < 0:
            if errno != EINTR:
                error, failed = errno, file
                break
        if failed < 0 and journal._file[file].linked and not s3b_is_linked(journal._file[file].fd):
            error, failed, call = ENOENT, file, b"found any more"
        if failed >= 0:
            break
    pthread_mutex_lock(&journal._lock)
    for i in range(count):
        journal._file[journal._to_sync[i]].users -= 1
    if failed >= 0:
        fail(journal, error, call, failed)
    else:
        journal.syncs += 1
        s3b_publish(&journal._durable, number)
        s3b_publish(&journal._durable_sequence, sequence)
        journal._named_durable = named
    journal._syncing = False
    pthread_cond_broadcast(&journal._synced)
    if has_work(journal, journal._spares_asked):
        # Not every time: the one who is woken has a core of its own to wake, which takes longer than all else here.
        pthread_cond_signal(&journal._work)


cdef void tell_durable(Journal journal) noexcept nogil:
    """Write down what is durable, in case nothing else is written soon; it gets to the disk some time."""
    if journal._told < journal._durable and not journal._failure and mark_fits(journal, 2):
        mark(journal)


cdef bint mark_fits(Journal journal, Py_ssize_t count) noexcept nogil:
    """So many MARKs fit into the current file. One always does, or there is a spare: see ``reserve``."""
    return (
        journal._current >= 0
        and journal._position + count * <Py_ssize_t>sizeof(DiskRecord) <= journal._file_bytes
    )


cdef bint mark(Journal journal) noexcept nogil:
    """Write down what is durable, and which file is the oldest that is needed; False if that could not be written."""
    cdef uint64_t named = oldest_needed(journal)
    if append(journal, _MARK, journal._sequence, named, NULL, 0, False) != _DONE:
        return False
    journal._named = named
    return True


cdef int give_up_files(Journal journal) noexcept nogil:
    """Write and sync that the files of which nothing is needed are not; return the error if the journal failed."""
    cdef int error
    cdef bint fits = mark_fits(journal, 1)
    if not fits and cut_off(journal):
        begin_file(journal, next_file(journal, journal._newest_used))
        fits = True
    if fits and not journal._failure and mark(journal):
        journal._wanted = journal.number
    error = sync_up_to_now(journal)
    tell_durable(journal)
    return error
