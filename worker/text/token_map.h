/*
 * Hash tables of the tokenizer: token bytes -> id, and a pair of numbers -> two numbers.
 *
 * Both are open-addressed with a seed drawn at creation, so that a vocabulary made to collide
 * cannot slow the loading down. Sizes are given at creation; memory that does not fit is ERR_NOMEM.
 * Read-only after filling: any number of threads may look up at once. Embedded: zero-initialise,
 * _fini is idempotent.
 */
#ifndef CASTOR_WORKER_TEXT_TOKEN_MAP_H
#define CASTOR_WORKER_TEXT_TOKEN_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

/* Keys are copied into one arena. */
struct token_map {
    struct token_map_slot *slots;
    char *arena;
    size_t arena_len, arena_cap;
    uint64_t seed;
    uint64_t mask; /* slots - 1 */
    int64_t n, capacity;
};

int token_map_init(struct token_map *m, int64_t capacity, size_t key_bytes, struct err *err);
void token_map_fini(struct token_map *m);
/* `capacity` and `key_bytes` of the init must not be exceeded. Returns false, and changes nothing,
 * when the key is there already. */
bool token_map_add(struct token_map *m, const void *key, size_t n, int32_t id);
/* -1 when there is none. */
int32_t token_map_find(const struct token_map *m, const void *key, size_t n);
/* The two halves of token_map_find, for who needs the hash as well. */
uint64_t token_map_hash(const struct token_map *m, const void *key, size_t n);
int32_t token_map_find_hashed(const struct token_map *m, uint64_t hash, const void *key, size_t n);
/* Walk over all entries, in no order: *cursor starts at 0; false behind the last one. */
bool token_map_next(const struct token_map *m, uint64_t *cursor, const char **key, size_t *n,
                    int32_t *id);

struct pair_value {
    uint32_t rank;
    int32_t id;
};

struct pair_map {
    struct pair_map_slot *slots;
    uint64_t multiplier;
    int shift;
    uint64_t mask;
    int64_t n, capacity;
};

int pair_map_init(struct pair_map *m, int64_t capacity, struct err *err);
void pair_map_fini(struct pair_map *m);
/* A pair that is there already gets the new value. left, right >= 0. */
void pair_map_set(struct pair_map *m, int32_t left, int32_t right, struct pair_value value);
/* NULL when there is none. */
const struct pair_value *pair_map_find(const struct pair_map *m, int32_t left, int32_t right);

#endif
