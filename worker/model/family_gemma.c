/*
 * Gemma 1 and 2 (Gemma Team, "Gemma: Open models based on Gemini research and technology" and
 * "Gemma 2: Improving open language models at a practical size", 2024). RMS norms that scale by one
 * plus their weight, embeddings times the root of the width, tanh GELU in a gated MLP, one table
 * for embedding and head. Gemma 2 also has norms behind attention and MLP, caps on scores and
 * logits, and a window in every other layer.
 */
#include <math.h>
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse_gemma(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool both_ways = false;
    int rc = 0;

    c->norm = NORM_RMS_PLUS_ONE;
    c->norm_eps = 1e-6;
    c->norm_affine = c->final_norm = true;
    c->gated = true;
    c->tied = true;
    c->act = ACT_GELU_TANH; /* also where an old config says hidden_act "gelu" */
    TRY(family_get_sizes(j, c, err));
    c->embed_scale = sqrt((double)c->hidden);
    TRY(json_get_double(j, "", "rms_norm_eps", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "hidden_activation", &c->act, err));
    TRY(json_get_bool(j, "", "attention_bias", false, &c->qkv_bias, err));
    c->out_bias = c->qkv_bias;
    TRY(json_get_bool(j, "", "tie_word_embeddings", false, &c->tied, err));
    TRY(json_get_bool(j, "", "use_bidirectional_attention", false, &both_ways, err));
    if (both_ways)
        TRY(family_refuse("use_bidirectional_attention", "attention to later tokens", err));
    TRY(json_get_double(j, "", "attention_dropout", false, 0, 1, &c->attn_dropout, err));
    TRY(family_get_rope(j, 1, c, err));
    TRY(family_get_special_ids(j, c, err));
    TRY(family_get_dtype(j, &c->dtype, err));
out:
    return rc;
}

static int parse_gemma2(const json_t *j, struct decoder_config *c, struct err *err)
{
    double scalar = 256;
    int64_t window = 4096;
    int rc = 0;

    TRY(parse_gemma(j, c, err));
    c->norm_place = NORM_PLACE_SANDWICH;
    TRY(json_get_double(j, "", "query_pre_attn_scalar", false, 1e-6, 1e9, &scalar, err));
    c->attn_scale = 1 / sqrt(scalar);
    TRY(json_get_double(j, "", "attn_logit_softcapping", false, 0, 1e6, &c->score_softcap, err));
    TRY(json_get_double(j, "", "final_logit_softcapping", false, 0, 1e6, &c->final_softcap, err));
    TRY(json_get_int64(j, "", "sliding_window", false, 1, CONFIG_MAX_POSITIONS, &window, err));
    for (int64_t i = 0; i < c->layers; i += 2)
        family_set_window(c, i, window);
    TRY(family_get_windows(j, window, c, err));
out:
    return rc;
}

#define LAYER "layers.{i}."
#define SHARED                                                                                     \
    {TENSOR_EMBED, "embed_tokens.weight"}, {TENSOR_NORM1_W, LAYER "input_layernorm.weight"},       \
        {TENSOR_QKV_W, LAYER "self_attn.q_proj.weight", 0, 3},                                     \
        {TENSOR_QKV_W, LAYER "self_attn.k_proj.weight", 1, 3},                                     \
        {TENSOR_QKV_W, LAYER "self_attn.v_proj.weight", 2, 3},                                     \
        {TENSOR_QKV_B, LAYER "self_attn.q_proj.bias", 0, 3},                                       \
        {TENSOR_QKV_B, LAYER "self_attn.k_proj.bias", 1, 3},                                       \
        {TENSOR_QKV_B, LAYER "self_attn.v_proj.bias", 2, 3},                                       \
        {TENSOR_OUT_W, LAYER "self_attn.o_proj.weight"},                                           \
        {TENSOR_OUT_B, LAYER "self_attn.o_proj.bias"},                                             \
        {TENSOR_UP_W, LAYER "mlp.gate_proj.weight", 0, 2},                                         \
        {TENSOR_UP_W, LAYER "mlp.up_proj.weight", 1, 2},                                           \
        {TENSOR_DOWN_W, LAYER "mlp.down_proj.weight"}, {TENSOR_FINAL_NORM_W, "norm.weight"},       \
    {                                                                                              \
        TENSOR_HEAD_W, "lm_head.weight", .bare = true                                              \
    }

static const struct name_map names[] = {
    SHARED,
    {TENSOR_NORM2_W, LAYER "post_attention_layernorm.weight"},
    {.name = NULL},
};

static const struct name_map gemma2_names[] = {
    SHARED,
    {TENSOR_POST_ATTN_NORM_W, LAYER "post_attention_layernorm.weight"},
    {TENSOR_NORM2_W, LAYER "pre_feedforward_layernorm.weight"},
    {TENSOR_POST_MLP_NORM_W, LAYER "post_feedforward_layernorm.weight"},
    {.name = NULL},
};

static const char *const prefixes[] = {"model.", "", NULL};
static const char *const ignored[] = {"layers.*.self_attn.rotary_emb.inv_freq", NULL};

const struct family family_gemma = {
    .model_type = "gemma",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse_gemma,
};

const struct family family_gemma2 = {
    .model_type = "gemma2",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = gemma2_names,
    .lora_targets = family_lora_q_v,
    .parse = parse_gemma2,
};
