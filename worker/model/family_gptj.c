/*
 * GPT-J (Wang, Komatsuzaki, "GPT-J-6B", 2021). Attention and MLP in parallel behind one layer norm;
 * rope on the first dimensions of each head, in neighbouring pairs; biases in the MLP and the head
 * only.
 */
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse(const json_t *j, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    c->norm = NORM_LAYER;
    c->norm_eps = 1e-5;
    c->norm_affine = c->norm_bias = c->final_norm = true;
    c->mlp_bias = c->head_bias = true;
    c->act = ACT_GELU_TANH;
    c->residual = RESIDUAL_PARALLEL_1NORM;
    c->position = POSITION_ROPE;
    c->rope.style = ROPE_INTERLEAVED;
    c->rope.base = 10000;
    c->rope.dim = 64;
    TRY(family_get_sizes(j, &family_gpt_sizes, c, err));
    TRY(json_get_int64(j, "", "rotary_dim", false, 2, CONFIG_MAX_HEAD_DIM, &c->rope.dim, err));
    TRY(json_get_double(j, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "activation_function", &c->act, err));
    TRY(family_get_dropouts(j, "embd_pdrop", "resid_pdrop", "attn_pdrop", c, err));
    TRY(family_get_common(j, c, err));
out:
    return rc;
}

#define LAYER "h.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "wte.weight"},
    FAMILY_PAIR(TENSOR_NORM1, LAYER "ln_1"),
    FAMILY_QKV_PROJ(LAYER "attn."),
    {TENSOR_OUT_W, LAYER "attn.out_proj.weight"},
    FAMILY_PAIR(TENSOR_UP, LAYER "mlp.fc_in"),
    FAMILY_PAIR(TENSOR_DOWN, LAYER "mlp.fc_out"),
    FAMILY_PAIR(TENSOR_FINAL_NORM, "ln_f"),
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {TENSOR_HEAD_B, "lm_head.bias", .bare = true},
    {.name = NULL},
};

const struct family family_gptj = {
    .model_type = "gptj",
    .prefixes = family_transformer_prefixes,
    .ignored = family_gpt_masks,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse,
};
