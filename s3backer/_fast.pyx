# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The hot path: block offset math, bitmaps, the zero scan, and the slab that holds the cached blocks.

    slab    slots × ┌ block_size bytes of data ┐  one mapping, page aligned
                    └ valid · dirty · storing  ┘  bitmaps, one bit a sector of 512 bytes

    sector     valid   dirty   storing
    unknown      0       0        0
    clean        1       0        0
    dirty        1       1        -      written, and not yet copied for the bucket
    patched      0       1        0      written in part, the rest is not known (``_patches.pxi``)
    storing      1       -        1      copied by begin_store, settled by end_store

Guarantees
  * Every call on a slab is atomic: one mutex, which nobody waits for with the GIL, and which is never held while Python
    runs. Who has it needs neither the GIL nor anything else.
  * Only clean slots are evicted, by S3-FIFO (``_eviction.pxi``). ``unsaved`` slots never exceed ``dirty_limit``, apart
    from those that were touched.
  * What a pinned slot shows stays as it is until it is unpinned (``_pins.pxi``). Only a write to a pinned block and
    ``drop_from`` ever wait, for that.
  * The search for a slot to evict looks at no unsaved ones, and at a fixed number of others beside those pinned.
  * No memory is allocated after the constructor, except for what is returned to Python.
  * The code is compiled for any CPU of its architecture; the zero scan picks wider instructions at run time.

``tests/support/twins.py`` holds a plain Python twin of everything here, the oracle of its property tests.
"""

from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, void *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_broadcast(pthread_cond_t *)
    int pthread_cond_destroy(pthread_cond_t *)

cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass
    PyThreadState *PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState *)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_NORESERVE
    void *MAP_FAILED

cdef extern from "_fast.h" nogil:
    int s3b_zero(const unsigned char *, size_t)
    int s3b_zero_baseline(const unsigned char *, size_t)
    void s3b_choose()
    int s3b_popcount(uint64_t)
    uint64_t s3b_bits(const unsigned char *)
    int s3b_lowest(uint64_t)

s3b_choose()

DONE = 0
NO_SLOT = 1
ZERO_BLOCK = 2
MISSING = 3
BUSY = 4
NO_PATCH = 5
cdef enum:
    _DONE = 0
    _NO_SLOT = 1
    _ZERO_BLOCK = 2
    _MISSING = 3
    _BUSY = 4
    _NO_PATCH = 5
    _VALID = 0
    _DIRTY = 1
    _STORING = 2
    _SECTOR_SHIFT = 9
    _SECTOR = 512
    # Blocks that one hold of the lock looks up: 128 KiB, the largest FUSE request, in the smallest blocks.
    _BATCH = 256
    # Bytes from which the zero scan lets other threads run. Below, the scan takes less time than handing over.
    _LONG_SCAN = 16384
    # Bytes from which a copy does: it takes a hundredth of a millisecond then.
    _LONG_COPY = 262144


cdef inline uint64_t spread(uint64_t block, int hash_shift) noexcept nogil:
    """Return the block's hash bucket, of 1 << (64 - hash_shift)."""
    return block * <uint64_t>0x9E3779B97F4A7C15 >> hash_shift


include "_bits.pxi"
include "_ghosts.pxi"
include "_eviction.pxi"
include "_patches.pxi"
include "_slots.pxi"
include "_storing.pxi"
include "_pins.pxi"
include "_invariants.pxi"


# ── the slab ─────────────────────────────────────────────────────────────────────────────────────────────────

cdef inline PyThreadState *enter(Slab slab, Py_ssize_t length) noexcept:
    """Lock a slab to copy ``length`` bytes; without the GIL only if that takes long, or somebody has the lock.

    Handing the GIL over among many threads takes longer than a short copy. Up to ``leave`` no Python object is touched.
    """
    cdef PyThreadState *away = NULL
    if length > _LONG_COPY or pthread_mutex_trylock(&slab._lock) != 0:
        away = PyEval_SaveThread()
        pthread_mutex_lock(&slab._lock)
    return away


cdef inline void leave(Slab slab, PyThreadState *away) noexcept:
    pthread_mutex_unlock(&slab._lock)
    if away:
        PyEval_RestoreThread(away)


