# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The FUSE fast lane: the kernel's hot requests on the disk's inode are answered here, without the GIL.

    kernel ⇄ /dev/fuse ⇄ serve() ──hot, in the slab──► answered at once
                            │  └──hot, but has to wait──► parked ──► wait() ──► the driver ──► finish()
                            └──everything else──► socket ⇄ llfuse ; forward() ──► /dev/fuse

    READ             answered from the slab; parked where a block is missing
    WRITE            answered when the slab has it; parked, with its data, where it has no room or lacks a sector
    FLUSH, FSYNC     answered where nothing is unsaved; else parked
    FALLOCATE        punching and zeroing ranges are parked, every other mode is EOPNOTSUPP
    INTERRUPT        its request is parked: it is called off; otherwise the kernel is told to ask again
    INIT, OPEN       llfuse's replies are completed on their way back with what libfuse 2.9 cannot say

Guarantees
  * Nothing that waits holds a thread of ``serve``: cached reads go on while writers, misses and flushes wait.
  * No memory is allocated for a request that is answered at once. What is parked takes its data's length.
  * Each request is answered exactly once, also when it is interrupted; after ``close`` nothing is sent any more.
  * When ``set_end`` returns, no write that was let in by the old end is under way.

Source of the protocol: the kernel's header ``linux/fuse.h``.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EINTR, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from s3backer._fast cimport Slab, iovec, pthread_mutex_t
from s3backer._readahead cimport ReadAhead

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, void *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_destroy(pthread_cond_t *)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    enum:
        CLOCK_REALTIME

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void *, size_t)
    ssize_t write(int, const void *, size_t)
    int usleep(unsigned int)
    int close(int)
    int dup3(int, int, int)

cdef extern from "<fcntl.h>" nogil:
    int open(const char *, int)
    enum:
        O_RDWR
        O_CLOEXEC
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE

cdef extern from "<sys/uio.h>" nogil:
    ssize_t writev(int, const iovec *, int)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int, const void *, size_t, int)
    ssize_t recv(int, void *, size_t, int)
    enum:
        MSG_NOSIGNAL

cdef extern from "<linux/fuse.h>" nogil:
    struct fuse_in_header:
        uint32_t len
        uint32_t opcode
        uint64_t unique
        uint64_t nodeid
    struct fuse_out_header:
        uint32_t len
        int32_t error
        uint64_t unique
    struct fuse_read_in:
        uint64_t offset
        uint32_t size
    struct fuse_write_in:
        uint64_t offset
        uint32_t size
    struct fuse_write_out:
        uint32_t size
    struct fuse_fallocate_in:
        uint64_t offset
        uint64_t length
        uint32_t mode
    struct fuse_interrupt_in:
        uint64_t unique
    struct fuse_open_out:
        uint64_t fh
        uint32_t open_flags
    struct fuse_init_in:
        uint32_t minor
        uint32_t flags
        uint32_t flags2
    struct fuse_init_out:
        uint32_t minor
        uint32_t flags
        uint32_t max_write
        uint32_t time_gran
        unsigned short max_pages
        uint32_t flags2
    enum:
        FUSE_INIT
        FUSE_READ
        FUSE_WRITE
        FUSE_FSYNC
        FUSE_FLUSH
        FUSE_INTERRUPT
        FUSE_FALLOCATE
        FUSE_ASYNC_READ
        FUSE_ASYNC_DIO
        FUSE_BIG_WRITES
        FUSE_MAX_PAGES
        FUSE_PARALLEL_DIROPS
        FUSE_INIT_EXT
        FOPEN_DIRECT_IO
        FOPEN_PARALLEL_DIRECT_WRITES

cdef extern from "_lane.h" nogil:
    uint64_t s3b_load(const uint64_t *)
    void s3b_set(uint64_t *, uint64_t)
    void s3b_add(uint64_t *, uint64_t)
    double s3b_monotonic()
    uint64_t s3b_wall_clock()

