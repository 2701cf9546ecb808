"""C declarations of the hot path, for other compiled modules."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

# The bytes are all zero.
cdef bint all_zero(const unsigned char *data, Py_ssize_t length) noexcept nogil

# Bit i of a bitmap is bit i % 8 of its byte i // 8; ranges are [start, stop).
cdef void set_bits(unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
cdef void clear_bits(unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
cdef Py_ssize_t count_bits(const unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
cdef Py_ssize_t next_bit(const unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop, bint wanted) noexcept nogil

cdef struct Slot:
    uint64_t block
    # Sequence and time of the first write that is not on its way to the bucket, and of the one that is.
    uint64_t first_sequence
    uint64_t storing_sequence
    double dirty_since
    double storing_since
    # How many sectors are set in each of the slot's bitmaps.
    int32_t valid
    int32_t dirty
    int32_t storing
    # The first of its patches; -1 ends a list.
    int32_t patch
    # Next slot of the same hash bucket, or of the list of free ones; -1 ends a list.
    int32_t chain
    # Neighbours in the list of dirty slots, which is in order of first_sequence, or in the queue of a clean one.
    int32_t older
    int32_t newer
    # What ``_moved`` was when a use was counted last.
    uint32_t counted
    # Readers that are sending from it.
    uint8_t pins
    uint8_t used
    # Uses since it came into its queue or was passed over there, apart from the first; whether that queue is main;
    # whether it was read ahead and has not been used.
    uint8_t hits
    uint8_t main
    uint8_t ahead

cdef struct SlotList:
    int32_t oldest
    int32_t newest
    int32_t count

cdef struct Ghosts:
    uint64_t *block
    int32_t *chain
    int32_t *bucket
    int hash_shift
    int32_t size
    int32_t next
    int32_t count

cdef struct Patch

cdef class Slab:
    # Geometry, fixed.
    cdef Py_ssize_t _block_size
    cdef int _block_shift
    cdef Py_ssize_t _sectors
    cdef Py_ssize_t _map_bytes
    cdef int32_t _slots
    cdef int32_t _dirty_limit
    cdef int _hash_shift
    cdef Py_ssize_t _data_bytes
    cdef int32_t _pin_limit
    cdef int32_t _patch_count
    cdef int32_t _patch_limit
    cdef uint32_t _burst
    # Everything below is guarded by this lock, which is only ever taken without the GIL.
    cdef pthread_mutex_t _lock
    cdef unsigned char *_data
    cdef unsigned char *_bitmaps
    cdef Slot *_slot
    cdef int32_t *_bucket
    cdef int32_t _free
    cdef Patch *_patch
    cdef int32_t _free_patch
    # Slots with dirty sectors, and the queues of the clean ones; a slot is in at most one of them.
    cdef SlotList _dirty
    cdef SlotList _small
    cdef SlotList _main
    cdef Ghosts _ghosts
    # Sectors that were read, written and fetched, modulo 2**32.
    cdef uint32_t _moved
    cdef pthread_cond_t _unpinned
    # Counters.
    cdef readonly uint64_t sequence
    cdef readonly uint64_t read_hits
    cdef readonly uint64_t read_misses
    cdef readonly uint64_t write_hits
    cdef readonly uint64_t write_misses
    cdef readonly int32_t used
    cdef readonly int32_t dirty
    cdef readonly int32_t storing
    cdef readonly int32_t unsaved
    # From how many of them on writers are to be slowed down; set by whoever does that.
    cdef public int32_t crowded_from
    cdef readonly int32_t pinned
    cdef readonly int32_t ahead
    # Patches in use.
    cdef readonly int32_t patches
    cdef readonly int32_t waiting
    cdef readonly uint64_t waits
    cdef readonly uint64_t evictions
    cdef readonly uint64_t ghost_hits

    cdef int32_t *_head(self, uint64_t block) noexcept nogil
    cdef int32_t _find(self, uint64_t block) noexcept nogil
    cdef unsigned char *_map(self, int32_t index, int which) noexcept nogil
    cdef bint _covers(self, int32_t index, Py_ssize_t first, Py_ssize_t last) noexcept nogil
    cdef bint _knows(self, int32_t index, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
    cdef Py_ssize_t read_range(
        self, uint64_t offset, unsigned char *out, Py_ssize_t length, uint64_t *missing, Py_ssize_t *count
    ) noexcept nogil
    cdef int write_range(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done
    ) noexcept nogil
    cdef int write_numbered(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done,
        uint64_t *sequence
    ) noexcept nogil
    cdef bint let_go(self, uint64_t block) noexcept nogil
    cdef int pin_range(
        self, uint64_t offset, Py_ssize_t length, iovec *out, Py_ssize_t room, Py_ssize_t *count
    ) noexcept nogil
    cdef void unpin_range(self, const iovec *pieces, Py_ssize_t count) noexcept nogil
