/*
 * Regular expressions by Oniguruma, the engine Hugging Face tokenizers use, iterated as they do.
 *
 * Patterns come from model files and texts from users, so a search has limits: the backtracking
 * stack and the number of retries. Beyond them it is ERR_INVALID, not a hang.
 *
 * GPT-2's pattern, which most byte-level tokenizers share, is matched by a hand-written scanner as
 * long as a match and its right neighbour are ASCII; Oniguruma takes over where they are not.
 *
 * A compiled regex is immutable and shared by threads; a cursor belongs to one thread.
 */
#ifndef CASTOR_WORKER_TEXT_REGEX_H
#define CASTOR_WORKER_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "core/err.h"

struct regex;

extern const char REGEX_GPT2[];

/* `literal`: the pattern is plain text. */
int regex_create(const char *pattern, size_t n, bool literal, struct regex **out, struct err *err);
void regex_destroy(struct regex *r);

/* Successive matches in one text. Zero-initialise once, then regex_cursor_start for each text;
 * regex_cursor_fini frees what the searches needed. */
struct regex_cursor {
    const struct regex *regex;
    const char *text;
    size_t n, at;
    size_t last_match_end; /* SIZE_MAX before the first */
    void *region, *limits;
};
void regex_cursor_start(struct regex_cursor *c, const struct regex *r, const char *text, size_t n);
void regex_cursor_fini(struct regex_cursor *c);
/* The next match in *start, *end and *found = true, or *found = false behind the last one. An empty
 * match right behind the previous match is passed over. */
int regex_next(struct regex_cursor *c, bool *found, size_t *start, size_t *end, struct err *err);

#endif
