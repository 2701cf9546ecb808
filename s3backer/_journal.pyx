# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The write journal's hot part: appending, syncing, and the map of what is not in the bucket yet.

    write_range ──► slab ──► record in the page cache ──► acknowledged ──sync──► on the disk ──stored──► forgotten

    files    oldest … newest in use ┬ spares         one list, in the order of their numbers
             freed from this end ──►│◄── made ready from that end (journal/service.py)

Guarantees
  * A write is in the slab and, as a record, in the page cache before it is acknowledged: it survives the process. Two
    writes get into the slab in the order in which their records stand in the files.
  * When ``sync`` returns, everything that was appended before it was called is on the disk. One fdatasync serves all
    who asked before it began.
  * After a write or an fdatasync that failed nothing is written or synced any more; ``sync`` raises from then on. So
    it does when somebody has removed a file that it syncs: what is in that nobody could read back.
  * ``load`` returns bytes whose CRC is right, or raises.
  * A file is given back (``take_freed``) only if nothing in it or in an older one is needed, and a record on the disk
    says so: who reads the journal back knows whether its beginning is there. After a failure none is.
  * No memory is allocated after the constructor, except by ``load`` and for what is returned to Python.
  * One mutex, taken and held without the GIL, never held while Python runs, while a file is synced or read. Whoever
    holds it may take the slab's lock and wait for pins, never the other way round.

``tests/support/journal_twin.py`` holds a plain Python twin.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EDQUOT, EINTR, EIO, ENOENT, ENOSPC, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from s3backer._fast cimport (
    Slab, all_zero, clear_bits, iovec, next_bit, pthread_cond_t, pthread_mutex_t, set_bits
)

cdef extern from "<errno.h>" nogil:
    # No write and no sync fails with it.
    const int EOWNERDEAD

import os

from s3backer.errors import JournalDamaged, JournalError

include "_journal_calls.pxi"

s3b_checksum_init()

JOURNAL_FULL = JOURNAL_FULL_REASON
JOURNAL_BUSY = JOURNAL_BUSY_REASON
JOURNAL_FAILED = JOURNAL_FAILED_REASON
# How full a journal is when writers are slowed down.
cdef double _CROWDED_FILL = 0.75
CROWDED_FILL = _CROWDED_FILL
cdef enum:
    _DONE = 0
    _MAGIC = 0x6B72A3C5
    _START = 1
    _DATA = 2
    _ZEROS = 3
    _INTENT = 4
    _DONE_NOTE = 5
    _MARK = 6
    # Bytes of data that one hold of the lock takes, if they are more than one block.
    _BATCH_BYTES = 1 << 20
    # From so many files on the last one is left to what is carried.
    _FEW_FILES = 4
    # Entries from which on a block may be crowded.
    _CROWD = 64
    # Bytes at the end of each file for MARKs: one that says that a file is not needed, one that what is synced with it
    # is on the disk, and one more to free a file with.
    _MARKS = 3 * 64
    # 512 bytes.
    _SECTOR_SHIFT = 9
    # Bytes of a payload from which on the checking lets other threads run.
    _LONG = 4096
    _LARGEST_NOTE = 4096

# Padding; never written to.
cdef unsigned char NO_BYTES[JOURNAL_PAGE]

include "_journal_map.pxi"
include "_journal_cipher.pxi"
include "_journal_files.pxi"
include "_journal_append.pxi"
include "_journal_carry.pxi"
include "_journal_sync.pxi"
include "_journal_scan.pxi"
include "_journal_load.pxi"


cdef Py_ssize_t *copy_ranges(ranges) except? NULL:
    """Return start and stop of each range, to be freed; NULL without memory."""
    cdef Py_ssize_t count = len(ranges), i
    cdef Py_ssize_t *ends = <Py_ssize_t *>malloc(2 * max(count, 1) * sizeof(Py_ssize_t))
    if ends:
        for i in range(count):
            ends[2 * i], ends[2 * i + 1] = ranges[i]
    return ends


def map_bytes(Py_ssize_t capacity):
    """Return the bytes of memory that a map of so many entries costs."""
    return capacity * sizeof(Entry) + (<Py_ssize_t>1 << hash_bits(capacity)) * sizeof(int32_t)


