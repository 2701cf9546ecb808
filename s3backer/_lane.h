/* Atomic integers, and the system call that the fast lane needs and no header of Cython's declares. */
#pragma once

#include <stdint.h>
#include <time.h>

static inline uint64_t s3b_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void s3b_set(uint64_t *p, uint64_t value) { __atomic_store_n(p, value, __ATOMIC_SEQ_CST); }
static inline void s3b_add(uint64_t *p, uint64_t value) { __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST); }

static inline double s3b_monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
static inline uint64_t s3b_wall_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
/* Set a time to now, and to later than it was: the coarse clock stands still for some milliseconds. */
static inline void s3b_note_time(uint64_t *p) {
    uint64_t before = s3b_load(p), now = s3b_wall_clock();
    s3b_set(p, now > before ? now : before + 1);
}
