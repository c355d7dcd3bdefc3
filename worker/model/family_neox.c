/*
 * GPT-NeoX and Pythia (Black et al., "GPT-NeoX-20B", 2022; Biderman et al., "Pythia", 2023).
 * Attention and MLP in parallel, each behind a layer norm of its own; rope on a quarter of each
 * head; q, k and v in one matrix, head by head.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool parallel = true, bias = true;
    double fraction = 0.25;
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = true;
    c->mlp_bias = true;
    c->act = ACT_GELU_ERF;
    TRY(family_get_sizes(j, &family_usual_sizes, c, err));
    TRY(json_get_double(j, "", "layer_norm_eps", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "hidden_act", &c->act, err));
    TRY(json_get_bool(j, "", "use_parallel_residual", false, &parallel, err));
    c->residual = parallel ? RESIDUAL_PARALLEL_2NORM : RESIDUAL_SEQUENTIAL;
    TRY(json_get_bool(j, "", "attention_bias", false, &bias, err));
    c->qkv_bias = c->out_bias = bias;
    TRY(family_get_dropouts(j, NULL, "hidden_dropout", "attention_dropout", c, err));
    c->embed_dropout = c->hidden_dropout;
    TRY(json_get_double(j, "", "rotary_pct", false, 0, 1, &fraction, err));
    TRY(family_get_rope(j, fraction, c, err));
    TRY(json_get_double(j, "", "rotary_emb_base", false, 1, 1e30, &c->rope.base, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

#define LAYER "layers.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "embed_in.weight"},
    FAMILY_PAIR(TENSOR_NORM1, LAYER "input_layernorm"),
    FAMILY_GROUPED_QKV(LAYER "attention."),
    FAMILY_PAIR(TENSOR_OUT, LAYER "attention.dense"),
    FAMILY_PAIR(TENSOR_NORM2, LAYER "post_attention_layernorm"),
    FAMILY_PAIR(TENSOR_UP, LAYER "mlp.dense_h_to_4h"),
    FAMILY_PAIR(TENSOR_DOWN, LAYER "mlp.dense_4h_to_h"),
    FAMILY_PAIR(TENSOR_FINAL_NORM, "final_layer_norm"),
    {TENSOR_HEAD_W, "embed_out.weight", .bare = true},
    {.name = NULL},
};

static const char *const prefixes[] = {"gpt_neox.", "", NULL};
/* Causal masks and rope's frequencies that older versions saved. */
static const char *const ignored[] = {"layers.*.attention.bias", "layers.*.attention.masked_bias",
                                      "layers.*.attention.rotary_emb.inv_freq", NULL};

const struct family family_gpt_neox = {
    .model_type = "gpt_neox",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = family_lora_query_key_value,
    .parse = parse,
};
