/*
 * The examples of a data file, one after the other, and what is wrong with its lines. Knows
 * formats, not tokens.
 *
 *   JSONL  one object a line, in one of the shapes of worker/text/shapes.h. Blank lines are passed
 *          over.
 *   CSV    a header row and one example a row, for shapes of strings (worker/text/csv.h)
 *   plain  an example is a run of lines without a blank one between, joined by newlines.
 */
#ifndef CASTOR_WORKER_TEXT_EXAMPLES_H
#define CASTOR_WORKER_TEXT_EXAMPLES_H

#include "api/job_spec.h"
#include "core/err.h"
#include "worker/text/shapes.h"

/* One example; `line` is its first. Non-zero stops the reading and is returned. */
typedef int (*example_fn)(void *ud, int64_t line, const struct example *example, struct err *err);
/* A bad line; non-zero stops the reading, which then is the result. */
typedef int (*example_fault_fn)(void *ud, int64_t line, const char *message, struct err *err);

/* DATA_AUTO: JSONL when the first line that is not blank begins with '{' or "[{", CSV when it is a
 * header with the columns of a shape, else plain; the shape of each object is then found by its
 * members. With another format but DATA_PLAIN the file is CSV or JSONL likewise. */
int examples_read(const char *path, enum data_format format, example_fn fn,
                  example_fault_fn fault_fn, void *ud, struct err *err);

#endif
