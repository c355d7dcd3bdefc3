/* Readers of config.json members that families share. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/alloc.h"
#include "core/json.h"
#include "worker/model/family.h"

int family_get_act(const json_t *config_json, const char *key, enum act_kind *out, struct err *err)
{
    static const struct {
        const char *name;
        enum act_kind act;
    } known[] = {
        {"relu", ACT_RELU},
        {"gelu", ACT_GELU_ERF},
        {"gelu_new", ACT_GELU_TANH},
        {"gelu_fast", ACT_GELU_TANH},
        {"gelu_pytorch_tanh", ACT_GELU_TANH},
        {"silu", ACT_SILU},
        {"swish", ACT_SILU},
    };
    const char *name = NULL;
    int rc = json_get_string(config_json, "", key, false, &name, err);

    if (rc != 0 || name == NULL)
        return rc;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].act;
            return 0;
        }
    }
    rc = err_set(err, ERR_UNSUPPORTED,
                 "%s is \"%.64s\"; relu, gelu, gelu_new, gelu_pytorch_tanh and silu are supported",
                 key, name);
    rc = err_set_param(err, rc, key);
    return err_set_reason(err, rc, "unsupported_architecture");
}

static int get_dtype(const json_t *config_json, enum dtype *out, struct err *err)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } known[] = {
        {"float64", DT_F64},
        {"float32", DT_F32},
        {"float16", DT_F16},
        {"bfloat16", DT_BF16},
    };
    const char *const keys[] = {"dtype", "torch_dtype"};
    const char *name = NULL;
    int rc = 0;

    for (int i = 0; i < 2 && name == NULL; i++)
        TRY(json_get_string(config_json, "", keys[i], false, &name, err));
    if (name == NULL)
        goto out;
    if (strncmp(name, "torch.", strlen("torch.")) == 0)
        name += strlen("torch.");
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].dtype;
            goto out;
        }
    }
    rc = err_set(err, ERR_UNSUPPORTED,
                 "config.json says the weights are \"%.64s\"; float32, float16, bfloat16 and "
                 "float64 are supported",
                 name);
    rc = err_set_param(err, rc, "dtype");
out:
    return rc;
}

static int token_id(json_int_t id, int64_t *out, struct err *err)
{
    if (id < -1 || id > CONFIG_MAX_VOCAB)
        return err_set_param(err, err_set(err, ERR_INVALID, "eos_token_id is no token id"),
                             "eos_token_id");
    *out = id;
    return 0;
}

static int get_special_ids(const json_t *config_json, struct decoder_config *out, struct err *err)
{
    const json_t *eos = json_object_get(config_json, "eos_token_id");
    int rc = 0;

    TRY(json_get_int64(config_json, "", "bos_token_id", false, -1, CONFIG_MAX_VOCAB, &out->bos_id,
                       err));
    if (json_is_array(eos)) /* the first ends the text, the others a turn of a conversation */
        eos = json_array_get(eos, 0);
    if (json_is_integer(eos))
        TRY(token_id(json_integer_value(eos), &out->eos_id, err));
    else if (eos != NULL && !json_is_null(eos))
        TRY(err_set_param(err, err_set(err, ERR_INVALID, "eos_token_id must be a token id"),
                          "eos_token_id"));
    TRY(json_get_int64(config_json, "", "pad_token_id", false, -1, CONFIG_MAX_VOCAB, &out->pad_id,
                       err));
out:
    return rc;
}

int family_refuse(const char *key, const char *what, struct err *err)
{
    int rc = err_set(err, ERR_UNSUPPORTED, "%s: %s, which this build does not train", key, what);

    rc = err_set_param(err, rc, key);
    return err_set_reason(err, rc, "unsupported_architecture");
}

const struct size_keys family_usual_sizes = {
    .layers = "num_hidden_layers",
    .hidden = "hidden_size",
    .heads = "num_attention_heads",
    .ffn = "intermediate_size",
    .positions = "max_position_embeddings",
    .kv_heads = "num_key_value_heads",
    .head_dim = "head_dim",
};

const struct size_keys family_gpt_sizes = {
    .layers = "n_layer",
    .hidden = "n_embd",
    .heads = "n_head",
    .ffn = "n_inner",
    .positions = "n_positions",
    .four_wide = true,
};

