/*
 * Parquet's encodings, a value at a time, over the bytes of one page. Decoders hold pointers into
 * those bytes and the state of one value, so that a run of a million equal values costs nothing.
 * A `_next` returns false where the bytes end or say something impossible. Private to
 * worker/text/parquet*.c.
 *
 * Source: Apache Parquet format, "Encodings".
 */
#ifndef CASTOR_WORKER_TEXT_PARQUET_DECODE_H
#define CASTOR_WORKER_TEXT_PARQUET_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/bytes.h"
#include "worker/text/parquet_meta.h"

enum parquet_encoding {
    PARQUET_PLAIN = 0,
    PARQUET_PLAIN_DICTIONARY = 2,
    PARQUET_RLE = 3,
    PARQUET_DELTA_BINARY_PACKED = 5,
    PARQUET_DELTA_LENGTH_BYTES = 6,
    PARQUET_DELTA_BYTES = 7,
    PARQUET_RLE_DICTIONARY = 8,
    PARQUET_BYTE_STREAM_SPLIT = 9,
};

/* A value of a leaf; which member is set follows from its type. */
struct parquet_value {
    union {
        int64_t i; /* BOOLEAN, INT32, INT64 */
        double d;  /* FLOAT, DOUBLE */
        const char *p;
    };
    size_t n; /* of p */
};

/* Runs and bit-packed groups of numbers of `width` bits. */
struct parquet_rle {
    struct bytes in;
    int width;
    int64_t left; /* of the run or group at hand */
    bool packed;
    uint32_t value; /* of the run */
    size_t bit;     /* of the group, from in.at */
};

void parquet_rle_init(struct parquet_rle *r, const unsigned char *bytes, size_t n, int width);
bool parquet_rle_next(struct parquet_rle *r, uint32_t *value);

/* DELTA_BINARY_PACKED. */
struct parquet_delta {
    struct bytes in;
    int64_t left, value, min_delta;
    uint64_t block, per_miniblock;
    uint64_t miniblocks, miniblock; /* of a block; the one at hand */
    const unsigned char *widths;
    int width;
    uint64_t in_miniblock; /* values of it still to come */
    size_t bit;
    bool first;
};

bool parquet_delta_init(struct parquet_delta *d, const unsigned char *bytes, size_t n);
bool parquet_delta_next(struct parquet_delta *d, int64_t *value);
/* Where its bytes end; read to the end on a copy. NULL when they cannot be read. */
const unsigned char *parquet_delta_end(const struct parquet_delta *d);

/* The values of a page in any encoding but the dictionary ones. */
struct parquet_decoder {
    enum parquet_encoding encoding;
    enum parquet_type type;
    const unsigned char *start;
    struct bytes in;
    int64_t n, done;
    size_t bit;                           /* plain booleans */
    struct parquet_rle rle;               /* booleans */
    struct parquet_delta delta, prefixes; /* whole numbers, lengths; lengths of prefixes */
    struct buf last;                      /* DELTA_BYTES: the value before */
};

/* n: the page's values that are not null. False when it cannot be. The decoder is zeroed or was
 * used before. */
bool parquet_decoder_init(struct parquet_decoder *d, enum parquet_encoding encoding,
                          enum parquet_type type, const unsigned char *bytes, size_t bytes_n,
                          int64_t n);
void parquet_decoder_fini(struct parquet_decoder *d);
/* A text points into the page, or into the decoder until the next call. */
bool parquet_decoder_next(struct parquet_decoder *d, struct parquet_value *out);

#endif
