/*
 * BLOOM (Scao et al., "BLOOM: A 176B-parameter open-access multilingual language model", 2022).
 * Pre-norm with biases, ALiBi for positions, a norm behind the embedding, tanh GELU, one table for
 * embedding and head; q, k and v in one matrix, head by head.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

/* transformers' own names, and those that the first repositories use. */
static struct size_keys find_keys(const json_t *j)
{
    struct size_keys keys = {"n_layer", "hidden_size", "n_head", .positions = "seq_length",
                             .four_wide = true};

    if (json_is_integer(json_object_get(j, "num_hidden_layers")))
        keys.layers = "num_hidden_layers";
    if (json_is_integer(json_object_get(j, "n_embed")))
        keys.hidden = "n_embed";
    if (json_is_integer(json_object_get(j, "num_attention_heads")))
        keys.heads = "num_attention_heads";
    return keys;
}

static int parse(const json_t *j, struct decoder_config *c, struct err *err)
{
    struct size_keys keys = find_keys(j);
    bool normed_residual = false;
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = c->embed_norm = true;
    c->qkv_bias = c->out_bias = c->mlp_bias = true;
    c->act = ACT_GELU_TANH;
    c->position = POSITION_ALIBI;
    c->tied = true;
    c->max_positions = 2048; /* ALiBi has no limit; this is the length it was trained on */
    TRY(family_get_sizes(j, &keys, c, err));
    TRY(json_get_double(j, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(json_get_bool(j, "", "apply_residual_connection_post_layernorm", false, &normed_residual,
                      err));
    if (normed_residual)
        c->norm_place = NORM_PLACE_STREAM;
    TRY(family_get_dropouts(j, NULL, "hidden_dropout", "attention_dropout", c, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

#define LAYER "h.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "word_embeddings.weight"},
    FAMILY_PAIR(TENSOR_EMBED_NORM, "word_embeddings_layernorm"),
    FAMILY_PAIR(TENSOR_NORM1, LAYER "input_layernorm"),
    FAMILY_GROUPED_QKV(LAYER "self_attention."),
    FAMILY_PAIR(TENSOR_OUT, LAYER "self_attention.dense"),
    FAMILY_PAIR(TENSOR_NORM2, LAYER "post_attention_layernorm"),
    FAMILY_PAIR(TENSOR_UP, LAYER "mlp.dense_h_to_4h"),
    FAMILY_PAIR(TENSOR_DOWN, LAYER "mlp.dense_4h_to_h"),
    FAMILY_PAIR(TENSOR_FINAL_NORM, "ln_f"),
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {.name = NULL},
};

static const char *const ignored[] = {NULL};

const struct family family_bloom = {
    .model_type = "bloom",
    .prefixes = family_transformer_prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = family_lora_query_key_value,
    .parse = parse,
};
