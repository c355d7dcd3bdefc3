/*
 * One decoder, driven by flags: every family of decoder-only language models is a setting of struct
 * decoder_config, read from the model's config.json by its family (worker/model/family.h). Blocks,
 * weight shapes and costs follow from these flags alone; nothing above this folder asks which
 * family a model is of.
 */
#ifndef CASTOR_WORKER_MODEL_CONFIG_H
#define CASTOR_WORKER_MODEL_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/dtype.h"
#include "kernels/op_table.h"

/* Largest values that a config.json may ask for: beyond any known model, and small enough that no
 * product of them below overflows (a model's elements stay under 2^53). */
enum {
    CONFIG_MAX_LAYERS = 1024,
    CONFIG_MAX_WIDTH = 1 << 17, /* hidden, embed_dim, heads * head_dim */
    CONFIG_MAX_FFN = 1 << 20,
    CONFIG_MAX_HEADS = 4096,
    CONFIG_MAX_HEAD_DIM = 1024,
    CONFIG_MAX_VOCAB = 1 << 24,
    CONFIG_MAX_POSITIONS = 1 << 24,
};

enum norm_place {
    NORM_PLACE_PRE,      /* x + f(norm(x))        */
    NORM_PLACE_POST,     /* norm(x + f(x))        */
    NORM_PLACE_SANDWICH, /* x + norm(f(norm(x)))  */
    NORM_PLACE_STREAM,   /* norm(x) + f(norm(x)): the stream goes on behind the norm */
};
/* Norms on q and k, of the decoder's kind and without biases: none, one weight (head_dim) for all
 * heads, or one for each (heads, head_dim). */
enum qk_norm_kind { QK_NORM_NONE, QK_NORM_SHARED, QK_NORM_HEADS };
enum position_kind { POSITION_LEARNED, POSITION_ROPE, POSITION_ALIBI, POSITION_NONE };
enum residual_kind {
    RESIDUAL_SEQUENTIAL,     /* attention, then MLP on its sum          */
    RESIDUAL_PARALLEL_1NORM, /* x + attn(norm x) + mlp(the same norm x) */
    RESIDUAL_PARALLEL_2NORM, /* x + attn(norm1 x) + mlp(norm2 x)        */
};
enum rope_scaling {
    ROPE_SCALING_NONE,
    ROPE_SCALING_LINEAR,
    ROPE_SCALING_DYNAMIC,
    ROPE_SCALING_LLAMA3,
    ROPE_SCALING_YARN,
    ROPE_SCALING_LONG
};

struct rope_config {
    enum rope_style style;
    int64_t dim;             /* rotated dims of each head */
    double base, local_base; /* local: layers with a window (Gemma 3), 0 = as base */
    enum rope_scaling scaling;
    double factor, low_freq_factor, high_freq_factor; /* linear, llama3 */
    double beta_fast, beta_slow;                      /* yarn: the ramp */
    bool truncate;                                    /* yarn: ramp between whole dims */
    double attention_factor;                          /* yarn, longrope: on cos and sin; 0 = 1 */
    int64_t original_max_positions;                   /* that the unscaled model was trained on */
    double *long_factors, *short_factors;             /* owned, dim / 2 each, or NULL */
};

struct decoder_config {
    char family[32]; /* "opt": config.json's model_type */
    int64_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
    int64_t max_positions; /* longest sequence the positions allow */
    int64_t
        embed_dim; /* width of the embedding table; != hidden: projections in and out (OPT-350m) */

    enum norm_kind norm;
    double norm_eps;
    bool norm_bias, norm_affine;
    enum norm_place norm_place;
    bool final_norm, embed_norm;

    enum position_kind position;
    int64_t position_offset; /* learned: row = position + offset (OPT: 2) */
    struct rope_config rope;
    bool alibi_rounded; /* ALiBi rounded to bfloat16, times attn_scale: kernels/alibi.h (Falcon) */

    bool qkv_bias, out_bias, mlp_bias, head_bias;
    enum qk_norm_kind qk_norm; /* over head_dim on q and k before rope */
    double attn_scale;
    bool scale_by_layer;                 /* attn_scale / (layer + 1) */
    double score_softcap, final_softcap; /* 0 = none */
    double embed_scale, logit_scale;     /* 1        */
    int64_t *window;                     /* per layer, 0 = all; owned, NULL = none anywhere */

    enum act_kind act;
    bool gated;
    enum residual_kind residual;
    bool tied; /* head uses the embedding table */

    double embed_dropout, hidden_dropout, attn_dropout;
    int64_t bos_id, eos_id, pad_id; /* -1 = none */
    enum dtype dtype; /* what the weight files are said to hold ("dtype" or "torch_dtype") */
};

/* Parse MODEL_DIR/config.json: picks the family by model_type. ERR_UNSUPPORTED (reason
 * unsupported_architecture) for families and flags this build does not train, naming them. */
int decoder_config_load(const char *model_dir, struct decoder_config *out, struct err *err);
int decoder_config_parse(const json_t *config_json, struct decoder_config *out, struct err *err);
/* Write DIR/config.json for a model of MODEL_DIR's kind whose weights are in `dtype`. */
int decoder_config_export(const char *model_dir, const char *dir, enum dtype dtype,
                          struct err *err);
/* Flags and sizes as a whole: ranges, divisibility, and what the blocks of this build can run. */
int decoder_config_check(const struct decoder_config *c, struct err *err);
void decoder_config_fini(struct decoder_config *c);

#endif
