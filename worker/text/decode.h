/*
 * Decoding: ids to text, by the chain of steps that tokenizer.json's "decoder" names: ByteLevel,
 * Metaspace, Replace, Strip, ByteFallback, Fuse, Sequence; none joins the tokens by spaces.
 *
 * Each token's text is laid out in one table at loading, the chain's first steps applied as far as
 * they work token by token. Immutable once filled; any number of threads may decode at once.
 */
#ifndef CASTOR_WORKER_TEXT_DECODE_H
#define CASTOR_WORKER_TEXT_DECODE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/replacement.h"

enum { DECODE_MAX_STEPS = 16, DECODE_MAX_TEXT = 512 << 20 };

enum decode_kind {
    DECODE_REPLACE,
    DECODE_STRIP,
    DECODE_BYTES, /* of the byte alphabet */
    DECODE_LOSSY, /* the second half of ByteLevel: all bytes as one text */
    DECODE_METASPACE,
    DECODE_BYTE_FALLBACK,
    DECODE_FUSE,
};

struct decode_step {
    enum decode_kind kind;
    struct replacement replacement;
    char mark[4]; /* STRIP, METASPACE: a character */
    size_t mark_n;
    int64_t start, stop; /* STRIP: how many at either end */
    bool keeps_first;    /* METASPACE: no space was put in front of the text */
};

struct decoder {
    struct decode_step steps[DECODE_MAX_STEPS];
    int n;
    int n_done;       /* the first ones, done in the table */
    bool spaced;      /* join by spaces */
    struct buf bytes; /* of all ids, one behind the other in the order they were set */
    uint32_t *offset; /* [n_ids] into bytes */
    uint32_t *length; /* [n_ids]; DECODE_ABSENT: no such token */
    bool *special;    /* [n_ids] */
    int64_t n_ids;
    struct buf work; /* loading only */
    struct regex_cursor cursor;
};
#define DECODE_ABSENT UINT32_MAX

/* From the "decoder" member of tokenizer.json. */
int decoder_init(struct decoder *d, const json_t *json, struct err *err);
int decoder_init_byte_level(struct decoder *d, struct err *err);
void decoder_fini(struct decoder *d);
/* Make the table, then fill it: `token` as the vocabulary writes it; a later setting of the same id
 * wins. */
int decoder_reserve(struct decoder *d, int64_t n_ids, struct err *err);
int decoder_set(struct decoder *d, int32_t id, const char *token, size_t n, bool special,
                struct err *err);

/* Append the text of ids, all in [0, n_ids). Ids without a token are passed over. */
int decoder_run(const struct decoder *d, const int32_t *ids, int64_t n, bool skip_special,
                struct buf *out, struct err *err);

#endif
