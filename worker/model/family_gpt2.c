/*
 * GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019). Pre-norm,
 * learned positions, biases, tanh GELU, one table for embedding and head. Its matrices are stored
 * transposed, and q, k and v are one of them.
 */
#include <math.h>
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse_sizes(const json_t *j, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(json_get_int64(j, "", "n_layer", true, 1, CONFIG_MAX_LAYERS, &c->layers, err));
    TRY(json_get_int64(j, "", "n_embd", true, 1, CONFIG_MAX_WIDTH, &c->hidden, err));
    TRY(json_get_int64(j, "", "n_head", true, 1, CONFIG_MAX_HEADS, &c->heads, err));
    TRY(json_get_int64(j, "", "vocab_size", true, 2, CONFIG_MAX_VOCAB, &c->vocab, err));
    TRY(json_get_int64(j, "", "n_positions", true, 1, CONFIG_MAX_POSITIONS, &c->max_positions,
                       err));
    c->ffn = 4 * c->hidden;
    TRY(json_get_int64(j, "", "n_inner", false, 1, CONFIG_MAX_FFN, &c->ffn, err));
    c->embed_dim = c->hidden;
    c->kv_heads = c->heads;
    TRY(family_head_dim(c, "n_embd", err));
out:
    return rc;
}

static int parse_attention(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool scaled = true, by_layer = false, cross = false;
    int rc = 0;

    TRY(json_get_bool(j, "", "scale_attn_weights", false, &scaled, err));
    TRY(json_get_bool(j, "", "scale_attn_by_inverse_layer_idx", false, &by_layer, err));
    TRY(json_get_bool(j, "", "add_cross_attention", false, &cross, err));
    c->attn_scale = scaled ? 1 / sqrt((double)c->head_dim) : 1;
    if (by_layer)
        TRY(family_refuse("scale_attn_by_inverse_layer_idx", "another scale in every layer", err));
    if (cross)
        TRY(family_refuse("add_cross_attention", "attention to an encoder", err));
out:
    return rc;
}

static int parse(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = true;
    c->qkv_bias = c->out_bias = c->mlp_bias = true;
    c->position = POSITION_LEARNED;
    c->act = ACT_GELU_TANH;
    c->tied = true;
    c->embed_dropout = c->hidden_dropout = c->attn_dropout = 0.1;
    TRY(parse_sizes(config_json, c, err));
    TRY(parse_attention(config_json, c, err));
    TRY(json_get_double(config_json, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(config_json, "activation_function", &c->act, err));
    TRY(json_get_bool(config_json, "", "tie_word_embeddings", false, &c->tied, err));
    TRY(json_get_double(config_json, "", "embd_pdrop", false, 0, 1, &c->embed_dropout, err));
    TRY(json_get_double(config_json, "", "resid_pdrop", false, 0, 1, &c->hidden_dropout, err));
    TRY(json_get_double(config_json, "", "attn_pdrop", false, 0, 1, &c->attn_dropout, err));
    TRY(family_get_special_ids(config_json, c, err));
    TRY(family_get_dtype(config_json, &c->dtype, err));
out:
    return rc;
}

#define LAYER "h.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "wte.weight"},
    {TENSOR_POSITIONS, "wpe.weight"},
    {TENSOR_NORM1_W, LAYER "ln_1.weight"},
    {TENSOR_NORM1_B, LAYER "ln_1.bias"},
    {TENSOR_QKV_W, LAYER "attn.c_attn.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_QKV_B, LAYER "attn.c_attn.bias"},
    {TENSOR_OUT_W, LAYER "attn.c_proj.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_OUT_B, LAYER "attn.c_proj.bias"},
    {TENSOR_NORM2_W, LAYER "ln_2.weight"},
    {TENSOR_NORM2_B, LAYER "ln_2.bias"},
    {TENSOR_UP_W, LAYER "mlp.c_fc.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_UP_B, LAYER "mlp.c_fc.bias"},
    {TENSOR_DOWN_W, LAYER "mlp.c_proj.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_DOWN_B, LAYER "mlp.c_proj.bias"},
    {TENSOR_FINAL_NORM_W, "ln_f.weight"},
    {TENSOR_FINAL_NORM_B, "ln_f.bias"},
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {.name = NULL},
};

static const char *const prefixes[] = {"transformer.", "", NULL};
/* Causal masks that older versions saved. */
static const char *const ignored[] = {"h.*.attn.bias", "h.*.attn.masked_bias", NULL};

static const char *const lora_targets[] = {"c_attn", NULL};

const struct family family_gpt2 = {
    .model_type = "gpt2",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = lora_targets,
    .parse = parse,
};
