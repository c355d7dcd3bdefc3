/* Added tokens and the special ones that a model's files name. */
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/tokenizer_parts.h"

enum { MAX_NAMED_SPECIALS = 4096 };

/* --- added tokens --- */

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

    return i >= 0 ? t->added[i].id : token_map_find(&t->vocab.ids, content, strlen(content));
}

static void set_flags(struct added_token *token, const json_t *flags, bool special)
{
    token->special = special;
    token->lstrip = json_is_true(json_object_get(flags, "lstrip"));
    token->rstrip = json_is_true(json_object_get(flags, "rstrip"));
    token->single_word = json_is_true(json_object_get(flags, "single_word"));
    token->normalized = json_is_true(json_object_get(flags, "normalized"));
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
    t->added[t->n_added] = (struct added_token){.content = xstrdup(content), .n = n, .id = id};
    set_flags(&t->added[t->n_added++], flags, special);
    if (id >= t->n_ids)
        t->n_ids = id + 1;
    return 0;
}

/* A token of a file's list; flags may be NULL. */
struct listed {
    json_int_t id;
    const char *content;
    const json_t *flags;
};

static int compare_listed(const void *a, const void *b)
{
    const struct listed *x = a, *y = b;

    return (x->id > y->id) - (x->id < y->id);
}

/* The reference numbers tokens that the model's vocabulary lacks itself, on from the vocabulary's
 * size, and only warns when the file says otherwise; a file where the two differ is refused,
 * because either choice would train the wrong rows. Of a token listed twice the later flags count.
 */
static int add_listed(struct tokenizer *t, const struct listed *list, size_t n, struct err *err)
{
    json_int_t next = (json_int_t)t->vocab.n_tokens;
    struct token_map seen = {0};
    size_t bytes = 0;
    int rc = 0;

    for (size_t i = 0; i < n; i++)
        bytes += strlen(list[i].content);
    TRY(token_map_init(&seen, (int64_t)n, bytes, err));
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(list[i].content);
        bool special = json_is_true(json_object_get(list[i].flags, "special"));
        int32_t index = token_map_find(&seen, list[i].content, length);
        if (index >= 0)
            set_flags(&t->added[index], list[i].flags, special);
        if (index >= 0 || length == 0)
            continue;
        json_int_t expected = token_map_find(&t->vocab.ids, list[i].content, length);
        if (expected < 0)
            expected = next++;
        if (list[i].id != expected || expected >= VOCAB_MAX_ID) {
            rc = err_set(err, ERR_UNSUPPORTED,
                         "added token '%.60s' has id %lld in the tokenizer's files, where %lld "
                         "would be next; tokenizers with gaps or shared ids are not supported",
                         list[i].content, (long long)list[i].id, (long long)expected);
            goto out;
        }
        token_map_add(&seen, list[i].content, length, t->n_added);
        TRY(add_token(t, list[i].content, (int32_t)expected, list[i].flags, special, err));
    }
out:
    token_map_fini(&seen);
    return rc;
}

/* "added_tokens" of tokenizer.json. */
int tokens_read_list(struct tokenizer *t, const json_t *list, struct err *err)
{
    size_t n = json_array_size(list);
    void *items = NULL;
    int rc = alloc_try(&items, n + 1, sizeof(struct listed), "the added tokens", err);

    if (rc != 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_array_get(list, i), *id = json_object_get(entry, "id");
        const char *content = json_string_value(json_object_get(entry, "content"));
        if (!content || !json_is_integer(id)) {
            rc = err_set(err, ERR_INVALID, "added token %zu of the tokenizer has no content or id",
                         i);
            goto out;
        }
        ((struct listed *)items)[i] = (struct listed){json_integer_value(id), content, entry};
    }
    rc = add_listed(t, items, n, err);
out:
    free(items);
    return rc;
}

