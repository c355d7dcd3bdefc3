/*
 * The Unigram model: the cut of a piece into tokens whose scores add up to the most (Kudo,
 * "Subword regularization", 2018, equation 4; found as by Viterbi, 1967).
 *
 * Ties, unknown characters and their fusing are the reference's: a character that is no token
 * scores 10 below the lowest; of equal sums the one found first, with the longer last token, stays;
 * neighbouring unknown parts are one; a part that is no token becomes its bytes' tokens
 * with byte_fallback, else the unknown token.
 *
 * O(n * longest token) for any piece; tokens are bounded. A loaded model is immutable; scratch is
 * the caller's, one a thread and model.
 */
#ifndef CASTOR_WORKER_TEXT_UNIGRAM_H
#define CASTOR_WORKER_TEXT_UNIGRAM_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/text/token_map.h"
#include "worker/text/tokenizer.h"
#include "worker/text/word_cache.h"

enum { UNIGRAM_MAX_TOKEN_BYTES = 1024, UNIGRAM_MAX_BYTES = 16 << 20 };

/* A trie: the children of a node are consecutive, in the order of their bytes. */
struct unigram_node {
    int32_t first_child, n_children;
    int32_t id; /* -1: no token ends here */
    uint8_t byte;
};

struct unigram {
    const struct token_map *vocab;
    struct unigram_node *nodes; /* [0]: the root */
    int32_t second[256];        /* the root's child of a byte, or -1 */
    double *scores;             /* of an id */
    double unk_score;
    int32_t unk_id; /* -1: there is none, an unknown character is an error */
    int32_t byte_id[256];
    bool byte_fallback; /* and every byte's token is there */
};

/* Working memory of unigram_encode; zero-initialise. */
struct unigram_scratch {
    struct unigram_step *steps;
    size_t cap;
    struct word_cache words;
};
void unigram_scratch_fini(struct unigram_scratch *s);

/* From the "model" member of tokenizer.json; `vocab` is its vocabulary, borrowed. */
int unigram_init(struct unigram *m, const json_t *model, const struct token_map *vocab,
                 struct err *err);
void unigram_fini(struct unigram *m);

/* Append the ids of one piece. */
int unigram_encode(const struct unigram *m, const char *piece, size_t n, struct unigram_scratch *s,
                   struct token_list *out, struct err *err);

#endif
