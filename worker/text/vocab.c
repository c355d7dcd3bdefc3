#include "worker/text/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

static int refuse_token(struct err *err, const char *token, const char *why)
{
    return err_set(err, ERR_INVALID, "the tokenizer's vocabulary is not usable: token '%.80s' %s",
                   token, why);
}

int vocab_init_from_object(struct vocab *v, const json_t *object, struct err *err)
{
    struct vocab vocab = {.n_tokens = (int64_t)json_object_size(object)};
    void *seen = NULL; /* a bit an id */
    size_t key_bytes = 0;
    const char *token;
    json_t *value;
    int rc = 0;

    if (!json_is_object(object))
        return err_set(err, ERR_INVALID, "the tokenizer's vocab is not a JSON object");
    json_object_foreach((json_t *)object, token, value)
    {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= VOCAB_MAX_ID)
            return refuse_token(err, token, "has an id that is not a whole number below 4194304");
        if (strlen(token) > VOCAB_MAX_TOKEN_BYTES)
            return refuse_token(err, token, "is longer than 65536 bytes");
        key_bytes += strlen(token);
        if (id >= vocab.n_ids)
            vocab.n_ids = id + 1;
    }
    TRY(alloc_try(&seen, (size_t)vocab.n_ids / 8 + 1, 1, "the vocabulary", err));
    memset(seen, 0, (size_t)vocab.n_ids / 8 + 1);
    TRY(token_map_init(&vocab.ids, vocab.n_tokens, key_bytes, err));
    json_object_foreach((json_t *)object, token, value)
    {
        int32_t id = (int32_t)json_integer_value(value);
        uint8_t *byte = (uint8_t *)seen + id / 8, bit = (uint8_t)(1 << id % 8);
        if (*byte & bit) {
            rc = refuse_token(err, token, "has the id of another token");
            goto out;
        }
        *byte |= bit;
        token_map_add(&vocab.ids, token, strlen(token), id);
    }
    *v = vocab;
    memset(&vocab, 0, sizeof(vocab));
out:
    vocab_fini(&vocab);
    free(seen);
    return rc;
}

int vocab_init_from_pairs(struct vocab *v, const json_t *array, struct err *err)
{
    struct vocab vocab = {.n_tokens = (int64_t)json_array_size(array)};
    size_t key_bytes = 0;
    int rc = 0;

    if (!json_is_array(array) || vocab.n_tokens > VOCAB_MAX_ID)
        return err_set(err, ERR_INVALID,
                       "the tokenizer's vocab is not a JSON array of at most 4194304 tokens");
    for (int64_t i = 0; i < vocab.n_tokens; i++) {
        const json_t *pair = json_array_get(array, (size_t)i), *token = json_array_get(pair, 0);
        if (json_array_size(pair) != 2 || !json_is_string(token) ||
            !json_is_number(json_array_get(pair, 1)))
            return err_set(err, ERR_INVALID,
                           "entry %lld of the tokenizer's vocab is not [\"token\", score]",
                           (long long)i);
        if (json_string_length(token) > VOCAB_MAX_TOKEN_BYTES)
            return refuse_token(err, json_string_value(token), "is longer than 65536 bytes");
        key_bytes += json_string_length(token);
    }
    vocab.n_ids = vocab.n_tokens;
    TRY(token_map_init(&vocab.ids, vocab.n_tokens, key_bytes, err));
    for (int64_t i = vocab.n_tokens - 1; i >= 0; i--) {
        const json_t *token = json_array_get(json_array_get(array, (size_t)i), 0);
        token_map_add(&vocab.ids, json_string_value(token), json_string_length(token), (int32_t)i);
    }
    *v = vocab;
    memset(&vocab, 0, sizeof(vocab));
out:
    vocab_fini(&vocab);
    return rc;
}

void vocab_fini(struct vocab *v)
{
    token_map_fini(&v->ids);
    memset(v, 0, sizeof(*v));
}
