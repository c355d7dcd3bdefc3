/*
 * Falcon (Almazrouei et al., "The Falcon series of open language models", 2023). Attention and MLP
 * in parallel behind one layer norm (7B, 11B) or each behind its own (40B, 180B), rope, few
 * key-value heads, no biases, one table for embedding and head. The RW models are sequential, with
 * as many key-value heads as others, biases and, in rope's stead, ALiBi rounded to bfloat16.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static const struct size_keys size_keys = {
    .layers = "num_hidden_layers",
    .hidden = "hidden_size",
    .heads = "num_attention_heads",
    .ffn = "ffn_hidden_size",
    .positions = "max_position_embeddings",
    .four_wide = true,
};

/* Key-value heads, and how attention, MLP and their norms stand to each other. */
static int parse_layer(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool grouped = false, single = true, parallel = true;
    int64_t norms = 1;
    int rc = 0;

    TRY(json_get_bool(j, "", "new_decoder_architecture", false, &grouped, err));
    TRY(json_get_bool(j, "", "multi_query", false, &single, err));
    TRY(json_get_bool(j, "", "parallel_attn", false, &parallel, err));
    c->kv_heads = single && !grouped ? 1 : c->heads;
    if (grouped) {
        TRY(json_get_int64(j, "", "num_kv_heads", false, 1, CONFIG_MAX_HEADS, &c->kv_heads, err));
        norms = 2;
        TRY(json_get_int64(j, "", "num_ln_in_parallel_attn", false, 1, 2, &norms, err));
        parallel = true;
    }
    if (!parallel)
        c->residual = RESIDUAL_SEQUENTIAL;
    else
        c->residual = norms == 2 ? RESIDUAL_PARALLEL_2NORM : RESIDUAL_PARALLEL_1NORM;
out:
    return rc;
}

static int parse(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool bias = false, alibi = false;
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = true;
    c->act = ACT_GELU_ERF;
    c->tied = true;
    c->max_positions = 2048;
    TRY(family_get_sizes(j, &size_keys, c, err));
    TRY(parse_layer(j, c, err));
    TRY(json_get_bool(j, "", "bias", false, &bias, err));
    c->qkv_bias = c->out_bias = c->mlp_bias = bias;
    TRY(json_get_double(j, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "activation", &c->act, err));
    TRY(family_get_dropouts(j, NULL, "hidden_dropout", "attention_dropout", c, err));
    TRY(json_get_bool(j, "", "alibi", false, &alibi, err));
    c->alibi_rounded = alibi;
    if (alibi)
        c->position = POSITION_ALIBI;
    else
        TRY(family_get_rope(j, 1, c, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

#define LAYER "h.{i}."

/* With one key-value head, all of q, then k, then v is the grouped order too. */
#define SHARED                                                                                     \
    {TENSOR_EMBED, "word_embeddings.weight"}, FAMILY_GROUPED_QKV(LAYER "self_attention."),         \
        FAMILY_PAIR(TENSOR_OUT, LAYER "self_attention.dense"),                                     \
        FAMILY_PAIR(TENSOR_UP, LAYER "mlp.dense_h_to_4h"),                                         \
        FAMILY_PAIR(TENSOR_DOWN, LAYER "mlp.dense_4h_to_h"),                                       \
        FAMILY_PAIR(TENSOR_FINAL_NORM, "ln_f"),                                                    \
    {                                                                                              \
        TENSOR_HEAD_W, "lm_head.weight", .bare = true                                              \
    }

static const struct name_map names[] = {
    SHARED,
    FAMILY_PAIR(TENSOR_NORM1, LAYER "input_layernorm"),
    FAMILY_PAIR(TENSOR_NORM2, LAYER "post_attention_layernorm"),
    {.name = NULL},
};

static const struct name_map two_norms[] = {
    SHARED,
    FAMILY_PAIR(TENSOR_NORM1, LAYER "ln_attn"),
    FAMILY_PAIR(TENSOR_NORM2, LAYER "ln_mlp"),
    {.name = NULL},
};

static const struct name_map *choose_names(const struct decoder_config *c)
{
    return c->residual == RESIDUAL_PARALLEL_2NORM ? two_norms : names;
}

static const char *const ignored[] = {"h.*.self_attention.rotary_emb.inv_freq", NULL};

const struct family family_falcon = {
    .model_type = "falcon",
    .prefixes = family_transformer_prefixes,
    .ignored = ignored,
    .names = names,
    .choose_names = choose_names,
    .lora_targets = family_lora_query_key_value,
    .parse = parse,
};
