/* What reading and writing weights share: a family's names spelled out, and its layouts. */
#ifndef CASTOR_WORKER_MODEL_WEIGHTS_NAMES_H
#define CASTOR_WORKER_MODEL_WEIGHTS_NAMES_H

#include <stdint.h>

#include "worker/model/family.h"

enum { WEIGHTS_MAX_PARTS = MATRIX_MAX_PARTS }; /* files' tensors that make one of ours: q, k, v */

/* The name in files: prefix, and the layer's number for "{i}". A fresh string. */
char *weights_name(const struct name_map *map, const char *prefix, int64_t layer);

/* Rows that lie together both in a file's tensor and in ours. */
struct row_block {
    int64_t file_row, our_row, rows;
};

/* The blocks of a part of `rows` rows, in the file's order; not of FILE_TRANSPOSED. */
int64_t weights_blocks(const struct decoder_config *c, enum file_layout layout);
struct row_block weights_block(const struct decoder_config *c, enum file_layout layout,
                               int64_t rows, int64_t i);

/* Elements [first, first + n) of the transpose (cols, rows), to or from a matrix (rows, cols). */
void weights_scatter(void *matrix, int64_t rows, int64_t cols, int64_t first, int64_t n,
                     const void *elements, size_t element_bytes);
void weights_gather(const void *matrix, int64_t rows, int64_t cols, int64_t first, int64_t n,
                    void *elements, size_t element_bytes);

#endif
