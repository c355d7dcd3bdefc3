/*
 * Rows of a Parquet file as JSON objects.
 *
 * Columns may be strings, whole numbers, reals and booleans, and lists, groups and maps of such,
 * nested as they like; a map becomes a list of {"key", "value"}. A null member is left out of its
 * object, a null element of a list is null. Encodings: PLAIN, dictionary, RLE, the DELTA ones and
 * BYTE_STREAM_SPLIT; pages of both kinds; uncompressed, snappy, gzip, zstd, brotli and lz4_raw.
 *
 * Only the columns that were selected are read, row group by row group and page by page: memory is
 * a page and a dictionary for each. The file is untrusted (parquet_meta.h, parquet_column.h): it
 * may unpack to INPUT_MAX_RATIO times its size beyond INPUT_FREE_BYTES (worker/text/input.h), and a
 * row that takes more than LINE_MAX_BYTES is a bad one. One thread.
 */
#ifndef CASTOR_WORKER_TEXT_PARQUET_H
#define CASTOR_WORKER_TEXT_PARQUET_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

struct parquet;

/* Do these first bytes begin a Parquet file? */
enum { PARQUET_MAGIC_BYTES = 4 };
bool parquet_is_magic(const char *bytes);

int parquet_open(const char *path, struct parquet **out, struct err *err);
void parquet_close(struct parquet *p);
int64_t parquet_rows(const struct parquet *p);
/* The columns at the top, in the file's order. */
int parquet_columns(const struct parquet *p);
const char *parquet_column_name(const struct parquet *p, int column);
/* Before the first row: from now on `column` is a member of each. ERR_UNSUPPORTED when it holds a
 * type that no text is made of. */
int parquet_select(struct parquet *p, int column, struct err *err);

/* The next row, new, or *got = false behind the last one. A row that cannot be used is NULL, with a
 * sentence in `why`; the next call goes on behind it. An error is about the file. */
int parquet_next(struct parquet *p, bool *got, json_t **row, char *why, size_t why_cap,
                 struct err *err);

#endif
