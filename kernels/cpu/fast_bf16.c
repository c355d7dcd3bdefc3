#include "kernels/cpu/bf16.h"
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/fp8.h"
#include "kernels/cpu/quant.h"

FAST_CLONES void bf16_load(float *restrict to, const bf16 *restrict from, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

FAST_CLONES void bf16_store(bf16 *restrict to, const float *restrict from, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
        uint32_t nan = (bits >> 16 & 0x8000u) | 0x7fc0u;
        to[i] = (bf16)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
    }
}

void bf16_load_rows(struct stream *s, float *to, int64_t ld_to, const bf16 *from, int64_t ld_from,
                    int64_t rows, int64_t cols)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (rows * cols > FAST_SERIAL)
    for (int64_t r = 0; r < rows; r++)
        bf16_load(to + r * ld_to, from + r * ld_from, cols);
}

void bf16_store_rows(struct stream *s, bf16 *to, int64_t ld_to, const float *from, int64_t ld_from,
                     int64_t rows, int64_t cols)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (rows * cols > FAST_SERIAL)
    for (int64_t r = 0; r < rows; r++)
        bf16_store(to + r * ld_to, from + r * ld_from, cols);
}

static size_t workspace(enum op op, const void *args)
{
    switch (op) {
    case OP_EMBED_BWD:
        return bf16_embed_bwd_workspace(args);
    case OP_NORM_FWD:
    case OP_NORM_BWD:
        return bf16_norm_workspace(args);
    case OP_ATTN_FWD:
        return bf16_attn_fwd_workspace(args);
    case OP_ATTN_BWD:
        return bf16_attn_bwd_workspace(args);
    case OP_LINEAR_FWD:
    case OP_LINEAR_BWD_DATA:
    case OP_LINEAR_BWD_WEIGHT:
        return cpu_quant_workspace(op, DT_BF16, args) + cpu_fp8_workspace(op, DT_BF16, args);
    case OP_ROUND8:
        return cpu_round8_workspace(DT_BF16, args);
    default:
        return 0;
    }
}

static int round8(struct stream *s, const struct round8_args *a)
{
    return cpu_round8(DT_BF16, bf16_act_fwd, bf16_act_bwd, s, a);
}

const struct op_table cpu_fast_bf16 = {
    .name = "cpu-bf16",
    .compute = DT_BF16,
    .grad = DT_F32,
    .stat = DT_F32,
    .master = DT_F32,
    .embed_fwd = bf16_embed_fwd,
    .embed_bwd = bf16_embed_bwd,
    .norm_fwd = bf16_norm_fwd,
    .norm_bwd = bf16_norm_bwd,
    .linear_fwd = bf16_linear_fwd,
    .linear_bwd_data = bf16_linear_bwd_data,
    .linear_bwd_weight = bf16_linear_bwd_weight,
    .act_fwd = bf16_act_fwd,
    .act_bwd = bf16_act_bwd,
    .rope = bf16_rope,
    .attn_fwd = bf16_attn_fwd,
    .attn_bwd = bf16_attn_bwd,
    .dropout_fwd = bf16_dropout_fwd,
    .dropout_bwd = bf16_dropout_bwd,
    .loss = bf16_loss,
    .add = fast_add,
    .sumsq = bf16_sumsq,
    .clip = cpu_clip,
    .adamw = fast_adamw,
    .cast = fast_cast,
    .round8 = round8,
    .workspace = workspace,
};