READ = 0
WRITE = 1
FLUSH = 2
ZERO = 3
INTERRUPT = 4
AHEAD = 5
PRESSURE = 6
cdef enum:
    _READ = 0
    _WRITE = 1
    _FLUSH = 2
    _ZERO = 3
    # Bytes of one request's data: smaller ones than 1 MiB are served in parallel and beat it.
    _MOST_DATA = 131072
    _PAGES = 32
    _BUFFER = _MOST_DATA + 4096
    _PACKET = 1 << 20
    # The protocol's version that has everything that is used here.
    _MINOR = 31
    # In flags2 of the protocol from 7.39 on: a file open for direct I/O can be mapped.
    _DIRECT_IO_ALLOW_MMAP = 1 << 4
    _IS_FREE = 0
    _IS_QUEUED = 1
    _IS_TAKEN = 2
    _FIRST_PARKED = 256
    _HINTS = 64
    # Up to so many bytes a copy under the lock takes less time than a pin.
    _SMALL = 16384
    _PIECES = 40

# Shortest time between two reports that much is unsaved.
cdef double _PRESSURE_SECONDS = 0.02

cdef struct Parked:
    uint64_t unique
    uint64_t offset
    uint64_t length
    unsigned char *payload
    # Bytes of a write that the slab has already.
    uint64_t position
    # Next one that is queued, or free; -1 ends a list.
    int32_t next
    uint8_t kind
    uint8_t state
    uint8_t interrupted

cdef struct Hint:
    uint64_t start
    uint64_t stop


