"""C declarations of the place where requests wait, for the fast lane."""

from libc.stdint cimport int32_t, uint8_t, uint64_t

from s3backer._fast cimport pthread_mutex_t
from s3backer._fuse cimport pthread_cond_t

cdef enum:
    MOST_HINTS = 64

cdef enum Kind:
    READ_KIND = 0
    WRITE_KIND = 1
    FLUSH_KIND = 2
    ZERO_KIND = 3
    # A write that is to survive when it is answered.
    SYNC_WRITE_KIND = 7

cdef enum Found:
    NOT_FOUND = 0
    # It was not handed out yet, and is gone now: its requester is to be told.
    TAKEN_BACK = 1
    # Who has it is told.
    NOTED = 2

cdef struct Parked:
    uint64_t unique
    uint64_t offset
    uint64_t length
    # Bytes of a write that the slab has already.
    uint64_t position
    unsigned char *payload
    # Next one that is queued, or free; -1 ends a list.
    int32_t next
    uint8_t kind
    uint8_t state
    uint8_t interrupted

cdef struct Hint:
    uint64_t start
    uint64_t stop

cdef class Parking:
    # Everything is guarded by this lock, which is only ever taken without the GIL.
    cdef pthread_mutex_t _lock
    cdef pthread_cond_t _news
    cdef Parked *_parked
    cdef int32_t _room
    # Lists of places: free ones, and those that nobody has heard of yet.
    cdef int32_t _free
    cdef int32_t _first
    cdef int32_t _last
    cdef int32_t _held
    cdef int32_t _interrupted
    cdef Hint _hints[MOST_HINTS]
    cdef int _hint_count
    cdef bint _pressed
    cdef bint _ended
    # What a thread of the lane itself syncs the journal for, 0: nothing; and whether that was called off meanwhile.
    cdef uint64_t _syncing
    cdef bint _called_off
    cdef uint64_t _waited

    # False where there is no memory.
    cdef bint park(
        self, Kind kind, uint64_t unique, uint64_t offset, uint64_t length, uint64_t position,
        const unsigned char *data
    ) noexcept nogil
    # Give a place back, and return what was there; its payload is gone.
    cdef Parked leave(self, int32_t number) noexcept nogil
    # Call off the request of this number of the kernel's.
    cdef Found call_off(self, uint64_t unique) noexcept nogil
    # Sync for this request in place of parking it; False where one is synced for. Then: whether it was called off.
    cdef bint begin_sync(self, uint64_t unique) noexcept nogil
    cdef bint end_sync(self) noexcept nogil
    # Blocks [start, stop) will be read; much is unsaved; nothing more comes.
    cdef void hint(self, uint64_t start, uint64_t stop) noexcept nogil
    cdef void press(self) noexcept nogil
    cdef void end(self) noexcept nogil
    cdef bint _grow(self) noexcept nogil
    cdef void _unqueue(self, int32_t index) noexcept nogil
    cdef void _release(self, int32_t index) noexcept nogil
