/*
 * The bytes of a data file, decompressed where it is gzip or zstd (told by its first bytes, not by
 * its name; several members or frames one behind the other are one file).
 *
 * A compressed file is untrusted: it may unpack to at most INPUT_MAX_RATIO times the bytes read so
 * far, beyond the first INPUT_FREE_BYTES, and a zstd window is at most 128 MiB. Streamed: memory is
 * the blocks and the window. One thread; zero-initialise, input_fini is idempotent.
 */
#ifndef CASTOR_WORKER_TEXT_INPUT_H
#define CASTOR_WORKER_TEXT_INPUT_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#define INPUT_FREE_BYTES (INT64_C(64) << 20)
enum { INPUT_MAX_RATIO = 200 };

struct input {
    struct input_state *state;
};

/* ERR_INVALID when `path` is a directory. */
int input_init(struct input *in, const char *path, struct err *err);
void input_fini(struct input *in);
/* Up to `cap` bytes; *got = 0 at the end only. ERR_CORRUPT when compressed data are damaged or cut
 * off, ERR_INVALID when they unpack to too much. */
int input_read(struct input *in, void *out, size_t cap, size_t *got, struct err *err);

#endif
