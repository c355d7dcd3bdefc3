/* Reading a tokenizer's files. All of them are untrusted. */
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/text/tokenizer_parts.h"

enum { MAX_FILE = 128 << 20, MAX_CONFIG = 16 << 20, MAX_NAMED_SPECIALS = 4096 };

/* The files beside the vocabulary; NULL where there is none. */
struct config_files {
    json_t *tokenizer_config, *special_map, *added, *config, *generation;
};

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

/* --- added tokens ----------------------------------------------------------------------------- */

static int32_t find_added(const struct tokenizer *t, const char *content)
{
    for (int32_t i = 0; i < t->n_added; i++)
        if (strcmp(t->added[i].content, content) == 0)
            return i;
    return -1;
}

/* The id of a token's text, or -1. */
static int32_t find_token(const struct tokenizer *t, const char *content)
{
    int32_t i = find_added(t, content);

    return i >= 0 ? t->added[i].id : token_map_find(&t->bpe.vocab, content, strlen(content));
}

static int add_token(struct tokenizer *t, const char *content, int32_t id, const json_t *flags,
                     bool special, struct err *err)
{
    size_t n = strlen(content);

    if (n > ADDED_TOKEN_MAX_BYTES || t->n_added >= ADDED_TOKENS_MAX)
        return err_set(err, ERR_INVALID, "the tokenizer's added tokens are too long or too many");
    if ((t->n_added & (t->n_added - 1)) == 0) /* doubles at powers of two */
        t->added =
            xrealloc(t->added, (size_t)(t->n_added ? t->n_added * 2 : 1) * sizeof(*t->added));
    t->added[t->n_added++] = (struct added_token){
        .content = xstrdup(content),
        .n = n,
        .id = id,
        .special = special,
        .lstrip = json_is_true(json_object_get(flags, "lstrip")),
        .rstrip = json_is_true(json_object_get(flags, "rstrip")),
        .single_word = json_is_true(json_object_get(flags, "single_word")),
        .normalized = json_is_true(json_object_get(flags, "normalized")),
    };
    if (id >= t->n_ids)
        t->n_ids = id + 1;
    return 0;
}

/* "added_tokens" of tokenizer.json. The reference numbers tokens that the model's vocabulary lacks
 * itself, on from the vocabulary's size, and only warns when the file says otherwise; a file where
 * the two differ is refused, because either choice would train the wrong rows. */
static int read_added_tokens(struct tokenizer *t, const json_t *list, struct err *err)
{
    json_int_t next = (json_int_t)t->bpe.vocab.n;
    struct token_map seen = {0};
    size_t bytes = 0;
    int rc = 0;

    for (size_t i = 0; i < json_array_size(list); i++)
        bytes += json_string_length(json_object_get(json_array_get(list, i), "content"));
    TRY(token_map_init(&seen, (int64_t)json_array_size(list), bytes, err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i), *id = json_object_get(entry, "id");
        const char *content = json_string_value(json_object_get(entry, "content"));
        if (!content || !json_is_integer(id)) {
            rc = err_set(err, ERR_INVALID, "added token %zu of the tokenizer has no content or id",
                         i);
            goto out;
        }
        if (!*content || !token_map_add(&seen, content, strlen(content), 0))
            continue;
        json_int_t expected = token_map_find(&t->bpe.vocab, content, strlen(content));
        if (expected < 0)
            expected = next++;
        if (json_integer_value(id) != expected || expected >= BPE_MAX_ID) {
            rc = err_set(err, ERR_UNSUPPORTED,
                         "added token '%.60s' has id %lld in tokenizer.json, where %lld would be "
                         "next; tokenizers with gaps or shared ids are not supported",
                         content, (long long)json_integer_value(id), (long long)expected);
            goto out;
        }
        TRY(add_token(t, content, (int32_t)expected, entry,
                      json_is_true(json_object_get(entry, "special")), err));
    }
out:
    token_map_fini(&seen);
    return rc;
}

/* added_tokens.json: {"token": id}, ids as given. */
static int read_added_file(struct tokenizer *t, const json_t *object, struct err *err)
{
    const char *content;
    json_t *value;
    int rc = 0;

    json_object_foreach((json_t *)object, content, value)
    {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= BPE_MAX_ID)
            return err_set(err, ERR_INVALID, "added_tokens.json gives '%.60s' no usable id",
                           content);
        if (*content)
            TRY(add_token(t, content, (int32_t)id, NULL, false, err));
    }
out:
    return rc;
}

/* --- bos, eos, pad ---------------------------------------------------------------------------- */

