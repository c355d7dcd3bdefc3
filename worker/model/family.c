#include "worker/model/family.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/json.h"

static const struct family *const families[] = {
    &family_opt,   &family_gpt2,   &family_llama,    &family_mistral, &family_qwen2,
    &family_qwen3, &family_phi3,   &family_gpt_neox, &family_gptj,    &family_phi,
    &family_bloom, &family_falcon, &family_gemma,    &family_gemma2,
};
enum { N_FAMILIES = sizeof(families) / sizeof(families[0]) };

const char *const family_lora_q_v[] = {"q_proj", "v_proj", NULL};
const char *const family_lora_query_key_value[] = {"query_key_value", NULL};

const struct family *family_find(const char *model_type)
{
    for (int i = 0; i < N_FAMILIES; i++) {
        if (strcmp(families[i]->model_type, model_type) == 0)
            return families[i];
    }
    return NULL;
}

void family_list(char *out, size_t n)
{
    size_t used = 0;

    assert(n > 0);
    out[0] = '\0';
    for (int i = 0; i < N_FAMILIES && used < n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%s", i > 0 ? ", " : "",
                                 families[i]->model_type);
}

void family_part_rows(const struct decoder_config *c, const struct tensor_desc *t,
                      const struct name_map *map, int64_t *first_row, int64_t *rows)
{
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;

    assert(map->part < map->parts || map->parts == 0);
    if (map->parts <= 1) {
        *first_row = 0;
        *rows = t->rows;
    } else if (t->role == TENSOR_QKV_W || t->role == TENSOR_QKV_B) {
        assert(map->parts == 3);
        *first_row = map->part == 0 ? 0 : q + (map->part - 1) * kv;
        *rows = map->part == 0 ? q : kv;
    } else {
        *rows = t->rows / map->parts;
        *first_row = map->part * *rows;
    }
}

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

int family_get_dtype(const json_t *config_json, enum dtype *out, struct err *err)
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

int family_get_special_ids(const json_t *config_json, struct decoder_config *out, struct err *err)
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

int family_head_dim(struct decoder_config *c, const char *key, struct err *err)
{
    if (c->hidden % c->heads != 0)
        return err_set_param(
            err, err_set(err, ERR_INVALID, "%s must be a multiple of the number of heads", key),
            key);
    c->head_dim = c->hidden / c->heads;
    return 0;
}

int family_get_sizes(const json_t *j, struct decoder_config *c, struct err *err)
{
    const json_t *head_dim = json_object_get(j, "head_dim");
    int rc = 0;

    TRY(json_get_int64(j, "", "num_hidden_layers", true, 1, CONFIG_MAX_LAYERS, &c->layers, err));
    TRY(json_get_int64(j, "", "hidden_size", true, 1, CONFIG_MAX_WIDTH, &c->hidden, err));
    TRY(json_get_int64(j, "", "intermediate_size", true, 1, CONFIG_MAX_FFN, &c->ffn, err));
    TRY(json_get_int64(j, "", "num_attention_heads", true, 1, CONFIG_MAX_HEADS, &c->heads, err));
    TRY(json_get_int64(j, "", "vocab_size", true, 2, CONFIG_MAX_VOCAB, &c->vocab, err));
    TRY(json_get_int64(j, "", "max_position_embeddings", true, 1, CONFIG_MAX_POSITIONS,
                       &c->max_positions, err));
    c->kv_heads = c->heads;
    TRY(json_get_int64(j, "", "num_key_value_heads", false, 1, CONFIG_MAX_HEADS, &c->kv_heads,
                       err));
    c->embed_dim = c->hidden;
    if (json_is_integer(head_dim))
        TRY(json_get_int64(j, "", "head_dim", true, 1, CONFIG_MAX_HEAD_DIM, &c->head_dim, err));
    else
        TRY(family_head_dim(c, "hidden_size", err));
    c->attn_scale = 1 / sqrt((double)c->head_dim);
out:
    return rc;
}

static int get_rope_scaling(const json_t *j, struct rope_config *rope, struct err *err)
{
    static const struct {
        const char *name;
        enum rope_scaling scaling;
    } known[] = {
        {"default", ROPE_SCALING_NONE},    {"linear", ROPE_SCALING_LINEAR},
        {"dynamic", ROPE_SCALING_DYNAMIC}, {"llama3", ROPE_SCALING_LLAMA3},
        {"yarn", ROPE_SCALING_YARN},       {"longrope", ROPE_SCALING_LONG},
    };
    const char *type = NULL;
    int rc = 0;

    TRY(json_get_string(j, "", "rope_type", false, &type, err));
    if (type == NULL)
        TRY(json_get_string(j, "", "type", false, &type, err));
    for (size_t i = 0; type != NULL; i++) {
        if (i == sizeof(known) / sizeof(known[0]))
            TRY(family_refuse("rope_scaling", type, err));
        if (strcmp(known[i].name, type) == 0) {
            rope->scaling = known[i].scaling;
            break;
        }
    }
    TRY(json_get_double(j, "", "factor", false, 0, 1e30, &rope->factor, err));
    TRY(json_get_double(j, "", "low_freq_factor", false, 0, 1e30, &rope->low_freq_factor, err));
    TRY(json_get_double(j, "", "high_freq_factor", false, 0, 1e30, &rope->high_freq_factor, err));
    TRY(json_get_int64(j, "", "original_max_position_embeddings", false, 1, CONFIG_MAX_POSITIONS,
                       &rope->original_max_positions, err));
out:
    return rc;
}

int family_get_rope(const json_t *config_json, double fraction, struct decoder_config *c,
                    struct err *err)
{
    const json_t *parameters = json_object_get(config_json, "rope_parameters");
    const json_t *scaling = json_object_get(config_json, "rope_scaling");
    int rc = 0;

    c->position = POSITION_ROPE;
    c->rope.base = 10000;
    c->rope.original_max_positions = c->max_positions;
    TRY(json_get_double(config_json, "", "rope_theta", false, 1, 1e30, &c->rope.base, err));
    TRY(json_get_double(config_json, "", "partial_rotary_factor", false, 0, 1, &fraction, err));
    if (json_is_object(scaling))
        TRY(get_rope_scaling(scaling, &c->rope, err));
    if (json_is_object(parameters)) { /* as transformers 5 writes it */
        TRY(json_get_double(parameters, "", "rope_theta", false, 1, 1e30, &c->rope.base, err));
        TRY(json_get_double(parameters, "", "partial_rotary_factor", false, 0, 1, &fraction, err));
        TRY(get_rope_scaling(parameters, &c->rope, err));
    }
    c->rope.dim = (int64_t)((double)c->head_dim * fraction);
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
