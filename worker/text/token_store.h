/*
 * The tokenized examples of a data set, on disk (worker/text/spool.h): 4 bytes a token, 8 an
 * example and 8 a source. What a set of them is, and its batches, is worker/text/dataset.h's
 * business.
 *
 * A source is a line or paragraph of the file; it becomes one example or, where it is longer than a
 * row, several. Token ids are marked as in worker/text/encode.h. Filled by one thread, then sealed
 * and immutable. Shared by counted references, which are not atomic.
 */
#ifndef CASTOR_WORKER_TEXT_TOKEN_STORE_H
#define CASTOR_WORKER_TEXT_TOKEN_STORE_H

#include <stdint.h>

#include "core/err.h"
#include "worker/text/spool.h"

struct token_store {
    char *dir;
    struct spool tokens, starts_file, sources_file;
    int64_t n_tokens, n_examples, n_sources;
    int references;
    /* Once sealed: */
    const int64_t *starts;  /* [n_examples + 1]: of an example, in tokens */
    const int64_t *sources; /* [n_sources + 1]: its first example */
};

/* One reference. `dir` has room for the set. */
int token_store_create(const char *dir, struct token_store **out, struct err *err);
struct token_store *token_store_share(struct token_store *s);
void token_store_release(struct token_store *s);
/* Append an example of n marked ids, which belongs to the source that is ended next. */
int token_store_add(struct token_store *s, const int32_t *marked, int64_t n, struct err *err);
int token_store_end_source(struct token_store *s, struct err *err);
int token_store_seal(struct token_store *s, struct err *err);

/* An example's marked ids; returns how many there are in *n. `out` has room for them. */
int token_store_read(const struct token_store *s, int64_t example, int32_t *out, int64_t *n,
                     struct err *err);

#endif
