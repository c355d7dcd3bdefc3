/*
 * Normalizers: NFC, NFD, NFKC, NFKD, Lowercase, Nmt, Strip, StripAccents, Prepend, Replace,
 * Precompiled, Sequence. A loaded chain is immutable and shared by threads.
 */
#ifndef CASTOR_WORKER_TEXT_NORMALIZE_H
#define CASTOR_WORKER_TEXT_NORMALIZE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/charsmap.h"
#include "worker/text/regex.h"
#include "worker/text/replacement.h"

enum {
    NORMALIZE_MAX_STEPS = 32,
    NORMALIZE_MAX_TEXT = 256 << 20,
};

enum normalize_kind {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_LOWERCASE,
    NORMALIZE_NMT, /* control characters left out, odd white space to a space */
    NORMALIZE_STRIP_ACCENTS,
    NORMALIZE_STRIP,
    NORMALIZE_PREPEND, /* unless the text is empty */
    NORMALIZE_REPLACE,
    NORMALIZE_PRECOMPILED,
};

struct normalize_step {
    enum normalize_kind kind;
    bool strip_left, strip_right;
    struct buf prepend;
    struct replacement replacement;
    struct charsmap map;
};

struct normalizer {
    struct normalize_step steps[NORMALIZE_MAX_STEPS];
    int n;
};

/* Working memory, one a thread; zero-initialise. */
struct normalize_scratch {
    struct buf text, next;
    struct regex_cursor cursor;
};
void normalize_scratch_fini(struct normalize_scratch *s);

/* From the "normalizer" member of tokenizer.json; null or absent is the identity. */
int normalizer_init(struct normalizer *nz, const json_t *json, struct err *err);
void normalizer_fini(struct normalizer *nz);

/* Where the text at hand stands in the whole one: at its beginning, behind an added token, or
 * behind text that was encoded by itself. What tokenizers write in front of a text belongs in front
 * of the first, or of the first and second; never of the third. */
enum text_place { TEXT_BEGINS, TEXT_FOLLOWS, TEXT_CONTINUES };

/* The normal form of valid UTF-8. *out, *out_n is `text` itself where nothing changes, else memory
 * of `s`, valid until its next use. *place turns from TEXT_BEGINS to TEXT_FOLLOWS when the result's
 * first character is not made of the text's first. */
int normalizer_run(const struct normalizer *nz, const char *text, size_t n,
                   struct normalize_scratch *s, enum text_place *place, const char **out,
                   size_t *out_n, struct err *err);

#endif
