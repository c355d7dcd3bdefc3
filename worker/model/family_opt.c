/*
 * OPT (Zhang et al., "OPT: Open pre-trained transformer language models", 2022). Pre-norm, learned
 * positions from row 2, biases, ReLU, one table for embedding and head. The 350m model is the odd
 * one: norms behind each sum, no final norm, and an embedding narrower than the model.
 */
#include <math.h>
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

/* Not in config.json: the module of LayerNorm's default. */
static const double opt_norm_eps = 1e-5;

static int parse_sizes(const json_t *j, struct decoder_config *c, struct err *err)
{
    int64_t width = CONFIG_MAX_WIDTH;
    int rc = 0;

    TRY(json_get_int64(j, "", "num_hidden_layers", true, 1, CONFIG_MAX_LAYERS, &c->layers, err));
    TRY(json_get_int64(j, "", "hidden_size", true, 1, width, &c->hidden, err));
    TRY(json_get_int64(j, "", "num_attention_heads", true, 1, CONFIG_MAX_HEADS, &c->heads, err));
    TRY(json_get_int64(j, "", "ffn_dim", true, 1, CONFIG_MAX_FFN, &c->ffn, err));
    TRY(json_get_int64(j, "", "vocab_size", true, 2, CONFIG_MAX_VOCAB, &c->vocab, err));
    TRY(json_get_int64(j, "", "max_position_embeddings", true, 1, CONFIG_MAX_POSITIONS,
                       &c->max_positions, err));
    c->embed_dim = c->hidden;
    TRY(json_get_int64(j, "", "word_embed_proj_dim", false, 1, width, &c->embed_dim, err));
    if (c->hidden % c->heads != 0) {
        rc = err_set(err, ERR_INVALID, "hidden_size must be a multiple of num_attention_heads");
        rc = err_set_param(err, rc, "hidden_size");
        goto out;
    }
    c->kv_heads = c->heads;
    c->head_dim = c->hidden / c->heads;
    c->attn_scale = 1 / sqrt((double)c->head_dim);
out:
    return rc;
}

static int parse_flags(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool bias = true, norm_first = true, remove_final = false;
    int rc = 0;

    c->act = ACT_RELU;
    c->norm_affine = true;
    c->tied = true;
    TRY(family_get_act(j, "activation_function", &c->act, err));
    TRY(json_get_bool(j, "", "enable_bias", false, &bias, err));
    TRY(json_get_bool(j, "", "do_layer_norm_before", false, &norm_first, err));
    TRY(json_get_bool(j, "", "_remove_final_layer_norm", false, &remove_final, err));
    TRY(json_get_bool(j, "", "layer_norm_elementwise_affine", false, &c->norm_affine, err));
    TRY(json_get_bool(j, "", "tie_word_embeddings", false, &c->tied, err));
    c->qkv_bias = c->out_bias = c->mlp_bias = bias;
    c->norm_bias = c->norm_affine;
    c->norm_place = norm_first ? NORM_PLACE_PRE : NORM_PLACE_POST;
    c->final_norm = norm_first && !remove_final;
out:
    return rc;
}

static int parse_dropout(const json_t *j, struct decoder_config *c, struct err *err)
{
    double layerdrop = 0;
    int rc = 0;

    c->hidden_dropout = 0.1;
    TRY(json_get_double(j, "", "dropout", false, 0, 1, &c->hidden_dropout, err));
    TRY(json_get_double(j, "", "attention_dropout", false, 0, 1, &c->attn_dropout, err));
    TRY(json_get_double(j, "", "layerdrop", false, 0, 1, &layerdrop, err));
    if (layerdrop != 0) {
        rc = err_set(err, ERR_UNSUPPORTED,
                     "layerdrop is %g; dropping whole layers is not supported, set it to 0",
                     layerdrop);
        rc = err_set_param(err, rc, "layerdrop");
        rc = err_set_reason(err, rc, "unsupported_architecture");
    }
out:
    return rc;
}

static int parse(const json_t *config_json, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = opt_norm_eps;
    c->position = POSITION_LEARNED;
    c->position_offset = 2;
    c->residual = RESIDUAL_SEQUENTIAL;
    TRY(parse_sizes(config_json, c, err));
    TRY(parse_flags(config_json, c, err));
    TRY(parse_dropout(config_json, c, err));
    TRY(family_get_special_ids(config_json, c, err));
    TRY(family_get_dtype(config_json, &c->dtype, err));
out:
    return rc;
}

#define LAYER "decoder.layers.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "decoder.embed_tokens.weight"},
    {TENSOR_POSITIONS, "decoder.embed_positions.weight"},
    {TENSOR_PROJECT_IN, "decoder.project_in.weight"},
    {TENSOR_NORM1_W, LAYER "self_attn_layer_norm.weight"},
    {TENSOR_NORM1_B, LAYER "self_attn_layer_norm.bias"},
    {TENSOR_QKV_W, LAYER "self_attn.q_proj.weight", 0, 3},
    {TENSOR_QKV_W, LAYER "self_attn.k_proj.weight", 1, 3},
    {TENSOR_QKV_W, LAYER "self_attn.v_proj.weight", 2, 3},
    {TENSOR_QKV_B, LAYER "self_attn.q_proj.bias", 0, 3},
    {TENSOR_QKV_B, LAYER "self_attn.k_proj.bias", 1, 3},
    {TENSOR_QKV_B, LAYER "self_attn.v_proj.bias", 2, 3},
    {TENSOR_OUT_W, LAYER "self_attn.out_proj.weight"},
    {TENSOR_OUT_B, LAYER "self_attn.out_proj.bias"},
    {TENSOR_NORM2_W, LAYER "final_layer_norm.weight"}, /* the layer's, in front of its MLP */
    {TENSOR_NORM2_B, LAYER "final_layer_norm.bias"},
    {TENSOR_UP_W, LAYER "fc1.weight"},
    {TENSOR_UP_B, LAYER "fc1.bias"},
    {TENSOR_DOWN_W, LAYER "fc2.weight"},
    {TENSOR_DOWN_B, LAYER "fc2.bias"},
    {TENSOR_FINAL_NORM_W, "decoder.final_layer_norm.weight"},
    {TENSOR_FINAL_NORM_B, "decoder.final_layer_norm.bias"},
    {TENSOR_PROJECT_OUT, "decoder.project_out.weight"},
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {.name = NULL},
};

static const char *const prefixes[] = {"model.", "", NULL};
static const char *const ignored[] = {"decoder.version", NULL};

const struct family family_opt = {
    .model_type = "opt",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse,
};