cdef class Lane:
    """The lane of one mount.

    ``device`` is the kernel's descriptor and belongs to the lane, ``socket`` leads to llfuse. ``inode`` and ``handle``
    are those of the disk, ``end`` its size in bytes. ``pressure``: unsaved blocks above which the driver is woken.
    ``slow_writes``: every write is parked. ``direct_io``: the kernel is to keep nothing of the disk.
    """

    cdef int _device
    cdef int _socket
    cdef uint64_t _inode
    cdef uint64_t _handle
    cdef bint _direct_io
    cdef bint _slow_writes
    cdef int32_t _pressure
    cdef Slab _slab
    cdef ReadAhead _ahead
    # Changed by set_end: while ``_shut``, writes are parked.
    cdef uint64_t _end
    cdef uint64_t _shut
    cdef uint64_t _writing
    # What the kernel said in its first request.
    cdef uint64_t _init_unique
    cdef uint32_t _minor
    cdef uint32_t _offered
    cdef uint32_t _offered2
    cdef uint64_t _stopping
    cdef uint64_t _wrote_at
    # A torn value of it would do no harm.
    cdef double _pressed_at
    # Everything below is guarded by this lock, which is only ever taken without the GIL.
    cdef pthread_mutex_t _lock
    cdef pthread_cond_t _news
    cdef Parked *_parked
    cdef int32_t _room
    cdef int32_t _free
    cdef int32_t _first
    cdef int32_t _last
    cdef int32_t _held
    cdef int32_t _interrupted
    cdef Hint _hints[_HINTS]
    cdef int _hint_count
    cdef bint _pressed
    cdef bint _ended
    # Counters.
    cdef uint64_t _answered
    cdef uint64_t _waited
    cdef uint64_t _passed_on

    def __cinit__(
        self,
        int device,
        int socket,
        Slab slab not None,
        ReadAhead ahead not None,
        *,
        uint64_t inode,
        uint64_t handle,
        uint64_t end,
        int32_t pressure,
        bint slow_writes=False,
        bint direct_io=False,
    ):
        self._device, self._socket = device, socket
        self._slab, self._ahead = slab, ahead
        self._inode, self._handle, self._end = inode, handle, end
        self._pressure, self._slow_writes, self._direct_io = pressure, slow_writes, direct_io
        self._free = self._first = self._last = -1
        pthread_mutex_init(&self._lock, NULL)
        pthread_cond_init(&self._news, NULL)
        if not self._grow():
            raise MemoryError("no memory for the fast lane")

    def __dealloc__(self):
        cdef int32_t index
        # Nothing is sent any more: whoever has something to finish holds the lane.
        close(self._device)
        for index in range(self._room):
            free(self._parked[index].payload)
        free(self._parked)
        pthread_cond_destroy(&self._news)
        pthread_mutex_destroy(&self._lock)

    # ── the kernel's requests ────────────────────────────────────────────────────────────────────────────

    def serve(self):
        """Answer requests until the kernel has no more, or ``stop`` was called; return 0 or the error that ended it.

        Runs in any number of threads. One that waits in read(2) is woken by a signal.
        """
        cdef int code
        cdef unsigned char *buffer = <unsigned char *>malloc(2 * _BUFFER)
        if not buffer:
            raise MemoryError("no memory for a buffer of the fast lane")
        with nogil:
            # Its second half holds what is read from the slab.
            code = self._serve(buffer, buffer + _BUFFER)
            pthread_mutex_lock(&self._lock)
            self._ended = True
            pthread_cond_signal(&self._news)
            pthread_mutex_unlock(&self._lock)
        free(buffer)
        return code

    cdef int _serve(self, unsigned char *buffer, unsigned char *content) noexcept nogil:
        cdef ssize_t count
        cdef fuse_in_header *head = <fuse_in_header *>buffer
        while not s3b_load(&self._stopping):
            count = read(self._device, buffer, _BUFFER)
            if count < 0:
                # The requester was killed before the kernel had handed the request over, or a signal came.
                if errno == ENOENT or errno == EINTR or errno == EAGAIN:
                    continue
                return 0 if errno == ENODEV else errno
            if count < <ssize_t>sizeof(fuse_in_header):
                continue
            if head.opcode == FUSE_INTERRUPT:
                self._interrupt(head.unique, (<fuse_interrupt_in *>(buffer + sizeof(fuse_in_header))).unique)
            elif head.nodeid == self._inode and self._hot(head, buffer + sizeof(fuse_in_header), content):
                pass
            else:
                if head.opcode == FUSE_INIT:
                    self._hear_init(head, <fuse_init_in *>(buffer + sizeof(fuse_in_header)), count)
                s3b_add(&self._passed_on, 1)
                while send(self._socket, buffer, count, MSG_NOSIGNAL) < 0 and errno == EINTR:
                    pass
        return 0

    cdef bint _hot(self, fuse_in_header *head, unsigned char *body, unsigned char *content) noexcept nogil:
        """Answer or park a request on the disk; False if it is not of the hot kinds."""
        cdef uint64_t unique = head.unique
        if head.opcode == FUSE_READ:
            self._read(unique, (<fuse_read_in *>body).offset, (<fuse_read_in *>body).size, content)
        elif head.opcode == FUSE_WRITE:
            self._write(
                unique, (<fuse_write_in *>body).offset, (<fuse_write_in *>body).size, body + sizeof(fuse_write_in)
            )
        elif head.opcode == FUSE_FSYNC or head.opcode == FUSE_FLUSH:
            if self._all_saved():
                self._answer(unique, 0, NULL, 0)
            else:
                self._park(_FLUSH, unique, 0, 0, 0, NULL)
        elif head.opcode == FUSE_FALLOCATE:
            self._allocate(unique, <fuse_fallocate_in *>body)
        else:
            return False
        return True

    cdef void _read(self, uint64_t unique, uint64_t offset, uint64_t size, unsigned char *content) noexcept nogil:
        cdef uint64_t missing[256]
        cdef uint64_t end = s3b_load(&self._end), start = 0, stop = 0
        cdef Py_ssize_t position = 0, count = 0
        cdef bint sent
        if offset >= end:
            self._answer(unique, 0, NULL, 0)
            return
        size = min(size, end - offset)
        sent = size > _SMALL and self._send_pinned(unique, offset, size)
        while not sent and position < <Py_ssize_t>size and count == 0:
            position += self._slab.read_range(offset + position, content + position, size - position, missing, &count)
        if sent:
            pass
        elif count == 0:
            self._answer(unique, 0, content, size)
        else:
            self._park(_READ, unique, offset, size, 0, NULL)
        if self._ahead.note(offset, size, &start, &stop):
            self._hint(start, stop)

    cdef bint _send_pinned(self, uint64_t unique, uint64_t offset, uint64_t size) noexcept nogil:
        """Answer a read straight from the slab; False, and nothing done, where that is not possible now."""
        cdef fuse_out_header head
        cdef iovec pieces[1 + _PIECES]
        cdef Py_ssize_t count = 0
        if self._slab.pin_range(offset, size, pieces + 1, _PIECES, &count) != 0:
            return False
        head.len, head.error, head.unique = sizeof(fuse_out_header) + size, 0, unique
        pieces[0].iov_base, pieces[0].iov_len = &head, sizeof(fuse_out_header)
        s3b_add(&self._answered, 1)
        while writev(self._device, pieces, 1 + count) < 0 and errno == EINTR:
            pass
        self._slab.unpin_range(pieces + 1, count)
        return True

    cdef void _write(self, uint64_t unique, uint64_t offset, uint64_t size, unsigned char *data) noexcept nogil:
        cdef uint64_t end, fitting = size
        cdef Py_ssize_t done = 0
        cdef int reason = -1
        cdef double now = s3b_monotonic()
        s3b_add(&self._writing, 1)
        if not s3b_load(&self._shut) and not self._slow_writes:
            end = s3b_load(&self._end)
            if offset >= end:
                s3b_add(&self._writing, <uint64_t>-1)
                self._answer(unique, -ENOSPC if size else 0, NULL, 0)
                return
            fitting = min(size, end - offset)
            reason = self._slab.write_range(offset, data, fitting, now, &done)
            s3b_set(&self._wrote_at, s3b_wall_clock())
        s3b_add(&self._writing, <uint64_t>-1)
        if reason == 0:
            self._answer_write(unique, fitting)
            if self._slab.unsaved > self._pressure and now - self._pressed_at > _PRESSURE_SECONDS:
                self._pressed_at = now
                self._press()
        else:
            self._park(_WRITE, unique, offset, fitting, done, data)

    cdef void _allocate(self, uint64_t unique, fuse_fallocate_in *asked) noexcept nogil:
        cdef uint64_t end = s3b_load(&self._end)
        cdef uint32_t mode = asked.mode & ~<uint32_t>FALLOC_FL_KEEP_SIZE
        if mode != FALLOC_FL_PUNCH_HOLE and mode != FALLOC_FL_ZERO_RANGE:
            self._answer(unique, -EOPNOTSUPP, NULL, 0)
        elif asked.offset > end or asked.length > end - asked.offset:
            self._answer(unique, -ENOSPC, NULL, 0)
        else:
            self._park(_ZERO, unique, asked.offset, asked.length, 0, NULL)

    cdef bint _all_saved(self) noexcept nogil:
        cdef bint saved
        pthread_mutex_lock(&self._slab._lock)
        saved = self._slab.unsaved == 0
        pthread_mutex_unlock(&self._slab._lock)
        return saved

    cdef void _interrupt(self, uint64_t unique, uint64_t of) noexcept nogil:
        """Call off a parked request. Of any other the kernel asks again until it is parked or answered."""
        cdef int32_t index
        cdef Parked *parked
        cdef bint queued = False, found = False
        pthread_mutex_lock(&self._lock)
        for index in range(self._room):
            parked = self._parked + index
            if parked.state != _IS_FREE and parked.unique == of:
                found = True
                queued = parked.state == _IS_QUEUED
                if queued:
                    self._unqueue(index)
                    self._release(index)
                elif not parked.interrupted:
                    parked.interrupted = True
                    self._interrupted += 1
                    pthread_cond_signal(&self._news)
                break
        pthread_mutex_unlock(&self._lock)
        if queued:
            self._answer(of, -EINTR, NULL, 0)
        elif not found:
            self._answer(unique, -EAGAIN, NULL, 0)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────

    cdef void _send(self, uint64_t unique, int error, void *body, size_t length) noexcept nogil:
        """Send a reply; the kernel forgets those of a requester that has gone (ENOENT)."""
        cdef fuse_out_header head
        cdef iovec pieces[2]
        head.len = sizeof(fuse_out_header) + length
        head.error = error
        head.unique = unique
        pieces[0].iov_base, pieces[0].iov_len = &head, sizeof(fuse_out_header)
        pieces[1].iov_base, pieces[1].iov_len = body, length
        while writev(self._device, pieces, 2 if length else 1) < 0 and errno == EINTR:
            pass

    cdef void _answer(self, uint64_t unique, int error, void *body, size_t length) noexcept nogil:
        s3b_add(&self._answered, 1)
        self._send(unique, error, body, length)

    cdef void _answer_write(self, uint64_t unique, uint64_t taken) noexcept nogil:
        cdef fuse_write_out out
        memset(&out, 0, sizeof(fuse_write_out))
        out.size = taken
        self._answer(unique, 0, &out, sizeof(fuse_write_out))

    # ── parking ──────────────────────────────────────────────────────────────────────────────────────────

    cdef bint _grow(self) noexcept nogil:
        """Make room for twice as many parked requests; False if there is no memory."""
        cdef int32_t room = 2 * self._room if self._room else _FIRST_PARKED, index
        cdef Parked *grown = <Parked *>realloc(self._parked, room * sizeof(Parked))
        if not grown:
            return False
        memset(grown + self._room, 0, (room - self._room) * sizeof(Parked))
        for index in range(self._room, room):
            grown[index].next = index + 1 if index + 1 < room else self._free
        self._free = self._room
        self._parked, self._room = grown, room
        return True

    cdef void _park(
        self, uint8_t kind, uint64_t unique, uint64_t offset, uint64_t length, uint64_t position,
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
            self._answer(unique, -ENOMEM, NULL, 0)

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

    cdef void _hint(self, uint64_t start, uint64_t stop) noexcept nogil:
        pthread_mutex_lock(&self._lock)
        # With too many of them the oldest are as good as any.
        if self._hint_count < _HINTS:
            self._hints[self._hint_count].start, self._hints[self._hint_count].stop = start, stop
            self._hint_count += 1
            pthread_cond_signal(&self._news)
        pthread_mutex_unlock(&self._lock)

    cdef void _press(self) noexcept nogil:
        pthread_mutex_lock(&self._lock)
        self._pressed = True
        pthread_cond_signal(&self._news)
        pthread_mutex_unlock(&self._lock)

    # ── for the driver ───────────────────────────────────────────────────────────────────────────────────

    def wait(self, long milliseconds):
        """Wait so long for news and return them: (kind, number, offset, length, position) each; None at the end.

        READ, WRITE, FLUSH, ZERO: a request that has to be finished. INTERRUPT: the request of that number is called
        off. AHEAD: blocks from offset up to length are to be fetched. PRESSURE: much is unsaved. One thread calls it.
        """
        cdef int32_t index, first
        cdef int hints, i
        cdef bint pressed, over
        cdef Parked parked
        cdef Hint found[_HINTS]
        cdef timespec until
        with nogil:
            clock_gettime(CLOCK_REALTIME, &until)
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
        return PyMemoryView_FromMemory(<char *>parked.payload, parked.length, 0x100)

    def finish(self, int32_t number, int error, body=None, uint32_t taken=0):
        """Answer a parked request: with an errno, or 0 and, for a read, its bytes, for a write how many it took."""
        cdef Py_buffer view
        cdef Parked parked
        cdef fuse_write_out out
        if body is not None:
            PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        with nogil:
            pthread_mutex_lock(&self._lock)
            parked = self._parked[number]
            self._release(number)
            if parked.kind == _WRITE and error == 0:
                s3b_set(&self._wrote_at, s3b_wall_clock())
            pthread_mutex_unlock(&self._lock)
            if error:
                self._send(parked.unique, -error, NULL, 0)
            elif parked.kind == _WRITE:
                memset(&out, 0, sizeof(fuse_write_out))
                out.size = taken
                self._send(parked.unique, 0, &out, sizeof(fuse_write_out))
            elif body is not None:
                self._send(parked.unique, 0, view.buf, view.len)
            else:
                self._send(parked.unique, 0, NULL, 0)
        if body is not None:
            PyBuffer_Release(&view)

    def set_end(self, uint64_t end):
        """Change what requests may reach; when it returns no write that was let in before is under way."""
        with nogil:
            s3b_set(&self._shut, 1)
            while s3b_load(&self._writing):
                usleep(20)
            s3b_set(&self._end, end)
            s3b_set(&self._shut, 0)

    def stop(self):
        """Let ``serve`` end at the next request or signal."""
        with nogil:
            s3b_set(&self._stopping, 1)

    def close(self):
        """Leave the kernel's connection, when ``serve`` has ended everywhere. What is finished later is not sent."""
        cdef int null
        with nogil:
            null = open(b"/dev/null", O_RDWR | O_CLOEXEC)
            # The number stays taken: nothing else can get it while replies may still be sent to it.
            dup3(null, self._device, O_CLOEXEC)
            close(null)

    # ── llfuse's replies ─────────────────────────────────────────────────────────────────────────────────

    def forward(self):
        """Pass on llfuse's replies and notifications to the kernel until its end of the socket is closed."""
        cdef unsigned char *buffer = <unsigned char *>malloc(_PACKET)
        if not buffer:
            raise MemoryError("no memory for the replies of llfuse")
        with nogil:
            self._forward(buffer)
        free(buffer)

    cdef void _forward(self, unsigned char *buffer) noexcept nogil:
        cdef ssize_t count
        cdef fuse_out_header *head = <fuse_out_header *>buffer
        cdef unsigned char *body = buffer + sizeof(fuse_out_header)
        while True:
            count = recv(self._socket, buffer, _PACKET, 0)
            if count < 0 and errno == EINTR:
                continue
            if count <= 0:
                return
            if count >= <ssize_t>sizeof(fuse_out_header) and head.error == 0 and head.unique:
                if head.unique == self._init_unique:
                    count = self._complete_init(head, <fuse_init_out *>body, count)
                elif (
                    count == <ssize_t>(sizeof(fuse_out_header) + sizeof(fuse_open_out))
                    and (<fuse_open_out *>body).fh == self._handle
                ):
                    self._complete_open(<fuse_open_out *>body)
            while write(self._device, buffer, count) < 0 and errno == EINTR:
                pass

    cdef void _hear_init(self, fuse_in_header *head, fuse_init_in *said, ssize_t count) noexcept nogil:
        self._minor, self._offered = said.minor, said.flags
        # Longer since 7.36.
        if count >= <ssize_t>(sizeof(fuse_in_header) + 20):
            self._offered2 = said.flags2
        s3b_set(&self._init_unique, head.unique)

    cdef ssize_t _complete_init(self, fuse_out_header *head, fuse_init_out *reply, ssize_t count) noexcept nogil:
        """Add to llfuse's half of the negotiation what the kernel offers and libfuse 2.9 does not know."""
        cdef size_t known = count - sizeof(fuse_out_header)
        cdef uint32_t wanted = (
            FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS | FUSE_INIT_EXT
        )
        if known < sizeof(fuse_init_out):
            memset(<unsigned char *>reply + known, 0, sizeof(fuse_init_out) - known)
        reply.minor = min(self._minor, <uint32_t>_MINOR)
        reply.flags |= self._offered & wanted
        if self._offered & FUSE_INIT_EXT:
            reply.flags2 = self._offered2 & _DIRECT_IO_ALLOW_MMAP
        reply.max_write = min(reply.max_write, <uint32_t>_MOST_DATA)
        reply.max_pages = _PAGES
        reply.time_gran = 1
        head.len = sizeof(fuse_out_header) + sizeof(fuse_init_out)
        return head.len

    cdef void _complete_open(self, fuse_open_out *reply) noexcept nogil:
        if self._direct_io:
            reply.open_flags |= FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES

    # ── figures ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def wrote_at(self):
        """When the last write was taken, in nanoseconds since 1970; 0 before the first."""
        return s3b_load(&self._wrote_at)

    @property
    def answered(self):
        """Requests that were answered at once."""
        return s3b_load(&self._answered)

    @property
    def waited(self):
        """Requests that had to be parked."""
        return self._waited

    @property
    def passed_on(self):
        """Requests that llfuse got."""
        return s3b_load(&self._passed_on)

    @property
    def parked(self):
        """Requests that wait now."""
        return self._held
