/* Attention stored in bfloat16: one row of the batch at a time is widened into the workspace and
 * goes through the float table's attention. */
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"

enum { FLOATS_ALIGN = 16 };

static int64_t ld_or(int64_t ld, int64_t dense)
{
    return ld ? ld : dense;
}

/* One row of the batch in float, dense; the parts begin on whole cache lines. */
struct row {
    struct attn_args args;
    int64_t queries, keys; /* elements of (T, H, D) and of (S, KV, D), rounded up */
};

static struct row row_init(const struct attn_args *a)
{
    struct row r = {.args = *a};

    r.queries = (a->T * a->H * a->D + FLOATS_ALIGN - 1) / FLOATS_ALIGN * FLOATS_ALIGN;
    r.keys = (a->S * a->KV * a->D + FLOATS_ALIGN - 1) / FLOATS_ALIGN * FLOATS_ALIGN;
    r.args.B = 1;
    r.args.ldq = r.args.ldk = r.args.ldv = r.args.ldo = 0;
    float *at = a->workspace;
    if (at) {
        r.args.q = at;
        r.args.o = at + r.queries;
        r.args.dout = at + 2 * r.queries;
        r.args.dq = at + 3 * r.queries;
    }
    return r;
}

/* Lay the keys' matrices behind n of the queries'. */
static void place_keys(struct row *r, const struct attn_args *a, int n)
{
    float *at = (float *)a->workspace + n * r->queries;

    r->args.k = at;
    r->args.v = at + r->keys;
    r->args.dk = at + 2 * r->keys;
    r->args.dv = at + 3 * r->keys;
    r->args.workspace = at + 4 * r->keys;
}

/* Row b: what both ways read. */
static void load_row(struct stream *s, const struct attn_args *a, struct row *r, int64_t b)
{
    int64_t queries = a->H * a->D, keys = a->KV * a->D;
    int64_t ldq = ld_or(a->ldq, queries), ldk = ld_or(a->ldk, keys), ldv = ld_or(a->ldv, keys);

    r->args.first_key = a->first_key ? a->first_key + b * a->T : NULL;
    r->args.lse = (float *)a->lse + b * a->H * a->T;
    r->args.dropout.first = a->dropout.first + b * a->H * a->T * a->S;
    bf16_load_rows(s, (float *)r->args.q, queries, (const bf16 *)a->q + b * a->T * ldq, ldq, a->T,
                   queries);
    bf16_load_rows(s, (float *)r->args.k, keys, (const bf16 *)a->k + b * a->S * ldk, ldk, a->S,
                   keys);
    bf16_load_rows(s, (float *)r->args.v, keys, (const bf16 *)a->v + b * a->S * ldv, ldv, a->S,
                   keys);
}

size_t bf16_attn_fwd_workspace(const struct attn_args *a)
{
    struct row r = row_init(a);
    return (size_t)(2 * r.queries + 2 * r.keys) * sizeof(float);
}

int bf16_attn_fwd(struct stream *s, const struct attn_args *a)
{
    struct row r = row_init(a);
    int64_t cols = a->H * a->D, ldo = ld_or(a->ldo, cols);

    place_keys(&r, a, 2);
    for (int64_t b = 0; b < a->B; b++) {
        load_row(s, a, &r, b);
        int rc = fast_attn_fwd(s, &r.args);
        if (rc != 0)
            return rc;
        bf16_store_rows(s, (bf16 *)a->o + b * a->T * ldo, ldo, r.args.o, cols, a->T, cols);
    }
    return 0;
}

size_t bf16_attn_bwd_workspace(const struct attn_args *a)
{
    struct row r = row_init(a);
    return (size_t)(4 * r.queries + 4 * r.keys) * sizeof(float) + fast_attn_bwd_workspace(&r.args);
}

int bf16_attn_bwd(struct stream *s, const struct attn_args *a)
{
    struct row r = row_init(a);
    int64_t queries = a->H * a->D, keys = a->KV * a->D, ldo = ld_or(a->ldo, queries);
    int64_t ldq = ld_or(a->ldq, queries), ldk = ld_or(a->ldk, keys), ldv = ld_or(a->ldv, keys);

    place_keys(&r, a, 4);
    for (int64_t b = 0; b < a->B; b++) {
        load_row(s, a, &r, b);
        bf16_load_rows(s, r.args.o, queries, (const bf16 *)a->o + b * a->T * ldo, ldo, a->T,
                       queries);
        bf16_load_rows(s, (float *)r.args.dout, queries, (const bf16 *)a->dout + b * a->T * ldo,
                       ldo, a->T, queries);
        int rc = fast_attn_bwd(s, &r.args);
        if (rc != 0)
            return rc;
        bf16_store_rows(s, (bf16 *)a->dq + b * a->T * ldq, ldq, r.args.dq, queries, a->T, queries);
        bf16_store_rows(s, (bf16 *)a->dk + b * a->S * ldk, ldk, r.args.dk, keys, a->S, keys);
        bf16_store_rows(s, (bf16 *)a->dv + b * a->S * ldv, ldv, r.args.dv, keys, a->S, keys);
    }
    return 0;
}
