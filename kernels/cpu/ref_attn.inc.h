/* Reference ops, included once for each `real`: causal attention, one query at a time. Backward
 * recomputes each probability from lse, as FlashAttention does (Dao et al., 2022, algorithm 4),
 * once for dq and once for dk and dv, so that no sum is ever rounded to `real` on the way. */

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

static void attn_fwd_query(const struct attn_at *at, double *score)
{
    const struct attn_args *a = at->a;
    real *o = (real *)(uintptr_t)attn_query(at, a->o, a->ldo);
    double max = -INFINITY, sum = 0, capped;

    for (int64_t j = at->first; j <= at->last; j++) {
        score[j] = attn_score(at, j, &capped);
        max = fmax(max, score[j]);
    }
    for (int64_t j = at->first; j <= at->last; j++)
        sum += exp(score[j] - max);
    /* A query that sees no key gives zeros, and lse = -inf. */
    double lse = at->first <= at->last ? max + log(sum) : -INFINITY;
    for (int64_t d = 0; d < a->D; d++) {
        double out = 0;
        for (int64_t j = at->first; j <= at->last; j++)
            out +=
                exp(score[j] - lse) * attn_keep(at, j) * (double)attn_key(at, j, a->v, a->ldv)[d];
        o[d] = (real)out;
    }
    ((real *)a->lse)[(at->b * a->H + at->h) * a->T + at->i] = (real)lse;
}

static int attn_fwd(struct stream *s, const struct attn_args *a)
{
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->T; i++) {
                struct attn_at at = attn_at(a, b, h, i);
                attn_fwd_query(&at, a->workspace);
            }
    return 0;
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

static void attn_bwd_query(const struct attn_at *at, double *acc)
{
    const struct attn_args *a = at->a;
    real *dq = (real *)(uintptr_t)attn_query(at, a->dq, a->ldq);
    double prob, ddot;

    memset(acc, 0, (size_t)a->D * sizeof *acc);
    for (int64_t j = at->first; j <= at->last; j++) {
        attn_bwd_pair(at, j, &prob, &ddot);
        for (int64_t d = 0; d < a->D; d++)
            acc[d] += ddot * (double)attn_key(at, j, a->k, a->ldk)[d];
    }
    for (int64_t d = 0; d < a->D; d++)
        dq[d] = (real)acc[d];
}

/* dk and dv of key j, from all queries of all heads that share it. */
static void attn_bwd_key(const struct attn_args *a, int64_t b, int64_t kv, int64_t j, double *acc)
{
    double *dk = acc, *dv = acc + a->D, prob, ddot;
    int64_t group = a->H / a->KV;
    struct attn_at at = {0};

    memset(acc, 0, 2 * (size_t)a->D * sizeof *acc);
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
        for (int64_t i = 0; i < a->T; i++) {
            at = attn_at(a, b, h, i);
            if (j < at.first || j > at.last)
                continue;
            attn_bwd_pair(&at, j, &prob, &ddot);
            for (int64_t d = 0; d < a->D; d++) {
                dk[d] += ddot * (double)attn_query(&at, a->q, a->ldq)[d];
                dv[d] += prob * (double)attn_query(&at, a->dout, a->ldo)[d];
            }
        }
    for (int64_t d = 0; d < a->D; d++) {
        ((real *)(uintptr_t)attn_key(&at, j, a->dk, a->ldk))[d] = (real)dk[d];
        ((real *)(uintptr_t)attn_key(&at, j, a->dv, a->ldv))[d] = (real)dv[d];
    }
}

static int attn_bwd(struct stream *s, const struct attn_args *a)
{
    for (int64_t b = 0; b < a->B; b++) {
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->T; i++) {
                struct attn_at at = attn_at(a, b, h, i);
                attn_bwd_query(&at, a->workspace);
            }
        for (int64_t kv = 0; kv < a->KV; kv++)
            for (int64_t j = 0; j < a->S; j++)
                attn_bwd_key(a, b, kv, j, a->workspace);
    }
    return 0;
}
