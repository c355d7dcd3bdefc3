/*
 * The examples of a data file, one after the other, and what is wrong with its lines. Knows
 * formats, not tokens.
 *
 *   JSONL    one object a line, in one of the shapes of worker/text/shapes.h; blank lines are
 *            passed over
 *   CSV      a header row and one example a row, for shapes of strings (worker/text/csv.h)
 *   Parquet  one example a row (worker/text/parquet.h)
 *   plain    an example is a run of lines without a blank one between, joined by newlines
 */
#ifndef CASTOR_WORKER_TEXT_EXAMPLES_H
#define CASTOR_WORKER_TEXT_EXAMPLES_H

#include "api/job_spec.h"
#include "core/err.h"
#include "worker/text/shapes.h"

enum example_container {
    CONTAINER_NONE,
    CONTAINER_JSONL,
    CONTAINER_CSV,
    CONTAINER_PARQUET,
    CONTAINER_PLAIN
}; /* NONE: an empty file */

/* One example; `line` is its first, or its row in a Parquet file, from 1. Non-zero stops the
 * reading and is returned. */
typedef int (*example_fn)(void *ud, int64_t line, const struct example *example, struct err *err);
/* A bad line; non-zero stops the reading, which then is the result. */
typedef int (*example_fault_fn)(void *ud, int64_t line, const char *message, struct err *err);

struct example_reader {
    /* DATA_AUTO: Parquet by the file's first bytes, JSONL when the first line that is not blank
     * begins with '{' or "[{", CSV when it is a header with the columns of a shape or of the
     * mapping, else plain; the shape of each object is then found by its members. With another
     * format but DATA_PLAIN the file is Parquet, CSV or JSONL likewise. */
    enum data_format format;
    const json_t *mapping; /* worker/text/columns.h; may be NULL */
    /* When the file's first object has no shape, take all objects as EXAMPLE_COLUMNS: which
     * members they have is not for this reader to judge. */
    bool any_columns;
    example_fn fn;
    example_fault_fn fault_fn;
    void *ud;
    enum example_container container; /* set as soon as it is known */
};

/* An error is about the file as a whole, or comes from a function of the reader. */
int examples_read(struct example_reader *reader, const char *path, struct err *err);

#endif
