/*
 * Causal attention in blocks of queries and keys, with the running softmax of FlashAttention-2
 * (Dao, 2023, algorithms 1 and 2). The products of a block are single-threaded oneDNN calls;
 * blocks that no query may see are never touched. Forward runs queries blocks in parallel, backward
 * heads.
 */
#include <string.h>

#include "core/err.h"
#include "kernels/alibi.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"

enum { QUERIES = 64, KEYS = 256, HEAD_MAX = 256 };

struct block { /* queries [i0, i0 + rows) of one head */
    const struct attn_args *a;
    int64_t b, h, i0, rows, ldq, ldk, ldv, ldo;
    int64_t first[QUERIES], last[QUERIES]; /* keys each query sees */
    int64_t key0, key1;                    /* all of them: [key0, key1) */
};

static void block_init(struct block *k, const struct attn_args *a, int64_t b, int64_t h, int64_t i0)
{
    k->a = a;
    k->b = b;
    k->h = h;
    k->i0 = i0;
    k->rows = a->T - i0 < QUERIES ? a->T - i0 : QUERIES;
    k->ldq = a->ldq ? a->ldq : a->H * a->D;
    k->ldk = a->ldk ? a->ldk : a->KV * a->D;
    k->ldv = a->ldv ? a->ldv : a->KV * a->D;
    k->ldo = a->ldo ? a->ldo : a->H * a->D;
    k->key0 = a->S;
    k->key1 = i0 + k->rows + a->S - a->T;
    for (int64_t r = 0; r < k->rows; r++) {
        int64_t first = 0, last = i0 + r + a->S - a->T;
        if (a->window > 0 && last - a->window + 1 > first)
            first = last - a->window + 1;
        if (a->first_key && a->first_key[b * a->T + i0 + r] > first)
            first = a->first_key[b * a->T + i0 + r];
        k->first[r] = first;
        k->last[r] = last;
        k->key0 = first < k->key0 ? first : k->key0;
    }
}

static const float *query_rows(const struct block *k, const void *q, int64_t ld)
{
    return (const float *)q + (k->b * k->a->T + k->i0) * ld + k->h * k->a->D;
}

static const float *key_rows(const struct block *k, int64_t j, const void *x, int64_t ld)
{
    const struct attn_args *a = k->a;
    return (const float *)x + (k->b * a->S + j) * ld + k->h * a->KV / a->H * a->D;
}

/* The biases of n keys, the first of them `distance` behind the query or `position` in its text. */
FAST_CLONES static void fill_bias(float *bias, int64_t n, float slope, int64_t distance)
{
    for (int32_t j = 0; j < (int32_t)n; j++)
        bias[j] = slope * (float)(j + (int32_t)distance);
}

FAST_CLONES static void fill_bias_rounded(float *bias, int64_t n, float slope, float scale,
                                          int64_t position)
{
    for (int32_t j = 0; j < (int32_t)n; j++)
        bias[j] = alibi_rounded(slope, scale, j + (int32_t)position);
}

/* Of row r and keys [key, key + n), in `room`; NULL: there are none. */
static const float *bias_row(const struct block *k, int64_t r, int64_t key, int64_t n, float *room)
{
    const struct attn_args *a = k->a;

    if (!a->alibi_slopes)
        return NULL;
    if (a->alibi_scale == 0.0f) {
        fill_bias(room, n, a->alibi_slopes[k->h], key - k->last[r]);
        return room;
    }
    int64_t origin = a->first_key ? a->first_key[k->b * a->T + k->i0 + r] : 0;
    fill_bias_rounded(room, n, a->alibi_slopes[k->h], a->alibi_scale, key - origin);
    return room;
}

/* Turn scores into exponentials against the new maximum; return their sum, undropped. */
FAST_CLONES static float softmax_part(float *score, int64_t n, float *max)
{
    float m = *max, sum = 0;
#pragma omp simd reduction(max : m)
    for (int64_t j = 0; j < n; j++)
        m = score[j] > m ? score[j] : m;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        score[j] = fast_exp(score[j] - m);
        sum += score[j];
    }
    *max = m;
    return sum;
}

