/* Reading a tokenizer's files. All of them are untrusted. */
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/text/tokenizer_parts.h"

enum { MAX_FILE = 128 << 20, MAX_CONFIG = 16 << 20 };

static int load_optional(const char *dir, const char *name, json_t **out, struct err *err)
{
    char *path = fs_join(dir, name);
    int rc = 0;

    if (fs_exists(path))
        rc = json_parse_file(path, MAX_CONFIG, JSON_MAX_DEPTH_FILE, out, err);
    free(path);
    return rc;
}

static int load_configs(const char *dir, struct config_files *files, struct err *err)
{
    int rc = 0;

    TRY(load_optional(dir, "tokenizer_config.json", &files->tokenizer_config, err));
    TRY(load_optional(dir, "special_tokens_map.json", &files->special_map, err));
    TRY(load_optional(dir, "added_tokens.json", &files->added, err));
    TRY(load_optional(dir, "config.json", &files->config, err));
    TRY(load_optional(dir, "generation_config.json", &files->generation, err));
out:
    return rc;
}

static void free_configs(struct config_files *files)
{
    json_decref(files->tokenizer_config);
    json_decref(files->special_map);
    json_decref(files->added);
    json_decref(files->config);
    json_decref(files->generation);
}

/* --- the two layouts --- */

static int read_model(struct tokenizer *t, const json_t *model, struct err *err)
{
    const char *type = json_string_value(json_object_get(model, "type"));
    const json_t *vocab = json_object_get(model, "vocab");
    int rc = 0;

    /* Old files leave the type out; only BPE has merges, only Unigram a list of scores. */
    if (type ? strcmp(type, "BPE") == 0 : json_object_get(model, "merges") != NULL) {
        TRY(vocab_init_from_object(&t->vocab, vocab, err));
        TRY(bpe_init_from_json(&t->bpe, model, &t->vocab.ids, t->pretokenizer.byte_level, err));
    } else if (type ? strcmp(type, "Unigram") == 0 : json_is_array(vocab)) {
        if (t->pretokenizer.byte_level)
            return err_set(err, ERR_UNSUPPORTED,
                           "this tokenizer's Unigram model behind a ByteLevel pre-tokenizer is not "
                           "supported");
        TRY(vocab_init_from_pairs(&t->vocab, vocab, err));
        t->is_unigram = true;
        TRY(unigram_init(&t->unigram, model, &t->vocab.ids, err));
    } else {
        return err_set(err, ERR_UNSUPPORTED,
                       "this tokenizer's model %.60s is not supported; supported are BPE and "
                       "Unigram",
                       type ? type : "(without a type)");
    }
    t->n_ids = t->vocab.n_ids;
out:
    return rc;
}

static int read_tokenizer_json(struct tokenizer *t, const json_t *json,
                               const struct config_files *files, struct err *err)
{
    int rc = 0;

    /* Before the vocabulary: these say at once what kind of tokenizer it is. */
    TRY(normalizer_init(&t->normalizer, json_object_get(json, "normalizer"), err));
    TRY(pretokenizer_init(&t->pretokenizer, json_object_get(json, "pre_tokenizer"), err));
    TRY(decoder_init(&t->decoder, json_object_get(json, "decoder"), err));
    TRY(read_model(t, json_object_get(json, "model"), err));
    TRY(tokens_read_list(t, json_object_get(json, "added_tokens"), err));
    TRY(tokens_find_specials(t, files, NULL, err));
    if (!json_object_get(json, "post_processor") ||
        json_is_null(json_object_get(json, "post_processor")))
        tokens_apply_settings(t, files->tokenizer_config);
    else
        rc = postprocessor_init(&t->post, json_object_get(json, "post_processor"), t->n_ids, err);
out:
    return rc;
}

static int read_vocab_and_merges(struct tokenizer *t, const char *vocab_path,
                                 const char *merges_path, const struct config_files *files,
                                 struct err *err)
{
    const json_t *config = files->tokenizer_config;
    struct buf merges = {0};
    json_t *vocab = NULL;
    int rc = 0;

    TRY(json_parse_file(vocab_path, MAX_FILE, JSON_MAX_DEPTH_FILE, &vocab, err));
    TRY(fs_read_file(merges_path, MAX_FILE, &merges, err));
    TRY(vocab_init_from_object(&t->vocab, vocab, err));
    TRY(bpe_init_from_text(&t->bpe, &t->vocab.ids, buf_str(&merges), merges.len, err));
    TRY(pretokenizer_init_byte_level(
        &t->pretokenizer, json_is_true(json_object_get(config, "add_prefix_space")), err));
    TRY(decoder_init_byte_level(&t->decoder, err));
    t->n_ids = t->vocab.n_ids;
    TRY(tokens_read_decoder(t, json_object_get(config, "added_tokens_decoder"), err));
    TRY(tokens_read_file(t, files->added, err));
    TRY(tokens_find_specials(t, files, "<|endoftext|>", err));
    tokens_apply_settings(t, config);
out:
    json_decref(vocab);
    buf_fini(&merges);
    return rc;
}