cdef class Journal:
    """The journal of a slab; see the module for what it guarantees.

    ``file_bytes``: size of each file; ``most_files``: how many may be there, spares included; ``capacity``: entries of
    the map, one for each block and write. ``resume`` begins where an earlier session ended.
    """

    def __cinit__(self, Slab slab not None, Py_ssize_t file_bytes, int32_t most_files, int32_t capacity):
        cdef int32_t index
        cdef pthread_condattr_t attributes
        self.slab = slab
        self._block_size, self._block_shift = slab._block_size, slab._block_shift
        self._file_bytes, self._reserve = file_bytes, file_bytes // 8
        self._batch_blocks = max(1, min(<Py_ssize_t>JOURNAL_BATCH, min(<Py_ssize_t>_BATCH_BYTES, file_bytes // 8)
                                        >> self._block_shift))
        if not least_file_bytes(self._block_size) <= file_bytes < <Py_ssize_t>1 << 32 or file_bytes % JOURNAL_PAGE:
            raise ValueError(f"journal files of {file_bytes} bytes do not go with blocks of {self._block_size}")
        if not 2 <= most_files <= 32767 or capacity < JOURNAL_BATCH:
            raise ValueError(f"a journal of {most_files} files and {capacity} entries is too small or too large")
        self.most_files = self._limit = self._data_limit = most_files
        self._capacity = capacity
        self._hash_shift = 64 - hash_bits(capacity)
        self._entry = <Entry *>calloc(capacity, sizeof(Entry))
        self._bucket = <int32_t *>malloc((<size_t>1 << hash_bits(capacity)) * sizeof(int32_t))
        self._file = <JournalFile *>calloc(most_files, sizeof(JournalFile))
        self._to_sync = <int32_t *>calloc(most_files, sizeof(int32_t))
        self._touched = <unsigned char *>calloc(self._block_size >> 3, 1)
        if not (self._entry and self._bucket and self._file and self._to_sync and self._touched):
            raise MemoryError(f"no memory for a journal of {capacity} entries")
        memset(self._bucket, 0xFF, (<size_t>1 << hash_bits(capacity)) * sizeof(int32_t))
        for index in range(capacity):
            self._entry[index].newer = index + 1
        self._entry[capacity - 1].newer = -1
        self._oldest = self._newest_used = self._current = self._last = -1
        self._tail, self._next_tail = self._tails[0], self._tails[1]
        self._pwritev, self._fdatasync = <s3b_pwritev_call>pwritev, <s3b_fdatasync_call>fdatasync
        pthread_mutex_init(&self._lock, NULL)
        pthread_cond_init(&self._synced, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self._work, &attributes)
        pthread_condattr_destroy(&attributes)
        self._made = True

    def __dealloc__(self):
        if self._made:
            pthread_cond_destroy(&self._work)
            pthread_cond_destroy(&self._synced)
            pthread_mutex_destroy(&self._lock)
        free(self._entry)
        free(self._bucket)
        free(self._file)
        free(self._to_sync)
        free(self._touched)
        free(self._encrypted)
        if self._context:
            self._crypto.free_context(self._context)

    def encrypt_with(self, functions):
        """Encrypt data: the addresses of libcrypto's functions (journal/cipher.py). Before any file is taken."""
        learn_crypto(&self._crypto, functions)
        self._context = self._crypto.new_context()
        self._encrypted = <unsigned char *>malloc(self._batch_blocks * (self._block_size + _TAG))
        if not (self._context and self._encrypted):
            raise MemoryError("no memory for an encrypted journal")
        self._tag = _TAG

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────

    cdef int write_range(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done
    ) noexcept nogil:
        """Write to the slab and append what it took; zeros where there is no data. ``done``: bytes taken by both.

        Nobody may change the data meanwhile: it is read more than once, and a record has to fit its CRC.
        Returns what Slab.write_range returns, or why the journal cannot take more; see ``write``.
        """
        cdef Py_ssize_t position = 0, step, taken
        cdef int reason = _DONE
        while position < length and reason == _DONE:
            step = (((offset + position) >> self._block_shift) + self._batch_blocks) << self._block_shift
            step = min(length - position, step - <Py_ssize_t>(offset + position))
            pthread_mutex_lock(&self._lock)
            reason = self._write_batch(offset + position, data + position if data else NULL, step, now, &taken)
            pthread_mutex_unlock(&self._lock)
            position += taken
        done[0] = position
        return reason

    cdef int _write_batch(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done
    ) noexcept nogil:
        """Do it for so few blocks that their records fit into one file, under the lock."""
        cdef Py_ssize_t blocks = ((offset + length - 1) >> self._block_shift) - (offset >> self._block_shift) + 1
        cdef Py_ssize_t taken
        cdef uint64_t sequence
        cdef int reason, why
        done[0] = 0
        reason = reserve(self, most_bytes(self, blocks if data else 1, length if data else 0), blocks, FOR_DATA)
        if reason != _DONE:
            return reason
        reason = self.slab.write_numbered(offset, data, length, now, &taken, &sequence)
        if taken:
            why = append(self, _DATA if data else _ZEROS, sequence, offset, data, taken, True)
            if why != _DONE:
                self._behind = True
                return why
        done[0] = taken
        return reason

    def write(self, uint64_t offset, data, double now):
        """Write as far as possible; return (bytes written, reason).

        The slab's reasons, and of the journal: JOURNAL_FULL: blocks have to be stored first; JOURNAL_BUSY: a file has
        to be made ready first, or the disk to have room again; JOURNAL_FAILED: for good. The slab may then hold more
        than is returned, up to the next 64 blocks: as it would be written again, that does no harm.
        """
        cdef Py_buffer view
        cdef Py_ssize_t done
        cdef int reason
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if not view.readonly:
            # Whoever changes it meanwhile would leave a record whose CRC is wrong.
            PyBuffer_Release(&view)
            data = bytes(data)
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        with nogil:
            reason = self.write_range(offset, <const unsigned char *>view.buf, view.len, now, &done)
        PyBuffer_Release(&view)
        return done, reason

    def write_zeros(self, uint64_t offset, Py_ssize_t length, double now):
        """Write ``length`` zero bytes; returns like ``write``, never ZERO_BLOCK."""
        cdef Py_ssize_t done
        cdef int reason
        with nogil:
            reason = self.write_range(offset, NULL, length, now, &done)
        return done, reason

    # ── what the bucket did ──────────────────────────────────────────────────────────────────────────────

    def intend(self, uint64_t block, uint64_t sequence, payload):
        """Note that a block is about to be put as of a sequence; False where there is no room for the note."""
        return self._note(_INTENT, block, sequence, payload) == _DONE

    def done(self, uint64_t block, uint64_t sequence, payload):
        """Note that the bucket holds a block as of a sequence, and forget what it held up to there; else like intend.

        ``sequence``: that as of which the body was copied, see ``Slab.begin_store``.
        """
        return self._note(_DONE_NOTE, block, sequence, payload) == _DONE

    cdef int _note(self, uint32_t kind, uint64_t block, uint64_t sequence, payload) except -1:
        cdef Py_buffer view
        cdef int reason
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        if view.len > _LARGEST_NOTE:
            PyBuffer_Release(&view)
            raise ValueError("a note is too long")
        with nogil:
            pthread_mutex_lock(&self._lock)
            reason = reserve(self, most_bytes(self, 1, view.len), 0, FOR_NOTES)
            if reason == _DONE:
                reason = append(
                    self, kind, sequence, block << self._block_shift, <const unsigned char *>view.buf, view.len,
                    False
                )
            if kind == _DONE_NOTE:
                map_forget(self, block, sequence)
            pthread_mutex_unlock(&self._lock)
        PyBuffer_Release(&view)
        return reason

    def stored(self, uint64_t block, uint64_t sequence):
        """The bucket holds the block as of this sequence, or later: forget what there is of it up to there."""
        with nogil:
            pthread_mutex_lock(&self._lock)
            map_forget(self, block, sequence)
            pthread_mutex_unlock(&self._lock)

    # ── durability ───────────────────────────────────────────────────────────────────────────────────────

    cdef bint all_durable(self) noexcept nogil:
        """Everything appended so far is on the disk, and the journal has not failed."""
        cdef bint durable
        pthread_mutex_lock(&self._lock)
        durable = self._durable >= self._wanted and not self._failure
        pthread_mutex_unlock(&self._lock)
        return durable

    cdef int make_durable(self) noexcept nogil:
        """Sync what was appended before; return 0 or the errno with which the journal failed."""
        cdef int error
        pthread_mutex_lock(&self._lock)
        error = sync_up_to_now(self)
        pthread_mutex_unlock(&self._lock)
        return error

    cdef void tell_durable(self) noexcept nogil:
        """Write down what is durable. To be called after a sync, when nobody waits for it any more."""
        pthread_mutex_lock(&self._lock)
        tell_durable(self)
        pthread_mutex_unlock(&self._lock)

    def sync(self):
        """Return the sequence up to which all is on the disk, when everything appended before the call is.

        Raises JournalError once the journal has failed.
        """
        cdef int error
        with nogil:
            error = self.make_durable()
            self.tell_durable()
        if error:
            raise self.failure
        return self.durable

    @property
    def synced(self):
        """Whether everything appended so far is on the disk."""
        cdef bint durable
        with nogil:
            durable = self.all_durable()
        return durable

    def hold(self, bint held):
        """Give no file back while it is held, although nothing of it is needed: of a note that is."""
        with nogil:
            pthread_mutex_lock(&self._lock)
            self._held = held
            pthread_cond_signal(&self._work)
            pthread_mutex_unlock(&self._lock)

    def give_up(self):
        """Take nothing any more, as after a write that failed: the volume is somebody else's now."""
        with nogil:
            pthread_mutex_lock(&self._lock)
            fail(self, EOWNERDEAD, b"used any more", max(self._current, 0))
            pthread_mutex_unlock(&self._lock)

    def fail_for(self, error):
        """Take nothing any more for a reason that is seen elsewhere, a JournalError, unless it has failed already."""
        if not self._failure:
            self._reason = error
        with nogil:
            pthread_mutex_lock(&self._lock)
            fail(self, EIO, b"used any more", max(self._current, 0))
            pthread_mutex_unlock(&self._lock)

    @property
    def durable(self):
        """Sequence of the last write that is known to be on the disk, with all before it."""
        return s3b_fetch(&self._durable_sequence)

    @property
    def behind(self):
        """Whether the slab may have something that it does not have: it failed, or had no room once; without a lock."""
        return self._behind or self._failure != 0

    @property
    def failed(self):
        """Whether it takes no more; without a lock."""
        return self._failure != 0

    @property
    def failure(self):
        """Why the journal takes no more, as a JournalError; None while it works."""
        cdef int error
        with nogil:
            pthread_mutex_lock(&self._lock)
            error = self._failure
            pthread_mutex_unlock(&self._lock)
        if not error:
            return None
        if self._reason is not None:
            return self._reason
        if error == EOWNERDEAD:
            return JournalError(
                f"the journal takes nothing any more since file {self._failed_file:08d}: the volume is another mount's",
                hint="What was acknowledged and is not in the bucket is kept in it: unmount, see 's3backer recover'.",
            )
        return JournalError(
            f"journal file {self._failed_file:08d} cannot be {self._failed_call.decode()}: {os.strerror(error)}",
            hint="Somebody has removed it. What was acknowledged waits in memory and goes to the bucket; unmount, then "
            "mount again." if error == ENOENT else
            "Look at that disk (dmesg, df). What was acknowledged waits in memory and goes to the bucket; "
            "unmount, then mount again with a journal on a sound disk.",
        )

    @property
    def fill(self):
        """How full it is, 0 to 1: of the bytes for data or of the map, whichever is scarcer."""
        cdef double used
        with nogil:
            pthread_mutex_lock(&self._lock)
            used = filled(self)
            pthread_mutex_unlock(&self._lock)
        return min(used, 1.0)

    # ── reading back ─────────────────────────────────────────────────────────────────────────────────────

    def pending(self, Py_ssize_t limit):
        """Return up to ``limit`` blocks that have something which is not in the bucket, in no order."""
        cdef Py_ssize_t room = min(limit, <Py_ssize_t>self._capacity), count, i
        cdef uint64_t *found = <uint64_t *>malloc(max(room, 1) * sizeof(uint64_t))
        if not found:
            raise MemoryError
        with nogil:
            pthread_mutex_lock(&self._lock)
            count = map_list(self, found, room)
            pthread_mutex_unlock(&self._lock)
        result = [found[i] for i in range(count)]
        free(found)
        return result

    def holds(self, uint64_t block):
        """Return whether something of the block is not in the bucket, as far as the journal knows."""
        cdef bint held
        with nogil:
            pthread_mutex_lock(&self._lock)
            held = map_link(self, block)[0] >= 0
            pthread_mutex_unlock(&self._lock)
        return held

    def is_left(self, uint64_t block):
        """Return whether something of the block that is not in the bucket is left to the journal.

        Of such a block the slab has what is not in the bucket only where it was filled with what ``load`` gives: it is
        from an earlier session, or was spilled.
        """
        cdef bint left = False
        if self.left:
            with nogil:
                pthread_mutex_lock(&self._lock)
                left = is_left(self, map_link(self, block)[0])
                pthread_mutex_unlock(&self._lock)
        return left

    def spill(self, uint64_t block):
        """Leave a dirty block to the journal, and let the slab have it as a clean one.

        False if it is being stored, or the journal does not have all of it on the disk, or has failed.
        """
        cdef bint spilled = False
        cdef int32_t index
        with nogil:
            pthread_mutex_lock(&self._lock)
            index = map_link(self, block)[0]
            if index >= 0 and not self._failure:
                if self._entry[self._entry[index].newest].sequence <= self._durable_sequence:
                    spilled = self.slab.let_go(block)
            if spilled:
                map_leave(self, index)
            pthread_mutex_unlock(&self._lock)
        return spilled

    def next_left(self, uint64_t block, uint64_t stop):
        """Return the first block in [block, stop) that is left (see ``is_left``), else stop."""
        if self.left:
            with nogil:
                pthread_mutex_lock(&self._lock)
                stop = map_next_left(self, block, stop)
                pthread_mutex_unlock(&self._lock)
        return stop

    def load(self, uint64_t block, out):
        """Put what is not in the bucket of a block over ``out``, and return (ranges, first sequence, last sequence).

        ``out`` has the size of a block, and may hold what the bucket has of it. Ranges are [start, stop) in bytes, in
        the order in which they were written; sequences are 0 where there is nothing. Raises JournalDamaged if a record
        is not what was written; ``out`` is then worth nothing.
        """
        cdef Py_buffer view
        cdef Loading job
        cdef Py_ssize_t i
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        if view.len != self._block_size:
            PyBuffer_Release(&view)
            raise ValueError(f"{len(out)} bytes are not a block of {self._block_size}")
        with nogil:
            load_block(self, block, <unsigned char *>view.buf, &job)
        PyBuffer_Release(&view)
        try:
            if not job.places:
                raise MemoryError
            if job.bad >= 0:
                raise JournalDamaged(
                    f"journal file {job.places[job.bad].file:08d} does not hold at byte "
                    f"{job.places[job.bad].entry.position} what was written there, which is a part of block {block}",
                    hint="Look at that disk (dmesg, SMART). Keep the journal's directory.",
                )
            ranges = [(job.places[i].entry.start, job.places[i].entry.stop) for i in range(job.count)]
            return ranges, job.first, job.last
        finally:
            free(job.places)

    # ── carrying ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def oldest(self):
        """The oldest file in use: (its number, entries of the map that lie in it); None before there is one."""
        cdef JournalFile file
        cdef bint used
        with nogil:
            pthread_mutex_lock(&self._lock)
            used = self._newest_used >= 0
            if used:
                file = self._file[self._oldest]
            pthread_mutex_unlock(&self._lock)
        return (file.number, file.entries) if used else None

    def keepers(self):
        """Return blocks that keep others from being written, and are worth carrying; see ``map_keepers``."""
        cdef Py_ssize_t count = 0, room = self.blocks
        cdef uint64_t *found = <uint64_t *>malloc(max(room, 1) * sizeof(uint64_t))
        if not found:
            raise MemoryError
        with nogil:
            pthread_mutex_lock(&self._lock)
            if self._newest_used >= 0:
                count = map_keepers(self, found, room)
            pthread_mutex_unlock(&self._lock)
        result = [found[i] for i in range(count)]
        free(found)
        return result

    def append_again(
        self, uint64_t block, const unsigned char[::1] body not None, ranges, uint64_t first, uint64_t last
    ):
        """Append what ``load`` gave of a block once more, and return where, for ``replace``; None if it was not done.

        ``ranges``: what there is of it, ordered, apart from each other. It is not done if anything has changed since,
        and where there is no room. It has the sequence of the block's last write: it is no write.
        """
        cdef Py_ssize_t count = len(ranges), i
        cdef bint appended = False
        cdef uint64_t number = 0
        cdef Py_ssize_t *ends = copy_ranges(ranges)
        cdef uint32_t *positions = <uint32_t *>malloc(max(count, 1) * sizeof(uint32_t))
        if ends != NULL and positions != NULL and body.shape[0] == self._block_size and count > 0:
            with nogil:
                pthread_mutex_lock(&self._lock)
                appended = append_carried(self, block, &body[0], ends, count, first, last, positions)
                if appended:
                    number = self._file[self._current].number
                pthread_mutex_unlock(&self._lock)
        places = [positions[i] for i in range(count)] if appended else None
        free(ends)
        free(positions)
        return (number, places) if appended else None

    def replace(self, uint64_t block, ranges, uint64_t first, uint64_t last, places):
        """Forget where something stood of which a copy is on the disk now; False if it was changed meanwhile.

        ``places``: what ``append_again`` returned for the same block and ranges. What was written since stays.
        """
        cdef Py_ssize_t count = len(ranges), i
        cdef bint replaced = False
        cdef uint64_t number = places[0]
        cdef Py_ssize_t *ends = copy_ranges(ranges)
        cdef uint32_t *positions = <uint32_t *>malloc(max(count, 1) * sizeof(uint32_t))
        if ends != NULL and positions != NULL:
            for i in range(count):
                positions[i] = places[1][i]
            with nogil:
                pthread_mutex_lock(&self._lock)
                replaced = map_replace(self, block, ends, count, first, last, number, positions)
                pthread_mutex_unlock(&self._lock)
        free(ends)
        free(positions)
        return replaced

    # ── files, for who makes them ready ──────────────────────────────────────────────────────────────────

    def add_spare(self, int fd, uint64_t number, uint32_t seed, bytes key=b""):
        """Take a file that is ready: its header is on the disk, under its name. Its number is the highest so far.

        ``key``: 32 bytes where the journal is encrypted.
        """
        self._add(fd, number, seed, key, 0, FILE_SPARE)

    def adopt_file(self, int fd, uint64_t number, uint32_t seed, uint64_t first, bytes key=b""):
        """Take a file of an earlier session, in order, before any spare; ``first`` is its first record's number."""
        self._add(fd, number, seed, key, first, FILE_USED)

    def _add(self, int fd, uint64_t number, uint32_t seed, bytes key, uint64_t first, FileState state):
        cdef bint fits
        cdef const unsigned char *secret = <const unsigned char *>PyBytes_AS_STRING(key)
        if len(key) != (_KEY if self._tag else 0):
            raise ValueError("a file has a key where the journal is encrypted, and nowhere else")
        with nogil:
            pthread_mutex_lock(&self._lock)
            fits = add_file(self, fd, number, seed, secret, first, state)
            pthread_mutex_unlock(&self._lock)
        if not fits:
            raise ValueError(f"file {number} cannot be taken now")

    def adopt_records(self, records):
        """Enter records of the file adopted last, as facts in order, into the map; return False if it has no room."""
        cdef uint64_t position, kind, number, sequence, _durable, offset, length, blocks
        cdef bint fits = True
        for position, kind, number, sequence, _durable, offset, length in records:
            with nogil:
                pthread_mutex_lock(&self._lock)
                self.number = self._written = self._wanted = number
                if kind == _START or kind == _MARK:
                    # The writes before it may all have been in files that are gone.
                    self._sequence = max(self._sequence, sequence)
                elif kind == _DATA or kind == _ZEROS:
                    blocks = ((offset + length - 1) >> self._block_shift) - (offset >> self._block_shift) + 1
                    fits = <uint64_t>(self._capacity - self.entries) >= blocks
                    # What was carried has the sequence of an earlier write.
                    self._sequence = max(self._sequence, sequence)
                    # It is what will be replayed, and nothing is freed before it was synced: it is as good as durable.
                    s3b_publish(&self._durable_sequence, self._sequence)
                    if fits:
                        map_add_range(self, sequence, position, offset, length, self._newest_used, kind == _ZEROS)
                elif kind == _DONE_NOTE:
                    # A block may have been touched, which is no record.
                    self._sequence = max(self._sequence, sequence)
                    map_forget(self, offset >> self._block_shift, sequence)
                pthread_mutex_unlock(&self._lock)
            if not fits:
                return False
        return True

    def resume(self):
        """Let the slab's sequence go on from the last one adopted, and all of it be left; before the first write."""
        with nogil:
            pthread_mutex_lock(&self._lock)
            pthread_mutex_lock(&self.slab._lock)
            self.slab.sequence = max(self.slab.sequence, self._sequence)
            pthread_mutex_unlock(&self.slab._lock)
            map_leave_all(self)
            pthread_mutex_unlock(&self._lock)

    def take_freed(self):
        """Give back the oldest file, if nothing of it is needed: (its number, its descriptor); else None.

        Syncs if the disk does not know yet that it is not needed. Raises JournalError if that fails.
        """
        cdef bint freed
        cdef int error = 0
        cdef uint64_t number = 0
        cdef int fd = -1
        with nogil:
            pthread_mutex_lock(&self._lock)
            if can_free(self) and not is_named(self):
                error = give_up_files(self)
            freed = remove_oldest(self, &number, &fd)
            pthread_mutex_unlock(&self._lock)
        if error:
            raise self.failure
        return (number, fd) if freed else None

    def wait_for_work(self, double seconds, int32_t spares):
        """Wait until there are fewer than so many spares and room for one, or a file is freed; False if time is up.

        Returns at once, with True, once the journal has failed.
        """
        cdef timespec until
        cdef bint work
        s3b_deadline(&until, seconds)
        with nogil:
            pthread_mutex_lock(&self._lock)
            self._spares_asked = spares
            work = has_work(self, spares)
            while not work and pthread_cond_timedwait(&self._work, &self._lock, &until) == 0:
                work = has_work(self, spares)
            # What came together with the end of the time, too.
            work = has_work(self, spares)
            pthread_mutex_unlock(&self._lock)
        return work

    def wants_spare(self, int32_t spares):
        """Return whether there are fewer than so many spares and room for one."""
        cdef bint wanted
        with nogil:
            pthread_mutex_lock(&self._lock)
            wanted = wants_spare(self, spares)
            pthread_mutex_unlock(&self._lock)
        return wanted

    def limit_files(self):
        """Let there be no more files than there are now: no other one can be made."""
        with nogil:
            pthread_mutex_lock(&self._lock)
            self._limit = self.files + self.spares
            # One alone is never given up: who writes waits for the second one.
            self._data_limit = max(2, self._limit)
            pthread_mutex_unlock(&self._lock)

    def lift_limits(self):
        """Try again whether the disk has room."""
        with nogil:
            pthread_mutex_lock(&self._lock)
            self._limit, self._no_room = self.most_files, False
            pthread_mutex_unlock(&self._lock)

    @property
    def no_room(self):
        """Whether the disk had no room for the last record that was to be written."""
        return self._no_room

    # ── for tests ────────────────────────────────────────────────────────────────────────────────────────

    def interpose(self, uintptr_t pwritev_address, uintptr_t fdatasync_address):
        """Call these C functions in place of pwritev(2) and fdatasync(2). Before anything is written."""
        self._pwritev = <s3b_pwritev_call><void *>pwritev_address
        self._fdatasync = <s3b_fdatasync_call><void *>fdatasync_address


def least_file_bytes(Py_ssize_t block_size):
    """Return the smallest size of a file for blocks of that size, in bytes."""
    return -(-(4 * block_size + 8 * JOURNAL_PAGE) // JOURNAL_PAGE) * JOURNAL_PAGE
