/*
 * The byte-level BPE model: pieces of raw bytes to ids.
 *
 * A vocabulary writes each byte as one printable character (GPT-2's byte_to_unicode: '!'..'~',
 * U+00A1..U+00AC and U+00AE..U+00FF stand for themselves, the other 68 bytes for U+0100...). The
 * mapping is undone once at loading, so encoding works on the text's own bytes.
 *
 * Merging: always the pair of the lowest rank, the leftmost of equal ones (Sennrich et al., 2016,
 * algorithm 1). Short pieces scan their pairs; long ones use a heap of (rank, position) over a
 * linked list, O(n log n) for any input. Most pieces are one token: loading finds out which
 * tokens BPE really arrives at from their own bytes, and such a piece is one look-up.
 *
 * A loaded model is immutable; scratch is the caller's, one a thread.
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

enum {
    BPE_MAX_ID = 1 << 22,          /* ids are below; the largest vocabularies have 2^18 */
    BPE_MAX_TOKEN_BYTES = 1 << 16, /* a longer token is refused                       */
    BPE_MAX_PIECE_BYTES = 1 << 28,
};

struct bpe {
    struct token_map vocab;  /* as written in the file -> id */
    struct token_map direct; /* raw bytes of a whole piece -> id, without merging */
    struct pair_map merges;  /* (left, right) -> (rank, id) */
    int32_t byte_id[256];    /* -1: the vocabulary lacks the byte */
    int32_t unk_id;          /* -1: unknown bytes are dropped */
    bool unk_missing;        /* an unk_token is named, but has no id */
    bool fuse_unk;
    bool ignore_merges;
    int64_t n_ids; /* highest id + 1 */
};

/* Working memory of bpe_encode; zero-initialise. */
struct bpe_scratch {
    struct bpe_symbol *symbols;
    uint64_t *heap;
    size_t symbols_cap, heap_cap, heap_n;
};
void bpe_scratch_fini(struct bpe_scratch *s);

/* From the "model" member of tokenizer.json. */
int bpe_init_from_json(struct bpe *m, const json_t *model, struct err *err);
/* From vocab.json and the text of merges.txt. */
int bpe_init_from_files(struct bpe *m, const json_t *vocab, const char *merges, size_t n,
                        struct err *err);
void bpe_fini(struct bpe *m);

/* Append the ids of one piece. */
int bpe_encode(const struct bpe *m, const char *piece, size_t n, struct bpe_scratch *s,
               struct token_list *out, struct err *err);

/* The bytes that a token of the vocabulary stands for: appends them and returns true, or false when
 * `token` has a character that stands for no byte. */
bool bpe_token_to_bytes(const char *token, size_t n, struct buf *out);

#endif
