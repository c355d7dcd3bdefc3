#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/json.h"
#include "worker/model/config.h"
#include "worker/model/model.h"

#define OPT_125M                                                                                   \
    "\"model_type\":\"opt\",\"num_hidden_layers\":12,\"hidden_size\":768,"                         \
    "\"num_attention_heads\":12,\"ffn_dim\":3072,\"vocab_size\":50272,"                            \
    "\"max_position_embeddings\":2048"

#define BLOOM "\"n_embed\":64,\"num_attention_heads\":4,\"n_layer\":2,\"vocab_size\":100"

#define GPT_SIZES "\"n_layer\":2,\"n_embd\":64,\"n_head\":4,\"vocab_size\":100,\"n_positions\":32"
#define GPT2      "\"model_type\":\"gpt2\"," GPT_SIZES

#define SIZES                                                                                      \
    "\"num_hidden_layers\":2,\"hidden_size\":64,\"intermediate_size\":96,"                         \
    "\"num_attention_heads\":4,\"vocab_size\":100,\"max_position_embeddings\":2048"

static int parse(const char *text, struct decoder_config *c, struct err *err)
{
    json_t *j = NULL;
    int rc;

    cr_assert_eq(json_parse_limited(text, strlen(text), 1 << 20, 16, &j, err), 0, "%s: %s", text,
                 err->msg);
    rc = decoder_config_parse(j, c, err);
    json_decref(j);
    return rc;
}

Test(config, opt_defaults)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(parse("{" OPT_125M "}", &c, &err), 0, "%s", err.msg);
    cr_assert_str_eq(c.family, "opt");
    cr_assert_eq(c.layers, 12);
    cr_assert_eq(c.head_dim, 64);
    cr_assert_eq(c.kv_heads, 12);
    cr_assert_eq(c.embed_dim, 768);
    cr_assert_eq(c.position_offset, 2);
    cr_assert_eq(c.norm_place, NORM_PLACE_PRE);
    cr_assert(c.final_norm && c.norm_affine && c.norm_bias && c.tied && !c.gated);
    cr_assert(c.qkv_bias && c.out_bias && c.mlp_bias && !c.head_bias);
    cr_assert_eq(c.act, ACT_RELU);
    cr_assert_float_eq(c.attn_scale, 0.125, 1e-15);
    cr_assert_float_eq(c.hidden_dropout, 0.1, 1e-15);
    cr_assert_eq(c.attn_dropout, 0);
    cr_assert_eq(c.dtype, DT_F32);
    cr_assert_eq(c.bos_id, -1);
    decoder_config_fini(&c);
}

