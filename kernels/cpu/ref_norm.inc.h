/* Reference ops, included once for each `real`: LayerNorm (Ba, Kiros, Hinton, 2016) and RMSNorm
 * (Zhang, Sennrich, 2019). */

static double norm_scale(const struct norm_args *a, int64_t c)
{
    const real *weight = a->weight;
    if (!weight)
        return 1;
    return a->kind == NORM_RMS_PLUS_ONE ? 1 + (double)weight[c] : (double)weight[c];
}

static int norm_fwd(struct stream *s, const struct norm_args *a)
{
    const real *bias = a->bias;
    real *mean_out = a->mean, *rstd_out = a->rstd;
    int64_t ld = ld_or(a->ld, a->C);

    for (int64_t n = 0; n < a->N; n++) {
        const real *x = (const real *)a->x + n * ld;
        real *y = (real *)a->y + n * ld;
        if (a->residual) {
            const real *residual = (const real *)a->residual + n * ld;
            real *sum = (real *)a->sum + n * ld;
            for (int64_t c = 0; c < a->C; c++)
                sum[c] = x[c] + residual[c];
            x = sum;
        }
        double mean = 0, var = 0;
        if (a->kind == NORM_LAYER) {
            for (int64_t c = 0; c < a->C; c++)
                mean += (double)x[c];
            mean /= (double)a->C;
        }
        for (int64_t c = 0; c < a->C; c++)
            var += ((double)x[c] - mean) * ((double)x[c] - mean);
        double rstd = 1 / sqrt(var / (double)a->C + (double)a->eps);
        for (int64_t c = 0; c < a->C; c++)
            y[c] = (real)(((double)x[c] - mean) * rstd * norm_scale(a, c) +
                          (bias ? (double)bias[c] : 0));
        if (mean_out)
            mean_out[n] = (real)mean;
        rstd_out[n] = (real)rstd;
    }
    return 0;
}

/* With g = dy * scale and xhat = (x - mean) * rstd:
 * dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), without mean(g) for RMS. */
static void norm_bwd_row(const struct norm_args *a, int64_t n, double mean, double rstd)
{
    int64_t ld = ld_or(a->ld, a->C);
    const real *x = (const real *)a->x + n * ld, *dy = (const real *)a->dy + n * ld;
    const real *dresidual = a->dresidual ? (const real *)a->dresidual + n * ld : NULL;
    real *dx = (real *)a->dx + n * ld;
    double g_mean = 0, gx_mean = 0;

    for (int64_t c = 0; c < a->C; c++) {
        double g = (double)dy[c] * norm_scale(a, c);
        g_mean += g;
        gx_mean += g * ((double)x[c] - mean) * rstd;
    }
    g_mean = a->kind == NORM_LAYER ? g_mean / (double)a->C : 0;
    gx_mean /= (double)a->C;
    for (int64_t c = 0; c < a->C; c++) {
        double g = (double)dy[c] * norm_scale(a, c), xhat = ((double)x[c] - mean) * rstd;
        double d = rstd * (g - g_mean - xhat * gx_mean);
        dx[c] = (real)(dresidual ? (double)dresidual[c] + d : d);
    }
}

static int norm_bwd(struct stream *s, const struct norm_args *a)
{
    const real *x = a->x, *dy = a->dy, *mean = a->mean, *rstd = a->rstd;
    real *dweight = a->dweight, *dbias = a->dbias;
    int64_t ld = ld_or(a->ld, a->C);

    for (int64_t c = 0; c < a->C && (dweight || dbias); c++) {
        double dw = 0, db = 0;
        for (int64_t n = 0; n < a->N; n++) {
            double d = (double)dy[n * ld + c];
            double m = a->kind == NORM_LAYER ? (double)mean[n] : 0;
            dw += d * ((double)x[n * ld + c] - m) * (double)rstd[n];
            db += d;
        }
        if (dweight)
            dweight[c] = (real)((double)dweight[c] + dw);
        if (dbias)
            dbias[c] = (real)((double)dbias[c] + db);
    }
    /* Last, because dx may take dresidual's place. */
    for (int64_t n = 0; n < a->N; n++)
        norm_bwd_row(a, n, a->kind == NORM_LAYER ? (double)mean[n] : 0, (double)rstd[n]);
    return 0;
}
