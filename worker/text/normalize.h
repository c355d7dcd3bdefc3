/*
 * Normalizers: NFC, NFD, NFKC, NFKD (by utf8proc), Lowercase, Sequence. A loaded chain is plain
 * data.
 */
#ifndef CASTOR_WORKER_TEXT_NORMALIZE_H
#define CASTOR_WORKER_TEXT_NORMALIZE_H

#include <jansson.h>
#include <stddef.h>

#include "core/buf.h"
#include "core/err.h"

enum { NORMALIZE_MAX_STEPS = 8 };

enum normalize_step {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_LOWERCASE
};

struct normalizer {
    enum normalize_step steps[NORMALIZE_MAX_STEPS];
    int n;
};

/* From the "normalizer" member of tokenizer.json; null or absent is the identity. */
int normalizer_init(struct normalizer *nz, const json_t *json, struct err *err);

/* The normal form of valid UTF-8. *out, *out_n is `text` itself where nothing changes, else the
 * content of `work`. ERR_INVALID for a run of more than 4096 combining marks: sorting those costs
 * the square of their number. */
int normalizer_run(const struct normalizer *nz, const char *text, size_t n, struct buf *work,
                   const char **out, size_t *out_n, struct err *err);

#endif
