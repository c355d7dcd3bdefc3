/*
 * Added tokens: strings that are one id wherever they stand in a text, special tokens above all.
 *
 * A set finds them leftmost-longest, all at once, through a trie on bytes. A tokenizer has two
 * sets: tokens that are looked for in the text as it came, and tokens that are looked for in the
 * normalized text (their own content normalized likewise). Filled once, then immutable.
 */
#ifndef CASTOR_WORKER_TEXT_ADDED_TOKENS_H
#define CASTOR_WORKER_TEXT_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/text/token_map.h"

enum {
    ADDED_TOKEN_MAX_BYTES = 1024,
    ADDED_TOKENS_MAX = 1 << 17,
    ADDED_TOKENS_MAX_BYTES = 16 << 20,
};

struct added_token {
    char *content; /* as in the file */
    size_t n;
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
};

struct added_set {
    struct pair_map children; /* (node, byte) -> node in `id` */
    int32_t *token_of;        /* [node]: index of the token that ends there, or -1 */
    int32_t n_nodes;
    bool first[256]; /* bytes that a token begins with */
    const struct added_token *tokens;
};

/* `tokens` is borrowed for the set's lifetime. pattern_bytes: an upper bound on what will be added
 * together. */
int added_set_init(struct added_set *set, const struct added_token *tokens, size_t pattern_bytes,
                   struct err *err);
void added_set_fini(struct added_set *set);
/* Look for `pattern` from now on; it stands for tokens[index]. */
void added_set_add(struct added_set *set, const char *pattern, size_t n, int32_t index);

/* Called for the parts of a text in order: index >= 0 is an added token, -1 is text between. */
typedef int (*added_part_fn)(void *ud, int32_t index, const char *text, size_t n, struct err *err);
int added_set_split(const struct added_set *set, const char *text, size_t n, added_part_fn fn,
                    void *ud, struct err *err);

#endif
