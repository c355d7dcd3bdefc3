/*
 * BLOOM (Scao et al., "BLOOM: A 176B-parameter open-access multilingual language model", 2022).
 * Pre-norm with biases, ALiBi for positions, a norm behind the embedding, tanh GELU, one table for
 * embedding and head; q, k and v in one matrix, head by head.
 */
#include <math.h>
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

/* A count under either of its names; the first is transformers' own. */
static int get_either(const json_t *j, const char *key, const char *other, int64_t max,
                      int64_t *out, struct err *err)
{
    const json_t *named = json_object_get(j, key);

    if (named == NULL || json_is_null(named))
        named = json_object_get(j, other);
    else
        other = key;
    return json_get_int64(j, "", named != NULL ? other : key, true, 1, max, out, err);
}

static int parse_sizes(const json_t *j, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(get_either(j, "n_layer", "num_hidden_layers", CONFIG_MAX_LAYERS, &c->layers, err));
    TRY(get_either(j, "hidden_size", "n_embed", CONFIG_MAX_WIDTH, &c->hidden, err));
    TRY(get_either(j, "n_head", "num_attention_heads", CONFIG_MAX_HEADS, &c->heads, err));
    TRY(json_get_int64(j, "", "vocab_size", true, 2, CONFIG_MAX_VOCAB, &c->vocab, err));
    c->max_positions = 2048; /* ALiBi has no limit; this is the length it was trained on */
    TRY(json_get_int64(j, "", "seq_length", false, 1, CONFIG_MAX_POSITIONS, &c->max_positions,
                       err));
    c->ffn = 4 * c->hidden;
    c->embed_dim = c->hidden;
    c->kv_heads = c->heads;
    TRY(family_head_dim(c, "hidden_size", err));
    c->attn_scale = 1 / sqrt((double)c->head_dim);
out:
    return rc;
}

static int parse(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool normed_residual = false;
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = c->embed_norm = true;
    c->qkv_bias = c->out_bias = c->mlp_bias = true;
    c->act = ACT_GELU_TANH;
    c->position = POSITION_ALIBI;
    c->tied = true;
    TRY(parse_sizes(j, c, err));
    TRY(json_get_double(j, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(json_get_bool(j, "", "tie_word_embeddings", false, &c->tied, err));
    TRY(json_get_bool(j, "", "apply_residual_connection_post_layernorm", false, &normed_residual,
                      err));
    if (normed_residual)
        TRY(family_refuse("apply_residual_connection_post_layernorm",
                          "a residual stream taken behind the norms", err));
    TRY(json_get_double(j, "", "hidden_dropout", false, 0, 1, &c->hidden_dropout, err));
    TRY(json_get_double(j, "", "attention_dropout", false, 0, 1, &c->attn_dropout, err));
    TRY(family_get_special_ids(j, c, err));
    TRY(family_get_dtype(j, &c->dtype, err));
out:
    return rc;
}

#define LAYER "h.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "word_embeddings.weight"},
    {TENSOR_EMBED_NORM_W, "word_embeddings_layernorm.weight"},
    {TENSOR_EMBED_NORM_B, "word_embeddings_layernorm.bias"},
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
static const char *const ignored[] = {NULL};

const struct family family_bloom = {
    .model_type = "bloom",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = family_lora_query_key_value,
    .parse = parse,
};