/* "added_tokens_decoder" of tokenizer_config.json: {"id": {"content": ..., flags}}. */
int tokens_read_decoder(struct tokenizer *t, const json_t *by_id, struct err *err)
{
    size_t n = 0;
    void *items = NULL;
    const char *key;
    json_t *entry;
    int rc = alloc_try(&items, json_object_size(by_id) + 1, sizeof(struct listed),
                       "the added tokens", err);

    if (rc != 0)
        return rc;
    json_object_foreach((json_t *)by_id, key, entry)
    {
        const char *content = json_string_value(json_object_get(entry, "content"));
        char *end;
        long long id = strtoll(key, &end, 10);
        if (!content || *end || end == key) {
            rc = err_set(err, ERR_INVALID,
                         "added_tokens_decoder of tokenizer_config.json has an entry '%.60s' "
                         "without a content or id",
                         key);
            goto out;
        }
        ((struct listed *)items)[n++] = (struct listed){id, content, entry};
    }
    qsort(items, n, sizeof(struct listed), compare_listed);
    rc = add_listed(t, items, n, err);
out:
    free(items);
    return rc;
}

/* added_tokens.json: {"token": id}. Older than added_tokens_decoder, which goes before it. */
int tokens_read_file(struct tokenizer *t, const json_t *object, struct err *err)
{
    size_t n = 0;
    void *items = NULL;
    const char *content;
    json_t *value;
    int rc = 0;

    if (t->n_added > 0)
        return 0;
    TRY(alloc_try(&items, json_object_size(object) + 1, sizeof(struct listed), "the added tokens",
                  err));
    json_object_foreach((json_t *)object, content, value)
    {
        if (!json_is_integer(value)) {
            rc = err_set(err, ERR_INVALID, "added_tokens.json gives '%.60s' no usable id", content);
            goto out;
        }
        ((struct listed *)items)[n++] = (struct listed){json_integer_value(value), content, NULL};
    }
    qsort(items, n, sizeof(struct listed), compare_listed);
    rc = add_listed(t, items, n, err);
out:
    free(items);
    return rc;
}

/* --- bos, eos, pad --- */

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
                        const char *id_key, const char *fallback, int32_t *out, struct err *err)
{
    bool named = json_object_get(files->tokenizer_config, key) != NULL ||
                 json_object_get(files->special_map, key) != NULL;
    json_t *content = fallback && !named ? json_string(fallback) : NULL;
    int32_t id = -1;
    int rc = 0;

    TRY(register_special(t, json_object_get(files->tokenizer_config, key), &id, err));
    if (id < 0)
        TRY(register_special(t, json_object_get(files->special_map, key), &id, err));
    TRY(register_special(t, content, &id, err));
    if (id < 0 && id_key)
        id = id_of(files->config, id_key, t->n_ids);
    if (id < 0 && id_key)
        id = id_of(files->generation, id_key, t->n_ids);
    if (out)
        *out = id;
out:
    json_decref(content);
    return rc;
}

/* Generation ends at any of these. */
static void add_stops(struct tokenizer *t, const json_t *config)
{
    const json_t *value = json_object_get(config, "eos_token_id");
    size_t n = json_is_array(value) ? json_array_size(value) : 1;

    for (size_t i = 0; i < n && t->n_stops < TOKENIZER_MAX_STOPS; i++) {
        const json_t *one = json_is_array(value) ? json_array_get(value, i) : value;
        json_int_t id = json_integer_value(one);
        if (json_is_integer(one) && id >= 0 && id < t->n_ids)
            t->stops[t->n_stops++] = (int32_t)id;
    }
}

int tokens_find_specials(struct tokenizer *t, const struct config_files *files,
                         const char *fallback, struct err *err)
{
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};
    int rc = 0;
    int32_t id;

    TRY(find_special(t, files, "bos_token", "bos_token_id", fallback, &t->bos, err));
    TRY(find_special(t, files, "eos_token", "eos_token_id", fallback, &t->eos, err));
    TRY(find_special(t, files, "pad_token", "pad_token_id", NULL, &t->pad, err));
    TRY(find_special(t, files, "unk_token", NULL, fallback, NULL, err));
    add_stops(t, files->generation ? files->generation : files->config);
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

void tokens_apply_settings(struct tokenizer *t, const json_t *config)
{
    if (json_is_true(json_object_get(config, "add_bos_token")) && t->bos >= 0)
        token_list_add(&t->post.before, t->bos);
    if (json_is_true(json_object_get(config, "add_eos_token")) && t->eos >= 0)
        token_list_add(&t->post.after, t->eos);
}
