#include "worker/text/token_map.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "core/alloc.h"

struct token_map_slot {
    uint32_t hash; /* upper half of the key's hash: most mismatches end here */
    int32_t id;    /* -1: free */
    uint32_t key;  /* offset in the arena */
    uint32_t n;
};

struct pair_map_slot {
    uint64_t key; /* PAIR_FREE: free */
    struct pair_value value;
};

#define PAIR_FREE UINT64_MAX

static uint64_t random_seed(void)
{
    uint64_t seed = 0;

    /* No entropy yet, early at boot: a fixed seed is still correct. */
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != (ssize_t)sizeof(seed))
        seed = UINT64_C(0x9E3779B97F4A7C15);
    return seed;
}

/* The smallest power of two that leaves a table of n entries at most half full. */
static uint64_t slot_count(int64_t n, int *log2)
{
    uint64_t slots = 16;
    int bits = 4;

    while (slots < (uint64_t)n * 2) {
        slots *= 2;
        bits++;
    }
    *log2 = bits;
    return slots;
}

/* Multiply and fold the two halves of the product: each input bit reaches the whole result. */
static uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 p = (unsigned __int128)a * b;

    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static uint64_t hash_bytes(const void *bytes, size_t n, uint64_t seed)
{
    const unsigned char *s = bytes;
    uint64_t h = seed ^ mix(n ^ seed, UINT64_C(0xA0761D6478BD642F));
    uint64_t word;

    for (; n >= 8; n -= 8, s += 8) {
        memcpy(&word, s, 8);
        h = mix(h ^ word, UINT64_C(0xE7037ED1A0B428DB) ^ seed);
    }
    word = 0;
    memcpy(&word, s, n);
    return mix(h ^ word, UINT64_C(0x8EBC6AF09C88C6E3) ^ seed);
}

int token_map_init(struct token_map *m, int64_t capacity, size_t key_bytes, struct err *err)
{
    struct token_map map = {.seed = random_seed(), .capacity = capacity, .arena_cap = key_bytes};
    void *slots = NULL, *arena = NULL;
    int log2, rc = 0;

    if (key_bytes > UINT32_MAX)
        return err_set(err, ERR_INVALID, "a vocabulary of %zu bytes is too large", key_bytes);
    uint64_t n = slot_count(capacity, &log2);
    TRY(alloc_try(&slots, n, sizeof(*map.slots), "the vocabulary", err));
    TRY(alloc_try(&arena, key_bytes + 1, 1, "the vocabulary", err));
    map.slots = slots;
    map.arena = arena;
    map.mask = n - 1;
    for (uint64_t i = 0; i < n; i++)
        map.slots[i].id = -1;
    *m = map;
    return 0;
out:
    free(slots);
    free(arena);
    return rc;
}

void token_map_fini(struct token_map *m)
{
    free(m->slots);
    free(m->arena);
    memset(m, 0, sizeof(*m));
}

uint64_t token_map_hash(const struct token_map *m, const void *key, size_t n)
{
    return hash_bytes(key, n, m->seed);
}

static struct token_map_slot *find_slot(const struct token_map *m, uint64_t hash, const void *key,
                                        size_t n)
{
    uint64_t i = hash & m->mask;

    for (;; i = (i + 1) & m->mask) {
        struct token_map_slot *slot = &m->slots[i];
        if (slot->id < 0 || (slot->hash == (uint32_t)(hash >> 32) && slot->n == n &&
                             memcmp(m->arena + slot->key, key, n) == 0))
            return slot;
    }
}

bool token_map_add(struct token_map *m, const void *key, size_t n, int32_t id)
{
    uint64_t hash = token_map_hash(m, key, n);
    struct token_map_slot *slot = find_slot(m, hash, key, n);

    if (slot->id >= 0)
        return false;
    assert(id >= 0 && m->n < m->capacity && m->arena_cap - m->arena_len >= n);
    *slot =
        (struct token_map_slot){(uint32_t)(hash >> 32), id, (uint32_t)m->arena_len, (uint32_t)n};
    memcpy(m->arena + m->arena_len, key, n);
    m->arena_len += n;
    m->n++;
    return true;
}

int32_t token_map_find_hashed(const struct token_map *m, uint64_t hash, const void *key, size_t n)
{
    return m->slots ? find_slot(m, hash, key, n)->id : -1;
}

int32_t token_map_find(const struct token_map *m, const void *key, size_t n)
{
    return token_map_find_hashed(m, token_map_hash(m, key, n), key, n);
}

bool token_map_next(const struct token_map *m, uint64_t *cursor, const char **key, size_t *n,
                    int32_t *id)
{
    while (m->slots && *cursor <= m->mask) {
        const struct token_map_slot *slot = &m->slots[(*cursor)++];
        if (slot->id < 0)
            continue;
        *key = m->arena + slot->key;
        *n = slot->n;
        *id = slot->id;
        return true;
    }
    return false;
}

int pair_map_init(struct pair_map *m, int64_t capacity, struct err *err)
{
    void *slots = NULL;
    int log2;
    uint64_t n = slot_count(capacity, &log2);
    int rc = alloc_try(&slots, n, sizeof(*m->slots), "the merges", err);

    if (rc != 0)
        return rc;
    *m = (struct pair_map){.slots = slots,
                           .multiplier = random_seed() | 1,
                           .shift = 64 - log2,
                           .mask = n - 1,
                           .capacity = capacity};
    for (uint64_t i = 0; i < n; i++)
        m->slots[i].key = PAIR_FREE;
    return 0;
}

void pair_map_fini(struct pair_map *m)
{
    free(m->slots);
    memset(m, 0, sizeof(*m));
}

static struct pair_map_slot *find_pair(const struct pair_map *m, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    /* Multiply-shift by a random odd number (Dietzfelbinger et al., 1997). */
    uint64_t i = (key * m->multiplier) >> m->shift;

    while (m->slots[i].key != key && m->slots[i].key != PAIR_FREE)
        i = (i + 1) & m->mask;
    return &m->slots[i];
}

void pair_map_set(struct pair_map *m, int32_t left, int32_t right, struct pair_value value)
{
    struct pair_map_slot *slot = find_pair(m, left, right);

    if (slot->key == PAIR_FREE) {
        assert(m->n < m->capacity);
        m->n++;
    }
    slot->key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    slot->value = value;
}

const struct pair_value *pair_map_find(const struct pair_map *m, int32_t left, int32_t right)
{
    const struct pair_map_slot *slot = find_pair(m, left, right);

    return slot->key == PAIR_FREE ? NULL : &slot->value;
}
