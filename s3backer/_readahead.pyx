# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which blocks will be read next: sequential readers are recognised, several at once, and the others left alone.

    stream    where a reader is expected to go on; a read that begins there, or up to two blocks further, continues it
    window    blocks that are fetched before they are asked for: none before the third read of a stream, then four, and
              twice as many with each further step, up to ``most``

Reads of one stream may come a little out of order, as the kernel sends them. Takes no GIL, allocates nothing and reads
no clock. ``tests/support/twins.py`` holds its plain Python twin.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memmove

from s3backer._fast cimport pthread_mutex_t

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)

cdef enum:
    _FIRST_WINDOW = 4
    _READS_BEFORE = 2
    _GAP_BLOCKS = 2
    _BEHIND_BLOCKS = 8


cdef class ReadAhead:
    """The readers of one volume. ``most``: blocks that may be on their way for one of them; 0 turns it off."""

    def __cinit__(self, uint64_t block_size, uint64_t most):
        self._block_size = block_size
        self._most = most
        pthread_mutex_init(&self._lock, NULL)

    def __dealloc__(self):
        pthread_mutex_destroy(&self._lock)

    @property
    def most(self):
        """Blocks that may be on their way for one reader."""
        return self._most

    @most.setter
    def most(self, uint64_t blocks):
        self._most = blocks

    def read(self, uint64_t offset, uint64_t length):
        """Take notice of a read, in bytes, and return the blocks to fetch beside it; they may lie beyond the end."""
        cdef uint64_t start = 0, stop = 0
        cdef bint found
        with nogil:
            found = self.note(offset, length, &start, &stop)
        return range(start, stop) if found else range(0)

    cdef bint note(self, uint64_t offset, uint64_t length, uint64_t *start, uint64_t *stop) noexcept nogil:
        cdef uint64_t end = offset + length, size = self._block_size, here
        cdef Stream *stream
        cdef bint found = False
        if self._most < 1 or length < 1:
            return False
        here = (end + size - 1) // size
        pthread_mutex_lock(&self._lock)
        stream = self._find(offset)
        if stream == NULL:
            if self._count == MOST_STREAMS:
                memmove(self._streams, self._streams + 1, (MOST_STREAMS - 1) * sizeof(Stream))
                self._count -= 1
            stream = self._streams + self._count
            self._count += 1
            stream.expected, stream.reached = end, here
            stream.reads, stream.window = 1, 0
        elif end > stream.expected:
            stream.expected = end
            stream.reads += 1
            # Small reads within a block are no reason to go faster.
            if stream.reads > _READS_BEFORE and here + stream.window // 2 >= stream.reached:
                stream.window = min(self._most, max(<uint64_t>_FIRST_WINDOW, 2 * stream.window))
                start[0] = max(here, stream.reached)
                stream.reached = stop[0] = here + stream.window
                found = start[0] < stop[0]
        pthread_mutex_unlock(&self._lock)
        return found

    cdef Stream *_find(self, uint64_t offset) noexcept nogil:
        """Return the stream that a read at this offset belongs to, and remember that it was used last."""
        cdef uint64_t gap = _GAP_BLOCKS * self._block_size, behind = _BEHIND_BLOCKS * self._block_size
        cdef int index
        cdef Stream found
        for index in range(self._count):
            found = self._streams[index]
            # Nothing here is ever below 0.
            if found.expected <= offset + behind and offset <= found.expected + gap:
                memmove(
                    self._streams + index, self._streams + index + 1, (self._count - index - 1) * sizeof(Stream)
                )
                self._streams[self._count - 1] = found
                return self._streams + self._count - 1
        return NULL
