/* Reference ops, included once for each `real`: gradient norm, clipping, AdamW; and the table. */

static int sumsq(struct stream *s, const struct sumsq_args *a)
{
    const real *x = a->x;

    for (int64_t first = 0, block = 0; first < a->n; first += SUMSQ_BLOCK, block++) {
        int64_t end = first + SUMSQ_BLOCK < a->n ? first + SUMSQ_BLOCK : a->n;
        double sum = 0;
        for (int64_t i = first; i < end; i++)
            sum += (double)x[i] * (double)x[i];
        a->partial[block] = sum;
    }
    return 0;
}

static int adamw(struct stream *s, const struct adamw_args *a)
{
    const real *grad = a->grad;
    real *master = a->master, *m = a->m, *v = a->v, *param = a->param;

    if (!a->clip->finite)
        return 0;
    if (a->grad_type != TABLE_DTYPE || a->master_type != TABLE_DTYPE ||
        a->moment_type != TABLE_DTYPE || a->param_type != TABLE_DTYPE)
        return adamw_mixed(a);
    struct adamw_real_consts decayed = adamw_real_consts(a, true);
    struct adamw_real_consts plain = adamw_real_consts(a, false);
    for (int64_t i = 0; i < a->n; i++) {
        adamw_real(i < a->n_decay ? &decayed : &plain, grad[i], &master[i], &m[i], &v[i]);
        if (param)
            param[i] = master[i];
    }
    return 0;
}

static size_t workspace(enum op op, const void *args)
{
    const struct attn_args *attn = args;

    if (op == OP_ATTN_FWD)
        return (size_t)attn->S * sizeof(double);
    if (op == OP_ATTN_BWD)
        return 2 * (size_t)attn->D * sizeof(double);
    if (op == OP_LINEAR_FWD || op == OP_LINEAR_BWD_DATA || op == OP_LINEAR_BWD_WEIGHT)
        return cpu_quant_workspace(op, TABLE_DTYPE, args) +
               cpu_fp8_workspace(op, TABLE_DTYPE, args);
    if (op == OP_ROUND8)
        return cpu_round8_workspace(TABLE_DTYPE, args);
    return 0;
}

static int round8(struct stream *s, const struct round8_args *a)
{
    return cpu_round8(TABLE_DTYPE, act_fwd, act_bwd, s, a);
}

const struct op_table TABLE = {
    .name = TABLE_NAME,
    .compute = TABLE_DTYPE,
    .grad = TABLE_DTYPE,
    .stat = TABLE_DTYPE,
    .master = TABLE_DTYPE,
    .embed_fwd = embed_fwd,
    .embed_bwd = embed_bwd,
    .norm_fwd = norm_fwd,
    .norm_bwd = norm_bwd,
    .linear_fwd = linear_fwd,
    .linear_bwd_data = linear_bwd_data,
    .linear_bwd_weight = linear_bwd_weight,
    .act_fwd = act_fwd,
    .act_bwd = act_bwd,
    .rope = rope,
    .attn_fwd = attn_fwd,
    .attn_bwd = attn_bwd,
    .dropout_fwd = dropout_fwd,
    .dropout_bwd = dropout_bwd,
    .loss = loss,
    .add = add,
    .sumsq = sumsq,
    .clip = cpu_clip,
    .adamw = adamw,
    .cast = cpu_cast,
    .round8 = round8,
    .workspace = workspace,
};
