/*
 * Falcon 7B and 11B (Almazrouei et al., "The Falcon series of open language models", 2023).
 * Attention and MLP in parallel behind one layer norm, rope, few key-value heads, no biases, one
 * table for embedding and head. The 40B and 180B models have two norms in each layer and the RW
 * models ALiBi in another rounding; both are refused.
 */
#include <math.h>
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse_sizes(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool grouped = false, single = true;
    int64_t norms = 2;
    int rc = 0;

    TRY(json_get_int64(j, "", "num_hidden_layers", true, 1, CONFIG_MAX_LAYERS, &c->layers, err));
    TRY(json_get_int64(j, "", "hidden_size", true, 1, CONFIG_MAX_WIDTH, &c->hidden, err));
    TRY(json_get_int64(j, "", "num_attention_heads", true, 1, CONFIG_MAX_HEADS, &c->heads, err));
    TRY(json_get_int64(j, "", "vocab_size", true, 2, CONFIG_MAX_VOCAB, &c->vocab, err));
    c->max_positions = 2048;
    TRY(json_get_int64(j, "", "max_position_embeddings", false, 1, CONFIG_MAX_POSITIONS,
                       &c->max_positions, err));
    c->ffn = 4 * c->hidden;
    TRY(json_get_int64(j, "", "ffn_hidden_size", false, 1, CONFIG_MAX_FFN, &c->ffn, err));
    c->embed_dim = c->hidden;
    TRY(json_get_bool(j, "", "new_decoder_architecture", false, &grouped, err));
    TRY(json_get_bool(j, "", "multi_query", false, &single, err));
    c->kv_heads = single ? 1 : c->heads;
    if (grouped) {
        TRY(json_get_int64(j, "", "num_kv_heads", true, 1, CONFIG_MAX_HEADS, &c->kv_heads, err));
        TRY(json_get_int64(j, "", "num_ln_in_parallel_attn", false, 1, 2, &norms, err));
        if (norms != 1)
            TRY(family_refuse("num_ln_in_parallel_attn", "two norms in front of each layer", err));
    }
    TRY(family_head_dim(c, "hidden_size", err));
    c->attn_scale = 1 / sqrt((double)c->head_dim);
out:
    return rc;
}

static int parse(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool alibi = false, parallel = true, bias = false;
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = true;
    c->act = ACT_GELU_ERF;
    c->tied = true;
    TRY(parse_sizes(j, c, err));
    TRY(json_get_bool(j, "", "alibi", false, &alibi, err));
    if (alibi)
        TRY(family_refuse("alibi", "ALiBi rounded to bfloat16", err));
    TRY(json_get_bool(j, "", "parallel_attn", false, &parallel, err));
    c->residual = parallel ? RESIDUAL_PARALLEL_1NORM : RESIDUAL_SEQUENTIAL;
    TRY(json_get_bool(j, "", "bias", false, &bias, err));
    c->qkv_bias = c->out_bias = c->mlp_bias = bias;
    TRY(json_get_double(j, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "activation", &c->act, err));
    TRY(json_get_bool(j, "", "tie_word_embeddings", false, &c->tied, err));
    TRY(json_get_double(j, "", "hidden_dropout", false, 0, 1, &c->hidden_dropout, err));
    TRY(json_get_double(j, "", "attention_dropout", false, 0, 1, &c->attn_dropout, err));
    TRY(family_get_rope(j, 1, c, err));
    TRY(family_get_special_ids(j, c, err));
    TRY(family_get_dtype(j, &c->dtype, err));
out:
    return rc;
}

#define LAYER "h.{i}."

/* With one key-value head, all of q, then k, then v is the grouped order too. */
static const struct name_map names[] = {
    {TENSOR_EMBED, "word_embeddings.weight"},
    {TENSOR_NORM1_W, LAYER "input_layernorm.weight"},
    {TENSOR_NORM1_B, LAYER "input_layernorm.bias"},
    {TENSOR_QKV_W, LAYER "self_attention.query_key_value.weight", .layout = FILE_GROUPED_QKV},
    {TENSOR_QKV_B, LAYER "self_attention.query_key_value.bias", .layout = FILE_GROUPED_QKV},
    {TENSOR_OUT_W, LAYER "self_attention.dense.weight"},
    {TENSOR_OUT_B, LAYER "self_attention.dense.bias"},
    {TENSOR_NORM2_W, LAYER "post_attention_layernorm.weight"},
    {TENSOR_NORM2_B, LAYER "post_attention_layernorm.bias"},
    {TENSOR_UP_W, LAYER "mlp.dense_h_to_4h.weight"},
    {TENSOR_UP_B, LAYER "mlp.dense_h_to_4h.bias"},
    {TENSOR_DOWN_W, LAYER "mlp.dense_4h_to_h.weight"},
    {TENSOR_DOWN_B, LAYER "mlp.dense_4h_to_h.bias"},
    {TENSOR_FINAL_NORM_W, "ln_f.weight"},
    {TENSOR_FINAL_NORM_B, "ln_f.bias"},
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {.name = NULL},
};

static const char *const prefixes[] = {"transformer.", "", NULL};
static const char *const ignored[] = {"h.*.self_attention.rotary_emb.inv_freq", NULL};

const struct family family_falcon = {
    .model_type = "falcon",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = family_lora_query_key_value,
    .parse = parse,
};