static int get_size(const json_t *j, const char *key, int64_t max, int64_t *out, struct err *err)
{
    return json_get_int64(j, "", key, *out == 0, 1, max, out, err);
}

/* head_dim and what it decides, from its member or from the width. */
static int get_head_dim(const json_t *j, const struct size_keys *keys, struct decoder_config *c,
                        struct err *err)
{
    const json_t *named = keys->head_dim != NULL ? json_object_get(j, keys->head_dim) : NULL;
    int rc = 0;

    if (json_is_integer(named)) {
        TRY(json_get_int64(j, "", keys->head_dim, true, 1, CONFIG_MAX_HEAD_DIM, &c->head_dim, err));
    } else if (c->head_dim == 0) {
        if (c->hidden % c->heads != 0) {
            rc = err_set(err, ERR_INVALID, "%s must be a multiple of the number of heads",
                         keys->hidden);
            rc = err_set_param(err, rc, keys->hidden);
            goto out;
        }
        c->head_dim = c->hidden / c->heads;
    }
    c->attn_scale = 1 / sqrt((double)c->head_dim);
out:
    return rc;
}

int family_get_sizes(const json_t *j, const struct size_keys *keys, struct decoder_config *c,
                     struct err *err)
{
    int rc = 0;

    TRY(get_size(j, keys->layers, CONFIG_MAX_LAYERS, &c->layers, err));
    TRY(get_size(j, keys->hidden, CONFIG_MAX_WIDTH, &c->hidden, err));
    TRY(get_size(j, keys->heads, CONFIG_MAX_HEADS, &c->heads, err));
    TRY(get_size(j, "vocab_size", CONFIG_MAX_VOCAB, &c->vocab, err));
    if (keys->positions != NULL)
        TRY(get_size(j, keys->positions, CONFIG_MAX_POSITIONS, &c->max_positions, err));
    if (keys->four_wide)
        c->ffn = 4 * c->hidden;
    if (keys->ffn != NULL)
        TRY(get_size(j, keys->ffn, CONFIG_MAX_FFN, &c->ffn, err));
    if (c->kv_heads == 0)
        c->kv_heads = c->heads;
    if (keys->kv_heads != NULL)
        TRY(get_size(j, keys->kv_heads, CONFIG_MAX_HEADS, &c->kv_heads, err));
    c->embed_dim = c->hidden;
    TRY(get_head_dim(j, keys, c, err));
out:
    return rc;
}

int family_get_dropouts(const json_t *j, const char *embed, const char *hidden, const char *attn,
                        struct decoder_config *c, struct err *err)
{
    int rc = 0;

    if (embed != NULL)
        TRY(json_get_double(j, "", embed, false, 0, 1, &c->embed_dropout, err));
    if (hidden != NULL)
        TRY(json_get_double(j, "", hidden, false, 0, 1, &c->hidden_dropout, err));
    if (attn != NULL)
        TRY(json_get_double(j, "", attn, false, 0, 1, &c->attn_dropout, err));
out:
    return rc;
}

int family_get_common(const json_t *j, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(json_get_bool(j, "", "tie_word_embeddings", false, &c->tied, err));
    TRY(get_special_ids(j, c, err));
    TRY(get_dtype(j, &c->dtype, err));
out:
    return rc;
}

int family_get_windows(const json_t *config_json, int64_t window, struct decoder_config *c,
                       struct err *err)
{
    const json_t *types = json_object_get(config_json, "layer_types");
    int rc = 0;

    if (!json_is_array(types))
        return 0;
    if ((int64_t)json_array_size(types) != c->layers)
        return err_set_param(err,
                             err_set(err, ERR_INVALID, "layer_types must have one entry a layer"),
                             "layer_types");
    for (int64_t i = 0; i < c->layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));

        if (type != NULL && strcmp(type, "sliding_attention") == 0 && window > 0)
            family_set_window(c, i, window);
        else if (type == NULL || strcmp(type, "full_attention") != 0)
            TRY(family_refuse("layer_types", type != NULL ? type : "not a list of names", err));
        else if (c->window != NULL)
            c->window[i] = 0;
    }
out:
    return rc;
}

void family_set_window(struct decoder_config *c, int64_t layer, int64_t window)
{
    if (c->window == NULL)
        c->window = xcalloc((size_t)c->layers, sizeof(*c->window));
    c->window[layer] = window;
}
