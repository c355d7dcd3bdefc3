#include "tests/ops/harness_op.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

int op_call(const struct op_table *t, struct stream *s, enum op op, const void *args)
{
    switch (op) {
    case OP_EMBED_FWD:
        return t->embed_fwd(s, args);
    case OP_EMBED_BWD:
        return t->embed_bwd(s, args);
    case OP_NORM_FWD:
        return t->norm_fwd(s, args);
    case OP_NORM_BWD:
        return t->norm_bwd(s, args);
    case OP_LINEAR_FWD:
        return t->linear_fwd(s, args);
    case OP_LINEAR_BWD_DATA:
        return t->linear_bwd_data(s, args);
    case OP_LINEAR_BWD_WEIGHT:
        return t->linear_bwd_weight(s, args);
    case OP_ACT_FWD:
        return t->act_fwd(s, args);
    case OP_ACT_BWD:
        return t->act_bwd(s, args);
    case OP_ROPE:
        return t->rope(s, args);
    case OP_ATTN_FWD:
        return t->attn_fwd(s, args);
    case OP_ATTN_BWD:
        return t->attn_bwd(s, args);
    case OP_DROPOUT_FWD:
        return t->dropout_fwd(s, args);
    case OP_DROPOUT_BWD:
        return t->dropout_bwd(s, args);
    case OP_LOSS:
        return t->loss(s, args);
    case OP_ADD:
        return t->add(s, args);
    case OP_SUMSQ:
        return t->sumsq(s, args);
    case OP_CLIP:
        return t->clip(s, args);
    case OP_ADAMW:
        return t->adamw(s, args);
    case OP_CAST:
        return t->cast(s, args);
    case OP_ROUND8:
        return t->round8(s, args);
    case OP_COUNT:
        break;
    }
    abort();
}

void op_fill_types(enum op op, void *args, const struct op_table *t)
{
    struct adamw_args *a = args;
    if (op != OP_ADAMW || a->grad_type || a->master_type || a->moment_type || a->param_type)
        return;
    a->grad_type = t->grad;
    a->master_type = a->moment_type = t->master;
    a->param_type = t->compute;
}

int op_workspace_slot(enum op op)
{
    switch (op) {
    case OP_EMBED_BWD:
        return (int)offsetof(struct embed_args, workspace);
    case OP_NORM_FWD:
    case OP_NORM_BWD:
        return (int)offsetof(struct norm_args, workspace);
    case OP_LINEAR_FWD:
    case OP_LINEAR_BWD_DATA:
    case OP_LINEAR_BWD_WEIGHT:
        return (int)offsetof(struct linear_args, workspace);
    case OP_ATTN_FWD:
    case OP_ATTN_BWD:
        return (int)offsetof(struct attn_args, workspace);
    case OP_ROUND8:
        return (int)offsetof(struct round8_args, workspace);
    default:
        return NO_SLOT;
    }
}

double tensor_rms(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sqrt(sum / (double)n);
}

double tensor_error(const double *a, const double *b, int64_t n, double relative)
{
    double scale = tensor_rms(b, n), used = 0;
    if (!isfinite(scale))
        scale = 0;
    for (int64_t i = 0; i < n; i++) {
        double diff = a[i] == b[i] ? 0 : fabs(a[i] - b[i]);
        double u = diff == 0 ? 0 : diff / (relative * (fabs(b[i]) + scale));
        if (isnan(u))
            return INFINITY;
        used = fmax(used, u);
    }
    return used;
}