/* Scores of a row's keys from their scaled dot products: cap, then bias where there is one. */
FAST_CLONES static void scores_row(float *score, int64_t n, float cap, const float *bias)
{
    if (cap != 0.0f)
        for (int64_t j = 0; j < n; j++)
            score[j] = cap * fast_tanh(score[j] / cap);
    if (bias)
        for (int64_t j = 0; j < n; j++)
            score[j] += bias[j];
}

FAST_CLONES static void scale_row(float *x, int64_t n, float by)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= by;
}

FAST_CLONES static void multiply_row(float *x, const float *by, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= by[i];
}

static int64_t dropout_index(const struct block *k, int64_t row, int64_t key)
{
    const struct attn_args *a = k->a;
    return ((k->b * a->H + k->h) * a->T + k->i0 + row) * a->S + key;
}

/* The part of keys [j0, j0 + n) that a row sees, as offsets [*from, *to); empty: *from == *to. */
static void visible(const struct block *k, int64_t row, int64_t j0, int64_t n, int64_t *from,
                    int64_t *to)
{
    int64_t first = k->first[row] - j0, end = k->last[row] + 1 - j0;
    *from = first < 0 ? 0 : first > n ? n : first;
    *to = end > n ? n : end < *from ? *from : end;
}

static void forward_row(const struct block *k, int64_t r, int64_t j0, int64_t n, float *score,
                        float *acc, float *max, float *sum)
{
    const struct attn_args *a = k->a;
    float old = *max, mask[KEYS], room[KEYS];
    int64_t from, to;

    visible(k, r, j0, n, &from, &to);
    memset(score, 0, (size_t)from * sizeof *score);
    memset(score + to, 0, (size_t)(n - to) * sizeof *score);
    if (from == to)
        return;
    const float *bias = bias_row(k, r, j0 + from, to - from, room);
    if (a->softcap != 0.0f || bias)
        scores_row(score + from, to - from, a->softcap, bias);
    float part = softmax_part(score + from, to - from, max);
    float shrink = fast_exp(old - *max);
    *sum = *sum * shrink + part;
    if (shrink != 1.0f)
        scale_row(acc, a->D, shrink);
    if (a->dropout.p > 0) {
        int64_t index = dropout_index(k, r, j0 + from);
        fast_dropout_mask(&a->dropout, index, index + to - from, mask);
        multiply_row(score + from, mask, to - from);
    }
}

static void forward_block(const struct attn_args *a, int64_t b, int64_t h, int64_t i0)
{
    float score[QUERIES * KEYS], acc[QUERIES * HEAD_MAX], max[QUERIES], sum[QUERIES];
    struct block k;
    int64_t D = a->D;

    block_init(&k, a, b, h, i0);
    const float *q = query_rows(&k, a->q, k.ldq);
    float *o = (float *)a->o + (b * a->T + i0) * k.ldo + h * D;
    memset(acc, 0, (size_t)(k.rows * D) * sizeof *acc);
    for (int64_t r = 0; r < k.rows; r++) {
        max[r] = -INFINITY;
        sum[r] = 0;
    }
    for (int64_t j = k.key0; j < k.key1; j += KEYS) {
        int64_t n = k.key1 - j < KEYS ? k.key1 - j : KEYS;
        blas_sgemm(BLAS_AS_IS, BLAS_TRANSPOSED, k.rows, n, D, a->scale, q, k.ldq,
                   key_rows(&k, j, a->k, k.ldk), k.ldk, 0, score, KEYS);
        for (int64_t r = 0; r < k.rows; r++)
            forward_row(&k, r, j, n, score + r * KEYS, acc + r * D, &max[r], &sum[r]);
        blas_sgemm(BLAS_AS_IS, BLAS_AS_IS, k.rows, D, n, 1, score, KEYS,
                   key_rows(&k, j, a->v, k.ldv), k.ldv, 1, acc, D);
    }
    for (int64_t r = 0; r < k.rows; r++) {
        float inv = sum[r] > 0 ? 1.0f / sum[r] : 0.0f;
        for (int64_t d = 0; d < D; d++)
            o[r * k.ldo + d] = acc[r * D + d] * inv;
        ((float *)a->lse)[(b * a->H + h) * a->T + i0 + r] =
            sum[r] > 0 ? max[r] + logf(sum[r]) : -INFINITY;
    }
}

