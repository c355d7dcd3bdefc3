#include "worker/text/word_cache.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

struct word_cache_slot {
    uint8_t n, n_ids; /* n 0: empty */
    char word[WORD_CACHE_BYTES];
    int32_t ids[WORD_CACHE_IDS];
};

void word_cache_fini(struct word_cache *c)
{
    free(c->slots);
    c->slots = NULL;
}

static struct word_cache_slot *slot_of(const struct word_cache *c, uint64_t hash)
{
    return &c->slots[hash >> 32 & (WORD_CACHE_SLOTS - 1)];
}

bool word_cache_get(const struct word_cache *c, uint64_t hash, const char *word, size_t n,
                    struct token_list *out)
{
    if (!c->slots || n > WORD_CACHE_BYTES)
        return false;
    const struct word_cache_slot *slot = slot_of(c, hash);
    if (slot->n != n || memcmp(slot->word, word, n) != 0)
        return false;
    for (int i = 0; i < slot->n_ids; i++)
        token_list_add(out, slot->ids[i]);
    return true;
}

void word_cache_put(struct word_cache *c, uint64_t hash, const char *word, size_t n,
                    const struct token_list *ids, int64_t from)
{
    int64_t n_ids = ids->n - from;

    if (n == 0 || n > WORD_CACHE_BYTES || n_ids > WORD_CACHE_IDS)
        return;
    if (!c->slots)
        c->slots = xcalloc(WORD_CACHE_SLOTS, sizeof(*c->slots));
    struct word_cache_slot *slot = slot_of(c, hash);
    slot->n = (uint8_t)n;
    slot->n_ids = (uint8_t)n_ids;
    memcpy(slot->word, word, n);
    if (n_ids > 0)
        memcpy(slot->ids, ids->ids + from, (size_t)n_ids * sizeof(*ids->ids));
}