/* --- tables made from what was read --- */

/* An added token as it is looked for and decoded: `work`'s memory or the content itself. */
static int pattern_of(const struct tokenizer *t, const struct added_token *token,
                      struct normalize_scratch *work, const char **out, size_t *n, struct err *err)
{
    enum text_place place = TEXT_BEGINS;

    *out = token->content;
    *n = token->n;
    if (!token->normalized)
        return 0;
    return normalizer_run(&t->normalizer, token->content, token->n, work, &place, out, n, err);
}

static int build_added_sets(struct tokenizer *t, struct err *err)
{
    struct normalize_scratch work = {0};
    const char *pattern;
    size_t n, raw_bytes = 0, normalized_bytes = 0;
    int rc = 0;

    for (int32_t i = 0; i < t->n_added; i++) {
        TRY(pattern_of(t, &t->added[i], &work, &pattern, &n, err));
        *(t->added[i].normalized ? &normalized_bytes : &raw_bytes) += n;
        if (n > ADDED_TOKEN_MAX_BYTES * 32 || normalized_bytes > ADDED_TOKENS_MAX_BYTES) {
            rc = err_set(err, ERR_INVALID,
                         "the tokenizer's added tokens are too long once normalized");
            goto out;
        }
    }
    TRY(added_set_init(&t->raw_set, t->added, raw_bytes, err));
    TRY(added_set_init(&t->normalized_set, t->added, normalized_bytes, err));
    for (int32_t i = 0; i < t->n_added; i++) {
        TRY(pattern_of(t, &t->added[i], &work, &pattern, &n, err));
        added_set_add(t->added[i].normalized ? &t->normalized_set : &t->raw_set, pattern, n, i);
    }
out:
    normalize_scratch_fini(&work);
    return rc;
}

/* Special is what is written like a special token: a normalized one may not be. */
static int collect_specials(const struct tokenizer *t, struct token_map *out, struct err *err)
{
    size_t bytes = 0;

    for (int32_t i = 0; i < t->n_added; i++)
        bytes += t->added[i].n;
    int rc = token_map_init(out, t->n_added, bytes, err);
    for (int32_t i = 0; rc == 0 && i < t->n_added; i++)
        if (t->added[i].special)
            token_map_add(out, t->added[i].content, t->added[i].n, 0);
    return rc;
}

static int build_decoder(struct tokenizer *t, struct err *err)
{
    struct normalize_scratch work = {0};
    struct token_map specials = {0};
    uint64_t cursor = 0;
    const char *text;
    int32_t id;
    size_t n;
    int rc = 0;

    TRY(decoder_reserve(&t->decoder, t->n_ids, err));
    while (token_map_next(&t->vocab.ids, &cursor, &text, &n, &id))
        TRY(decoder_set(&t->decoder, id, text, n, false, err));
    TRY(collect_specials(t, &specials, err));
    for (int32_t i = 0; i < t->n_added; i++) {
        TRY(pattern_of(t, &t->added[i], &work, &text, &n, err));
        TRY(decoder_set(&t->decoder, t->added[i].id, text, n,
                        token_map_find(&specials, text, n) >= 0, err));
    }
out:
    normalize_scratch_fini(&work);
    token_map_fini(&specials);
    return rc;
}

int tokenizer_load(const char *model_dir, struct tokenizer **out, struct err *err)
{
    char *whole = fs_join(model_dir, "tokenizer.json");
    char *vocab = fs_join(model_dir, "vocab.json");
    char *merges = fs_join(model_dir, "merges.txt");
    struct config_files files = {0};
    struct tokenizer *t = xcalloc(1, sizeof(*t));
    json_t *json = NULL;
    int rc = 0;

    t->bos = t->eos = t->pad = -1;
    TRY(load_configs(model_dir, &files, err));
    if (fs_exists(whole)) {
        TRY(json_parse_file(whole, MAX_FILE, JSON_MAX_DEPTH_FILE, &json, err));
        TRY(read_tokenizer_json(t, json, &files, err));
    } else if (fs_exists(vocab) && fs_exists(merges)) {
        TRY(read_vocab_and_merges(t, vocab, merges, &files, err));
    } else {
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s has neither tokenizer.json nor vocab.json with merges.txt; a tokenizer in "
                     "another format cannot be read",
                     model_dir);
        goto out;
    }
    TRY(build_added_sets(t, err));
    TRY(build_decoder(t, err));
    *out = t;
    t = NULL;
out:
    tokenizer_destroy(t);
    json_decref(json);
    free_configs(&files);
    free(whole);
    free(vocab);
    free(merges);
    return rc == 0 ? 0 : err_wrap(err, rc, "loading the tokenizer of %s", model_dir);
}
