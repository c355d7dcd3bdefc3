/*
 * The inside of a tokenizer, shared by tokenizer.c (encoding, decoding), tokenizer_load.c (files)
 * and tokenizer_tokens.c (added and special tokens). Nobody else includes this.
 *
 * The stages, in order: split on added tokens in the text as it came; normalize what lies between;
 * split on added tokens in the normalized text; pre-tokenize; BPE or Unigram; special tokens around
 * it.
 */
#ifndef CASTOR_WORKER_TEXT_TOKENIZER_PARTS_H
#define CASTOR_WORKER_TEXT_TOKENIZER_PARTS_H

#include <stdatomic.h>

#include "worker/text/added_tokens.h"
#include "worker/text/bpe.h"
#include "worker/text/decode.h"
#include "worker/text/normalize.h"
#include "worker/text/postprocess.h"
#include "worker/text/pretokenize.h"
#include "worker/text/tokenizer.h"
#include "worker/text/unigram.h"
#include "worker/text/vocab.h"

enum { TOKENIZER_IDLE = 16, TOKENIZER_MAX_STOPS = 64 };

/* The files beside the vocabulary; NULL where there is none. */
struct config_files {
    json_t *tokenizer_config, *special_map, *added, *config, *generation;
};

struct tokenizer {
    struct added_token *added;
    int32_t n_added;
    struct added_set raw_set, normalized_set;
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct vocab vocab;
    bool is_unigram;
    struct bpe bpe;         /* or */
    struct unigram unigram; /* the model */
    struct postprocessor post;
    struct decoder decoder;
    int64_t n_ids;
    int32_t bos, eos, pad;
    int32_t stops[TOKENIZER_MAX_STOPS]; /* beside eos */
    int n_stops;
    /* Working memory that no call uses just now, and the words it knows. */
    struct encoding_scratch *_Atomic idle[TOKENIZER_IDLE];
};

/* tokenizer_tokens.c. The vocabulary must be there. */
int tokens_read_list(struct tokenizer *t, const json_t *list, struct err *err);
int tokens_read_decoder(struct tokenizer *t, const json_t *by_id, struct err *err);
int tokens_read_file(struct tokenizer *t, const json_t *object, struct err *err);
/* bos, eos, pad and the named special tokens, which become added ones. `fallback` (may be NULL)
 * names bos, eos and unk where no file does. */
int tokens_find_specials(struct tokenizer *t, const struct config_files *files,
                         const char *fallback, struct err *err);
/* add_bos_token and add_eos_token of tokenizer_config.json, for files without a post-processor. */
void tokens_apply_settings(struct tokenizer *t, const json_t *config);

#endif
