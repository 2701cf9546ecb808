/* CRC-64/NVME and CRC-32C, both reflected, as C functions: by tables anywhere, by instructions where the machine has
 * them. A register holds a polynomial with its highest power in bit 0.
 *
 * Folding (CRC-64): of a 128-bit register X = L x^64 + H, X x^d is congruent to L a + H b with a = x^(d+64) and
 * b = x^d modulo P. A carry-less product of reflected numbers comes out times x, hence one power less in each constant.
 */
#ifndef S3B_CHECKSUM_H
#define S3B_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define S3B_X86 1
#else
#define S3B_X86 0
#endif

#define S3B_CRC64_POLY 0x9a6c9329ac4bc9b5ULL
#define S3B_CRC32C_POLY 0x82f63b78U

static uint64_t s3b_table64[8][256];
static uint32_t s3b_table32[8][256];
/* For distances of 512 and 128 bits: the constants for L and for H. */
static uint64_t s3b_fold[2][2];
/* What the four bytes of a CRC-32C become when S3B_LANE bytes of zeros follow. */
#define S3B_LANE 1024
static uint32_t s3b_far32[4][256];
static int s3b_has_clmul, s3b_has_crc32;

/* x^n modulo the polynomial of CRC-64. */
static uint64_t s3b_power64(int n)
{
    uint64_t value = 1ULL << 63;
    while (n-- > 0)
        value = (value >> 1) ^ (value & 1 ? S3B_CRC64_POLY : 0);
    return value;
}

static void s3b_checksum_init(void)
{
    for (int i = 0; i < 256; i++) {
        uint64_t wide = (uint64_t)i;
        uint32_t narrow = (uint32_t)i;
        for (int bit = 0; bit < 8; bit++) {
            wide = (wide >> 1) ^ (wide & 1 ? S3B_CRC64_POLY : 0);
            narrow = (narrow >> 1) ^ (narrow & 1 ? S3B_CRC32C_POLY : 0);
        }
        s3b_table64[0][i] = wide;
        s3b_table32[0][i] = narrow;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int i = 0; i < 256; i++) {
            uint64_t wide = s3b_table64[slice - 1][i];
            uint32_t narrow = s3b_table32[slice - 1][i];
            s3b_table64[slice][i] = (wide >> 8) ^ s3b_table64[0][wide & 0xff];
            s3b_table32[slice][i] = (narrow >> 8) ^ s3b_table32[0][narrow & 0xff];
        }
    for (int byte = 0; byte < 4; byte++) {
        for (int bit = 0; bit < 8; bit++) {
            uint32_t crc = 1U << (8 * byte + bit);
            for (int i = 0; i < S3B_LANE; i++)
                crc = (crc >> 8) ^ s3b_table32[0][crc & 0xff];
            s3b_far32[byte][1 << bit] = crc;
        }
        /* The CRC of a sum is the sum of the CRCs. */
        for (int i = 1; i < 256; i++)
            s3b_far32[byte][i] = s3b_far32[byte][i & (i - 1)] ^ s3b_far32[byte][i & -i];
    }
    const int distances[2] = {512, 128};
    for (int i = 0; i < 2; i++) {
        s3b_fold[i][0] = s3b_power64(distances[i] + 63);
        s3b_fold[i][1] = s3b_power64(distances[i] - 1);
    }
#if S3B_X86
    __builtin_cpu_init();
    s3b_has_clmul = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    s3b_has_crc32 = __builtin_cpu_supports("sse4.2");
#endif
}

static inline uint64_t s3b_load64(const unsigned char *data)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | data[i];
    return value;
}

/* The states that go in and come out of these are inverted already. */
static uint64_t s3b_crc64_table(uint64_t crc, const unsigned char *data, size_t length)
{
    for (; length >= 8; data += 8, length -= 8) {
        crc ^= s3b_load64(data);
        uint64_t next = 0;
        for (int i = 0; i < 8; i++)
            next ^= s3b_table64[7 - i][(crc >> (8 * i)) & 0xff];
        crc = next;
    }
    while (length--)
        crc = (crc >> 8) ^ s3b_table64[0][(crc ^ *data++) & 0xff];
    return crc;
}

