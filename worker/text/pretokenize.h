/*
 * Pre-tokenizers: a normalized text to the pieces that the model works on.
 *
 * Supported: ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit,
 * CharDelimiterSplit, BertPreTokenizer, Metaspace, Sequence; or none, then a text is one piece.
 * What comes behind ByteLevel may only split; its pieces are handed out as the bytes they stand
 * for, so the model sees raw bytes. Pieces are handed out as they are found; nothing is kept of
 * the text, so memory does not grow with the number of pieces. A loaded chain is immutable and
 * shared by threads.
 */
#ifndef CASTOR_WORKER_TEXT_PRETOKENIZE_H
#define CASTOR_WORKER_TEXT_PRETOKENIZE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/normalize.h"
#include "worker/text/regex.h"

enum { PRETOKENIZE_MAX_STAGES = 8 };

enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_CONTIGUOUS,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
};

enum pretokenize_kind {
    PRETOKENIZE_REGEX, /* matches of the pattern */
    PRETOKENIZE_CLASS, /* each character of a class is a match */
    PRETOKENIZE_WORDS, /* \w+|[^\w\s]+, white space is dropped */
    PRETOKENIZE_METASPACE,
    PRETOKENIZE_BYTE_LEVEL, /* with a regex: matches of it; without: the piece stays whole */
};

enum prepend_scheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct pretokenize_stage {
    enum pretokenize_kind kind;
    enum split_behavior behavior;
    bool invert;
    struct regex *regex;         /* REGEX, BYTE_LEVEL */
    bool (*is_match)(uint32_t);  /* CLASS; NULL: the character `delimiter` */
    uint32_t delimiter;          /* CLASS */
    bool prefix_space;           /* BYTE_LEVEL: a space in front unless there is one */
    bool write_alphabet;         /* BYTE_LEVEL: write bytes as characters, as stages follow */
    char replacement[4];         /* METASPACE: what a space becomes */
    size_t replacement_n;        /* METASPACE */
    bool split;                  /* METASPACE: a piece begins at each replacement */
    enum prepend_scheme prepend; /* METASPACE: a replacement in front unless there is one */
};

struct pretokenizer {
    struct pretokenize_stage stages[PRETOKENIZE_MAX_STAGES];
    int n;
    bool byte_level;    /* pieces are bytes, not text */
    bool read_alphabet; /* stages followed ByteLevel: pieces are read back into bytes */
};

/* Working memory, one a thread; zero-initialise. */
struct pretokenize_scratch {
    struct regex_cursor cursors[PRETOKENIZE_MAX_STAGES];
    struct buf rewritten[PRETOKENIZE_MAX_STAGES], alphabet, bytes;
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
                     enum text_place place, struct pretokenize_scratch *s, pretokenize_fn fn,
                     void *ud, struct err *err);

#endif
