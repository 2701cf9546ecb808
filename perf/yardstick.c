/* What the zero scan is measured against: a plain OR loop and libc's memcmp, one call per CHUNK bytes. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

__attribute__((noinline)) static int or_loop(const unsigned char *p, size_t n) {
    uint64_t all = 0;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word;
        memcpy(&word, p + i, 8);
        all |= word;
    }
    return all == 0;
}

__attribute__((noinline)) static int with_memcmp(const unsigned char *p, size_t n) {
    return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

size_t scan_or(const unsigned char *p, size_t n, size_t chunk) {
    size_t zeros = 0;
    for (size_t i = 0; i + chunk <= n; i += chunk) zeros += or_loop(p + i, chunk);
    return zeros;
}

size_t scan_memcmp(const unsigned char *p, size_t n, size_t chunk) {
    size_t zeros = 0;
    for (size_t i = 0; i + chunk <= n; i += chunk) zeros += with_memcmp(p + i, chunk);
    return zeros;
}
