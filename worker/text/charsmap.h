/*
 * SentencePiece's precompiled normalizer: a map of short strings to strings, as a double-array
 * trie (the Darts-clone library's layout of 32-bit units, Aoe, "An efficient digital search
 * algorithm by using a double-array structure", 1989) with the replacements behind it.
 *
 * It is applied as the reference does: a grapheme cluster of less than six bytes is replaced as a
 * whole by what its *shortest* prefix in the map says, otherwise character by character.
 * Immutable once loaded.
 */
#ifndef CASTOR_WORKER_TEXT_CHARSMAP_H
#define CASTOR_WORKER_TEXT_CHARSMAP_H

#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"

struct charsmap {
    uint32_t *units;
    size_t n_units;
    char *texts; /* NUL-terminated, one behind the other; valid UTF-8 */
    size_t texts_n;
    int32_t ascii[128]; /* of each ASCII character: its replacement in texts, -1: none */
};

/* From the base64 of tokenizer.json. */
int charsmap_init(struct charsmap *map, const char *base64, size_t n, struct err *err);
void charsmap_fini(struct charsmap *map);
/* Append the normal form of valid UTF-8. ERR_INVALID when `out` would grow beyond max_bytes. */
int charsmap_add(const struct charsmap *map, const char *text, size_t n, size_t max_bytes,
                 struct buf *out, struct err *err);

#endif
