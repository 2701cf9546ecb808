"""The kernel's FUSE protocol and the system calls of the fast lane, from the system's headers."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from s3backer._fast cimport iovec, pthread_mutex_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, pthread_condattr_t *)
    int pthread_condattr_init(pthread_condattr_t *)
    int pthread_condattr_setclock(pthread_condattr_t *, int)
    int pthread_condattr_destroy(pthread_condattr_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_destroy(pthread_cond_t *)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    enum:
        CLOCK_MONOTONIC

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void *, size_t)
    ssize_t write(int, const void *, size_t)
    int usleep(unsigned int)
    int close(int)
    int dup3(int, int, int)
    long sysconf(int)
    enum:
        _SC_PAGESIZE

cdef extern from "<fcntl.h>" nogil:
    int open(const char *, int)
    enum:
        O_RDWR
        O_CLOEXEC
        O_DSYNC
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
        uint32_t flags
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
    void s3b_note_time(uint64_t *)
