/*
 * Arrays in a file instead of in memory, for what grows with a data set: memory is a block while an
 * array is written and nothing afterwards, whatever its length (pages of a mapping are the kernel's
 * page cache, to drop when memory is short).
 *
 * The file has no name, in a directory of the caller's, so it is gone with the process, however
 * that ends. Elements are appended, then the array is sealed; then it is read, from any thread.
 * ERR_NOSPACE says where there was no room. Zero-initialise; spool_fini is idempotent.
 */
#ifndef CASTOR_WORKER_TEXT_SPOOL_H
#define CASTOR_WORKER_TEXT_SPOOL_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

enum { SPOOL_BLOCK = 1 << 18 };

struct spool {
    const char *dir; /* borrowed */
    int fd;          /* 0: none */
    size_t element;  /* bytes of one */
    int64_t n;
    char *block; /* what is not written yet; NULL once sealed */
    size_t used;
    void *map;
    size_t map_bytes;
};

int spool_init(struct spool *s, const char *dir, size_t element, struct err *err);
void spool_fini(struct spool *s);
int spool_add(struct spool *s, const void *items, int64_t n, struct err *err);
int spool_seal(struct spool *s, struct err *err);
/* A sealed array's elements [first, first + n). */
int spool_read(const struct spool *s, int64_t first, int64_t n, void *out, struct err *err);
/* Map a sealed array that is not empty, for reading: s->map. */
int spool_map(struct spool *s, struct err *err);
/* An array of n > 0 zeros, sealed and mapped for writing, its room on the disk taken. */
int spool_zeros(struct spool *s, const char *dir, size_t element, int64_t n, struct err *err);

#endif
