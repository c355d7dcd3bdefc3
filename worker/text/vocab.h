/*
 * A vocabulary: tokens as the file writes them, and their ids.
 *
 * BPE's is an object of {"token": id}, Unigram's an array of ["token", score] where the id is the
 * position. Ids are bounded and no two tokens share one (Unigram may list a token twice: the later
 * id counts). Immutable once filled.
 */
#ifndef CASTOR_WORKER_TEXT_VOCAB_H
#define CASTOR_WORKER_TEXT_VOCAB_H

#include <jansson.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/text/token_map.h"

enum {
    VOCAB_MAX_ID = 1 << 22,          /* ids are below; the largest vocabularies have 2^18 */
    VOCAB_MAX_TOKEN_BYTES = 1 << 16, /* a longer token is refused                       */
};

struct vocab {
    struct token_map ids;
    int64_t n_tokens; /* entries in the file */
    int64_t n_ids;    /* highest id + 1 */
};

int vocab_init_from_object(struct vocab *v, const json_t *object, struct err *err);
int vocab_init_from_pairs(struct vocab *v, const json_t *array, struct err *err);
void vocab_fini(struct vocab *v);

#endif