int fast_attn_fwd(struct stream *s, const struct attn_args *a)
{
    int64_t blocks = (a->T + QUERIES - 1) / QUERIES, tasks = a->B * a->H * blocks;

    if (a->D > HEAD_MAX)
        return ERR_UNSUPPORTED;
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(dynamic, 1) if (a->B * a->H * a->T * a->S * a->D > FAST_SERIAL_PRODUCT)
    for (int64_t i = 0; i < tasks; i++) {
        int64_t head = i / blocks, block = blocks - 1 - i % blocks; /* the longest first */
        forward_block(a, head / a->H, head % a->H, block * QUERIES);
    }
    return 0;
}

/* --- backward --- */

/* A row's probabilities into p and the gradient of its scaled dot products into dp, which holds
 * dout v^T. mask: what dropout multiplied by, or NULL; bias: or NULL. */
FAST_CLONES static void backward_scores(float *p, float *dp, const float *mask, int64_t n,
                                        float cap, const float *bias, float lse, float delta)
{
    float inv_cap = cap != 0.0f ? 1.0f / cap : 0.0f;
    if (cap == 0.0f) {
#pragma omp simd
        for (int32_t j = 0; j < (int32_t)n; j++) {
            float e = fast_exp(p[j] + (bias ? bias[j] : 0.0f) - lse);
            float keep = mask ? mask[j] : 1.0f;
            dp[j] = e * (dp[j] * keep - delta);
            p[j] = e * keep;
        }
        return;
    }
#pragma omp simd
    for (int32_t j = 0; j < (int32_t)n; j++) {
        float t = fast_tanh(p[j] * inv_cap), keep = mask ? mask[j] : 1.0f;
        float e = fast_exp(cap * t + (bias ? bias[j] : 0.0f) - lse);
        dp[j] = e * (dp[j] * keep - delta) * (1.0f - t * t);
        p[j] = e * keep;
    }
}

FAST_CLONES static void backward_plain(float *p, float *dp, int64_t n, float lse, float delta)
{
    for (int64_t j = 0; j < n; j++) {
        float e = fast_exp(p[j] - lse);
        dp[j] = e * (dp[j] - delta);
        p[j] = e;
    }
}

static void backward_row(const struct block *k, int64_t r, int64_t j0, int64_t n, float *p,
                         float *dp, float delta)
{
    const struct attn_args *a = k->a;
    float mask[KEYS], room[KEYS],
        lse = ((const float *)a->lse)[(k->b * a->H + k->h) * a->T + k->i0 + r];
    int64_t from, to;

    visible(k, r, j0, n, &from, &to);
    memset(p, 0, (size_t)from * sizeof *p);
    memset(dp, 0, (size_t)from * sizeof *dp);
    memset(p + to, 0, (size_t)(n - to) * sizeof *p);
    memset(dp + to, 0, (size_t)(n - to) * sizeof *dp);
    if (from == to)
        return;
    bool drop = a->dropout.p > 0;
    const float *bias = bias_row(k, r, j0 + from, to - from, room);
    if (drop) {
        int64_t index = dropout_index(k, r, j0 + from);
        fast_dropout_mask(&a->dropout, index, index + to - from, mask);
    }
    if (drop || a->softcap != 0.0f || bias)
        backward_scores(p + from, dp + from, drop ? mask : NULL, to - from, a->softcap, bias, lse,
                        delta);
    else
        backward_plain(p + from, dp + from, to - from, lse, delta);
}

