# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The FUSE fast lane: the kernel's hot requests on the disk's inode are answered here, without the GIL.

    kernel ⇄ /dev/fuse ⇄ serve() ──hot, in the slab──► answered at once
                            │  └──hot, but has to wait──► parked ──► wait() ──► the driver ──► finish()
                            └──everything else──► socket ⇄ llfuse ; forward() ──► /dev/fuse

    READ             answered from the slab; parked where a block is missing
    WRITE            answered when the slab, and the journal, has it; parked, with its data, where there is no room;
                     parked as made, to be answered later, where room is becoming scarce, and under ``direct_io`` one
                     with O_SYNC or O_DSYNC, after which the kernel asks for no flush
    FLUSH, FSYNC     answered where nothing is unsaved, or the journal is on the disk; else, with a journal, one thread
                     syncs it here, and the others are parked, as are those where that failed
    FALLOCATE        punching and zeroing ranges are parked, every other mode is EOPNOTSUPP
    INTERRUPT        its request is parked: it is called off; llfuse has it: dropped; else the kernel is to ask again
    INIT, OPEN       llfuse's replies are completed on their way back with what libfuse 2.9 cannot say

Guarantees
  * Nothing that waits holds a thread of ``serve``, but for one that waits for the journal's disk: cached reads go on
    while writers, misses and flushes wait.
  * No memory is allocated for a request that is answered at once. What is parked takes its data's length.
  * Each request is answered exactly once, also when it is interrupted; after ``close`` nothing is sent any more.
  * When ``set_end`` returns, no write that was let in by the old end is under way.

Source of the protocol: the kernel's header ``linux/fuse.h``.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from s3backer._fast cimport Slab, iovec
from s3backer._fuse cimport *
from s3backer._parking cimport (
    FLUSH_KIND,
    NOT_FOUND,
    READ_KIND,
    SYNC_WRITE_KIND,
    TAKEN_BACK,
    WRITE_KIND,
    ZERO_KIND,
    Found,
    Kind,
    Parked,
    Parking,
)
from s3backer._journal cimport JOURNAL_FAILED_REASON, Journal
from s3backer._readahead cimport ReadAhead

cdef enum:
    # Bytes of one request's data: smaller ones than 1 MiB are served in parallel and beat it.
    _MOST_DATA = 131072
    _BUFFER = _MOST_DATA + 4096
    _PACKET = 1 << 20
    # The protocol's version that has everything that is used here.
    _MINOR = 31
    # In flags2 of the protocol from 7.39 on: a file open for direct I/O can be mapped.
    _DIRECT_IO_ALLOW_MMAP = 1 << 4
    # Requests of llfuse's that are remembered.
    _REMEMBERED_BITS = 10
    # Up to so many bytes a copy under the lock takes less time than a pin.
    _SMALL = 16384
    _PIECES = 40

# Shortest time between two reports that much is unsaved.
cdef double _PRESSURE_SECONDS = 0.02