Test(config, opt_flags)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(parse("{" OPT_125M ",\"do_layer_norm_before\":false,\"word_embed_proj_dim\":512,"
                       "\"dropout\":0.0,\"attention_dropout\":0.25,\"enable_bias\":false,"
                       "\"layer_norm_elementwise_affine\":false,\"tie_word_embeddings\":false,"
                       "\"activation_function\":\"gelu\",\"bos_token_id\":2,\"eos_token_id\":2,"
                       "\"pad_token_id\":1,\"torch_dtype\":\"float16\",\"layerdrop\":0.0,"
                       "\"prefix\":\"</s>\",\"use_cache\":true}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert_eq(c.norm_place, NORM_PLACE_POST);
    cr_assert(!c.final_norm && !c.norm_affine && !c.norm_bias && !c.tied);
    cr_assert(!c.qkv_bias && !c.out_bias && !c.mlp_bias);
    cr_assert_eq(c.embed_dim, 512);
    cr_assert_eq(c.act, ACT_GELU_ERF);
    cr_assert_eq(c.attn_dropout, 0.25);
    cr_assert_eq(c.hidden_dropout, 0);
    cr_assert_eq(c.eos_id, 2);
    cr_assert_eq(c.pad_id, 1);
    cr_assert_eq(c.dtype, DT_F16);
    decoder_config_fini(&c);

    cr_assert_eq(parse("{" OPT_125M ",\"dtype\":\"torch.bfloat16\",\"torch_dtype\":\"float16\","
                       "\"_remove_final_layer_norm\":true,\"eos_token_id\":null}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert_eq(c.dtype, DT_BF16);
    cr_assert(!c.final_norm);
    cr_assert_eq(c.eos_id, -1);
    decoder_config_fini(&c);
}

Test(config, gpt2)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(parse("{" GPT2 ",\"n_inner\":null,\"scale_attn_weights\":false}", &c, &err), 0,
                 "%s", err.msg);
    cr_assert_eq(c.ffn, 256);
    cr_assert(c.tied && c.qkv_bias && c.final_norm);
    cr_assert_eq(c.attn_scale, 1);
    cr_assert_float_eq(c.embed_dropout, 0.1, 1e-15);
    cr_assert_eq(c.position_offset, 0);
    decoder_config_fini(&c);
}

/* Llama 3.1's members, and the same as transformers 5 writes them. */
Test(config, llama_rope_old_and_new)
{
    const char *const texts[] = {
        "{\"model_type\":\"llama\"," SIZES
        ",\"rope_theta\":500000.0,\"rope_scaling\":{\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"rope_type\":\"llama3\","
        "\"original_max_position_embeddings\":512},\"num_key_value_heads\":2,"
        "\"eos_token_id\":[7,8,9],\"head_dim\":null}",
        "{\"model_type\":\"llama\"," SIZES
        ",\"rope_parameters\":{\"rope_theta\":500000.0,\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"rope_type\":\"llama3\","
        "\"original_max_position_embeddings\":512},\"num_key_value_heads\":2,"
        "\"eos_token_id\":7,\"head_dim\":16}",
    };

    for (int i = 0; i < 2; i++) {
        struct decoder_config c;
        struct err err = {0};

        cr_assert_eq(parse(texts[i], &c, &err), 0, "%s", err.msg);
        cr_assert_eq(c.rope.base, 500000);
        cr_assert_eq(c.rope.dim, 16);
        cr_assert_eq(c.rope.scaling, ROPE_SCALING_LLAMA3);
        cr_assert_eq(c.rope.factor, 8);
        cr_assert_eq(c.rope.original_max_positions, 512);
        cr_assert_eq(c.kv_heads, 2);
        cr_assert_eq(c.eos_id, 7);
        cr_assert(!c.tied && !c.qkv_bias && c.gated && c.norm == NORM_RMS);
        cr_assert_null(c.window);
        decoder_config_fini(&c);
    }
}

Test(config, members_of_older_repositories)
{
    struct decoder_config c;
    struct err err = {0};

    /* as bigscience/bloom-560m writes them */
    cr_assert_eq(parse("{\"model_type\":\"bloom\"," BLOOM ",\"seq_length\":512,\"n_inner\":null,"
                       "\"offset_alibi\":100,\"hidden_dropout\":0.0}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert(c.hidden == 64 && c.heads == 4 && c.layers == 2 && c.ffn == 256);
    cr_assert(c.max_positions == 512 && c.position == POSITION_ALIBI && c.embed_norm && c.tied);
    cr_assert_eq(c.norm_place, NORM_PLACE_PRE);
    decoder_config_fini(&c);
    cr_assert_eq(parse("{\"model_type\":\"bloom\"," BLOOM
                       ",\"apply_residual_connection_post_layernorm\":true}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert_eq(c.norm_place, NORM_PLACE_STREAM);
    decoder_config_fini(&c);

    /* EleutherAI/pythia-70m */
    cr_assert_eq(parse("{\"model_type\":\"gpt_neox\"," SIZES
                       ",\"rotary_pct\":0.5,\"rotary_emb_base\":5000}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert(c.rope.dim == 8 && c.rope.base == 5000 && !c.tied && c.qkv_bias);
    cr_assert_eq(c.residual, RESIDUAL_PARALLEL_2NORM);
    decoder_config_fini(&c);

    /* google/gemma-2b */
    cr_assert_eq(parse("{\"model_type\":\"gemma\"," SIZES
                       ",\"hidden_act\":\"gelu\",\"hidden_activation\":null,\"head_dim\":32}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert(c.act == ACT_GELU_TANH && c.gated && c.embed_scale == 8 && c.head_dim == 32);
    decoder_config_fini(&c);

    /* google/gemma-2-2b has no layer_types */
    cr_assert_eq(parse("{\"model_type\":\"gemma2\"," SIZES ",\"sliding_window\":9}", &c, &err), 0,
                 "%s", err.msg);
    cr_assert(c.window[0] == 9 && c.window[1] == 0 && c.norm_place == NORM_PLACE_SANDWICH);
    decoder_config_fini(&c);
}

/* google/gemma-3-4b-it: what is not said is as in transformers. */
Test(config, text_part_of_a_model_with_images)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(parse("{\"model_type\":\"gemma3\",\"eos_token_id\":[1,106],"
                       "\"torch_dtype\":\"bfloat16\",\"vision_config\":{\"hidden_size\":9},"
                       "\"text_config\":{\"hidden_size\":2560,\"intermediate_size\":10240,"
                       "\"model_type\":\"gemma3_text\",\"num_hidden_layers\":34,"
                       "\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"},"
                       "\"sliding_window\":1024}}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert_str_eq(c.family, "gemma3_text");
    cr_assert(c.layers == 34 && c.hidden == 2560 && c.ffn == 10240 && c.vocab == 262208);
    cr_assert(c.heads == 8 && c.kv_heads == 4 && c.head_dim == 256 && c.max_positions == 131072);
    cr_assert(c.qk_norm && c.tied && c.norm_place == NORM_PLACE_SANDWICH && c.dtype == DT_BF16);
    cr_assert(c.rope.base == 1e6 && c.rope.local_base == 1e4 && c.rope.factor == 8);
    cr_assert_eq(c.rope.scaling, ROPE_SCALING_LINEAR);
    for (int i = 0; i < 34; i++)
        cr_assert_eq(c.window[i], i % 6 == 5 ? 0 : 1024, "layer %d", i);
    cr_assert_eq(c.attn_scale, 1. / 16);
    cr_assert_eq(c.eos_id, 1);
    decoder_config_fini(&c);
}

/* microsoft/Phi-3-mini-128k-instruct and Phi-4-mini, Qwen2.5 with yarn, Falcon 40B. */
Test(config, extended_lengths)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(parse("{\"model_type\":\"phi3\"," SIZES
                       ",\"original_max_position_embeddings\":512,\"partial_rotary_factor\":0.75,"
                       "\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1,1,1,1,1],"
                       "\"long_factor\":[1,2,3,4,5,6]}}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert(c.rope.scaling == ROPE_SCALING_LONG && c.rope.dim == 12 && c.rope.factor == 4);
    cr_assert_float_eq(c.rope.attention_factor, sqrt(1 + log(4) / log(512)), 1e-12);
    cr_assert(c.rope.long_factors[5] == 6 && c.rope.short_factors[5] == 1);
    decoder_config_fini(&c);

    cr_assert_eq(parse("{\"model_type\":\"qwen2\"," SIZES ",\"rope_scaling\":{\"factor\":4.0,"
                       "\"original_max_position_embeddings\":512,\"type\":\"yarn\"}}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert(c.rope.scaling == ROPE_SCALING_YARN && c.rope.truncate && c.rope.beta_fast == 32);
    cr_assert_float_eq(c.rope.attention_factor, 1 + 0.1 * log(4), 1e-12);
    decoder_config_fini(&c);

    cr_assert_eq(parse("{\"model_type\":\"falcon\"," SIZES
                       ",\"new_decoder_architecture\":true,\"num_kv_heads\":2}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert(c.residual == RESIDUAL_PARALLEL_2NORM && c.kv_heads == 2);
    decoder_config_fini(&c);
}

/* As tiiuae/falcon-rw-1b. */
Test(config, falcon_alibi)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(parse("{\"model_type\":\"falcon\"," SIZES ",\"alibi\":true,\"bias\":true,"
                       "\"multi_query\":false,\"parallel_attn\":false}",
                       &c, &err),
                 0, "%s", err.msg);
    cr_assert(c.position == POSITION_ALIBI && c.alibi_rounded && c.kv_heads == c.heads);
    cr_assert(c.residual == RESIDUAL_SEQUENTIAL && c.qkv_bias && c.out_bias && c.mlp_bias);
    decoder_config_fini(&c);
}

Test(config, windows)
{
    const char *const texts[] = {
        "{\"model_type\":\"mistral\"," SIZES ",\"sliding_window\":9}",
        "{\"model_type\":\"mistral\"," SIZES ",\"sliding_window\":null}",
        "{\"model_type\":\"qwen2\"," SIZES ",\"sliding_window\":9}",
        "{\"model_type\":\"qwen2\"," SIZES
        ",\"sliding_window\":9,\"use_sliding_window\":true,\"max_window_layers\":1}",
        "{\"model_type\":\"qwen2\"," SIZES ",\"sliding_window\":9,\"use_sliding_window\":true,"
        "\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
    };
    const int64_t want[][2] = {{9, 9}, {0, 0}, {0, 0}, {0, 9}, {0, 9}};

    for (int i = 0; i < 5; i++) {
        struct decoder_config c;
        struct err err = {0};

        cr_assert_eq(parse(texts[i], &c, &err), 0, "%s", err.msg);
        for (int l = 0; l < 2; l++)
            cr_assert_eq(c.window != NULL ? c.window[l] : 0, want[i][l], "case %d layer %d", i, l);
        cr_assert_eq(c.qkv_bias, i >= 2);
        decoder_config_fini(&c);
    }
}

/* A later member would be a duplicate, so each bad value replaces the good one. */
static const struct {
    const char *text;
    enum err_code code;
} bad[] = {
    {"[]", ERR_INVALID},
    {"{}", ERR_INVALID},
    {"{\"model_type\":7}", ERR_INVALID},
    {"{\"model_type\":\"t5\"}", ERR_UNSUPPORTED},
    {"{\"model_type\":\"opt\"}", ERR_INVALID},
    {"{" OPT_125M ",\"layerdrop\":0.1}", ERR_UNSUPPORTED},
    {"{" OPT_125M ",\"quantization_config\":{\"bits\":4}}", ERR_UNSUPPORTED},
    {"{" OPT_125M ",\"activation_function\":\"tanh\"}", ERR_UNSUPPORTED},
    {"{" OPT_125M ",\"activation_function\":3}", ERR_INVALID},
    {"{" OPT_125M ",\"dtype\":\"int8\"}", ERR_UNSUPPORTED},
    {"{" OPT_125M ",\"dropout\":1.0}", ERR_INVALID},
    {"{" OPT_125M ",\"dropout\":-0.1}", ERR_INVALID},
    {"{" OPT_125M ",\"attention_dropout\":1.5}", ERR_INVALID},
    {"{" OPT_125M ",\"word_embed_proj_dim\":0}", ERR_INVALID},
    {"{" OPT_125M ",\"word_embed_proj_dim\":1e9}", ERR_INVALID},
    {"{" OPT_125M ",\"pad_token_id\":50272}", ERR_INVALID},
    {"{" OPT_125M ",\"eos_token_id\":\"2\"}", ERR_INVALID},
    {"{" OPT_125M ",\"eos_token_id\":[-2]}", ERR_INVALID},
    {"{" OPT_125M ",\"eos_token_id\":[50272]}", ERR_INVALID},
    {"{" GPT2 ",\"add_cross_attention\":true}", ERR_UNSUPPORTED},
    {"{" GPT2 ",\"n_inner\":0}", ERR_INVALID},
    {"{\"model_type\":\"llama\"," SIZES ",\"hidden_act\":\"mish\"}", ERR_UNSUPPORTED},
    {"{\"model_type\":\"llama\"," SIZES ",\"num_key_value_heads\":3}", ERR_INVALID},
    {"{\"model_type\":\"llama\"," SIZES ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0.5}}",
     ERR_INVALID},
    {"{\"model_type\":\"llama\"," SIZES
     ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"beta_fast\":1,\"beta_slow\":2}}",
     ERR_INVALID},
    {"{\"model_type\":\"llama\"," SIZES
     ",\"rope_theta\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}",
     ERR_INVALID},
    {"{\"model_type\":\"llama\"," SIZES ",\"rope_scaling\":{\"rope_type\":\"new\"}}",
     ERR_UNSUPPORTED},
    {"{\"model_type\":\"llama\"," SIZES ",\"rope_scaling\":{\"type\":\"linear\"}}", ERR_INVALID},
    {"{\"model_type\":\"qwen2\"," SIZES ",\"layer_types\":[\"full_attention\"]}", ERR_INVALID},
    {"{\"model_type\":\"qwen2\"," SIZES
     ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
     ERR_UNSUPPORTED}, /* sliding without a window */
    {"{\"model_type\":\"qwen2\"," SIZES ",\"use_sliding_window\":true}", ERR_INVALID},
    {"{\"model_type\":\"phi3\"," SIZES ",\"rope_scaling\":{\"type\":\"longrope\"}}", ERR_INVALID},
    {"{\"model_type\":\"phi3\"," SIZES
     ",\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1],\"long_factor\":[1]}}",
     ERR_INVALID}, /* eight pairs */
    {"{\"model_type\":\"phi3\"," SIZES
     ",\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1,1,1,1,1,1,1],"
     "\"long_factor\":[1,1,1,1,1,1,1,0]}}",
     ERR_INVALID},
    {"{\"model_type\":\"gemma3_text\",\"rope_parameters\":{\"full_attention\":{},"
     "\"sliding_attention\":{\"rope_type\":\"linear\",\"factor\":2}}}",
     ERR_UNSUPPORTED},
    {"{\"model_type\":\"gemma3\",\"text_config\":{},\"quantization_config\":{}}", ERR_UNSUPPORTED},
    {"{\"model_type\":\"gemma3\",\"text_config\":[]}", ERR_UNSUPPORTED},
    {"{\"model_type\":\"phi\"," SIZES ",\"qk_layernorm\":true}", ERR_UNSUPPORTED},
    {"{\"model_type\":\"gpt_neox\"," SIZES ",\"rotary_pct\":0.01}", ERR_INVALID},
    {"{\"model_type\":\"gemma2\"," SIZES ",\"use_bidirectional_attention\":true}", ERR_UNSUPPORTED},
    {"{\"model_type\":\"gptj\"," GPT_SIZES ",\"rotary_dim\":18}", ERR_INVALID},
    {"{\"model_type\":\"gptj\"," GPT_SIZES ",\"rotary_dim\":7}", ERR_INVALID},
    {"{\"model_type\":\"bloom\",\"vocab_size\":100}", ERR_INVALID},
    {"{" OPT_125M ",\"bos_token_id\":-2}", ERR_INVALID},
    {"{" OPT_125M ",\"tie_word_embeddings\":1}", ERR_INVALID},
};

Test(config, bad_members)
{
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct decoder_config c = {.layers = -77};
        struct err err = {0};

        cr_assert_eq(parse(bad[i].text, &c, &err), (int)bad[i].code, "%s gave %d: %s", bad[i].text,
                     err.code, err.msg);
        cr_assert_eq(c.layers, -77, "%s: the result was touched", bad[i].text);
        cr_assert_gt(strlen(err.msg), 0);
    }
}

Test(config, bad_sizes)
{
    const char *const keys[] = {"num_hidden_layers", "hidden_size", "num_attention_heads",
                                "ffn_dim",           "vocab_size",  "max_position_embeddings"};
    const char *const values[] = {
        "0", "-1", "1.5", "\"12\"", "null", "9223372036854775807", "1e300", "4294967296", "[]"};

    for (size_t k = 0; k < 6; k++) {
        for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
            struct decoder_config c;
            struct err err = {0};
            char text[512];
            int n = snprintf(text, sizeof(text), "{\"model_type\":\"opt\"");

            for (size_t i = 0; i < 6; i++)
                n += snprintf(text + n, sizeof(text) - (size_t)n, ",\"%s\":%s", keys[i],
                              i == k ? values[v] : "64");
            snprintf(text + n, sizeof(text) - (size_t)n, "}");
            cr_assert_eq(parse(text, &c, &err), ERR_INVALID, "%s gave %d", text, err.code);
        }
    }
}

Test(config, heads_must_divide)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(parse("{\"model_type\":\"opt\",\"num_hidden_layers\":1,\"hidden_size\":10,"
                       "\"num_attention_heads\":4,\"ffn_dim\":8,\"vocab_size\":8,"
                       "\"max_position_embeddings\":8}",
                       &c, &err),
                 ERR_INVALID);
    cr_assert_str_eq(err.param, "hidden_size");
}

/* What the flags can say and the blocks cannot run is refused, whoever sets it. */
Test(config, flags_not_built_are_refused)
{
    struct decoder_config good, c;
    struct err err = {0};

    cr_assert_eq(parse("{" OPT_125M "}", &good, &err), 0);
    cr_assert_eq(decoder_config_check(&good, &err), 0);
    for (int i = 0; i < 5; i++) {
        c = good;
        err = (struct err){0};
        c.position = i >= 4 ? POSITION_ROPE : c.position;
        c.rope = (struct rope_config){.dim = 64, .base = 1e4};
        if (i == 0)
            c.norm_place = NORM_PLACE_SANDWICH; /* with layer norms and their biases */
        if (i == 1 || i == 2)
            c.norm_place = NORM_PLACE_POST;
        if (i == 1)
            c.residual = RESIDUAL_PARALLEL_1NORM;
        else if (i == 2)
            c.residual = RESIDUAL_PARALLEL_2NORM;
        if (i == 3) {
            c.embed_norm = true;
            c.embed_dim = 512;
        }
        if (i == 4)
            c.rope.local_base = 1e4;
        cr_assert_eq(decoder_config_check(&c, &err), i < 4 ? ERR_UNSUPPORTED : 0, "case %d: %s", i,
                     err.msg);
        if (i < 4)
            cr_assert_str_eq(err.reason, "unsupported_architecture");
    }
}

Test(config, missing_folder)
{
    struct decoder_config c;
    struct err err = {0};

    cr_assert_eq(decoder_config_load("/nonexistent", &c, &err), ERR_NOT_FOUND);
    cr_assert_not_null(strstr(err.msg, "/nonexistent/config.json"));
}
