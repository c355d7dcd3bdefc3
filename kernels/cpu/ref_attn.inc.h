/* Reference ops, included once for each `real`: causal attention, one query at a time. Backward
 * recomputes each probability from lse, as FlashAttention does (Dao et al., 2022, algorithm 4),
 * once for dq and once for dk and dv, so that no sum is ever rounded to `real` on the way. */
#include "kernels/cpu/ref_attn_pair.inc.h"

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
