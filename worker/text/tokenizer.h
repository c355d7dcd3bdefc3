/*
 * Tokenizers: text to token ids and back, equal to Hugging Face `tokenizers` for the same files.
 *
 * tokenizer_load reads a model directory: tokenizer.json (BPE, byte-level or over characters with
 * byte fallback; Unigram), or vocab.json with merges.txt (GPT-2, OPT) where that is missing. bos,
 * eos and pad come from tokenizer_config.json, then special_tokens_map.json, then config.json and
 * generation_config.json. What tokenizer.json says about truncation and padding is ignored: rows
 * are the data set's business.
 *
 * A loaded tokenizer does not change: any number of threads may encode with it at once. Input must
 * be valid UTF-8 (ERR_INVALID otherwise); NUL is a character like any other. The files are
 * untrusted: sizes, ids and nesting are bounded, and what is not supported is ERR_UNSUPPORTED with
 * the name of the component. Encoding takes O(n log n) in the text's length, whatever the text.
 *
 * Method: byte-pair encoding, Sennrich, Haddow, Birch, "Neural machine translation of rare words
 * with subword units", 2016; byte-level alphabet of GPT-2 (Radford et al., 2019); Unigram, Kudo,
 * "Subword regularization", 2018.
 */
#ifndef CASTOR_WORKER_TEXT_TOKENIZER_H
#define CASTOR_WORKER_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"

enum { TOKENIZER_MAX_TEXT = 64 << 20 }; /* bytes that one call encodes */

struct tokenizer;

/* Token ids that grow as they are appended to; zero-initialise, free with token_list_fini. */
struct token_list {
    int32_t *ids;
    int64_t n, cap;
};
void token_list_add(struct token_list *l, int32_t id);
void token_list_fini(struct token_list *l);

int tokenizer_load(const char *model_dir, struct tokenizer **out, struct err *err);
void tokenizer_destroy(struct tokenizer *t);

/* Append the ids of `text`. With add_special the post-processor's template is applied (OPT: a
 * leading </s>). Special tokens written out in the text become their ids, as in the reference. On
 * failure `out` is as before. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool add_special,
                     struct token_list *out, struct err *err);
/* The same without special tokens, and told where the `cuts` are (byte positions between
 * characters, ascending): at[i] is the number of ids in `out` in front of cuts[i]. No token lies on
 * both sides of a cut. Where none of the whole text's does, ids are those of the whole text;
 * otherwise the text in front of the cut keeps the ids that it has by itself, as it has when a
 * model is given it to go on from, and what is behind is encoded as its continuation: without the
 * space that some tokenizers write in front of a text. A cut inside an added token, or the white
 * space it swallows, lies behind it.
 */
int tokenizer_encode_cut(const struct tokenizer *t, const char *text, size_t bytes,
                         const size_t *cuts, size_t n_cuts, int64_t *at, struct token_list *out,
                         struct err *err);
/* For a text that is encoded in parts: what the template writes in front and behind. */
void tokenizer_add_before(const struct tokenizer *t, struct token_list *out);
void tokenizer_add_after(const struct tokenizer *t, struct token_list *out);
/* Append the text of ids; invalid UTF-8 becomes U+FFFD. skip_special leaves special tokens out. Ids
 * out of range are an error; an id in range that no token has is passed over. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                     struct buf *out, struct err *err);

int64_t tokenizer_vocab_size(const struct tokenizer *t); /* highest id + 1, added tokens included */
/* -1 when the model has none. */
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
int32_t tokenizer_pad(const struct tokenizer *t);
/* Does generation end at this token? eos, and all of eos_token_id of generation_config.json (of
 * config.json where that is missing). */
bool tokenizer_stops_at(const struct tokenizer *t, int32_t id);
/* Do the last bytes write a special token? */
bool tokenizer_ends_in_special(const struct tokenizer *t, const char *text, size_t bytes);

#endif
