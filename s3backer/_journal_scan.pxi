# Part of _journal.pyx: reading records back, of a file that nobody writes.

cdef bint is_header(const DiskRecord *record, uint32_t seed, uint64_t position) noexcept nogil:
    """The 64 bytes are a record that belongs at this position of this file, whatever its payload is."""
    return (
        le32toh(record.magic) == _MAGIC
        and le64toh(record.position) == position
        and le32toh(record.crc) == s3b_crc32c(seed, <const unsigned char *>record, sizeof(DiskRecord) - 4, 0)
    )


cdef uint64_t stored_bytes(const DiskRecord *record, uint64_t tag) noexcept nogil:
    """Return the bytes of a record's payload, without its padding; ``tag``: those added to encrypted data."""
    cdef uint32_t kind = le32toh(record.kind)
    if kind == _ZEROS:
        return 0
    return le64toh(record.length) + (tag if kind == _DATA else 0)


cdef bint is_payload(const DiskRecord *record, uint32_t seed, uint64_t stored) noexcept nogil:
    """What stands behind a record is its payload and zeros up to a multiple of 8."""
    cdef const unsigned char *payload = <const unsigned char *>(record + 1)
    cdef uint64_t i
    for i in range(stored, (stored + 7) & ~<uint64_t>7):
        if payload[i]:
            return False
    return le32toh(record.payload_crc) == s3b_crc32c(seed, payload, stored, 0)


cdef tuple facts(const DiskRecord *record):
    return (
        le64toh(record.position), le32toh(record.kind), le64toh(record.number), le64toh(record.sequence),
        le64toh(record.durable), le64toh(record.offset), le64toh(record.length)
    )


def check_records(window, uint64_t position, uint32_t seed, uint64_t number, uint64_t largest, uint64_t tag):
    """Check the records that begin at a window's first byte, which is at ``position`` of its file.

    The first is to have this number, the others those after it; no payload is longer than ``largest``; encrypted data
    has ``tag`` bytes more. Returns (facts of those that are whole and right, whether the next one may be right but does
    not end within the window).
    """
    cdef Py_buffer view
    cdef const unsigned char *data
    cdef const DiskRecord *record
    cdef uint64_t at = 0, stored
    cdef bint right = True, cut = False
    found = []
    PyObject_GetBuffer(window, &view, PyBUF_SIMPLE)
    data = <const unsigned char *>view.buf
    while True:
        if at + sizeof(DiskRecord) > <uint64_t>view.len:
            cut = True
            break
        record = <const DiskRecord *>(data + at)
        if not is_header(record, seed, position + at) or le64toh(record.number) != number:
            break
        stored = stored_bytes(record, tag)
        if stored > largest:
            break
        if at + sizeof(DiskRecord) + ((stored + 7) & ~<uint64_t>7) > <uint64_t>view.len:
            cut = True
            break
        if stored < _LONG:
            right = is_payload(record, seed, stored)
        else:
            with nogil:
                right = is_payload(record, seed, stored)
        if not right:
            break
        found.append(facts(record))
        at += sizeof(DiskRecord) + ((stored + 7) & ~<uint64_t>7)
        number += 1
    PyBuffer_Release(&view)
    return found, cut


def find_record(window, uint64_t position, uint32_t seed, uint64_t number, uint64_t durable):
    """Return the place in its file of the first record in a window with at least these two numbers, or None.

    The window's first byte is at ``position`` of its file, a multiple of 8. Payloads are not looked at.
    """
    cdef Py_buffer view
    cdef const DiskRecord *record
    cdef uint64_t at = 0
    cdef bint found = False
    PyObject_GetBuffer(window, &view, PyBUF_SIMPLE)
    with nogil:
        while at + sizeof(DiskRecord) <= <uint64_t>view.len:
            record = <const DiskRecord *>(<const unsigned char *>view.buf + at)
            if (
                is_header(record, seed, position + at)
                and le64toh(record.number) >= number
                and le64toh(record.durable) >= durable
            ):
                found = True
                break
            at += 8
    PyBuffer_Release(&view)
    return position + at if found else None
