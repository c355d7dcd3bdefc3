/* The three tables: every op of kernels/op_table.h bound to one compute type. */
#include "kernels/cuda/device_cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/state.h"
#include "kernels/dropout.h"

/* Launches go to the current device; several devices may share a thread. */
static cudaStream_t enter(struct stream *s)
{
    cudaSetDevice(s->state->index);
    return s->handle;
}

static bool rows16(const void *p, int64_t ld)
{
    return ((uintptr_t)p & 15) == 0 && ld % 8 == 0;
}

/* The tensor-core kernels read 16-bit elements, 16 bytes at a time. */
static bool attn_mma_fits(struct stream *s, enum dtype real, const struct attn_args *a)
{
    return s->state->capability >= 80 && real != DT_F32 && a->D % 8 == 0 && a->D <= 256 &&
           rows16(a->q, a->ldq) && rows16(a->k, a->ldk) && rows16(a->v, a->ldv) &&
           rows16(a->o, a->ldo);
}

/* Those of Hopper draw one block of random numbers for eight neighbouring keys, and know no rounded
 * position biases. */
static bool attn_hopper_fits(struct stream *s, enum dtype real, const struct attn_args *a)
{
    return attn_mma_fits(s, real, a) && s->state->capability == 90 && a->alibi_scale == 0 &&
           (a->dropout.p == 0 ||
            (a->S % DROPOUT_GROUP == 0 && a->dropout.first % DROPOUT_GROUP == 0));
}

static int attn_fwd(struct stream *s, enum dtype real, const struct attn_args *a)
{
    if (a->D > 256)
        return ERR_UNSUPPORTED;
    if (attn_hopper_fits(s, real, a))
        return launch_attn_fwd_hopper(enter(s), real, a);
    if (attn_mma_fits(s, real, a))
        return launch_attn_fwd_mma(enter(s), real, a);
    return launch_attn_fwd_plain(enter(s), real, a);
}

static int attn_bwd(struct stream *s, enum dtype real, const struct attn_args *a)
{
    if (a->D > 256 || a->T != a->S)
        return ERR_UNSUPPORTED;
    bool fits = attn_mma_fits(s, real, a) && rows16(a->dout, a->ldo) && rows16(a->dq, a->ldq) &&
                rows16(a->dk, a->ldk) && rows16(a->dv, a->ldv);
    if (fits && attn_hopper_fits(s, real, a))
        return launch_attn_bwd_hopper(enter(s), real, a);
    if (fits)
        return launch_attn_bwd_mma(enter(s), real, a);
    return launch_attn_bwd_plain(enter(s), real, a);
}

static size_t larger(size_t x, size_t y)
{
    return x > y ? x : y;
}

static size_t round8_workspace(const struct round8_args *a)
{
    return a->quant.format == QUANT_NONE ? 0 : (size_t)(a->N * a->C) * dtype_size(DT_BF16);
}

static size_t workspace(enum op op, enum dtype real, const void *args)
{
    switch (op) {
    case OP_EMBED_BWD:
        return workspace_embed_bwd(args);
    case OP_NORM_BWD:
        return workspace_norm_bwd(args);
    case OP_LINEAR_FWD:
    case OP_LINEAR_BWD_DATA:
    case OP_LINEAR_BWD_WEIGHT:
        return linear_workspace(op, real, args);
    case OP_ROUND8:
        return round8_workspace(args);
    case OP_ATTN_BWD:
        return larger(larger(workspace_attn_bwd_plain(args), workspace_attn_bwd_mma(args)),
                      workspace_attn_bwd_hopper(args));
    default:
        return 0;
    }
}