/* A special token is written as a string or as an object with flags. */
static const char *content_of(const json_t *value)
{
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

/* Make sure that a named special token is an added one, so that it is never split. */
static int register_special(struct tokenizer *t, const json_t *value, int32_t *id, struct err *err)
{
    const char *content = content_of(value);
    int32_t found = content && *content ? find_token(t, content) : -1;
    int32_t added = found >= 0 ? find_added(t, content) : -1;

    if (found < 0)
        return 0;
    *id = found;
    if (added >= 0) {
        t->added[added].special = true;
        return 0;
    }
    return add_token(t, content, found, json_is_object(value) ? value : NULL, true, err);
}

static int32_t id_of(const json_t *config, const char *key, int64_t n_ids)
{
    const json_t *value = json_object_get(config, key);

    if (json_is_array(value)) /* several end tokens: the first is the one to write */
        value = json_array_get(value, 0);
    json_int_t id = json_integer_value(value);
    return json_is_integer(value) && id >= 0 && id < n_ids ? (int32_t)id : -1;
}

static int find_special(struct tokenizer *t, const struct config_files *files, const char *key,
                        const char *id_key, int32_t *out, struct err *err)
{
    int32_t id = -1;
    int rc = 0;

    TRY(register_special(t, json_object_get(files->tokenizer_config, key), &id, err));
    if (id < 0)
        TRY(register_special(t, json_object_get(files->special_map, key), &id, err));
    if (id < 0 && id_key)
        id = id_of(files->config, id_key, t->n_ids);
    if (id < 0 && id_key)
        id = id_of(files->generation, id_key, t->n_ids);
    if (out)
        *out = id;
out:
    return rc;
}

static int find_specials(struct tokenizer *t, const struct config_files *files, struct err *err)
{
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};
    int rc = 0;
    int32_t id;

    TRY(find_special(t, files, "bos_token", "bos_token_id", &t->bos, err));
    TRY(find_special(t, files, "eos_token", "eos_token_id", &t->eos, err));
    TRY(find_special(t, files, "pad_token", "pad_token_id", &t->pad, err));
    TRY(find_special(t, files, "unk_token", NULL, NULL, err));
    for (int i = 0; i < 4; i++) {
        const json_t *file = i < 2 ? files->tokenizer_config : files->special_map;
        const json_t *list = json_object_get(file, lists[i % 2]);
        if (json_array_size(list) > MAX_NAMED_SPECIALS)
            return err_set(err, ERR_INVALID, "the tokenizer names more than %d special tokens",
                           MAX_NAMED_SPECIALS);
        for (size_t j = 0; j < json_array_size(list); j++)
            TRY(register_special(t, json_array_get(list, j), &id, err));
    }
out:
    return rc;
}

/* --- the two layouts -------------------------------------------------------------------------- */

static int read_tokenizer_json(struct tokenizer *t, const json_t *json,
                               const struct config_files *files, struct err *err)
{
    const json_t *model = json_object_get(json, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    int rc = 0;

    /* Old files leave the type of a BPE model out; only BPE has merges. */
    if (type ? strcmp(type, "BPE") != 0 : !json_object_get(model, "merges"))
        return err_set(err, ERR_UNSUPPORTED,
                       "this tokenizer's model %.60s is not supported; supported is byte-level BPE",
                       type ? type : "(without a type)");
    /* Before the vocabulary: these say at once what kind of tokenizer it is. */
    TRY(normalizer_init(&t->normalizer, json_object_get(json, "normalizer"), err));
    TRY(pretokenizer_init(&t->pretokenizer, json_object_get(json, "pre_tokenizer"), err));
    TRY(decode_check(json_object_get(json, "decoder"), err));
    TRY(bpe_init_from_json(&t->bpe, model, err));
    t->n_ids = t->bpe.n_ids;
    TRY(read_added_tokens(t, json_object_get(json, "added_tokens"), err));
    TRY(find_specials(t, files, err));
    TRY(postprocessor_init(&t->post, json_object_get(json, "post_processor"), t->n_ids, err));
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
    TRY(bpe_init_from_files(&t->bpe, vocab, buf_str(&merges), merges.len, err));
    TRY(pretokenizer_init_byte_level(
        &t->pretokenizer, json_is_true(json_object_get(config, "add_prefix_space")), err));
    t->n_ids = t->bpe.n_ids;
    TRY(read_added_file(t, files->added, err));
    TRY(find_specials(t, files, err));
    if (json_is_true(json_object_get(config, "add_bos_token")) && t->bos >= 0)
        token_list_add(&t->post.before, t->bos);
out:
    json_decref(vocab);
    buf_fini(&merges);
    return rc;
}

/* --- tables made from what was read ----------------------------------------------------------- */

static int build_added_sets(struct tokenizer *t, struct err *err)
{
    struct buf work = {0};
    const char *pattern;
    size_t n, bytes = 0;
    int rc = 0;

    /* A normal form is at most 18 times as long (U+FDFA under NFKC is 11 times). */
    for (int32_t i = 0; i < t->n_added; i++)
        bytes += t->added[i].n;
    TRY(added_set_init(&t->raw_set, t->added, bytes, err));
    TRY(added_set_init(&t->normalized_set, t->added, bytes * (t->normalizer.n ? 18 : 1), err));
    for (int32_t i = 0; i < t->n_added; i++) {
        const struct added_token *token = &t->added[i];
        if (!token->normalized) {
            added_set_add(&t->raw_set, token->content, token->n, i);
            continue;
        }
        TRY(normalizer_run(&t->normalizer, token->content, token->n, &work, &pattern, &n, err));
        added_set_add(&t->normalized_set, pattern, n, i);
    }
out:
    buf_fini(&work);
    return rc;
}

static int build_decode_table(struct tokenizer *t, struct err *err)
{
    struct buf work = {0};
    uint64_t cursor = 0;
    const char *text;
    int32_t id;
    size_t n;
    int rc = 0;

    TRY(decode_table_init(&t->decode, t->n_ids, err));
    while (token_map_next(&t->bpe.vocab, &cursor, &text, &n, &id))
        TRY(decode_table_set(&t->decode, id, text, n, false, err));
    for (int32_t i = 0; i < t->n_added; i++) {
        const struct added_token *token = &t->added[i];
        text = token->content;
        n = token->n;
        if (token->normalized)
            TRY(normalizer_run(&t->normalizer, token->content, token->n, &work, &text, &n, err));
        TRY(decode_table_set(&t->decode, token->id, text, n, token->special, err));
    }
out:
    buf_fini(&work);
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
    TRY(build_decode_table(t, err));
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