FAST_CLONES static float dot(const float *x, const float *y, int64_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* All keys of one block of queries: dq of the block is finished, dk and dv (rows ldd* apart, at key
 * 0 of this head) grow. */
static void backward_block(const struct block *k, float *dk, int64_t lddk, float *dv, int64_t lddv)
{
    const struct attn_args *a = k->a;
    float p[QUERIES * KEYS], dp[QUERIES * KEYS], delta[QUERIES];
    const float *q = query_rows(k, a->q, k->ldq), *dout = query_rows(k, a->dout, k->ldo);
    const float *o = query_rows(k, a->o, k->ldo);
    float *dq = (float *)a->dq + (k->b * a->T + k->i0) * k->ldq + k->h * a->D;

    for (int64_t r = 0; r < k->rows; r++) {
        delta[r] = dot(dout + r * k->ldo, o + r * k->ldo, a->D);
        memset(dq + r * k->ldq, 0, (size_t)a->D * sizeof *dq);
    }
    for (int64_t j = k->key0; j < k->key1; j += KEYS) {
        int64_t n = k->key1 - j < KEYS ? k->key1 - j : KEYS;
        const float *keys = key_rows(k, j, a->k, k->ldk), *values = key_rows(k, j, a->v, k->ldv);
        blas_sgemm(BLAS_AS_IS, BLAS_TRANSPOSED, k->rows, n, a->D, a->scale, q, k->ldq, keys, k->ldk,
                   0, p, KEYS);
        blas_sgemm(BLAS_AS_IS, BLAS_TRANSPOSED, k->rows, n, a->D, 1, dout, k->ldo, values, k->ldv,
                   0, dp, KEYS);
        for (int64_t r = 0; r < k->rows; r++)
            backward_row(k, r, j, n, p + r * KEYS, dp + r * KEYS, delta[r]);
        blas_sgemm(BLAS_TRANSPOSED, BLAS_AS_IS, n, a->D, k->rows, 1, p, KEYS, dout, k->ldo, 1,
                   dv + j * lddv, lddv);
        blas_sgemm(BLAS_TRANSPOSED, BLAS_AS_IS, n, a->D, k->rows, a->scale, dp, KEYS, q, k->ldq, 1,
                   dk + j * lddk, lddk);
        blas_sgemm(BLAS_AS_IS, BLAS_AS_IS, k->rows, a->D, n, a->scale, dp, KEYS, keys, k->ldk, 1,
                   dq, k->ldq);
    }
}

static void backward_head(const struct attn_args *a, int64_t b, int64_t h, float *dk, int64_t lddk,
                          float *dv, int64_t lddv)
{
    struct block k;

    for (int64_t j = 0; j < a->S; j++) {
        memset(dk + j * lddk, 0, (size_t)a->D * sizeof *dk);
        memset(dv + j * lddv, 0, (size_t)a->D * sizeof *dv);
    }
    for (int64_t i0 = 0; i0 < a->T; i0 += QUERIES) {
        block_init(&k, a, b, h, i0);
        backward_block(&k, dk, lddk, dv, lddv);
    }
}

/* Heads that share keys sum their dk and dv apart, then in order of heads. (B, H, 2, S, D) floats.
 */
size_t fast_attn_bwd_workspace(const struct attn_args *a)
{
    return a->H == a->KV ? 0 : (size_t)(2 * a->B * a->H * a->S * a->D) * sizeof(float);
}

FAST_CLONES static void sum_group(const float *parts, int64_t group, int64_t apart, int64_t n,
                                  float *out)
{
    for (int64_t d = 0; d < n; d++) {
        float sum = parts[d];
        for (int64_t g = 1; g < group; g++)
            sum += parts[g * apart + d];
        out[d] = sum;
    }
}

int fast_attn_bwd(struct stream *s, const struct attn_args *a)
{
    int64_t ldk = a->ldk ? a->ldk : a->KV * a->D, ldv = a->ldv ? a->ldv : a->KV * a->D;
    int64_t group = a->H / a->KV, one = a->S * a->D;
    float *parts = a->workspace, *dk = a->dk, *dv = a->dv;

    if (a->D > HEAD_MAX)
        return ERR_UNSUPPORTED;
#pragma omp parallel num_threads(s->threads) if (a->B * a->H * a->T * a->S * a->D >                \
                                                 FAST_SERIAL_PRODUCT)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < a->B * a->H; i++) {
            int64_t b = i / a->H, h = i % a->H;
            if (group == 1)
                backward_head(a, b, h, dk + b * a->S * ldk + h * a->D, ldk,
                              dv + b * a->S * ldv + h * a->D, ldv);
            else
                backward_head(a, b, h, parts + 2 * i * one, a->D, parts + (2 * i + 1) * one, a->D);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < (group == 1 ? 0 : a->B * a->S * a->KV); i++) {
            int64_t kv = i % a->KV, row = i / a->KV, b = row / a->S, j = row % a->S;
            const float *from = parts + 2 * (b * a->H + kv * group) * one + j * a->D;
            sum_group(from, group, 2 * one, a->D, dk + row * ldk + kv * a->D);
            sum_group(from + one, group, 2 * one, a->D, dv + row * ldv + kv * a->D);
        }
    }
    return 0;
}
