/* The zero scan and single words of bitmaps, in C because they need intrinsics. Included by _fast.pyx alone. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline uint64_t s3b_word(const unsigned char *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

/* The last, less than 256 bytes. */
static int s3b_zero_rest(const unsigned char *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8)
        if (s3b_word(p)) return 0;
    for (; n; p++, n--)
        if (*p) return 0;
    return 1;
}

static int s3b_zero_baseline(const unsigned char *p, size_t n) {
    for (; n >= 256; p += 256, n -= 256) {
        uint64_t all = 0;
        for (int i = 0; i < 256; i += 8) all |= s3b_word(p + i);
        if (all) return 0;
    }
    return s3b_zero_rest(p, n);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static int s3b_zero_avx2(const unsigned char *p, size_t n) {
    for (; n >= 256; p += 256, n -= 256) {
        const __m256i *v = (const __m256i *)p;
        __m256i a = _mm256_or_si256(_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1));
        __m256i b = _mm256_or_si256(_mm256_loadu_si256(v + 2), _mm256_loadu_si256(v + 3));
        __m256i c = _mm256_or_si256(_mm256_loadu_si256(v + 4), _mm256_loadu_si256(v + 5));
        __m256i d = _mm256_or_si256(_mm256_loadu_si256(v + 6), _mm256_loadu_si256(v + 7));
        a = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
        if (!_mm256_testz_si256(a, a)) return 0;
    }
    return s3b_zero_rest(p, n);
}
#endif

static int (*s3b_zero)(const unsigned char *, size_t) = s3b_zero_baseline;

static void s3b_choose(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) s3b_zero = s3b_zero_avx2;
#endif
}

static inline int s3b_popcount(uint64_t word) { return __builtin_popcountll(word); }
/* The byte order by which bit i of the bitmap is bit i of the word. */
static inline uint64_t s3b_bits(const unsigned char *p) {
    uint64_t word = s3b_word(p);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}
static inline int s3b_lowest(uint64_t word) { return __builtin_ctzll(word); }
