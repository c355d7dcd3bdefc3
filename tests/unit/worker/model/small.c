#include "tests/unit/worker/model/small.h"

#include <stdio.h>

#include "core/alloc.h"

static void name_family(struct decoder_config *c, const char *family)
{
    snprintf(c->family, sizeof(c->family), "%s", family);
}

struct decoder_config small_opt(void)
{
    return (struct decoder_config){
        .family = "opt",
        .layers = 2,
        .hidden = 16,
        .heads = 4,
        .kv_heads = 4,
        .head_dim = 4,
        .ffn = 24,
        .vocab = 29,
        .max_positions = 12,
        .embed_dim = 16,
        .norm = NORM_LAYER,
        .norm_eps = 1e-5,
        .norm_bias = true,
        .norm_affine = true,
        .norm_place = NORM_PLACE_PRE,
        .final_norm = true,
        .position = POSITION_LEARNED,
        .position_offset = 2,
        .qkv_bias = true,
        .out_bias = true,
        .mlp_bias = true,
        .attn_scale = 0.5,
        .embed_scale = 1,
        .logit_scale = 1,
        .act = ACT_RELU,
        .tied = true,
        .bos_id = 2,
        .eos_id = 2,
        .pad_id = 1,
        .dtype = DT_F32,
    };
}

struct decoder_config small_gpt2(void)
{
    struct decoder_config c = small_opt();

    name_family(&c, "gpt2");
    c.act = ACT_GELU_TANH; /* smooth: differences see no corner */
    return c;
}

struct decoder_config small_llama(void)
{
    struct decoder_config c = small_opt();

    name_family(&c, "llama");
    c.norm = NORM_RMS;
    c.norm_bias = c.qkv_bias = c.out_bias = c.mlp_bias = false;
    c.position = POSITION_ROPE;
    c.rope = (struct rope_config){.style = ROPE_HALF, .dim = 4, .base = 10000};
    c.kv_heads = 2;
    c.act = ACT_SILU;
    c.gated = true;
    c.tied = false;
    c.head_bias = true;
    c.final_softcap = 5;
    c.logit_scale = 0.5;
    c.embed_scale = 2;
    c.window = xcalloc(2, sizeof(*c.window));
    c.window[1] = 3;
    return c;
}

struct decoder_config small_partial_rope(void)
{
    struct decoder_config c = small_llama();

    c.rope.style = ROPE_INTERLEAVED;
    c.rope.dim = 2;
    return c;
}

struct decoder_config small_post_norm(void)
{
    struct decoder_config c = small_gpt2();

    name_family(&c, "opt");
    c.norm_place = NORM_PLACE_POST;
    c.final_norm = false;
    c.embed_dim = 8;
    return c;
}

struct decoder_config small_qwen3(void)
{
    struct decoder_config c = small_llama();

    name_family(&c, "qwen3");
    c.qk_norm = QK_NORM_SHARED;
    return c;
}

struct decoder_config small_command_r(void)
{
    struct decoder_config c = small_llama();

    name_family(&c, "cohere");
    c.norm = NORM_LAYER;
    c.qk_norm = QK_NORM_HEADS;
    c.residual = RESIDUAL_PARALLEL_1NORM;
    return c;
}

struct decoder_config small_sandwich(void)
{
    struct decoder_config c = small_llama();

    name_family(&c, "gemma2");
    c.norm = NORM_RMS_PLUS_ONE;
    c.norm_place = NORM_PLACE_SANDWICH;
    c.act = ACT_GELU_TANH;
    c.score_softcap = 2;
    return c;
}

struct decoder_config small_parallel_2norm(void)
{
    struct decoder_config c = small_partial_rope();

    name_family(&c, "gpt_neox");
    c.residual = RESIDUAL_PARALLEL_2NORM;
    c.norm = NORM_LAYER;
    c.norm_bias = c.mlp_bias = true;
    c.gated = false;
    c.act = ACT_GELU_ERF;
    return c;
}

struct decoder_config small_parallel_1norm(void)
{
    struct decoder_config c = small_parallel_2norm();

    name_family(&c, "cohere");
    c.residual = RESIDUAL_PARALLEL_1NORM;
    c.gated = true;
    return c;
}

struct decoder_config small_bloom(void)
{
    struct decoder_config c = small_opt();

    name_family(&c, "bloom");
    c.position = POSITION_ALIBI;
    c.embed_norm = true;
    c.heads = c.kv_heads = 3;
    c.act = ACT_GELU_TANH;
    return c;
}

struct decoder_config small_stream_norm(void)
{
    struct decoder_config c = small_bloom();

    c.norm_place = NORM_PLACE_STREAM;
    return c;
}

const small_config small_configs[N_SMALL_CONFIGS] = {
    small_opt,       small_gpt2,     small_post_norm,      small_llama,
    small_qwen3,     small_sandwich, small_parallel_2norm, small_parallel_1norm,
    small_command_r, small_bloom,    small_stream_norm,    small_partial_rope,
};
