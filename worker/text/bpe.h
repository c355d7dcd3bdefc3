/*
 * The BPE model: pieces of text to ids.
 *
 * Byte level: a vocabulary writes each byte as one printable character (byte_alphabet.h). The
 * mapping is undone once at loading, so encoding works on the text's own bytes. Otherwise a
 * piece's first symbols are its characters; one that the vocabulary lacks becomes its bytes' tokens
 * "<0x00>".."<0xFF>" with byte_fallback, else the unknown token, else nothing.
 *
 * Merging: always the pair of the lowest rank, the leftmost of equal ones (Sennrich et al., 2016,
 * algorithm 1). Short pieces scan their pairs; long ones use a heap of (rank, position) over a
 * linked list, O(n log n) for any input. A SentencePiece text is one piece: it is cut in front of
 * each U+2581 that no merge reaches across, which changes nothing in the result. Most words are one
 * token: loading finds out which tokens BPE really arrives at from their own text, and such a word
 * is one look-up; others are kept in a cache.
 *
 * A loaded model is immutable; scratch is the caller's, one a thread and model.
 */
#ifndef CASTOR_WORKER_TEXT_BPE_H
#define CASTOR_WORKER_TEXT_BPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/token_map.h"
#include "worker/text/tokenizer.h"
#include "worker/text/word_cache.h"

enum {
    BPE_MAX_PIECE_BYTES = 1 << 28,
    BPE_MARK = 0x2581, /* SentencePiece's space */
    BPE_PLANE = 1 << 16,
};

struct bpe {
    bool byte_level;
    struct token_map direct; /* whole words (bytes or text) -> id, without merging */
    struct pair_map merges;  /* (left, right) -> (rank, id) */
    int32_t byte_id[256];    /* byte level: of a byte; byte_fallback: of "<0x..>"; -1: none */
    int32_t *char_id;        /* text: of the characters below BPE_PLANE, -1: none */
    uint8_t *joins_mark;     /* text: may a merge join character and BPE_MARK behind it? */
    const struct token_map *vocab;
    int32_t unk_id;   /* -1: unknown symbols are dropped */
    bool unk_missing; /* an unk_token is named, but has no id */
    bool fuse_unk, byte_fallback;
    bool ignore_merges; /* a whole piece that is in the vocabulary is its token */
};

/* Working memory of bpe_encode; zero-initialise. */
struct bpe_scratch {
    struct bpe_symbol *symbols;
    uint64_t *heap;
    size_t symbols_cap, heap_cap, heap_n;
    struct word_cache words;
};
void bpe_scratch_fini(struct bpe_scratch *s);

/* From the "model" member of tokenizer.json. `vocab` is its vocabulary, borrowed for the model's
 * lifetime. */
int bpe_init_from_json(struct bpe *m, const json_t *model, const struct token_map *vocab,
                       bool byte_level, struct err *err);
/* Byte level, from the text of merges.txt. */
int bpe_init_from_text(struct bpe *m, const struct token_map *vocab, const char *merges, size_t n,
                       struct err *err);
void bpe_fini(struct bpe *m);

/* Append the ids of one piece. */
int bpe_encode(const struct bpe *m, const char *piece, size_t n, struct bpe_scratch *s,
               struct token_list *out, struct err *err);
/* The same for one word, always by merging: for loading. */
int bpe_encode_by_merging(const struct bpe *m, const char *word, size_t n, struct bpe_scratch *s,
                          struct token_list *out, struct err *err);

#endif