cdef class Lane:
    """The lane of one mount.

    ``device`` is the kernel's descriptor and belongs to the lane, ``socket`` leads to llfuse. ``inode`` and ``handle``
    are those of the disk, ``end`` its size in bytes. ``pressure``: unsaved blocks above which the driver is woken.
    ``journal``: what writes go to besides the slab, if there is one. ``slow_writes``: every write is parked.
    ``direct_io``: the kernel is to keep nothing of the disk.
    ``lazy_fsync``: FLUSH and FSYNC are answered at once, whatever is unsaved.
    ``reach``: what to call at each failpoint, if any is armed.
    """

    cdef int _device
    # What the device's number leads to in the end: /dev/null.
    cdef int _nowhere
    cdef int _socket
    cdef uint64_t _inode
    cdef uint64_t _handle
    cdef bint _direct_io
    cdef bint _slow_writes
    cdef bint _lazy_fsync
    cdef int32_t _pressure
    cdef Slab _slab
    cdef Journal _journal
    cdef bint _journaled
    cdef object _reach
    cdef bint _armed
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
    # The kernel's numbers of requests that llfuse got last, each in the place of its hash.
    cdef uint64_t _remembered[1 << _REMEMBERED_BITS]
    cdef uint64_t _wrote_at
    # A torn value of it would do no harm.
    cdef double _pressed_at
    cdef readonly Parking parking
    # Counters.
    cdef uint64_t _answered
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
        Journal journal=None,
        bint slow_writes=False,
        bint direct_io=False,
        bint lazy_fsync=False,
        reach=None,
    ):
        self._nowhere = open(b"/dev/null", O_RDWR | O_CLOEXEC)
        if self._nowhere < 0:
            raise OSError(errno, "/dev/null cannot be opened")
        self._device, self._socket = device, socket
        self._slab, self._ahead = slab, ahead
        self._journal, self._journaled = journal, journal is not None
        self._inode, self._handle, self._end = inode, handle, end
        self._pressure, self._slow_writes = pressure, slow_writes
        self._direct_io, self._lazy_fsync = direct_io, lazy_fsync
        self._reach, self._armed = reach, reach is not None
        self.parking = Parking()

    def __dealloc__(self):
        # Nothing is sent any more: whoever has something to finish holds the lane.
        if self._nowhere > 0:
            close(self._nowhere)
        if self._device > 0:
            close(self._device)

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
            self.parking.end()
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
                s3b_set(self._memory_of(head.unique), head.unique)
                # At the end nobody may be there any more to take it.
                while send(self._socket, buffer, count, MSG_NOSIGNAL) < 0 and errno == EINTR:
                    if s3b_load(&self._stopping):
                        break
        return 0

    cdef bint _hot(self, fuse_in_header *head, unsigned char *body, unsigned char *content) noexcept nogil:
        """Answer or park a request on the disk; False if it is not of the hot kinds."""
        cdef uint64_t unique = head.unique
        if head.opcode == FUSE_READ:
            self._read(unique, (<fuse_read_in *>body).offset, (<fuse_read_in *>body).size, content)
        elif head.opcode == FUSE_WRITE:
            self._write(
                unique, (<fuse_write_in *>body).offset, (<fuse_write_in *>body).size, body + sizeof(fuse_write_in),
                self._direct_io and not self._lazy_fsync and (<fuse_write_in *>body).flags & O_DSYNC,
            )
        elif head.opcode == FUSE_FSYNC or head.opcode == FUSE_FLUSH:
            if self._lazy_fsync or self._all_saved():
                self._answer(unique, 0, NULL, 0)
            elif not (self._journaled and self.parking.begin_sync(unique)):
                self._park(FLUSH_KIND, unique, 0, 0, 0, NULL)
            else:
                self._sync(unique)
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
        # A kernel that did not hear of max_pages, and has large ones, asks for more than the buffer holds.
        while not sent and size <= _MOST_DATA and position < <Py_ssize_t>size and count == 0:
            position += self._slab.read_range(offset + position, content + position, size - position, missing, &count)
        if sent:
            pass
        elif count == 0 and size <= _MOST_DATA:
            self._answer(unique, 0, content, size)
        else:
            self._park(READ_KIND, unique, offset, size, 0, NULL)
        if self._ahead.note(offset, size, &start, &stop):
            self.parking.hint(start, stop)

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

    cdef void _write(
        self, uint64_t unique, uint64_t offset, uint64_t size, unsigned char *data, bint synced
    ) noexcept nogil:
        cdef uint64_t end, fitting = size
        cdef Py_ssize_t done = 0, more = 0
        cdef bint crowded = False
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
            if self._journaled:
                reason = self._journal.write_range(offset, data, fitting, now, &done)
                crowded = self._journal.crowded and reason == 0
            if not self._journaled or reason == JOURNAL_FAILED_REASON:
                reason = self._slab.write_range(offset + done, data + done, fitting - done, now, &more)
                done += more
            s3b_note_time(&self._wrote_at)
        s3b_add(&self._writing, <uint64_t>-1)
        if synced:
            self._park(SYNC_WRITE_KIND, unique, offset, fitting, done, data)
        elif reason == 0:
            crowded = crowded or self._slab.unsaved > self._slab.crowded_from
            if not (crowded and self.parking.park(WRITE_KIND, unique, offset, fitting, fitting, data)):
                self._answer_write(unique, fitting)
            if self._slab.unsaved > self._pressure and now - self._pressed_at > _PRESSURE_SECONDS:
                self._pressed_at = now
                self.parking.press()
        else:
            self._park(WRITE_KIND, unique, offset, fitting, done, data)

    cdef void _allocate(self, uint64_t unique, fuse_fallocate_in *asked) noexcept nogil:
        cdef uint64_t end = s3b_load(&self._end)
        cdef uint32_t mode = asked.mode & ~<uint32_t>FALLOC_FL_KEEP_SIZE
        if mode != FALLOC_FL_PUNCH_HOLE and mode != FALLOC_FL_ZERO_RANGE:
            self._answer(unique, -EOPNOTSUPP, NULL, 0)
        elif asked.offset > end or asked.length > end - asked.offset:
            self._answer(unique, -ENOSPC, NULL, 0)
        else:
            self._park(ZERO_KIND, unique, asked.offset, asked.length, 0, NULL)

    cdef bint _all_saved(self) noexcept nogil:
        cdef bint saved
        if self._journaled:
            return self._journal.all_durable()
        pthread_mutex_lock(&self._slab._lock)
        saved = self._slab.unsaved == 0
        pthread_mutex_unlock(&self._slab._lock)
        return saved

    cdef void _sync(self, uint64_t unique) noexcept nogil:
        """Sync the journal for a flush and answer it; where that fails it is parked, as all others are then.

        To hand it to another thread takes longer than a fast disk's sync.
        """
        cdef int error
        if self._armed:
            self._at(b"before-sync")
        error = self._journal.make_durable()
        if self._armed and not error:
            self._at(b"synced")
        if error:
            # An interruption finds it in one place or in both.
            self._park(FLUSH_KIND, unique, 0, 0, 0, NULL)
        if self.parking.end_sync() and error and self.parking.call_off(unique) == TAKEN_BACK:
            self._answer(unique, -EINTR, NULL, 0)
        if not error:
            self._answer(unique, 0, NULL, 0)
            self._journal.tell_durable()

    cdef void _at(self, const char *failpoint) noexcept with gil:
        self._reach(failpoint.decode())

    cdef void _interrupt(self, uint64_t unique, uint64_t of) noexcept nogil:
        """Call off a parked request; llfuse's need nothing, as they end soon.

        Another thread may have just read the request: the kernel asks again at once, until it is parked or answered.
        """
        cdef Found found = self.parking.call_off(of)
        if found == TAKEN_BACK:
            self._answer(of, -EINTR, NULL, 0)
        elif found == NOT_FOUND and s3b_load(self._memory_of(of)) != of:
            self._answer(unique, -EAGAIN, NULL, 0)

    cdef uint64_t *_memory_of(self, uint64_t unique) noexcept nogil:
        return self._remembered + (unique * <uint64_t>0x9E3779B97F4A7C15 >> (64 - _REMEMBERED_BITS))

    cdef void _park(
        self, Kind kind, uint64_t unique, uint64_t offset, uint64_t length, uint64_t position,
        const unsigned char *data
    ) noexcept nogil:
        if not self.parking.park(kind, unique, offset, length, position, data):
            self._answer(unique, -ENOMEM, NULL, 0)

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

    # ── for the driver ───────────────────────────────────────────────────────────────────────────────────

    def finish(self, int32_t number, int error, body=None, uint32_t taken=0):
        """Answer a parked request: with an errno, or 0 and, for a read, its bytes, for a write how many it took."""
        cdef Py_buffer view
        cdef Parked parked
        cdef fuse_write_out out
        cdef bint wrote
        if body is not None:
            PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        with nogil:
            parked = self.parking.leave(number)
            wrote = parked.kind == WRITE_KIND or parked.kind == SYNC_WRITE_KIND
            if wrote and error == 0:
                s3b_note_time(&self._wrote_at)
            if error:
                self._send(parked.unique, -error, NULL, 0)
            elif wrote:
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

    def slow_down(self):
        """Park every write from now on; when it returns none that was not is under way."""
        with nogil:
            s3b_set(&self._shut, 1)
            self._slow_writes = True
            while s3b_load(&self._writing):
                usleep(20)
            s3b_set(&self._shut, 0)

    def stop(self):
        """Let ``serve`` end at the next request or signal."""
        with nogil:
            s3b_set(&self._stopping, 1)

    def close(self):
        """Leave the kernel's connection, when ``serve`` has ended everywhere. What is finished later is not sent."""
        with nogil:
            # The number stays taken: nothing else can get it while replies may still be sent to it.
            dup3(self._nowhere, self._device, O_CLOEXEC)

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
        reply.max_pages = max(1, _MOST_DATA // sysconf(_SC_PAGESIZE))
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
    def passed_on(self):
        """Requests that llfuse got."""
        return s3b_load(&self._passed_on)
