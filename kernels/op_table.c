#include "kernels/op_table.h"

#include <assert.h>

static const char *const NAMES[OP_COUNT] = {
    [OP_EMBED_FWD] = "embed_fwd",
    [OP_EMBED_BWD] = "embed_bwd",
    [OP_NORM_FWD] = "norm_fwd",
    [OP_NORM_BWD] = "norm_bwd",
    [OP_LINEAR_FWD] = "linear_fwd",
    [OP_LINEAR_BWD_DATA] = "linear_bwd_data",
    [OP_LINEAR_BWD_WEIGHT] = "linear_bwd_weight",
    [OP_ACT_FWD] = "act_fwd",
    [OP_ACT_BWD] = "act_bwd",
    [OP_ROPE] = "rope",
    [OP_ATTN_FWD] = "attn_fwd",
    [OP_ATTN_BWD] = "attn_bwd",
    [OP_DROPOUT_FWD] = "dropout_fwd",
    [OP_DROPOUT_BWD] = "dropout_bwd",
    [OP_LOSS] = "loss",
    [OP_ADD] = "add",
    [OP_SUMSQ] = "sumsq",
    [OP_CLIP] = "clip",
    [OP_ADAMW] = "adamw",
    [OP_CAST] = "cast",
    [OP_ROUND8] = "round8",
};

const char *op_name(enum op op)
{
    assert((unsigned)op < OP_COUNT);
    return NAMES[op];
}

struct linear_args linear_bias_below(const struct linear_args *a)
{
    assert(a->act_x != ACT_NONE);
    return (struct linear_args){
        .N = a->N,
        .I = 1, /* there is no product */
        .O = a->I,
        .ldy = a->ldx,
        .dy = a->dx,
        .dw_accum = a->dw_accum,
        .dbias = a->dbias_x,
        .narrow = a->narrow,
        .workspace = a->workspace,
    };
}
