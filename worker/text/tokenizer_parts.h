/*
 * The inside of a tokenizer, shared by tokenizer.c (encoding, decoding) and tokenizer_load.c
 * (files). Nobody else includes this.
 *
 * The stages, in order: split on added tokens in the text as it came; normalize what lies between;
 * split on added tokens in the normalized text; pre-tokenize; BPE; special tokens around it.
 */
#ifndef CASTOR_WORKER_TEXT_TOKENIZER_PARTS_H
#define CASTOR_WORKER_TEXT_TOKENIZER_PARTS_H

#include "worker/text/added_tokens.h"
#include "worker/text/bpe.h"
#include "worker/text/decode.h"
#include "worker/text/normalize.h"
#include "worker/text/postprocess.h"
#include "worker/text/pretokenize.h"
#include "worker/text/tokenizer.h"

struct tokenizer {
    struct added_token *added;
    int32_t n_added;
    struct added_set raw_set, normalized_set;
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct bpe bpe;
    struct postprocessor post;
    struct decode_table decode;
    int64_t n_ids;
    int32_t bos, eos, pad;
};

#endif
