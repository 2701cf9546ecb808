/* Numbers as they stand in the journal's files, and the system calls that tests put others in place of. */
#pragma once

#include <endian.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef ssize_t (*s3b_pwritev_call)(int, const struct iovec *, int, off_t);
typedef int (*s3b_fdatasync_call)(int);

static inline uint64_t s3b_fetch(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void s3b_publish(uint64_t *p, uint64_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

static inline int s3b_is_linked(int fd) {
    struct stat facts;
    return fstat(fd, &facts) == 0 && facts.st_nlink > 0;
}

static inline void s3b_deadline(struct timespec *at, double seconds) {
    clock_gettime(CLOCK_MONOTONIC, at);
    at->tv_sec += (time_t)seconds;
    at->tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (at->tv_nsec >= 1000000000L) {
        at->tv_nsec -= 1000000000L;
        at->tv_sec++;
    }
}
