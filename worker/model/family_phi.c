/*
 * Phi-1, 1.5 and 2 (Gunasekar et al., "Textbooks are all you need", 2023). Attention and MLP in
 * parallel behind one layer norm, rope on part of each head, biases everywhere, the head's too.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse(const json_t *j, struct decoder_config *c, struct err *err)
{
    bool qk_norm = false;
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = true;
    c->qkv_bias = c->out_bias = c->mlp_bias = c->head_bias = true;
    c->act = ACT_GELU_TANH;
    c->residual = RESIDUAL_PARALLEL_1NORM;
    TRY(family_get_sizes(j, &family_usual_sizes, c, err));
    TRY(json_get_double(j, "", "layer_norm_eps", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "hidden_act", &c->act, err));
    TRY(json_get_bool(j, "", "qk_layernorm", false, &qk_norm, err));
    if (qk_norm)
        TRY(family_refuse("qk_layernorm", "layer norms on queries and keys", err));
    TRY(family_get_dropouts(j, "embd_pdrop", "resid_pdrop", "attention_dropout", c, err));
    TRY(family_get_rope(j, 0.5, c, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

#define LAYER "layers.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "embed_tokens.weight"},
    FAMILY_PAIR(TENSOR_NORM1, LAYER "input_layernorm"),
    FAMILY_QKV_PROJ(LAYER "self_attn."),
    FAMILY_PAIR(TENSOR_OUT, LAYER "self_attn.dense"),
    FAMILY_PAIR(TENSOR_UP, LAYER "mlp.fc1"),
    FAMILY_PAIR(TENSOR_DOWN, LAYER "mlp.fc2"),
    FAMILY_PAIR(TENSOR_FINAL_NORM, "final_layernorm"),
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {TENSOR_HEAD_B, "lm_head.bias", .bare = true},
    {.name = NULL},
};

static const char *const lora_targets[] = {"q_proj", "v_proj", "fc1", "fc2", NULL};

const struct family family_phi = {
    .model_type = "phi",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = names,
    .lora_targets = lora_targets,
    .parse = parse,
};
