/*
 * A growable byte buffer, always followed by a NUL that is not counted, so that text can be read as
 * a C string. Embedded: zero-initialise or buf_init, buf_fini frees. Not thread-safe.
 */
#ifndef CASTOR_CORE_BUF_H
#define CASTOR_CORE_BUF_H

#include <stddef.h>

struct buf {
    char *data; /* NULL while nothing was ever added */
    size_t len; /* bytes in use, without the final NUL */
    size_t cap;
};

void buf_init(struct buf *b);
void buf_fini(struct buf *b);  /* idempotent; leaves *b zeroed */
void buf_clear(struct buf *b); /* len = 0, keeps the memory */
void buf_reserve(struct buf *b, size_t extra_bytes);
void buf_add(struct buf *b, const void *bytes, size_t n);
void buf_add_str(struct buf *b, const char *s);
void buf_add_char(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The content as a C string, never NULL. Borrowed until the next change. */
const char *buf_str(const struct buf *b);
/* Hand the memory to the caller (freed with free()) and zero the buffer. Never NULL. */
char *buf_take(struct buf *b);

#endif
