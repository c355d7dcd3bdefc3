/*
 * GPT-J (Wang, Komatsuzaki, "GPT-J-6B", 2021). Attention and MLP in parallel behind one layer norm;
 * rope on the first dimensions of each head, in neighbouring pairs; biases in the MLP and the head
 * only.
 */
#include <math.h>
#include <stddef.h>

#include "core/json.h"
#include "worker/model/family.h"

static int parse_sizes(const json_t *j, struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(json_get_int64(j, "", "n_layer", true, 1, CONFIG_MAX_LAYERS, &c->layers, err));
    TRY(json_get_int64(j, "", "n_embd", true, 1, CONFIG_MAX_WIDTH, &c->hidden, err));
    TRY(json_get_int64(j, "", "n_head", true, 1, CONFIG_MAX_HEADS, &c->heads, err));
    TRY(json_get_int64(j, "", "vocab_size", true, 2, CONFIG_MAX_VOCAB, &c->vocab, err));
    TRY(json_get_int64(j, "", "n_positions", true, 1, CONFIG_MAX_POSITIONS, &c->max_positions,
                       err));
    c->ffn = 4 * c->hidden;
    TRY(json_get_int64(j, "", "n_inner", false, 1, CONFIG_MAX_FFN, &c->ffn, err));
    c->rope.dim = 64;
    TRY(json_get_int64(j, "", "rotary_dim", false, 2, CONFIG_MAX_HEAD_DIM, &c->rope.dim, err));
    c->embed_dim = c->hidden;
    c->kv_heads = c->heads;
    TRY(family_head_dim(c, "n_embd", err));
    c->attn_scale = 1 / sqrt((double)c->head_dim);
out:
    return rc;
}

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
    TRY(parse_sizes(j, c, err));
    TRY(json_get_double(j, "", "layer_norm_epsilon", false, 0, 1, &c->norm_eps, err));
    TRY(family_get_act(j, "activation_function", &c->act, err));
    TRY(json_get_bool(j, "", "tie_word_embeddings", false, &c->tied, err));
    TRY(json_get_double(j, "", "embd_pdrop", false, 0, 1, &c->embed_dropout, err));
    TRY(json_get_double(j, "", "resid_pdrop", false, 0, 1, &c->hidden_dropout, err));
    TRY(json_get_double(j, "", "attn_pdrop", false, 0, 1, &c->attn_dropout, err));
    TRY(family_get_special_ids(j, c, err));
    TRY(family_get_dtype(j, &c->dtype, err));
out:
    return rc;
}

#define LAYER "h.{i}."

static const struct name_map names[] = {
    {TENSOR_EMBED, "wte.weight"},
    {TENSOR_NORM1_W, LAYER "ln_1.weight"},
    {TENSOR_NORM1_B, LAYER "ln_1.bias"},
    {TENSOR_QKV_W, LAYER "attn.q_proj.weight", 0, 3},
    {TENSOR_QKV_W, LAYER "attn.k_proj.weight", 1, 3},
    {TENSOR_QKV_W, LAYER "attn.v_proj.weight", 2, 3},
    {TENSOR_OUT_W, LAYER "attn.out_proj.weight"},
    {TENSOR_UP_W, LAYER "mlp.fc_in.weight"},
    {TENSOR_UP_B, LAYER "mlp.fc_in.bias"},
    {TENSOR_DOWN_W, LAYER "mlp.fc_out.weight"},
    {TENSOR_DOWN_B, LAYER "mlp.fc_out.bias"},
    {TENSOR_FINAL_NORM_W, "ln_f.weight"},
    {TENSOR_FINAL_NORM_B, "ln_f.bias"},
    {TENSOR_HEAD_W, "lm_head.weight", .bare = true},
    {TENSOR_HEAD_B, "lm_head.bias", .bare = true},
    {.name = NULL},
};

static const char *const prefixes[] = {"transformer.", "", NULL};
/* Causal masks that older versions saved. */
static const char *const ignored[] = {"h.*.attn.bias", "h.*.attn.masked_bias", NULL};

const struct family family_gptj = {
    .model_type = "gptj",
    .prefixes = prefixes,
    .ignored = ignored,
    .names = names,
    .lora_targets = family_lora_q_v,
    .parse = parse,
};
