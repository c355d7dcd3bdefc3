/* What reference attention, in each `real`, makes of one query and one of its keys: the score, the
 * probability and its gradient. */

struct attn_at { /* one query of one head */
    const struct attn_args *a;
    int64_t b, h, i;
    int64_t first, last; /* keys it sees: first .. last */
};

static struct attn_at attn_at(const struct attn_args *a, int64_t b, int64_t h, int64_t i)
{
    struct attn_at at = {a, b, h, i, 0, i + a->S - a->T};
    if (a->window > 0 && at.last - a->window + 1 > at.first)
        at.first = at.last - a->window + 1;
    if (a->first_key && a->first_key[b * a->T + i] > at.first)
        at.first = a->first_key[b * a->T + i];
    return at;
}

static const real *attn_query(const struct attn_at *at, const void *q, int64_t ld)
{
    const struct attn_args *a = at->a;
    return (const real *)q + (at->b * a->T + at->i) * ld_or(ld, a->H * a->D) + at->h * a->D;
}

static const real *attn_key(const struct attn_at *at, int64_t j, const void *k, int64_t ld)
{
    const struct attn_args *a = at->a;
    return (const real *)k + (at->b * a->S + j) * ld_or(ld, a->KV * a->D) +
           at->h * a->KV / a->H * a->D;
}

static double attn_dot(const real *x, const real *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* The score of key j; *capped is the part before the position bias. */
static double attn_score(const struct attn_at *at, int64_t j, double *capped)
{
    const struct attn_args *a = at->a;
    double dot = attn_dot(attn_query(at, a->q, a->ldq), attn_key(at, j, a->k, a->ldk), a->D);
    *capped = ref_softcap(dot * (double)a->scale, (double)a->softcap);
    if (!a->alibi_slopes)
        return *capped;
    float slope = a->alibi_slopes[at->h];
    if (a->alibi_scale == 0)
        return *capped + (double)slope * (double)(j - at->last);
    int64_t origin = a->first_key ? a->first_key[at->b * a->T + at->i] : 0;
    return *capped + (double)alibi_rounded(slope, a->alibi_scale, (int32_t)(j - origin));
}

static double attn_keep(const struct attn_at *at, int64_t j)
{
    const struct attn_args *a = at->a;
    return ref_dropout(&a->dropout, ((at->b * a->H + at->h) * a->T + at->i) * a->S + j);
}

/* The dropped probability of key j and the gradient of its dot product q k^T. */
static void attn_bwd_pair(const struct attn_at *at, int64_t j, double *prob, double *ddot)
{
    const struct attn_args *a = at->a;
    const real *dout = attn_query(at, a->dout, a->ldo);
    double lse = (double)((const real *)a->lse)[(at->b * a->H + at->h) * a->T + at->i];
    double capped, keep = attn_keep(at, j);
    double p = exp(attn_score(at, j, &capped) - lse);
    double dp = keep * attn_dot(dout, attn_key(at, j, a->v, a->ldv), a->D);
    double row = attn_dot(dout, attn_query(at, a->o, a->ldo), a->D);

    *prob = p * keep;
    *ddot = p * (dp - row) * ref_softcap_slope(capped, (double)a->softcap) * (double)a->scale;
}
