/*
 * "Replace", a normalizer and a decoder: each match of a pattern becomes another text.
 */
#ifndef CASTOR_WORKER_TEXT_REPLACEMENT_H
#define CASTOR_WORKER_TEXT_REPLACEMENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/regex.h"

enum { REPLACEMENT_MAX_CONTENT = 1024 };

/* Zero-initialise; immutable once loaded. */
struct replacement {
    struct buf content, literal;
    struct regex *regex; /* NULL: `literal` is looked for, which is not empty */
};

/* From {"pattern": {"String" or "Regex": ...}, "content": ...}. */
int replacement_init(struct replacement *r, const json_t *json, struct err *err);
void replacement_fini(struct replacement *r);

/* Append the text with its matches replaced. ERR_INVALID when `out` would grow beyond max_bytes.
 * *stays becomes false when the result's first character does not stand for the text's first. */
int replacement_add(const struct replacement *r, const char *text, size_t n,
                    struct regex_cursor *cursor, size_t max_bytes, struct buf *out, bool *stays,
                    struct err *err);

#endif
