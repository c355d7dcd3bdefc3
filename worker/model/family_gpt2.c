/*
 * GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019). Pre-norm,
 * learned positions, biases, tanh GELU, one table for embedding and head. Its matrices are stored
 * transposed, and q, k and v are one of them.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse_attention(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool scaled = true, cross = false;
    int rc = 0;

    TRY(json_get_bool(j, "", "scale_attn_weights", false, &scaled, err));
    TRY(json_get_bool(j, "", "scale_attn_by_inverse_layer_idx", false, &c->scale_by_layer, err));
    TRY(json_get_bool(j, "", "add_cross_attention", false, &cross, err));
    if (!scaled)
        c->attn_scale = 1;
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
    TRY(family_get_sizes(config_json, &family_gpt_sizes, c, err));
    TRY(parse_attention(config_json, c, err));
    TRY(json_get_double(config_json, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(config_json, "activation_function", &c->act, err));
    TRY(family_get_dropouts(config_json, "embd_pdrop", "resid_pdrop", "attn_pdrop", c, err));
    TRY(family_get_common(config_json, c, err));
out:
    return rc;
}

#define LAYER "h.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "wte.weight"},
    {TENSOR_POSITIONS, "wpe.weight"},
    FAMILY_PAIR(TENSOR_NORM1, LAYER "ln_1"),
    {TENSOR_QKV_W, LAYER "attn.c_attn.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_QKV_B, LAYER "attn.c_attn.bias"},
    {TENSOR_OUT_W, LAYER "attn.c_proj.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_OUT_B, LAYER "attn.c_proj.bias"},
    FAMILY_PAIR(TENSOR_NORM2, LAYER "ln_2"),
    {TENSOR_UP_W, LAYER "mlp.c_fc.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_UP_B, LAYER "mlp.c_fc.bias"},
    {TENSOR_DOWN_W, LAYER "mlp.c_proj.weight", .layout = FILE_TRANSPOSED},
    {TENSOR_DOWN_B, LAYER "mlp.c_proj.bias"},
    FAMILY_PAIR(TENSOR_FINAL_NORM, "ln_f"),
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {.name = NULL},
};

static const char *const lora_targets[] = {"c_attn", NULL};

const struct family family_gpt2 = {
    .model_type = "gpt2",
    .prefixes = family_transformer_prefixes,
    .ignored = family_gpt_masks,
    .names = names,
    .lora_targets = lora_targets,
    .parse = parse,
};
