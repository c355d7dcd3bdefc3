/*
 * What words came out as lately: a fixed table, each slot overwritten by the next word that falls
 * on it, so memory is bounded and nothing is searched. One thread's; zero-initialise, the table is
 * made on the first put. Words of more than 30 bytes or 8 ids are not kept.
 */
#ifndef CASTOR_WORKER_TEXT_WORD_CACHE_H
#define CASTOR_WORKER_TEXT_WORD_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/text/tokenizer.h"

enum { WORD_CACHE_BYTES = 30, WORD_CACHE_IDS = 8, WORD_CACHE_SLOTS = 1 << 15 };

struct word_cache {
    struct word_cache_slot *slots;
};
void word_cache_fini(struct word_cache *c);

/* `hash` is the word's, the same for get and put. Appends its ids and returns true if they are
 * known. */
bool word_cache_get(const struct word_cache *c, uint64_t hash, const char *word, size_t n,
                    struct token_list *out);
/* The word came out as ids->ids[from] and on. */
void word_cache_put(struct word_cache *c, uint64_t hash, const char *word, size_t n,
                    const struct token_list *ids, int64_t from);

#endif
