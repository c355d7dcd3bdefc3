#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/alloc.h"

static void hex_write(char *out, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * n] = '\0';
}

void hash_init(struct hash *h, enum hash_kind kind, int64_t total_bytes)
{
    char header[32];

    h->kind = kind;
    if (kind == HASH_SHA256) {
        sha256_init(&h->sha256);
        return;
    }
    sha1_init(&h->sha1);
    int n = snprintf(header, sizeof(header), "blob %" PRId64, total_bytes);
    sha1_update(&h->sha1, (size_t)n + 1, (const uint8_t *)header); /* with the NUL */
}

void hash_update(struct hash *h, const void *bytes, size_t n)
{
    if (n == 0)
        return;
    if (h->kind == HASH_SHA256)
        sha256_update(&h->sha256, n, bytes);
    else
        sha1_update(&h->sha1, n, bytes);
}

void hash_final_hex(struct hash *h, char out[65])
{
    uint8_t digest[SHA256_DIGEST_SIZE];

    if (h->kind == HASH_SHA256) {
        sha256_digest(&h->sha256, SHA256_DIGEST_SIZE, digest);
        hex_write(out, digest, SHA256_DIGEST_SIZE);
    } else {
        sha1_digest(&h->sha1, SHA1_DIGEST_SIZE, digest);
        hex_write(out, digest, SHA1_DIGEST_SIZE);
    }
}

void hash_random_hex(char *out, size_t n_bytes)
{
    uint8_t bytes[64];

    while (n_bytes > 0) {
        size_t want = n_bytes < sizeof(bytes) ? n_bytes : sizeof(bytes);
        ssize_t got = getrandom(bytes, want, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) { /* an id that is not random would be worse than none */
            perror("getrandom");
            abort();
        }
        hex_write(out, bytes, (size_t)got);
        out += 2 * got;
        n_bytes -= (size_t)got;
    }
    *out = '\0';
}
