/*
 * OPT (Zhang et al., "OPT: Open pre-trained transformer language models", 2022). Pre-norm, learned
 * positions from row 2, biases, ReLU, one table for embedding and head. The 350m model is the odd
 * one: norms behind each sum, no final norm, and an embedding narrower than the model.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

/* Not in config.json: the module of LayerNorm's default. */
static const double opt_norm_eps = 1e-5;

static const struct size_keys size_keys = {
    .layers = "num_hidden_layers",
    .hidden = "hidden_size",
    .heads = "num_attention_heads",
    .ffn = "ffn_dim",
    .positions = "max_position_embeddings",
};

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
    TRY(family_get_dropouts(j, NULL, "dropout", "attention_dropout", c, err));
    TRY(json_get_double(j, "", "layerdrop", false, 0, 1, &layerdrop, err));
    if (layerdrop != 0)
        TRY(family_refuse("layerdrop", "dropping whole layers", err));
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
    TRY(family_get_sizes(config_json, &size_keys, c, err));
    TRY(json_get_int64(config_json, "", "word_embed_proj_dim", false, 1, CONFIG_MAX_WIDTH,
                       &c->embed_dim, err));
    TRY(parse_flags(config_json, c, err));
    TRY(parse_dropout(config_json, c, err));
    TRY(family_get_common(config_json, c, err));
out:
    return rc;
}

#define LAYER "decoder.layers.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "decoder.embed_tokens.weight"},
    {TENSOR_POSITIONS, "decoder.embed_positions.weight"},
    {TENSOR_PROJECT_IN, "decoder.project_in.weight"},
    FAMILY_PAIR(TENSOR_NORM1, LAYER "self_attn_layer_norm"),
    FAMILY_QKV_PROJ(LAYER "self_attn."),
    FAMILY_PAIR(TENSOR_OUT, LAYER "self_attn.out_proj"),
    {TENSOR_NORM2_W, LAYER "final_layer_norm.weight"}, /* the layer's, in front of its MLP */
    {TENSOR_NORM2_B, LAYER "final_layer_norm.bias"},
    FAMILY_PAIR(TENSOR_UP, LAYER "fc1"),
    FAMILY_PAIR(TENSOR_DOWN, LAYER "fc2"),
    FAMILY_PAIR(TENSOR_FINAL_NORM, "decoder.final_layer_norm"),
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