static uint32_t s3b_crc32c_table(uint32_t crc, const unsigned char *data, size_t length)
{
    for (; length >= 8; data += 8, length -= 8) {
        uint64_t word = s3b_load64(data) ^ crc;
        crc = 0;
        for (int i = 0; i < 8; i++)
            crc ^= s3b_table32[7 - i][(word >> (8 * i)) & 0xff];
    }
    while (length--)
        crc = (crc >> 8) ^ s3b_table32[0][(crc ^ *data++) & 0xff];
    return crc;
}

#if S3B_X86
__attribute__((target("pclmul,sse4.1")))
static inline __m128i s3b_fold_once_sse4(__m128i value, __m128i constants, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(value, constants, 0x00);
    __m128i high = _mm_clmulepi64_si128(value, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

__attribute__((target("pclmul,sse4.1")))
static uint64_t s3b_crc64_sse4_clmul(uint64_t crc, const unsigned char *data, size_t length)
{
    if (length < 128)
        return s3b_crc64_table(crc, data, length);
    const __m128i far = _mm_set_epi64x((long long)s3b_fold[0][1], (long long)s3b_fold[0][0]);
    const __m128i near = _mm_set_epi64x((long long)s3b_fold[1][1], (long long)s3b_fold[1][0]);
    const __m128i *from = (const __m128i *)data;
    __m128i lane[4];
    for (int i = 0; i < 4; i++)
        lane[i] = _mm_loadu_si128(from + i);
    lane[0] = _mm_xor_si128(lane[0], _mm_set_epi64x(0, (long long)crc));
    for (from += 4, length -= 64; length >= 64; from += 4, length -= 64)
        for (int i = 0; i < 4; i++)
            lane[i] = s3b_fold_once_sse4(lane[i], far, _mm_loadu_si128(from + i));
    for (int i = 1; i < 4; i++)
        lane[i] = s3b_fold_once_sse4(lane[i - 1], near, lane[i]);
    for (; length >= 16; from++, length -= 16)
        lane[3] = s3b_fold_once_sse4(lane[3], near, _mm_loadu_si128(from));
    unsigned char last[16];
    _mm_storeu_si128((__m128i *)last, lane[3]);
    return s3b_crc64_table(s3b_crc64_table(0, last, 16), (const unsigned char *)from, length);
}

static inline uint32_t s3b_advance32(uint32_t crc)
{
    return s3b_far32[0][crc & 0xff] ^ s3b_far32[1][crc >> 8 & 0xff] ^ s3b_far32[2][crc >> 16 & 0xff] ^
           s3b_far32[3][crc >> 24];
}

/* One instruction takes three cycles, and three may be under way: so three lanes beside each other. */
__attribute__((target("sse4.2")))
static uint32_t s3b_crc32c_sse4(uint32_t crc, const unsigned char *data, size_t length)
{
    for (; length >= 3 * S3B_LANE; data += 3 * S3B_LANE, length -= 3 * S3B_LANE) {
        uint64_t lane[3] = {crc, 0, 0};
        for (size_t i = 0; i < S3B_LANE; i += 8)
            for (int n = 0; n < 3; n++) {
                uint64_t word;
                memcpy(&word, data + n * S3B_LANE + i, 8);
                lane[n] = _mm_crc32_u64(lane[n], word);
            }
        crc = s3b_advance32(s3b_advance32((uint32_t)lane[0]) ^ (uint32_t)lane[1]) ^ (uint32_t)lane[2];
    }
    uint64_t wide = crc;
    for (; length >= 8; data += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    while (length--)
        crc = _mm_crc32_u8(crc, *data++);
    return crc;
}
#endif

static inline uint64_t s3b_crc64(uint64_t value, const unsigned char *data, size_t length, int by_table)
{
#if S3B_X86
    if (s3b_has_clmul && !by_table)
        return ~s3b_crc64_sse4_clmul(~value, data, length);
#endif
    return ~s3b_crc64_table(~value, data, length);
}

static inline uint32_t s3b_crc32c(uint32_t value, const unsigned char *data, size_t length, int by_table)
{
#if S3B_X86
    if (s3b_has_crc32 && !by_table)
        return ~s3b_crc32c_sse4(~value, data, length);
#endif
    return ~s3b_crc32c_table(~value, data, length);
}

#endif
