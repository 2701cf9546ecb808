# Part of _journal.pyx: C functions that it calls.

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_condattr_init(pthread_condattr_t *)
    int pthread_condattr_setclock(pthread_condattr_t *, int)
    int pthread_condattr_destroy(pthread_condattr_t *)
    int pthread_cond_init(pthread_cond_t *, pthread_condattr_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_broadcast(pthread_cond_t *)
    int pthread_cond_destroy(pthread_cond_t *)

cdef extern from "_journal.h" nogil:
    struct timespec:
        pass
    enum:
        CLOCK_MONOTONIC
    uint32_t htole32(uint32_t)
    uint64_t htole64(uint64_t)
    uint32_t le32toh(uint32_t)
    uint64_t le64toh(uint64_t)
    uint64_t htobe64(uint64_t)
    uint64_t s3b_fetch(const uint64_t *)
    void s3b_publish(uint64_t *, uint64_t)
    void s3b_deadline(timespec *, double)
    bint s3b_is_linked(int fd)
    ssize_t pread(int, void *, size_t, long)
    ssize_t pwritev(int, const iovec *, int, long)
    int fdatasync(int)

cdef extern from "_checksum.h" nogil:
    void s3b_checksum_init()
    uint32_t s3b_crc32c(uint32_t value, const unsigned char *data, size_t length, int by_table)
