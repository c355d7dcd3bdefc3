/*
 * Decoding: the bytes that each id stands for, laid out in one table. Immutable once filled.
 */
#ifndef CASTOR_WORKER_TEXT_DECODE_H
#define CASTOR_WORKER_TEXT_DECODE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"

struct decode_table {
    struct buf bytes; /* of all ids, one behind the other in the order they were set */
    uint32_t *offset; /* [n_ids] into bytes */
    uint32_t *length; /* [n_ids]; 0: no such token */
    bool *special;    /* [n_ids] */
    int64_t n_ids;
};

/* Check the "decoder" member of tokenizer.json: ByteLevel, alone or in a Sequence. */
int decode_check(const json_t *decoder, struct err *err);
int decode_table_init(struct decode_table *t, int64_t n_ids, struct err *err);
void decode_table_fini(struct decode_table *t);
/* `token` as the vocabulary writes it; a later setting of the same id wins. */
int decode_table_set(struct decode_table *t, int32_t id, const char *token, size_t n, bool special,
                     struct err *err);

#endif
