/*
 * Gemma 1, 2 and 3 (Gemma Team, "Gemma: Open models based on Gemini research and technology" and
 * "Gemma 2: Improving open language models at a practical size", 2024; "Gemma 3 technical report",
 * 2025). RMS norms that scale by one plus their weight, embeddings times the root of the width,
 * tanh GELU in a gated MLP, one table for embedding and head. Gemma 2 also has norms behind
 * attention and MLP, caps on scores and logits, and a window in every other layer. Gemma 3 has
 * norms on q and k instead of the caps, and windows, with a rope base of their own, in all but
 * every sixth layer.
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
    if (c->head_dim == 0)
        c->head_dim = 256;
    TRY(family_get_sizes(j, &family_usual_sizes, c, err));
    c->embed_scale = sqrt((double)c->hidden);
    TRY(json_get_double(j, "", "rms_norm_eps", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "hidden_activation", &c->act, err));
    TRY(json_get_bool(j, "", "attention_bias", false, &c->qkv_bias, err));
    c->out_bias = c->qkv_bias;
    TRY(json_get_bool(j, "", "use_bidirectional_attention", false, &both_ways, err));
    if (both_ways)
        TRY(family_refuse("use_bidirectional_attention", "attention to later tokens", err));
    TRY(family_get_dropouts(j, NULL, NULL, "attention_dropout", c, err));
    TRY(family_get_rope(j, 1, c, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

/* What Gemma 3 shares with Gemma 2: every `period`-th layer sees everything, counted so that the
 * last of each run does. */
static int parse_sandwich(const json_t *j, int64_t period, struct decoder_config *c,
                          struct err *err)
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
    for (int64_t i = 0; i < c->layers; i++)
        family_set_window(c, i, (i + 1) % period != 0 ? window : 0);
    TRY(family_get_windows(j, window, c, err));
out:
    return rc;
}

static int parse_gemma2(const json_t *j, struct decoder_config *c, struct err *err)
{
    return parse_sandwich(j, 2, c, err);
}

/* The repositories of the larger models leave out what is as in transformers' defaults. */
static int parse_gemma3(const json_t *j, struct decoder_config *c, struct err *err)
{
    int64_t period = 6;
    int rc = 0;

    c->layers = 26;
    c->hidden = 2304;
    c->ffn = 9216;
    c->heads = 8;
    c->kv_heads = 4;
    c->vocab = 262208;
    c->max_positions = 131072;
    c->qk_norm = QK_NORM_SHARED;
    c->rope.base = 1e6;
    c->rope.local_base = 1e4;
    TRY(json_get_double(j, "", "rope_local_base_freq", false, 1, 1e30, &c->rope.local_base, err));
    TRY(json_get_int64(j, "", "sliding_window_pattern", false, 1, CONFIG_MAX_LAYERS, &period, err));
    TRY(parse_sandwich(j, period, c, err));
out:
    return rc;
}

#define LAYER "layers.{i}."

static const struct name_map names[] = {
    FAMILY_LLAMA_NAMES,
    {TENSOR_NORM2_W, LAYER "post_attention_layernorm.weight"},
    {.name = NULL},
};

/* The q and k norms are Gemma 3's. */
static const struct name_map sandwich_names[] = {
    FAMILY_LLAMA_NAMES,
    FAMILY_QK_NORMS(LAYER "self_attn."),
    {TENSOR_POST_ATTN_NORM_W, LAYER "post_attention_layernorm.weight"},
    {TENSOR_NORM2_W, LAYER "pre_feedforward_layernorm.weight"},
    {TENSOR_POST_MLP_NORM_W, LAYER "post_feedforward_layernorm.weight"},
    {.name = NULL},
};

/* As the text part of a model that also sees images, in either of the two ways to save one. */
static const char *const text_prefixes[] = {"model.", "language_model.model.",
                                            "model.language_model.", "", NULL};
static const char *const text_ignored[] = {"vision_tower.*", "multi_modal_projector.*",
                                           "language_model.lm_head.weight", NULL};

const struct family family_gemma = {
    .model_type = "gemma",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse_gemma,
};

const struct family family_gemma2 = {
    .model_type = "gemma2",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = sandwich_names,
    .lora_targets = family_lora_q_v,
    .parse = parse_gemma2,
};

const struct family family_gemma3 = {
    .model_type = "gemma3_text",
    .prefixes = text_prefixes,
    .ignored = text_ignored,
    .names = sandwich_names,
    .lora_targets = family_lora_q_v,
    .parse = parse_gemma3,
};
