"""C declarations of the recognition of sequential readers, for the fast lane."""

from libc.stdint cimport uint64_t

from s3backer._fast cimport pthread_mutex_t

cdef enum:
    MOST_STREAMS = 16

cdef struct Stream:
    # Offset of the next read, and the first block that has not been asked for.
    uint64_t expected
    uint64_t reached
    # Reads so far, and blocks that are fetched before they are asked for.
    uint64_t reads
    uint64_t window

cdef class ReadAhead:
    cdef uint64_t _block_size
    cdef uint64_t _most
    # Guards what follows; only ever taken without the GIL.
    cdef pthread_mutex_t _lock
    # The one used last is the last.
    cdef Stream _streams[MOST_STREAMS]
    cdef int _count

    # Take notice of a read, in bytes; true where blocks [start, stop) are to be fetched beside it.
    cdef bint note(self, uint64_t offset, uint64_t length, uint64_t *start, uint64_t *stop) noexcept nogil
    cdef Stream *_find(self, uint64_t offset) noexcept nogil
