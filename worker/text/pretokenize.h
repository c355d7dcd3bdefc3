/*
 * Pre-tokenizers: a normalized text to the pieces that BPE works on.
 *
 * Supported: ByteLevel (must come last, so that BPE sees raw bytes), Split, Digits, Sequence.
 * Pieces are handed out as they are found; nothing is kept of the text, so memory does not grow
 * with the number of pieces. A loaded chain is immutable and shared by threads.
 */
#ifndef CASTOR_WORKER_TEXT_PRETOKENIZE_H
#define CASTOR_WORKER_TEXT_PRETOKENIZE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/regex.h"

enum { PRETOKENIZE_MAX_STAGES = 8 };

enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_CONTIGUOUS,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
};

struct pretokenize_stage {
    struct regex *regex; /* NULL with ByteLevel(use_regex = false): the piece stays whole */
    bool digits;         /* matches are digits instead */
    bool invert;
    bool prefix_space; /* before splitting, a space in front unless there is one */
    enum split_behavior behavior;
};

struct pretokenizer {
    struct pretokenize_stage stages[PRETOKENIZE_MAX_STAGES];
    int n;
};

/* Working memory, one a thread; zero-initialise. */
struct pretokenize_scratch {
    struct regex_cursor cursors[PRETOKENIZE_MAX_STAGES];
    struct buf prefixed[PRETOKENIZE_MAX_STAGES];
};
void pretokenize_scratch_fini(struct pretokenize_scratch *s);

/* From the "pre_tokenizer" member of tokenizer.json. */
int pretokenizer_init(struct pretokenizer *p, const json_t *json, struct err *err);
/* ByteLevel with GPT-2's pattern alone. */
int pretokenizer_init_byte_level(struct pretokenizer *p, bool add_prefix_space, struct err *err);
void pretokenizer_fini(struct pretokenizer *p);

/* Called for each piece, never an empty one; non-zero stops and is returned. */
typedef int (*pretokenize_fn)(void *ud, const char *piece, size_t n, struct err *err);
int pretokenizer_run(const struct pretokenizer *p, const char *text, size_t n,
                     struct pretokenize_scratch *s, pretokenize_fn fn, void *ud, struct err *err);

#endif
