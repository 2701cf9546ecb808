# Part of _journal.pyx: reading what the map says of one block, without the lock.

cdef struct Place:
    # Where to read an entry's bytes, and from which file.
    Entry entry
    int fd
    uint32_t seed
    uint64_t file
    unsigned char key[32]


cdef struct Loading:
    # In the order in which they were written; the number of the one that is bad, -1 if none is.
    Place *places
    Py_ssize_t count
    Py_ssize_t bad
    # Sequences of the block's oldest and newest entry.
    uint64_t first
    uint64_t last


cdef void load_block(Journal journal, uint64_t block, unsigned char *out, Loading *job) noexcept nogil:
    """Read what is not in the bucket of a block over ``out``. The caller frees the places; NULL: no memory."""
    cdef int32_t index
    cdef Py_ssize_t i
    cdef unsigned char *buffer = <unsigned char *>malloc(journal._block_size + sizeof(DiskRecord) + _TAG + 8)
    job.bad, job.first, job.last = -1, 0, 0
    pthread_mutex_lock(&journal._lock)
    index = map_link(journal, block)[0]
    job.count = map_count(journal, index)
    job.places = <Place *>malloc((job.count + 1) * sizeof(Place)) if buffer else NULL
    if job.places and index >= 0:
        job.first = journal._entry[index].sequence
        job.last = journal._entry[journal._entry[index].newest].sequence
        index = first_needed(journal, index)
        for i in range(job.count):
            job.places[i].entry = journal._entry[index]
            hold_file(journal, job.places + i)
            index = journal._entry[index].newer
        journal.loading += 1
        pthread_mutex_unlock(&journal._lock)
        for i in range(job.count):
            if job.bad < 0 and not load_place(journal, job.places + i, buffer, out):
                job.bad = i
        pthread_mutex_lock(&journal._lock)
        for i in range(job.count):
            journal._file[job.places[i].entry.file].users -= 1
        if is_unneeded(journal):
            pthread_cond_signal(&journal._work)
        journal.loading -= 1
    pthread_mutex_unlock(&journal._lock)
    free(buffer)


cdef void hold_file(Journal journal, Place *place) noexcept nogil:
    """Keep an entry's file from being given back."""
    cdef JournalFile *file = journal._file + place.entry.file
    file.users += 1
    place.fd, place.seed, place.file = file.fd, file.seed, file.number
    memcpy(place.key, file.key, _KEY)


cdef bint load_place(Journal journal, const Place *place, unsigned char *buffer, unsigned char *block) noexcept nogil:
    """Copy an entry's bytes to where they belong in the block; False if its record is not what was written."""
    cdef Py_ssize_t length = place.entry.stop - place.entry.start
    cdef Py_ssize_t stored = 0 if place.entry.zeros else length + journal._tag
    cdef Py_ssize_t whole = sizeof(DiskRecord) + stored + (-stored & 7)
    cdef const DiskRecord *record = <const DiskRecord *>buffer
    cdef uint64_t offset = (place.entry.block << journal._block_shift) + place.entry.start
    if not read_at(place.fd, buffer, whole, place.entry.position):
        return False
    if not is_header(record, place.seed, place.entry.position) or le64toh(record.sequence) != place.entry.sequence:
        return False
    if place.entry.zeros:
        if le32toh(record.kind) != _ZEROS:
            return False
        memset(block + place.entry.start, 0, length)
        return True
    if le32toh(record.kind) != _DATA or le64toh(record.offset) != offset or le64toh(record.length) != <uint64_t>length:
        return False
    if not is_payload(record, place.seed, stored):
        return False
    if journal._tag:
        return decrypt(&journal._crypto, place.key, record, length, block + place.entry.start)
    memcpy(block + place.entry.start, record + 1, length)
    return True


cdef bint read_at(int fd, unsigned char *buffer, Py_ssize_t length, Py_ssize_t position) noexcept nogil:
    """Fill a buffer from a file; False if it cannot be filled."""
    cdef ssize_t count
    while length:
        count = pread(fd, buffer, length, position)
        if count < 0 and errno == EINTR:
            continue
        if count <= 0:
            return False
        buffer, length, position = buffer + count, length - count, position + count
    return True
