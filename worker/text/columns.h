/*
 * Which columns of a data set become which members of a training shape (worker/text/shapes.h).
 *
 * Without a mapping a column is the member of its own name. A mapping, a JSON object of member to
 * column ({"prompt": "question", "completion": "answer"}), names all members there are: other
 * columns are ignored, whatever they are called. Pure functions; mapping may be NULL.
 */
#ifndef CASTOR_WORKER_TEXT_COLUMNS_H
#define CASTOR_WORKER_TEXT_COLUMNS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/err.h"

/* Must this column be read? */
bool columns_wants(const json_t *mapping, const char *column);

/* Do the columns of a file with a header make a shape? ERR_INVALID names those that there are; its
 * param is dataset.column_mapping. */
int columns_check(const json_t *mapping, const char *const *names, size_t n, struct err *err);

/* The object with its members in place: `object` itself without a mapping, else a new one; NULL and
 * a sentence in `why` when a column is missing. Release it in any case. */
json_t *columns_apply(const json_t *mapping, json_t *object, char *why, size_t why_cap);

#endif