/* One function a type for each op that depends on the type; T is the table's suffix. */
#define BIND(T, DTYPE)                                                                             \
    static int embed_fwd_##T(struct stream *s, const struct embed_args *a)                         \
    {                                                                                              \
        return launch_embed_fwd(enter(s), DTYPE, a);                                               \
    }                                                                                              \
    static int embed_bwd_##T(struct stream *s, const struct embed_args *a)                         \
    {                                                                                              \
        return launch_embed_bwd(enter(s), DTYPE, a);                                               \
    }                                                                                              \
    static int norm_fwd_##T(struct stream *s, const struct norm_args *a)                           \
    {                                                                                              \
        return launch_norm_fwd(enter(s), DTYPE, a);                                                \
    }                                                                                              \
    static int norm_bwd_##T(struct stream *s, const struct norm_args *a)                           \
    {                                                                                              \
        return launch_norm_bwd(enter(s), DTYPE, a);                                                \
    }                                                                                              \
    static int linear_fwd_##T(struct stream *s, const struct linear_args *a)                       \
    {                                                                                              \
        enter(s);                                                                                  \
        return linear_fwd(s, DTYPE, a);                                                            \
    }                                                                                              \
    static int linear_bwd_data_##T(struct stream *s, const struct linear_args *a)                  \
    {                                                                                              \
        enter(s);                                                                                  \
        return linear_bwd_data(s, DTYPE, a);                                                       \
    }                                                                                              \
    static int linear_bwd_weight_##T(struct stream *s, const struct linear_args *a)                \
    {                                                                                              \
        enter(s);                                                                                  \
        return linear_bwd_weight(s, DTYPE, a);                                                     \
    }                                                                                              \
    static int act_fwd_##T(struct stream *s, const struct act_args *a)                             \
    {                                                                                              \
        return launch_act_fwd(enter(s), DTYPE, a);                                                 \
    }                                                                                              \
    static int act_bwd_##T(struct stream *s, const struct act_args *a)                             \
    {                                                                                              \
        return launch_act_bwd(enter(s), DTYPE, a);                                                 \
    }                                                                                              \
    static int rope_##T(struct stream *s, const struct rope_args *a)                               \
    {                                                                                              \
        return launch_rope(enter(s), DTYPE, a);                                                    \
    }                                                                                              \
    static int attn_fwd_##T(struct stream *s, const struct attn_args *a)                           \
    {                                                                                              \
        return attn_fwd(s, DTYPE, a);                                                              \
    }                                                                                              \
    static int attn_bwd_##T(struct stream *s, const struct attn_args *a)                           \
    {                                                                                              \
        return attn_bwd(s, DTYPE, a);                                                              \
    }                                                                                              \
    static int dropout_fwd_##T(struct stream *s, const struct dropout_args *a)                     \
    {                                                                                              \
        return launch_dropout_fwd(enter(s), DTYPE, a);                                             \
    }                                                                                              \
    static int dropout_bwd_##T(struct stream *s, const struct dropout_args *a)                     \
    {                                                                                              \
        return launch_dropout_bwd(enter(s), DTYPE, a);                                             \
    }                                                                                              \
    static int loss_##T(struct stream *s, const struct loss_args *a)                               \
    {                                                                                              \
        return launch_loss(enter(s), DTYPE, a);                                                    \
    }                                                                                              \
    static int sumsq_##T(struct stream *s, const struct sumsq_args *a)                             \
    {                                                                                              \
        return launch_sumsq(enter(s), DTYPE, a);                                                   \
    }                                                                                              \
    static int adamw_##T(struct stream *s, const struct adamw_args *a)                             \
    {                                                                                              \
        return launch_adamw(enter(s), DTYPE, a);                                                   \
    }                                                                                              \
    static size_t workspace_##T(enum op op, const void *args)                                      \
    {                                                                                              \
        return workspace(op, DTYPE, args);                                                         \
    }

BIND(f32, DT_F32)
BIND(bf16, DT_BF16)
BIND(f16, DT_F16)

static int cuda_add(struct stream *s, const struct add_args *a)
{
    return launch_add(enter(s), a);
}

static int cuda_clip(struct stream *s, const struct clip_args *a)
{
    return launch_clip(enter(s), a);
}

static int cuda_cast(struct stream *s, const struct cast_args *a)
{
    return launch_cast(enter(s), a);
}

static int round8_bf16(struct stream *s, const struct round8_args *a)
{
    struct round8_args plain = *a;
    int rc = 0;

    if (s->state->capability < 89)
        return ERR_UNSUPPORTED;
    if (a->quant.format != QUANT_NONE) {
        rc = launch_quant_decode(enter(s), DT_BF16, &a->quant, a->x, a->N * a->C, a->workspace);
        plain.x = a->workspace;
    }
    return rc ? rc : launch_round8(enter(s), &plain);
}

static int round8_none(struct stream *s, const struct round8_args *a)
{
    return ERR_UNSUPPORTED;
}

#define TABLE(T, DTYPE, ROUND8)                                                                    \
    {                                                                                              \
        .name = "cuda-" #T, .compute = DTYPE, .grad = DT_F32, .stat = DT_F32, .master = DT_F32,    \
        .embed_fwd = embed_fwd_##T, .embed_bwd = embed_bwd_##T, .norm_fwd = norm_fwd_##T,          \
        .norm_bwd = norm_bwd_##T, .linear_fwd = linear_fwd_##T,                                    \
        .linear_bwd_data = linear_bwd_data_##T, .linear_bwd_weight = linear_bwd_weight_##T,        \
        .act_fwd = act_fwd_##T, .act_bwd = act_bwd_##T, .rope = rope_##T,                          \
        .attn_fwd = attn_fwd_##T, .attn_bwd = attn_bwd_##T, .dropout_fwd = dropout_fwd_##T,        \
        .dropout_bwd = dropout_bwd_##T, .loss = loss_##T, .add = cuda_add, .sumsq = sumsq_##T,     \
        .clip = cuda_clip, .adamw = adamw_##T, .cast = cuda_cast, .round8 = ROUND8,                \
        .workspace = workspace_##T,                                                                \
    }

const struct op_table cuda_f32 = TABLE(f32, DT_F32, round8_none);
const struct op_table cuda_bf16 = TABLE(bf16, DT_BF16, round8_bf16);
const struct op_table cuda_f16 = TABLE(f16, DT_F16, round8_none);
