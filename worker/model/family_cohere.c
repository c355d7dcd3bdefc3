/*
 * Cohere's Command R, the hub's model of PaLM's anatomy (Chowdhery et al., "PaLM: Scaling language
 * modeling with pathways", 2022): attention and a gated SiLU MLP in parallel behind one norm, no
 * biases anywhere, in norms neither, rope in neighbouring pairs, one table for embedding and head,
 * and with num_key_value_heads 1 PaLM's multi-query attention. Logits are scaled. Command R+ has
 * layer norms on queries and keys, of their own weights for each head.
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
    c->norm_affine = c->final_norm = true;
    c->act = ACT_SILU;
    c->gated = true;
    c->residual = RESIDUAL_PARALLEL_1NORM;
    c->tied = true;
    c->rope.style = ROPE_INTERLEAVED;
    c->rope.base = 500000; /* transformers' default since version 5; repositories name theirs */
    c->logit_scale = 0.0625;
    TRY(family_get_sizes(j, &family_usual_sizes, c, err));
    TRY(json_get_double(j, "", "layer_norm_eps", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "hidden_act", &c->act, err));
    TRY(json_get_double(j, "", "logit_scale", false, 1e-6, 1e6, &c->logit_scale, err));
    TRY(json_get_bool(j, "", "attention_bias", false, &c->qkv_bias, err));
    c->out_bias = c->qkv_bias;
    TRY(json_get_bool(j, "", "use_qk_norm", false, &qk_norm, err));
    c->qk_norm = qk_norm ? QK_NORM_HEADS : QK_NORM_NONE;
    TRY(family_get_dropouts(j, NULL, NULL, "attention_dropout", c, err));
    TRY(family_get_rope(j, 1, c, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

static const struct name_map names[] = {
    FAMILY_LLAMA_NAMES,
    FAMILY_QK_NORMS("layers.{i}.self_attn."),
    {.name = NULL},
};

const struct family family_cohere = {
    .model_type = "cohere",
    .prefixes = family_model_prefixes,
    .ignored = family_rope_buffers,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse,
};
