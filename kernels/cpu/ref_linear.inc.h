/* Reference ops, included once for each `real`: linear layers and activations. */

static double linear_alpha(const struct linear_args *a)
{
    return a->alpha != 0 ? (double)a->alpha : 1;
}

static int linear_fwd(struct stream *s, const struct linear_args *a)
{
    const real *w = a->w, *bias = a->bias;
    int64_t ldx = ld_or(a->ldx, a->I), ldy = ld_or(a->ldy, a->O);

    if (a->quant.format != QUANT_NONE) {
        struct linear_args plain = cpu_quant_decoded(s, TABLE_DTYPE, false, a);
        return linear_fwd(s, &plain);
    }
    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_FWD, TABLE_DTYPE, linear_fwd, s, a);
    for (int64_t n = 0; n < a->N; n++)
        for (int64_t o = 0; o < a->O; o++) {
            const real *x = (const real *)a->x + n * ldx;
            double sum = 0;
            for (int64_t i = 0; i < a->I; i++)
                sum += (double)x[i] * (double)w[o * a->I + i];
            sum *= linear_alpha(a);
            real pre = (real)(bias ? sum + (double)bias[o] : sum);
            if (a->pre)
                ((real *)a->pre)[n * ldy + o] = pre;
            double y = ref_act(a->act, (double)pre);
            if (a->residual)
                y += (double)((const real *)a->residual)[n * ldy + o];
            ((real *)a->y)[n * ldy + o] = (real)y;
        }
    return 0;
}

static int linear_bwd_weight(struct stream *s, const struct linear_args *a);

static int linear_bwd_data(struct stream *s, const struct linear_args *a)
{
    const real *w = a->w, *pre_x = a->pre_x;
    int64_t ldx = ld_or(a->ldx, a->I), ldy = ld_or(a->ldy, a->O);

    if (a->quant.format != QUANT_NONE) {
        struct linear_args plain = cpu_quant_decoded(s, TABLE_DTYPE, false, a);
        return linear_bwd_data(s, &plain);
    }
    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_BWD_DATA, TABLE_DTYPE, linear_bwd_data, s, a);
    for (int64_t n = 0; n < a->N; n++)
        for (int64_t i = 0; i < a->I; i++) {
            const real *dy = (const real *)a->dy + n * ldy;
            real *dx = (real *)a->dx + n * ldx + i;
            double sum = 0;
            for (int64_t o = 0; o < a->O; o++)
                sum += (double)dy[o] * (double)w[o * a->I + i];
            sum *= linear_alpha(a);
            if (a->act_x != ACT_NONE)
                sum *= ref_act_slope(a->act_x, (double)pre_x[n * ldx + i]);
            *dx = (real)(a->dx_accum == ACCUM_ADD ? (double)*dx + sum : sum);
        }
    if (!a->dbias_x)
        return 0;
    struct linear_args below = linear_bias_below(a);
    return linear_bwd_weight(s, &below);
}

static int linear_bwd_weight(struct stream *s, const struct linear_args *a)
{
    int64_t ldx = ld_or(a->ldx, a->I), ldy = ld_or(a->ldy, a->O);
    const real *x = a->x, *dy = a->dy;
    real *dw = a->dw, *dbias = a->dbias;
    bool accumulate = a->dw_accum == ACCUM_ADD;

    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_BWD_WEIGHT, TABLE_DTYPE, linear_bwd_weight, s, a);
    for (int64_t o = 0; o < a->O; o++) {
        for (int64_t i = 0; i < a->I && dw; i++) {
            double sum = 0;
            for (int64_t n = 0; n < a->N; n++)
                sum += (double)dy[n * ldy + o] * (double)x[n * ldx + i];
            sum *= linear_alpha(a);
            real *d = &dw[o * a->I + i];
            *d = (real)(accumulate ? (double)*d + sum : sum);
        }
        if (dbias) {
            double sum = 0;
            for (int64_t n = 0; n < a->N; n++)
                sum += (double)dy[n * ldy + o];
            dbias[o] = (real)(accumulate ? (double)dbias[o] + sum : sum);
        }
    }
    return 0;
}

static int act_fwd(struct stream *s, const struct act_args *a)
{
    const real *x = a->x;
    real *y = a->y;

    for (int64_t n = 0; n < a->N; n++)
        for (int64_t f = 0; f < a->F; f++) {
            if (a->gated)
                y[n * a->F + f] = (real)(ref_act(a->act, (double)x[n * 2 * a->F + f]) *
                                         (double)x[n * 2 * a->F + a->F + f]);
            else
                y[n * a->F + f] = (real)ref_act(a->act, (double)x[n * a->F + f]);
        }
    return 0;
}

static int act_bwd(struct stream *s, const struct act_args *a)
{
    const real *x = a->x, *dy = a->dy;
    real *dx = a->dx;

    for (int64_t n = 0; n < a->N; n++)
        for (int64_t f = 0; f < a->F; f++) {
            double d = (double)dy[n * a->F + f];
            if (a->gated) {
                int64_t gate = n * 2 * a->F + f, up = gate + a->F;
                dx[gate] = (real)(d * (double)x[up] * ref_act_slope(a->act, (double)x[gate]));
                dx[up] = (real)(d * ref_act(a->act, (double)x[gate]));
            } else {
                dx[n * a->F + f] = (real)(d * ref_act_slope(a->act, (double)x[n * a->F + f]));
            }
        }
    return 0;
}
