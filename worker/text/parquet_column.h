/*
 * One column of one row group, read page by page: definition level, repetition level and value of
 * each entry in turn. Memory is one page and the dictionary. Private to worker/text/parquet*.c.
 *
 * Limits: a page has at most PARQUET_MAX_PAGE bytes, unpacked too, and a file's pages together
 * unpack to no more than the file's `budget`. Checksums are verified where the writer left them.
 */
#ifndef CASTOR_WORKER_TEXT_PARQUET_COLUMN_H
#define CASTOR_WORKER_TEXT_PARQUET_COLUMN_H

#include "worker/text/parquet_decode.h"

enum { PARQUET_MAX_PAGE = 128 << 20, PARQUET_MAX_DICTIONARY = 64 << 20 };

struct parquet_column {
    int fd;
    const struct parquet_node *node; /* the leaf */
    int64_t *budget;                 /* bytes that may still be unpacked, of all columns */
    int codec;
    int64_t at, end; /* pages still to be read: bytes of the file */
    int64_t values;  /* entries behind the page at hand */
    int64_t in_page; /* entries left of the page at hand */
    unsigned char *packed, *page, *dictionary_bytes;
    struct parquet_value *dictionary;
    int64_t n_dictionary;
    bool by_index;
    struct parquet_rle reps, defs, indexes;
    struct parquet_decoder plain;
    /* The entry at hand: */
    bool has_entry; /* false behind the last one */
    int rep, def;
    struct parquet_value value; /* where def is the leaf's own */
};

/* Begin on a row group's chunk, giving up what was there before; the first entry is at hand after
 * parquet_column_next. */
void parquet_column_begin(struct parquet_column *c, const struct parquet_chunk *chunk);
void parquet_column_fini(struct parquet_column *c);
/* The next entry; has_entry false behind the last one. A text stays until the next call. */
int parquet_column_next(struct parquet_column *c, struct err *err);

/* Unpack a page. ERR_UNSUPPORTED for a codec that is not known, ERR_CORRUPT. */
int parquet_unpack(int codec, const unsigned char *from, size_t from_n, unsigned char *to,
                   size_t to_n, struct err *err);

#endif
