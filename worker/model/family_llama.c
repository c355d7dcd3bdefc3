/*
 * Llama and those that share its anatomy (Touvron et al., "LLaMA: Open and efficient foundation
 * language models", 2023): pre-norm with RMS, rope, grouped queries, a gated SiLU MLP without
 * biases. Mistral adds a sliding window, Qwen2 biases of q, k and v, Qwen3 norms on q and k in
 * their place, Phi-3 stores q, k, v and gate, up as one matrix each.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

/* All that they have in common. */
static int parse_common(const json_t *j, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    c->norm = NORM_RMS;
    c->norm_eps = 1e-6;
    c->norm_affine = c->final_norm = true;
    c->act = ACT_SILU;
    c->gated = true;
    TRY(family_get_sizes(j, &family_usual_sizes, c, err));
    TRY(json_get_double(j, "", "rms_norm_eps", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "hidden_act", &c->act, err));
    TRY(family_get_dropouts(j, NULL, NULL, "attention_dropout", c, err));
    TRY(family_get_rope(j, 1, c, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

static int parse_llama(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(parse_common(config_json, c, err));
    TRY(json_get_bool(config_json, "", "attention_bias", false, &c->qkv_bias, err));
    TRY(json_get_bool(config_json, "", "mlp_bias", false, &c->mlp_bias, err));
    c->out_bias = c->qkv_bias;
out:
    return rc;
}

static int parse_mistral(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int64_t window = 0;
    int rc = 0;

    TRY(parse_common(config_json, c, err));
    TRY(json_get_int64(config_json, "", "sliding_window", false, 1, CONFIG_MAX_POSITIONS, &window,
                       err));
    for (int64_t i = 0; i < c->layers && window > 0; i++)
        family_set_window(c, i, window);
    TRY(family_get_windows(config_json, window, c, err));
out:
    return rc;
}

static int parse_qwen_windows(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int64_t window = 0, first = 28;
    bool sliding = false;
    int rc = 0;

    TRY(json_get_bool(config_json, "", "use_sliding_window", false, &sliding, err));
    if (sliding) {
        TRY(json_get_int64(config_json, "", "sliding_window", true, 1, CONFIG_MAX_POSITIONS,
                           &window, err));
        TRY(json_get_int64(config_json, "", "max_window_layers", false, 0, CONFIG_MAX_LAYERS,
                           &first, err));
    }
    for (int64_t i = first; i < c->layers && window > 0; i++)
        family_set_window(c, i, window);
    TRY(family_get_windows(config_json, window, c, err));
out:
    return rc;
}

static int parse_qwen2(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(parse_common(config_json, c, err));
    c->qkv_bias = true;
    TRY(parse_qwen_windows(config_json, c, err));
out:
    return rc;
}

static int parse_qwen3(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    c->head_dim = 128;
    TRY(parse_common(config_json, c, err));
    c->qk_norm = QK_NORM_SHARED;
    TRY(json_get_bool(config_json, "", "attention_bias", false, &c->qkv_bias, err));
    c->out_bias = c->qkv_bias;
    TRY(parse_qwen_windows(config_json, c, err));
out:
    return rc;
}

static int parse_phi3(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(parse_mistral(config_json, c, err));
    TRY(family_get_dropouts(config_json, "embd_pdrop", "resid_pdrop", NULL, c, err));
out:
    return rc;
}

#define LAYER "layers.{i}."

static const struct name_map names[] = {
    FAMILY_LLAMA_NAMES,
    FAMILY_QK_NORMS(LAYER "self_attn."),
    {TENSOR_NORM2_W, LAYER "post_attention_layernorm.weight"},
    {TENSOR_UP_B, LAYER "mlp.gate_proj.bias", 0, 2},
    {TENSOR_UP_B, LAYER "mlp.up_proj.bias", 1, 2},
    {TENSOR_DOWN_B, LAYER "mlp.down_proj.bias"},
    {.name = NULL},
};

static const struct name_map phi3_names[] = {
    {TENSOR_EMBED, "embed_tokens.weight"},
    {TENSOR_NORM1_W, LAYER "input_layernorm.weight"},
    {TENSOR_QKV_W, LAYER "self_attn.qkv_proj.weight"},
    {TENSOR_OUT_W, LAYER "self_attn.o_proj.weight"},
    {TENSOR_NORM2_W, LAYER "post_attention_layernorm.weight"},
    {TENSOR_UP_W, LAYER "mlp.gate_up_proj.weight"},
    {TENSOR_DOWN_W, LAYER "mlp.down_proj.weight"},
    {TENSOR_FINAL_NORM_W, "norm.weight"},
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {.name = NULL},
};

const struct family family_llama = {
    .model_type = "llama",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse_llama,
};

const struct family family_mistral = {
    .model_type = "mistral",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse_mistral,
};

const struct family family_qwen2 = {
    .model_type = "qwen2",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse_qwen2,
};

const struct family family_qwen3 = {
    .model_type = "qwen3",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse_qwen3,
};

/* PEFT has no default here: attention, as in the other families. */
static const char *const phi3_lora_targets[] = {"qkv_proj", NULL};

const struct family family_phi3 = {
    .model_type = "phi3",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = phi3_names,
    .lora_targets = phi3_lora_targets,
    .parse = parse_phi3,
};
