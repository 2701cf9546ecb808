# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where requests wait that the fast lane cannot answer at once, and the news that it has for the driver.

    park ──► queued ──wait──► handed out ──leave──► free
               └──── call_off ────┘ (told of by wait)

Guarantees
  * Requests are handed out once, in the order in which they came; what is called off before that is not.
  * A place, and the data of a write in it, stay until ``leave``; the table grows with what waits, and never moves data.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from s3backer._fuse cimport (
    CLOCK_MONOTONIC,
    clock_gettime,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_timedwait,
    pthread_condattr_destroy,
    pthread_condattr_init,
    pthread_condattr_setclock,
    pthread_condattr_t,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    timespec,
)

READ = READ_KIND
WRITE = WRITE_KIND
FLUSH = FLUSH_KIND
ZERO = ZERO_KIND
SYNC_WRITE = SYNC_WRITE_KIND
INTERRUPT = 4
AHEAD = 5
PRESSURE = 6
cdef enum:
    _IS_FREE = 0
    _IS_QUEUED = 1
    _IS_TAKEN = 2
    _FIRST_ROOM = 256


cdef class Parking:
    """A table of requests that wait; see the module."""

    def __cinit__(self):
        cdef pthread_condattr_t attributes
        self._free = self._first = self._last = -1
        pthread_mutex_init(&self._lock, NULL)
        # Whoever sets the computer's clock must not keep anybody waiting.
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self._news, &attributes)
        pthread_condattr_destroy(&attributes)
        if not self._grow():
            raise MemoryError("no memory for requests that wait")

    def __dealloc__(self):
        cdef int32_t index
        for index in range(self._room):
            free(self._parked[index].payload)
        free(self._parked)
        pthread_cond_destroy(&self._news)
        pthread_mutex_destroy(&self._lock)

    # ── for the lane ─────────────────────────────────────────────────────────────────────────────────────

    cdef bint park(
        self, Kind kind, uint64_t unique, uint64_t offset, uint64_t length, uint64_t position,
        const unsigned char *data
    ) noexcept nogil:
        cdef unsigned char *payload = NULL
        cdef int32_t index = -1
        cdef Parked *parked
        if data:
            payload = <unsigned char *>malloc(max(length, <uint64_t>1))
            if payload:
                memcpy(payload, data, length)
        pthread_mutex_lock(&self._lock)
        if (payload or not data) and (self._free >= 0 or self._grow()):
            index = self._free
            parked = self._parked + index
            self._free = parked.next
            parked.unique, parked.offset, parked.length, parked.position = unique, offset, length, position
            parked.payload, parked.kind = payload, kind
            parked.state, parked.interrupted, parked.next = _IS_QUEUED, False, -1
            if self._last >= 0:
                self._parked[self._last].next = index
            else:
                self._first = index
            self._last = index
            self._held += 1
            self._waited += 1
            pthread_cond_signal(&self._news)
        pthread_mutex_unlock(&self._lock)
        if index < 0:
            free(payload)
        return index >= 0

    cdef Parked leave(self, int32_t number) noexcept nogil:
        cdef Parked parked
        pthread_mutex_lock(&self._lock)
        parked = self._parked[number]
        self._release(number)
        pthread_mutex_unlock(&self._lock)
        return parked

    cdef Found call_off(self, uint64_t unique) noexcept nogil:
        cdef int32_t index
        cdef Parked *parked
        cdef Found found = NOT_FOUND
        pthread_mutex_lock(&self._lock)
        for index in range(self._room):
            parked = self._parked + index
            if parked.state == _IS_FREE or parked.unique != unique:
                continue
            # A write that was made is only to be answered.
            if parked.state == _IS_QUEUED and not (parked.kind == WRITE_KIND and parked.position == parked.length):
                self._unqueue(index)
                self._release(index)
                found = TAKEN_BACK
            else:
                found = NOTED
                if not parked.interrupted:
                    parked.interrupted = True
                    self._interrupted += 1
                    pthread_cond_signal(&self._news)
            break
        if found == NOT_FOUND and self._syncing == unique:
            self._called_off = True
            found = NOTED
        pthread_mutex_unlock(&self._lock)
        return found

    cdef bint begin_sync(self, uint64_t unique) noexcept nogil:
        cdef bint begun
        pthread_mutex_lock(&self._lock)
        begun = self._syncing == 0
        if begun:
            self._syncing, self._called_off = unique, False
        pthread_mutex_unlock(&self._lock)
        return begun

    cdef bint end_sync(self) noexcept nogil:
        cdef bint called_off
        pthread_mutex_lock(&self._lock)
        called_off = self._called_off
        self._syncing, self._called_off = 0, False
        pthread_mutex_unlock(&self._lock)
        return called_off

    cdef void hint(self, uint64_t start, uint64_t stop) noexcept nogil:
        pthread_mutex_lock(&self._lock)
        # With too many of them the oldest are as good as any.
        if self._hint_count < MOST_HINTS:
            self._hints[self._hint_count].start, self._hints[self._hint_count].stop = start, stop
            self._hint_count += 1
            pthread_cond_signal(&self._news)
        pthread_mutex_unlock(&self._lock)

    cdef void press(self) noexcept nogil:
        pthread_mutex_lock(&self._lock)
        self._pressed = True
        pthread_cond_signal(&self._news)
        pthread_mutex_unlock(&self._lock)

    cdef void end(self) noexcept nogil:
        pthread_mutex_lock(&self._lock)
        self._ended = True
        pthread_cond_signal(&self._news)
        pthread_mutex_unlock(&self._lock)

    # ── under the lock ───────────────────────────────────────────────────────────────────────────────────

    cdef bint _grow(self) noexcept nogil:
        """Make room for twice as many parked requests; False if there is no memory."""
        cdef int32_t room = 2 * self._room if self._room else _FIRST_ROOM, index
        cdef Parked *grown = <Parked *>realloc(self._parked, room * sizeof(Parked))
        if not grown:
            return False
        memset(grown + self._room, 0, (room - self._room) * sizeof(Parked))
        for index in range(self._room, room):
            grown[index].next = index + 1 if index + 1 < room else self._free
        self._free = self._room
        self._parked, self._room = grown, room
        return True

    cdef void _unqueue(self, int32_t index) noexcept nogil:
        cdef int32_t before = -1, at = self._first
        while at != index:
            before, at = at, self._parked[at].next
        if before >= 0:
            self._parked[before].next = self._parked[index].next
        else:
            self._first = self._parked[index].next
        if self._last == index:
            self._last = before

    cdef void _release(self, int32_t index) noexcept nogil:
        cdef Parked *parked = self._parked + index
        free(parked.payload)
        parked.payload = NULL
        if parked.interrupted:
            self._interrupted -= 1
            parked.interrupted = False
        parked.state = _IS_FREE
        parked.next = self._free
        self._free = index
        self._held -= 1

    # ── for the driver ───────────────────────────────────────────────────────────────────────────────────

    def wait(self, long milliseconds):
        """Wait so long for news and return them: (kind, number, offset, length, position) each; None at the end.

        READ, WRITE, SYNC_WRITE, FLUSH, ZERO: a request that has to be finished. INTERRUPT: the request of that number
        is called off. AHEAD: blocks from offset up to length are to be fetched. PRESSURE: much is unsaved. One thread
        calls it.
        """
        cdef int32_t index, first
        cdef int hints, i
        cdef bint pressed, over
        cdef Parked parked
        cdef Hint found[MOST_HINTS]
        cdef timespec until
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &until)
            until.tv_nsec += milliseconds * 1000000
            until.tv_sec += until.tv_nsec // 1000000000
            until.tv_nsec %= 1000000000
            pthread_mutex_lock(&self._lock)
            while not (
                self._first >= 0 or self._hint_count or self._pressed or self._interrupted > 0 or self._ended
            ):
                if pthread_cond_timedwait(&self._news, &self._lock, &until) != 0:
                    break
            first = self._first
            self._first = self._last = -1
            index = first
            while index >= 0:
                self._parked[index].state = _IS_TAKEN
                index = self._parked[index].next
            hints, pressed, over = self._hint_count, self._pressed, self._ended
            memcpy(found, self._hints, sizeof(found))
            self._hint_count, self._pressed = 0, False
            pthread_mutex_unlock(&self._lock)
        news = []
        index = first
        while index >= 0:
            # The table may grow, and so move, whenever the lock is free.
            with nogil:
                pthread_mutex_lock(&self._lock)
                parked = self._parked[index]
                pthread_mutex_unlock(&self._lock)
            news.append((parked.kind, index, parked.offset, parked.length, parked.position))
            index = parked.next
        for i in range(hints):
            news.append((AHEAD, -1, found[i].start, found[i].stop, 0))
        if pressed:
            news.append((PRESSURE, -1, 0, 0, 0))
        news += [(INTERRUPT, number, 0, 0, 0) for number in self._take_interrupted()]
        return None if over and not news else news

    def _take_interrupted(self):
        cdef int32_t index, number = -1
        taken = []
        for index in range(self._room):
            with nogil:
                pthread_mutex_lock(&self._lock)
                number = -1
                if self._parked[index].state == _IS_TAKEN and self._parked[index].interrupted:
                    self._parked[index].interrupted = False
                    self._interrupted -= 1
                    number = index
                pthread_mutex_unlock(&self._lock)
            if number >= 0:
                taken.append(number)
        return taken

    def payload(self, int32_t number):
        """Return the data of a parked write. It lives until ``finish``."""
        cdef Parked parked
        with nogil:
            pthread_mutex_lock(&self._lock)
            parked = self._parked[number]
            pthread_mutex_unlock(&self._lock)
        return PyMemoryView_FromMemory(<char *>parked.payload, parked.length, PyBUF_READ)

    @property
    def waited(self):
        """Requests that had to wait."""
        return self._waited

    @property
    def waiting(self):
        """Requests that wait now."""
        return self._held
