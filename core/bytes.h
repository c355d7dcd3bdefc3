/*
 * A cursor over bytes that nobody vouches for. A `_take` moves it behind what it reads and returns
 * false where the bytes end first; then the cursor is wherever the reading stopped. Numbers are
 * little-endian, of any alignment.
 */
#ifndef CASTOR_CORE_BYTES_H
#define CASTOR_CORE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
    const unsigned char *at, *end;
};

static inline struct bytes bytes_of(const void *p, size_t n)
{
    return (struct bytes){p, (const unsigned char *)p + n};
}

static inline size_t bytes_left(const struct bytes *b)
{
    return (size_t)(b->end - b->at);
}

/* The number in n bytes, at most 8. */
static inline uint64_t bytes_number(const void *p, size_t n)
{
    uint64_t value = 0;

    for (size_t i = n; i-- > 0;)
        value = value << 8 | ((const unsigned char *)p)[i];
    return value;
}

/* The next n bytes, where they lie. */
static inline bool bytes_take(struct bytes *b, size_t n, const unsigned char **out)
{
    if (n > bytes_left(b))
        return false;
    *out = b->at;
    b->at += n;
    return true;
}

static inline bool bytes_take_number(struct bytes *b, size_t n, uint64_t *out)
{
    const unsigned char *p;

    if (!bytes_take(b, n, &p))
        return false;
    *out = bytes_number(p, n);
    return true;
}

/* LEB128: seven bits a byte, the lowest first, all but the last byte marked. False also for more
 * than ten bytes. */
static inline bool bytes_take_varint(struct bytes *b, uint64_t *out)
{
    uint64_t value = 0;

    for (int shift = 0; shift < 64 && b->at < b->end; shift += 7) {
        unsigned char byte = *b->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80)) {
            *out = value;
            return true;
        }
    }
    return false;
}

/* A varint whose lowest bit is the sign. */
static inline bool bytes_take_zigzag(struct bytes *b, int64_t *out)
{
    uint64_t n;

    if (!bytes_take_varint(b, &n))
        return false;
    *out = (int64_t)(n >> 1) ^ -(int64_t)(n & 1);
    return true;
}

#endif