cdef Py_ssize_t _map_bytes_of(Py_ssize_t block_size) noexcept nogil:
    """Bytes of one bitmap of a slot, whole words."""
    return ((block_size >> _SECTOR_SHIFT) + 63) // 64 * 8


cdef Py_ssize_t _patches_of(Py_ssize_t block_size) noexcept nogil:
    """Patches for each slot."""
    return 1 + (block_size >> _SECTOR_SHIFT) // _PATCH_SECTORS


def slot_bytes(Py_ssize_t block_size):
    """Return the bytes that one slot costs: data, bitmaps, bookkeeping, patches, a ghost, its share of hash tables."""
    cdef Py_ssize_t ghost = sizeof(uint64_t) + 3 * sizeof(int32_t), patches = _patches_of(block_size) * sizeof(Patch)
    _shift_of(block_size)
    return block_size + 3 * _map_bytes_of(block_size) + sizeof(Slot) + patches + 2 * sizeof(int32_t) + ghost


cdef class Slab:
    """``slots`` cached blocks of ``block_size`` bytes; see the module for states and guarantees.

    Offsets and lengths are in bytes, ``now`` in seconds of any monotonic clock. ``sequence`` counts the calls that
    changed something; a slot remembers the first one whose data is not in the bucket.
    """

    def __cinit__(self, Py_ssize_t block_size, int32_t slots, int32_t dirty_limit):
        cdef int32_t index
        cdef int bits = 1
        cdef void *data
        self._block_shift = _shift_of(block_size)
        if slots < 1 or not 1 <= dirty_limit <= slots:
            raise ValueError(f"a slab of {slots} slots cannot have {dirty_limit} unsaved ones")
        self._block_size = block_size
        self._sectors = block_size >> _SECTOR_SHIFT
        self._map_bytes = _map_bytes_of(block_size)
        self._dirty_limit = self.crowded_from = dirty_limit
        while 1 << bits < slots:
            bits += 1
        self._hash_shift = 64 - bits
        self._slot = <Slot *>calloc(slots, sizeof(Slot))
        self._bitmaps = <unsigned char *>calloc(slots, 3 * self._map_bytes)
        self._bucket = <int32_t *>calloc(<size_t>1 << bits, sizeof(int32_t))
        # A write may need two of them.
        self._patch_count = <int32_t>min(max(slots * _patches_of(block_size), 2), <Py_ssize_t>0x7FFFFFFF)
        self._patch_limit = self._patch_count
        self._patch = <Patch *>calloc(self._patch_count, sizeof(Patch))
        # Mapped, not allocated: pages that were never used cost nothing.
        data = mmap(
            NULL, <size_t>slots * block_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if data != MAP_FAILED:
            self._data = <unsigned char *>data
            self._data_bytes = <Py_ssize_t>slots * block_size
        if not (
            ghosts_make(&self._ghosts, slots, self._hash_shift)
            and self._slot and self._bitmaps and self._bucket and self._patch
        ):
            raise MemoryError(f"no memory for the bookkeeping of {slots} blocks")
        if not self._data:
            raise MemoryError(f"no memory for {slots} blocks of {block_size} bytes")
        memset(self._bucket, 0xFF, (<size_t>1 << bits) * sizeof(int32_t))
        for index in range(slots):
            self._slot[index].chain = index + 1
        self._slot[slots - 1].chain = -1
        for index in range(self._patch_count):
            self._patch[index].next = index + 1
        self._patch[self._patch_count - 1].next = -1
        self._dirty.oldest = self._dirty.newest = -1
        self._small.oldest = self._small.newest = -1
        self._main.oldest = self._main.newest = -1
        self._burst = <uint32_t>(self._sectors * min(1 + slots / _BURST_SHARE, <int32_t>_BURST_BLOCKS))
        self._pin_limit = slots - dirty_limit - 1
        pthread_mutex_init(&self._lock, NULL)
        pthread_cond_init(&self._unpinned, NULL)
        self._slots = slots

    def __dealloc__(self):
        if self._slots:
            pthread_cond_destroy(&self._unpinned)
            pthread_mutex_destroy(&self._lock)
        ghosts_end(&self._ghosts)
        if self._data:
            munmap(self._data, self._data_bytes)
        free(self._slot)
        free(self._bitmaps)
        free(self._bucket)
        free(self._patch)

    @property
    def block_size(self):
        """Bytes of a block."""
        return self._block_size

    @property
    def slots(self):
        """How many blocks there is room for."""
        return self._slots

    @property
    def dirty_limit(self):
        """How many slots may be unsaved: dirty, or on their way to the bucket."""
        return self._dirty_limit

    @property
    def crowded(self):
        """Whether more than ``crowded_from`` blocks are unsaved."""
        return self.unsaved > self.crowded_from

    @property
    def clean(self):
        """How many slots hold nothing but what is in the bucket: those that can be evicted, while not pinned."""
        return self._small.count + self._main.count

    @property
    def kept(self):
        """How many of the clean slots hold blocks that were used again."""
        return self._main.count

    @property
    def ghosts(self):
        """How many evicted blocks are remembered."""
        return self._ghosts.count

    # ── slots, under the lock ────────────────────────────────────────────────────────────────────────────

    cdef unsigned char *_map(self, int32_t index, int which) noexcept nogil:
        return self._bitmaps + (3 * <Py_ssize_t>index + which) * self._map_bytes

    cdef int32_t *_head(self, uint64_t block) noexcept nogil:
        return self._bucket + spread(block, self._hash_shift)

    cdef int32_t _find(self, uint64_t block) noexcept nogil:
        """Return the block's slot, -1 if it has none."""
        cdef int32_t index = self._head(block)[0]
        while index >= 0 and self._slot[index].block != block:
            index = self._slot[index].chain
        return index

    cdef bint _covers(self, int32_t index, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """Sectors [first, last) are all valid."""
        if self._slot[index].valid == self._sectors:
            return True
        return next_bit(self._map(index, _VALID), first, last, False) == last

    cdef bint _knows(self, int32_t index, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        """Bytes [start, stop) are all known: of valid sectors, or written."""
        cdef bint known = False
        if self._covers(index, start >> _SECTOR_SHIFT, (stop + _SECTOR - 1) >> _SECTOR_SHIFT):
            return True
        if self._slot[index].patch < 0:
            return False
        # To look through many sectors that are not takes long.
        known_run(self, index, start, start + 1, &known)
        return known and known_run(self, index, start, stop, &known) == stop

    # ── reading and writing ──────────────────────────────────────────────────────────────────────────────

    cdef Py_ssize_t read_range(
        self, uint64_t offset, unsigned char *out, Py_ssize_t length, uint64_t *missing, Py_ssize_t *count
    ) noexcept nogil:
        """Copy what is valid, collect the blocks that are not (at most _BATCH), return the bytes passed over."""
        cdef Py_ssize_t position = 0, start, stop, blocks = 0
        cdef uint64_t block
        cdef int32_t index
        count[0] = 0
        pthread_mutex_lock(&self._lock)
        while position < length and blocks < _BATCH:
            block = (offset + position) >> self._block_shift
            start = (offset + position) & (self._block_size - 1)
            stop = min(self._block_size, start + length - position)
            index = self._find(block)
            if index >= 0 and self._knows(index, start, stop):
                memcpy(out + position, self._data + <Py_ssize_t>index * self._block_size + start, stop - start)
                note_use(self, index, ((stop + _SECTOR - 1) >> _SECTOR_SHIFT) - (start >> _SECTOR_SHIFT))
                self.read_hits += 1
            else:
                missing[count[0]] = block
                count[0] += 1
                self.read_misses += 1
            position += stop - start
            blocks += 1
        pthread_mutex_unlock(&self._lock)
        return position

    def read(self, uint64_t offset, out):
        """Copy what is cached into ``out`` and return the blocks that are not, whose bytes stay untouched."""
        cdef Py_buffer view
        cdef uint64_t missing[_BATCH]
        cdef Py_ssize_t position = 0, count, i
        result = []
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        try:
            while position < view.len:
                with nogil:
                    position += self.read_range(
                        offset + position, <unsigned char *>view.buf + position, view.len - position, missing, &count
                    )
                for i in range(count):
                    result.append(missing[i])
        finally:
            PyBuffer_Release(&view)
        return result

    cdef int write_range(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done
    ) noexcept nogil:
        """Write as far as possible; return why it stopped, and in ``done`` how many bytes were written.

        Waits while a block of the range is pinned.
        """
        cdef uint64_t sequence
        return self.write_numbered(offset, data, length, now, done, &sequence)

    cdef int write_numbered(
        self, uint64_t offset, const unsigned char *data, Py_ssize_t length, double now, Py_ssize_t *done,
        uint64_t *sequence
    ) noexcept nogil:
        """Do what ``write_range`` does, and return in ``sequence`` that of this write, if it wrote something."""
        cdef Py_ssize_t position = 0, start, stop
        cdef uint64_t block
        cdef bint changed = False
        cdef int reason = _DONE
        pthread_mutex_lock(&self._lock)
        if self.pinned > 0 and length > 0:
            wait_unpinned(self, offset >> self._block_shift, (offset + length - 1) >> self._block_shift)
        while position < length:
            start = (offset + position) & (self._block_size - 1)
            stop = min(self._block_size, start + length - position)
            block = (offset + position) >> self._block_shift
            reason = write_piece(self, block, start, stop, data + position if data else NULL, now, &changed)
            if reason != _DONE:
                break
            position += stop - start
        sequence[0] = self.sequence
        pthread_mutex_unlock(&self._lock)
        done[0] = position
        return reason

    def write(self, uint64_t offset, data, double now):
        """Write as far as possible; return (bytes written, reason).

        DONE; NO_SLOT: too much is unsaved; NO_PATCH: the next block's sector at an edge would be one too many that is
        known in part; ZERO_BLOCK: the next block is written whole, with zeros, and has no slot.
        """
        cdef Py_buffer view
        cdef Py_ssize_t done
        cdef int reason
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

    def contains(self, uint64_t block):
        """Return whether the block has a slot."""
        cdef int32_t index
        cdef PyThreadState *away = enter(self, 0)
        index = self._find(block)
        leave(self, away)
        return index >= 0

    def next_held(self, uint64_t block, uint64_t stop):
        """Return the first block in [block, stop) that has a slot, else stop."""
        cdef int32_t index
        cdef uint64_t found = stop
        with nogil:
            pthread_mutex_lock(&self._lock)
            if stop - block <= <uint64_t>self._slots:
                while block < stop and self._find(block) < 0:
                    block += 1
                found = block
            else:
                for index in range(self._slots):
                    if self._slot[index].used and block <= self._slot[index].block < found:
                        found = self._slot[index].block
            pthread_mutex_unlock(&self._lock)
        return found

    def fully_valid(self, uint64_t block):
        """Return whether the block has a slot and every sector of it is valid."""
        cdef int32_t index
        cdef bint whole
        cdef PyThreadState *away = enter(self, 0)
        index = self._find(block)
        whole = index >= 0 and self._slot[index].valid == self._sectors
        leave(self, away)
        return whole

    def copy_out(self, uint64_t block, Py_ssize_t start, out):
        """Fill ``out`` from byte ``start`` of the block; False, and nothing changed, unless all of that is known."""
        cdef Py_buffer view
        cdef Py_ssize_t stop
        cdef int32_t index
        cdef bint whole
        cdef PyThreadState *away
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        stop = start + view.len
        if start < 0 or stop > self._block_size:
            PyBuffer_Release(&view)
            raise ValueError(f"bytes {start} to {stop} are not in a block of {self._block_size}")
        away = enter(self, view.len)
        index = self._find(block)
        whole = index >= 0 and (start == stop or self._knows(index, start, stop))
        if whole:
            memcpy(view.buf, self._data + <Py_ssize_t>index * self._block_size + start, stop - start)
            note_use(self, index, ((stop + _SECTOR - 1) >> _SECTOR_SHIFT) - (start >> _SECTOR_SHIFT))
        leave(self, away)
        PyBuffer_Release(&view)
        return whole

    def copy_run(self, uint64_t block, Py_ssize_t start, out):
        """Fill ``out`` from byte ``start`` of the block as far as that is known; return (how many bytes, True).

        (How many are not known, False) if that begins with one that is not.
        """
        cdef Py_buffer view
        cdef Py_ssize_t stop, end
        cdef int32_t index
        cdef bint known = False
        cdef PyThreadState *away
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        stop = end = start + view.len
        if start < 0 or stop > self._block_size:
            PyBuffer_Release(&view)
            raise ValueError(f"bytes {start} to {stop} are not in a block of {self._block_size}")
        away = enter(self, view.len)
        index = self._find(block)
        if index >= 0:
            end = known_run(self, index, start, stop, &known)
        if known:
            memcpy(view.buf, self._data + <Py_ssize_t>index * self._block_size + start, end - start)
            note_use(self, index, ((end + _SECTOR - 1) >> _SECTOR_SHIFT) - (start >> _SECTOR_SHIFT))
        leave(self, away)
        PyBuffer_Release(&view)
        return end - start, known

    def fill(self, uint64_t block, body, bint ahead=False):
        """Make the whole block valid: what is not known gets its part of ``body`` (None: zeros).

        ``ahead``: nobody has asked for it yet. Returns False if the block has no slot and none is free.
        """
        cdef Py_buffer view
        cdef const unsigned char *data = NULL
        cdef int32_t index
        cdef PyThreadState *away
        if body is not None:
            PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
            if view.len != self._block_size:
                PyBuffer_Release(&view)
                raise ValueError(f"a body of {len(body)} bytes is not a block of {self._block_size}")
            data = <const unsigned char *>view.buf
        away = enter(self, self._block_size)
        index = self._find(block)
        if index < 0:
            index = allocate(self, block, ahead)
        elif not ahead:
            note_use(self, index, self._sectors)
        if index >= 0:
            fill_gaps(self, index, data)
        leave(self, away)
        if body is not None:
            PyBuffer_Release(&view)
        return index >= 0

    def touch(self, uint64_t block, double now):
        """Make a block dirty as it is, without regard to the limit; False unless it is fully valid."""
        cdef int32_t index
        cdef bint whole
        cdef PyThreadState *away = enter(self, 0)
        index = self._find(block)
        whole = index >= 0 and self._slot[index].valid == self._sectors
        if whole:
            self.sequence += 1
            note_use(self, index, 1)
            mark_dirty(self, index, 0, 1, now)
        leave(self, away)
        return whole

    # ── writing back ─────────────────────────────────────────────────────────────────────────────────────

    def dirty_blocks(self, Py_ssize_t limit):
        """Return up to ``limit`` dirty blocks that are not being stored, oldest first.

        Each as (block, sequence of its oldest unsaved write, time of that write, whether it is fully valid).
        """
        cdef Py_ssize_t room = min(limit, <Py_ssize_t>self._slots), count, i
        cdef Slot *found
        cdef PyThreadState *away
        if room <= 0:
            return []
        found = <Slot *>malloc(room * sizeof(Slot))
        if not found:
            raise MemoryError
        away = enter(self, 0)
        count = list_dirty(self, found, room)
        leave(self, away)
        try:
            return [
                (found[i].block, found[i].first_sequence, found[i].dirty_since, found[i].valid == self._sectors)
                for i in range(count)
            ]
        finally:
            free(found)

    def oldest_dirty_sequence(self):
        """Return the sequence of the oldest write that is not on its way to the bucket, 0 if there is none."""
        cdef uint64_t sequence
        cdef PyThreadState *away = enter(self, 0)
        sequence = self._slot[self._dirty.oldest].first_sequence if self._dirty.oldest >= 0 else 0
        leave(self, away)
        return sequence

    def begin_store(self, uint64_t block):
        """Copy a dirty, fully valid block that is not being stored; return (its oldest sequence, as of which, body).

        Every write up to the second sequence, and none behind it, is in the body, which is None where all is zero.
        Until ``end_store`` the block stays, and may become dirty again.
        """
        cdef bytes body = PyBytes_FromStringAndSize(NULL, self._block_size)
        cdef unsigned char *target = <unsigned char *>PyBytes_AS_STRING(body)
        cdef uint64_t sequence = 0, as_of
        cdef bint ready, zero = False
        cdef PyThreadState *away = enter(self, self._block_size)
        ready = start_store(self, block, target, &sequence, &zero)
        as_of = self.sequence
        leave(self, away)
        if not ready:
            raise ValueError(f"block {block} cannot be stored now")
        return sequence, as_of, None if zero else body

    def end_store(self, uint64_t block, bint stored):
        """Settle a store: its sectors are in the bucket, or else dirty as they were before."""
        cdef bint ready
        cdef PyThreadState *away = enter(self, 0)
        ready = settle_store(self, block, stored)
        leave(self, away)
        if not ready:
            raise ValueError(f"block {block} is not being stored")

    cdef bint let_go(self, uint64_t block) noexcept nogil:
        """Forget that a block is dirty; False if it is not, or is being stored. The caller knows where its data is."""
        cdef bint gone
        pthread_mutex_lock(&self._lock)
        gone = make_clean(self, block)
        pthread_mutex_unlock(&self._lock)
        return gone

    def drop_from(self, uint64_t block):
        """Forget every block from this one on and return how many; ValueError, and nothing done, if one is unsaved.

        Waits while one of them is pinned.
        """
        cdef int32_t dropped
        with nogil:
            pthread_mutex_lock(&self._lock)
            if self.pinned > 0:
                wait_unpinned(self, block, ~<uint64_t>0)
            dropped = drop_slots(self, block)
            pthread_mutex_unlock(&self._lock)
        if dropped < 0:
            raise ValueError(f"a block from {block} on is unsaved")
        return dropped

    # ── pins ─────────────────────────────────────────────────────────────────────────────────────────────

    cdef int pin_range(
        self, uint64_t offset, Py_ssize_t length, iovec *out, Py_ssize_t room, Py_ssize_t *count
    ) noexcept nogil:
        """Pin a range and put where its bytes are into ``out``, a piece a block; ``unpin_range`` takes the pieces back.

        _DONE: it is pinned, in ``count`` pieces; _MISSING: a sector is not valid; _BUSY: it has to be copied, as it
        has more pieces than there is ``room`` for, a writer waits, or too much is pinned. Nothing is pinned then.
        """
        cdef int reason
        pthread_mutex_lock(&self._lock)
        reason = pin_pieces(self, offset, length, out, room, count)
        pthread_mutex_unlock(&self._lock)
        return reason

    cdef void unpin_range(self, const iovec *pieces, Py_ssize_t count) noexcept nogil:
        """Let go of what ``pin_range`` pinned; the pieces as they were returned."""
        pthread_mutex_lock(&self._lock)
        unpin_pieces(self, pieces, count)
        pthread_mutex_unlock(&self._lock)

    # ── for tests ────────────────────────────────────────────────────────────────────────────────────────

    def limit_patches(self, int32_t limit):
        """Let writes wait when there would be more patches; at least two."""
        self._patch_limit = max(2, min(limit, self._patch_count))

    def pin(self, uint64_t offset, Py_ssize_t length):
        """Call ``pin_range``; return (DONE, MISSING or BUSY; views of the pieces, which end with the pin)."""
        cdef iovec pieces[_BATCH]
        cdef Py_ssize_t count = 0, i
        cdef int reason
        with nogil:
            reason = self.pin_range(offset, length, pieces, _BATCH, &count)
        return reason, [
            PyMemoryView_FromMemory(<char *>pieces[i].iov_base, pieces[i].iov_len, PyBUF_READ) for i in range(count)
        ]

    def unpin(self, views):
        """Call ``unpin_range`` with the views that ``pin`` returned."""
        cdef iovec pieces[_BATCH]
        cdef Py_buffer view
        cdef Py_ssize_t count = 0
        for piece in views:
            PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE)
            pieces[count].iov_base, pieces[count].iov_len = view.buf, view.len
            PyBuffer_Release(&view)
            count += 1
        with nogil:
            self.unpin_range(pieces, count)

    def check_invariants(self):
        """Raise AssertionError unless counters, bitmaps, hash tables and lists agree. Looks at every slot."""
        cdef const char *broken = NULL
        with nogil:
            pthread_mutex_lock(&self._lock)
            broken = find_broken(self)
            pthread_mutex_unlock(&self._lock)
        if broken:
            raise AssertionError(broken.decode())
