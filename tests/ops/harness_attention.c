#include "tests/ops/harness_attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/cpu/ref_math.h"
#include "tests/ops/harness_op.h"

#define real double
#include "kernels/cpu/ref_attn_pair.inc.h"

static double unit_roundoff(enum dtype t)
{
    return t == DT_F16 ? 0x1p-11 : 0x1p-8;
}

static double least_normal(enum dtype t)
{
    return t == DT_F16 ? 0x1p-14 : 0x1p-126;
}

/* The case's tensors as dense doubles, rounded to the table's types: what is zero but for the
 * rounding of o, the gradient of a query that sees one key, has summands all the same. */
struct dense {
    struct attn_args a;
    double *value[CASE_BINDS];
    int32_t *first_key;
    float *slopes;
};

static const double *tensor(const struct dense *d, const struct op_case *c, const char *name)
{
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->b[i].name, name) == 0)
            return d->value[i];
    return NULL;
}

static void round_tensor(struct dense *d, int i, const struct bind *b, enum dtype t)
{
    int64_t n = b->rows * b->cols;
    unsigned char narrow[8];

    d->value[i] = xcalloc((size_t)n, sizeof(double));
    memcpy(d->value[i], b->init, (size_t)n * sizeof(double));
    for (int64_t k = 0; t != DT_I32 && k < n; k++) {
        dtype_convert(t, narrow, DT_F64, &b->init[k], 1);
        dtype_convert(DT_F64, &d->value[i][k], t, narrow, 1);
    }
}

static void dense_init(struct dense *d, const struct op_case *c, const struct op_table *table)
{
    memset(d->value, 0, sizeof d->value);
    for (int i = 0; i < c->n; i++)
        round_tensor(d, i, &c->b[i], bind_dtype(&c->b[i], table));
    const double *first = tensor(d, c, "first_key"), *slopes = tensor(d, c, "alibi_slopes");

    d->a = c->args.attn;
    d->a.ldq = d->a.ldk = d->a.ldv = d->a.ldo = 0;
    d->a.q = tensor(d, c, "q");
    d->a.k = tensor(d, c, "k");
    d->a.v = tensor(d, c, "v");
    d->a.o = (void *)(uintptr_t)tensor(d, c, "o");
    d->a.lse = (void *)(uintptr_t)tensor(d, c, "lse");
    d->a.dout = tensor(d, c, "dout");
    d->first_key = xcalloc((size_t)(d->a.B * d->a.T), sizeof *d->first_key);
    d->slopes = xcalloc((size_t)d->a.H, sizeof *d->slopes);
    for (int64_t i = 0; first && i < d->a.B * d->a.T; i++)
        d->first_key[i] = (int32_t)first[i];
    for (int64_t h = 0; slopes && h < d->a.H; h++)
        d->slopes[h] = (float)slopes[h];
    d->a.first_key = first ? d->first_key : NULL;
    d->a.alibi_slopes = slopes ? d->slopes : NULL;
}

/* to (D) += (factor a b)^2, a having been rounded; what is zero stays so. */
static void add_squares(double *to, double factor, double a, double least, const double *b,
                        int64_t D)
{
    double size = a == 0 ? 0 : factor * fmax(fabs(a), least);

    for (int64_t d = 0; d < D; d++)
        to[d] += size * b[d] * size * b[d];
}

static void forward_query(const struct attn_at *at, double least, double *o)
{
    const struct attn_args *a = at->a;
    double *score = xcalloc((size_t)a->S, sizeof *score), max = -INFINITY, sum = 0, capped;

    for (int64_t j = at->first; j <= at->last; j++) {
        score[j] = attn_score(at, j, &capped);
        max = fmax(max, score[j]);
    }
    for (int64_t j = at->first; j <= at->last; j++)
        sum += exp(score[j] - max);
    for (int64_t j = at->first; j <= at->last; j++)
        add_squares(o, 1, exp(score[j] - max) / sum * attn_keep(at, j), least,
                    attn_key(at, j, a->v, 0), a->D);
    free(score);
}

static void backward_query(const struct attn_at *at, double least, double *dq, double *dk,
                           double *dv)
{
    const struct attn_args *a = at->a;
    double scale = (double)a->scale, prob, ddot;

    for (int64_t j = at->first; j <= at->last; j++) {
        int64_t key = attn_key(at, j, a->k, 0) - (const double *)a->k;
        attn_bwd_pair(at, j, &prob, &ddot);
        add_squares(dv + key, 1, prob, least, attn_query(at, a->dout, 0), a->D);
        add_squares(dk + key, scale, ddot / scale, least, attn_query(at, a->q, 0), a->D);
        add_squares(dq, scale, ddot / scale, least, attn_key(at, j, a->k, 0), a->D);
    }
}

void attention_summands(const struct op_case *c, const struct op_table *table,
                        double *s[CASE_BINDS])
{
    double *of[3] = {0}, least = least_normal(table->compute);
    bool backward = c->op == OP_ATTN_BWD;
    struct dense d;

    memset(s, 0, CASE_BINDS * sizeof *s);
    if (c->op != OP_ATTN_FWD && !backward)
        return;
    dense_init(&d, c, table);
    for (int k = 0; k < (backward ? 3 : 1); k++) {
        int i = case_index(c, backward ? (const char *const[]){"dq", "dk", "dv"}[k] : "o");
        of[k] = s[i] = xcalloc((size_t)(c->b[i].rows * c->b[i].cols), sizeof(double));
    }
    for (int64_t b = 0; b < d.a.B; b++)
        for (int64_t h = 0; h < d.a.H; h++)
            for (int64_t i = 0; i < d.a.T; i++) {
                struct attn_at at = attn_at(&d.a, b, h, i);
                double *row = of[0] + (attn_query(&at, d.a.q, 0) - (const double *)d.a.q);
                if (backward)
                    backward_query(&at, least, row, of[1], of[2]);
                else
                    forward_query(&at, least, row);
            }
    for (int i = 0; i < c->n; i++)
        for (int64_t k = 0; s[i] && k < c->b[i].rows * c->b[i].cols; k++)
            s[i][k] = sqrt(s[i][k]);
    for (int i = 0; i < c->n; i++)
        free(d.value[i]);
    free(d.first_key);
    free(d.slopes);
}

double attention_error(const double *a, const double *b, const double *s, int64_t n,
                       enum dtype narrow, double floats)
{
    double u = unit_roundoff(narrow), z = sqrt(2.0 / 3 * log(2e6 * (double)n)), used = 0;
    double scale = tensor_rms(b, n);

    for (int64_t i = 0; i < n; i++) {
        double allowed = u * fmax(fabs(b[i]), least_normal(narrow)) + z * u * s[i] +
                         floats * (fabs(b[i]) + scale);
        double share = fabs(a[i] - b[i]) / allowed;
        if (isnan(share))
            return INFINITY;
        used = fmax(used, share);
    }
    return used;
}
