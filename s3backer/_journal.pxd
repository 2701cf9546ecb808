"""C declarations of the write journal, for the fast lane."""

from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t, uint64_t

from s3backer._fast cimport Slab, iovec, pthread_cond_t, pthread_mutex_t

cdef extern from "_journal.h" nogil:
    ctypedef ssize_t (*s3b_pwritev_call)(int, const iovec *, int, long) noexcept nogil
    ctypedef int (*s3b_fdatasync_call)(int) noexcept nogil

# Why a write was not taken; they go on from the slab's.
cdef enum JournalReason:
    JOURNAL_FULL_REASON = 6
    JOURNAL_BUSY_REASON = 7
    JOURNAL_FAILED_REASON = 8

cdef enum:
    JOURNAL_PAGE = 4096
    # Blocks of one hold of the lock, and the most records of one write to a file.
    JOURNAL_BATCH = 64

# A record as it stands in a file, little-endian; ``journal/format.py`` draws it.
cdef struct DiskRecord:
    uint32_t magic
    uint32_t kind
    uint64_t number
    uint64_t sequence
    uint64_t durable
    uint64_t offset
    uint64_t length
    uint64_t position
    uint32_t payload_crc
    uint32_t crc

# What a record holds of one block that is not in the bucket.
cdef struct Entry:
    uint64_t block
    uint64_t sequence
    # Where its record begins in its file, and which bytes of the block it holds.
    uint32_t position
    uint32_t start
    uint32_t stop
    int16_t file
    uint8_t zeros
    # The slab need not have it.
    uint8_t left
    # The block's next entry, or the next free one; -1 ends a list.
    int32_t newer
    # Of a block's oldest entry only: the next oldest entry of the same hash bucket; the block's newest entry; its
    # newest that holds the whole block, -1 if none does.
    int32_t chain
    int32_t newest
    int32_t cover

# Functions of libcrypto, and AES-256-GCM.
ctypedef void *(*CryptoNew)() noexcept nogil
ctypedef void (*CryptoFree)(void *) noexcept nogil
ctypedef int (*CryptoInit)(
    void *, const void *, void *, const unsigned char *, const unsigned char *
) noexcept nogil
ctypedef int (*CryptoUpdate)(void *, unsigned char *, int *, const unsigned char *, int) noexcept nogil
ctypedef int (*CryptoFinal)(void *, unsigned char *, int *) noexcept nogil
ctypedef int (*CryptoControl)(void *, int, int, void *) noexcept nogil

cdef struct Crypto:
    CryptoNew new_context
    CryptoFree free_context
    CryptoInit encrypt_init
    CryptoUpdate encrypt_update
    CryptoFinal encrypt_final
    CryptoInit decrypt_init
    CryptoUpdate decrypt_update
    CryptoFinal decrypt_final
    CryptoControl control
    const void *cipher

# What a place in a file is reserved for.
cdef enum Purpose:
    FOR_DATA = 0
    FOR_NOTES = 1
    FOR_CARRYING = 2

cdef enum FileState:
    FILE_ABSENT = 0
    FILE_SPARE = 1
    FILE_USED = 2

cdef struct JournalFile:
    uint64_t number
    # Number of its first record.
    uint64_t first
    int fd
    uint32_t seed
    # Where the journal is encrypted.
    unsigned char key[32]
    # Entries of the map that lie in it; threads that read it or sync it.
    int32_t entries
    int32_t users
    # The file used after it, -1 for the last one.
    int32_t next
    uint8_t state
    uint8_t unsynced
    # It had a name when it came, so that it is gone when it has none.
    uint8_t linked

cdef class Journal:
    cdef readonly Slab slab
    # Fixed.
    cdef Py_ssize_t _block_size
    cdef int _block_shift
    cdef Py_ssize_t _file_bytes
    cdef Py_ssize_t _reserve
    cdef Py_ssize_t _batch_blocks
    cdef readonly int32_t most_files
    cdef int32_t _capacity
    cdef int _hash_shift
    cdef s3b_pwritev_call _pwritev
    cdef s3b_fdatasync_call _fdatasync
    # Everything below is guarded by this lock, which is only ever taken without the GIL.
    cdef pthread_mutex_t _lock
    cdef pthread_cond_t _synced
    cdef pthread_cond_t _work
    # How many spares there are to be, as who waits for work asked last.
    cdef int32_t _spares_asked
    cdef bint _made
    # The map.
    cdef Entry *_entry
    cdef int32_t *_bucket
    cdef int32_t _free
    # Of which sectors of a block there is something; zeros but while that is counted.
    cdef unsigned char *_touched
    # The files: in use from ``_oldest`` to ``_newest_used``, then the spares. Written is ``_current``, -1: none yet.
    cdef JournalFile *_file
    cdef int32_t *_to_sync
    cdef int32_t _oldest
    cdef int32_t _newest_used
    cdef int32_t _current
    cdef int32_t _last
    # How many there may be for now; whether the disk has just had no room for a record.
    cdef int32_t _limit
    # How many data counts on: more again only when one more could be made.
    cdef int32_t _data_limit
    cdef bint _no_room
    # A part of a record that was not counted stands behind the end of the current file.
    cdef bint _torn
    # Number of the oldest file that is needed: as a record says that is written, and as one says that is on the disk.
    cdef uint64_t _named
    cdef uint64_t _named_durable
    # Where the next record begins in the current file, and the page up to there.
    cdef Py_ssize_t _position
    cdef unsigned char *_tail
    cdef unsigned char *_next_tail
    cdef unsigned char _tails[2][JOURNAL_PAGE]
    cdef DiskRecord _record[JOURNAL_BATCH]
    cdef iovec _piece[3 * JOURNAL_BATCH + 2]
    # Where the journal is encrypted: bytes that a record gets by it, the context, room for a batch.
    cdef Py_ssize_t _tag
    cdef Crypto _crypto
    cdef void *_context
    cdef unsigned char *_encrypted
    # Numbers of the last record in a file and of the last one that a sync has to reach, which is seldom a MARK;
    # sequence of the last write; and how far these are on the disk.
    cdef uint64_t _written
    cdef uint64_t _wanted
    cdef uint64_t _sequence
    cdef uint64_t _durable
    cdef uint64_t _durable_sequence
    # What the last record says is durable.
    cdef uint64_t _told
    cdef bint _syncing
    # A write is in the slab and not in a file.
    cdef bint _behind
    # No file is given back.
    cdef bint _held
    cdef int _failure
    cdef const char *_failed_call
    # Why it failed, if that was seen elsewhere; needs the GIL.
    cdef object _reason
    cdef uint64_t _failed_file
    # Counters. ``number``: of the last record, which may still wait in the tail if it is a START.
    cdef readonly uint64_t number
    cdef readonly int32_t entries
    cdef readonly int32_t blocks
    # Blocks of which something that is needed is left to the journal.
    cdef readonly int32_t left
    cdef readonly int32_t files
    cdef readonly int32_t spares
    cdef readonly int32_t waiting
    cdef readonly int32_t loading
    cdef readonly uint64_t syncs
    # Whether it was more than CROWDED_FILL full when something was appended last.
    cdef readonly bint crowded
    # Writes that were told that it is full.
    cdef readonly uint64_t refused

    # For the fast lane.
    cdef int write_range(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done
    ) noexcept nogil
    cdef bint all_durable(self) noexcept nogil
    cdef int make_durable(self) noexcept nogil
    cdef void tell_durable(self) noexcept nogil
    # Inside.
    cdef int _write_batch(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done
    ) noexcept nogil
    cdef int _note(self, uint32_t kind, uint64_t block, uint64_t sequence, payload) except -1
