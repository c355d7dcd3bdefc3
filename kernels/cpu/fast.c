#include "kernels/cpu/fast.h"

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fp8.h"
#include "kernels/cpu/quant.h"

static size_t workspace(enum op op, const void *args)
{
    if (op == OP_LINEAR_FWD || op == OP_LINEAR_BWD_DATA || op == OP_LINEAR_BWD_WEIGHT)
        return cpu_quant_workspace(op, DT_F32, args) + cpu_fp8_workspace(op, DT_F32, args);
    if (op == OP_ROUND8)
        return cpu_round8_workspace(DT_F32, args);
    return op == OP_ATTN_BWD ? fast_attn_bwd_workspace(args) : 0;
}

static int round8(struct stream *s, const struct round8_args *a)
{
    return cpu_round8(DT_F32, fast_act_fwd, fast_act_bwd, s, a);
}

const struct op_table cpu_fast_f32 = {
    .name = "cpu-f32",
    .compute = DT_F32,
    .grad = DT_F32,
    .stat = DT_F32,
    .master = DT_F32,
    .embed_fwd = fast_embed_fwd,
    .embed_bwd = fast_embed_bwd,
    .norm_fwd = fast_norm_fwd,
    .norm_bwd = fast_norm_bwd,
    .linear_fwd = fast_linear_fwd,
    .linear_bwd_data = fast_linear_bwd_data,
    .linear_bwd_weight = fast_linear_bwd_weight,
    .act_fwd = fast_act_fwd,
    .act_bwd = fast_act_bwd,
    .rope = fast_rope,
    .attn_fwd = fast_attn_fwd,
    .attn_bwd = fast_attn_bwd,
    .dropout_fwd = fast_dropout_fwd,
    .dropout_bwd = fast_dropout_bwd,
    .loss = fast_loss,
    .add = fast_add,
    .sumsq = fast_sumsq,
    .clip = cpu_clip,
    .adamw = fast_adamw,
    .cast = fast_cast,
    .round8 = round8,
    .workspace = workspace,
};
