/*
 * How examples share rows, and in which order an epoch visits the rows.
 *
 * Packing: the examples, in an order shuffled by the seed, each go into the first of at most
 * ROWS_WINDOW open rows that has room (first fit with a bounded window, so the time is linear); the
 * oldest row closes when none has and the window is full. Without packing row i is example i.
 *
 * Order: a permutation that needs no table: a Feistel network over the smallest even number of bits
 * that covers the rows, its rounds keyed by the counter-based generator, walked until it lands
 * inside (Black, Rogaway, "Ciphers with arbitrary finite domains", 2002). So any thread finds the
 * row of any place of any epoch from (seed, epoch) alone.
 */
#ifndef CASTOR_WORKER_TEXT_ROWS_H
#define CASTOR_WORKER_TEXT_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/text/spool.h"

enum { ROWS_WINDOW = 64 };

/* Row r holds the examples members[first[r]] .. members[first[r + 1] - 1]. On disk: 16 bytes an
 * example, and 16 more while the rows are made. */
struct rows {
    const int64_t *first;   /* [n + 1] */
    const int64_t *members; /* [examples] */
    int64_t n;
    struct spool first_file, members_file;
};

/* lengths of example i: starts[i + 1] - starts[i], each from 1 to row_length. `dir`: of the files.
 */
int rows_init(struct rows *rows, const char *dir, const int64_t *starts, int64_t examples,
              int64_t row_length, bool packing, uint64_t seed, struct err *err);
void rows_fini(struct rows *rows);

/* The index-th of 0..n-1 in the order of `epoch`. */
int64_t rows_permute(int64_t index, int64_t n, uint64_t seed, int64_t epoch);

#endif
