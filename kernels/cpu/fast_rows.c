/* Embedding, rotary positions, dropout, loss: rows or columns in parallel. */
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"
#include "kernels/dropout.h"

/* --- embedding --- */

FAST_CLONES void fast_embed_row(const float *wte, const float *wpe, float scale, int64_t C,
                                float *out)
{
    if (wpe)
        for (int64_t c = 0; c < C; c++)
            out[c] = wte[c] * scale + wpe[c];
    else
        for (int64_t c = 0; c < C; c++)
            out[c] = wte[c] * scale;
}

int fast_embed_fwd(struct stream *s, const struct embed_args *a)
{
    const float *wte = a->wte, *wpe = a->wpe;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->C > FAST_SERIAL)
    for (int64_t n = 0; n < a->N; n++)
        fast_embed_row(wte + a->tokens[n] * a->C,
                       wpe ? wpe + (a->positions[n] + a->wpe_offset) * a->C : NULL, a->scale, a->C,
                       (float *)a->out + n * a->C);
    return 0;
}

FAST_CLONES static void embed_back_strip(const struct embed_args *a, int64_t c0, int64_t c1)
{
    for (int64_t n = 0; n < a->N; n++) {
        const float *d = (const float *)a->dout + n * a->C;
        if (a->dwte) {
            float *to = (float *)a->dwte + a->tokens[n] * a->C;
            for (int64_t c = c0; c < c1; c++)
                to[c] += d[c] * a->scale;
        }
        if (a->dwpe) {
            float *to = (float *)a->dwpe + (a->positions[n] + a->wpe_offset) * a->C;
            for (int64_t c = c0; c < c1; c++)
                to[c] += d[c];
        }
    }
}

/* Strips of columns, each in ascending order of rows. */
int fast_embed_bwd(struct stream *s, const struct embed_args *a)
{
    int64_t strips = (a->C + FAST_COLUMNS - 1) / FAST_COLUMNS;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->C > FAST_SERIAL)
    for (int64_t i = 0; i < strips; i++) {
        int64_t c0 = i * FAST_COLUMNS, c1 = c0 + FAST_COLUMNS;
        embed_back_strip(a, c0, c1 < a->C ? c1 : a->C);
    }
    return 0;
}

/* --- rotary positions --- */

FAST_CLONES void fast_rope_row(const struct rope_args *a, int64_t n)
{
    int64_t half = a->rope_dim / 2;
    int64_t ldx = a->ldx ? a->ldx : a->heads * a->head_dim;
    const float *cosine = a->cos_table + a->positions[n] * half;
    const float *sine = a->sin_table + a->positions[n] * half;
    float sign = a->inverse ? -1.0f : 1.0f;

    for (int64_t h = 0; h < a->heads; h++) {
        float *x = (float *)a->x + n * ldx + h * a->head_dim;
        if (a->style == ROPE_HALF) {
            float *y = x + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float u = x[i], v = y[i], sn = sign * sine[i];
                x[i] = u * cosine[i] - v * sn;
                y[i] = u * sn + v * cosine[i];
            }
        } else {
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float u = x[2 * i], v = x[2 * i + 1], sn = sign * sine[i];
                x[2 * i] = u * cosine[i] - v * sn;
                x[2 * i + 1] = u * sn + v * cosine[i];
            }
        }
    }
}

int fast_rope(struct stream *s, const struct rope_args *a)
{
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(static) if (a->N * a->heads * a->rope_dim > FAST_SERIAL)
    for (int64_t n = 0; n < a->N; n++)
        fast_rope_row(a, n);
    return 0;
}

/* --- dropout --- */

FAST_CLONES void fast_dropout_mask(const struct op_dropout *d, int64_t i0, int64_t i1, float *mask)
{
    enum { GROUP = DROPOUT_GROUP };
    uint32_t threshold = dropout_threshold(d->p);
    float kept = 1.0f / (1.0f - d->p);
    uint64_t first = (uint64_t)(d->first + i0), end = (uint64_t)(d->first + i1), i = first;

    for (; i < end && i % GROUP != 0; i++)
        mask[i - first] = dropout_drops(d->stream, threshold, i) ? 0.0f : kept;
    uint64_t groups = i < end ? (end - i) / GROUP : 0;
    float *whole = mask + (i - first);
#pragma omp simd
    for (uint64_t g = 0; g < groups; g++) {
        struct rng_block r = rng_draw4(d->stream, i / GROUP + g);
        for (int j = 0; j < GROUP; j++)
            whole[GROUP * g + (uint64_t)j] = dropout_number(&r, j) >= threshold ? kept : 0.0f;
    }
    i += GROUP * groups;
    for (; i < end; i++)
        mask[i - first] = dropout_drops(d->stream, threshold, i) ? 0.0f : kept;
}

FAST_CLONES void fast_dropout_span(const float *x, const float *mask, const float *residual,
                                   int64_t n, float *y)
{
    if (residual)
        for (int64_t i = 0; i < n; i++)
            y[i] = residual[i] + x[i] * mask[i];
    else
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] * mask[i];
}

static void dropout(struct stream *s, const struct op_dropout *d, int64_t n, const float *x,
                    const float *residual, float *y)
{
    enum { SPAN = 1024 };

#pragma omp parallel for num_threads(s->threads) schedule(static) if (n > FAST_SERIAL)
    for (int64_t i0 = 0; i0 < n; i0 += SPAN) {
        int64_t count = n - i0 < SPAN ? n - i0 : SPAN;
        float mask[SPAN];
        if (d->p > 0)
            fast_dropout_mask(d, i0, i0 + count, mask);
        else
            for (int64_t i = 0; i < count; i++)
                mask[i] = 1.0f;
        fast_dropout_span(x + i0, mask, residual ? residual + i0 : NULL, count, y + i0);
    }
}

int fast_dropout_fwd(struct stream *s, const struct dropout_args *a)
{
    dropout(s, &a->dropout, a->n, a->x, a->residual, a->y);
    return 0;
}

int fast_dropout_bwd(struct stream *s, const struct dropout_args *a)
{
    dropout(s, &a->dropout, a->n, a->dy, NULL, a->dx);
    return 0;
}

/* --- loss --- */

enum { LOSS_BLOCK = 4096 };

FAST_INLINE float loss_z(float logit, float scale, float cap, float inv_cap)
{
    float z = logit * scale;
    return cap != 0.0f ? cap * fast_tanh(z * inv_cap) : z;
}

float fast_loss_z(float logit, float scale, float cap)
{
    return loss_z(logit, scale, cap, cap != 0.0f ? 1.0f / cap : 0.0f);
}

FAST_CLONES void fast_range(const float *x, int64_t n, float *low, float *high)
{
    float m = *high, l = *low;
#pragma omp simd reduction(max : m) reduction(min : l)
    for (int64_t i = 0; i < n; i++) {
        m = x[i] > m ? x[i] : m;
        l = x[i] < l ? x[i] : l;
    }
    *low = l;
    *high = m;
}

FAST_CLONES float fast_loss_sum(const float *x, int64_t V, float scale, float cap, float z_max)
{
    float inv_cap = cap != 0.0f ? 1.0f / cap : 0.0f, sum = 0;
    if (cap == 0.0f) {
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < V; v++)
            sum += fast_exp(x[v] * scale - z_max);
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < V; v++)
            sum += fast_exp(cap * fast_tanh(x[v] * scale * inv_cap) - z_max);
    }
    return sum;
}

FAST_CLONES int32_t fast_first_of(const float *x, int32_t V, float top)
{
    int32_t best = V;
#pragma omp simd reduction(min : best)
    for (int32_t v = 0; v < V; v++) {
        int32_t at = x[v] == top ? v : V;
        best = at < best ? at : best;
    }
    return best;
}

FAST_CLONES void fast_loss_gradient(float *x, int64_t V, float scale, float cap, float z_max,
                                    float by)
{
    float inv_cap = cap != 0.0f ? 1.0f / cap : 0.0f;
    if (cap == 0.0f) {
        for (int64_t v = 0; v < V; v++)
            x[v] = fast_exp(x[v] * scale - z_max) * by;
        return;
    }
    for (int64_t v = 0; v < V; v++) {
        float t = fast_tanh(x[v] * scale * inv_cap);
        x[v] = fast_exp(cap * t - z_max) * by * (1.0f - t * t);
    }
}

/* Float sums of blocks: over a whole vocabulary they would round too often. */
static float loss_sum(const struct loss_args *a, const float *x, float z_max)
{
    double sum = 0;
    for (int64_t v = 0; v < a->V; v += LOSS_BLOCK) {
        int64_t n = a->V - v < LOSS_BLOCK ? a->V - v : LOSS_BLOCK;
        sum += (double)fast_loss_sum(x + v, n, a->logit_scale, a->softcap, z_max);
    }
    return (float)sum;
}

static void loss_row(const struct loss_args *a, int64_t n)
{
    float *x = (float *)a->logits + n * (a->ldl ? a->ldl : a->V), cap = a->softcap;
    float top = -INFINITY, low = INFINITY;
    int32_t target = a->targets[n];

    if (target < 0) {
        ((float *)a->row_loss)[n] = 0;
        a->row_correct[n] = 0;
        if (a->grad_scale)
            memset(x, 0, (size_t)a->V * sizeof *x);
        return;
    }
    fast_range(x, a->V, &low, &top);
    /* z is monotone in x */
    float z_max = fast_loss_z(a->logit_scale < 0.0f ? low : top, a->logit_scale, cap);
    float sum = loss_sum(a, x, z_max);
    float z = fast_loss_z(x[target], a->logit_scale, cap);
    ((float *)a->row_loss)[n] = (z_max - z) + logf(sum);
    a->row_correct[n] = fast_first_of(x, (int32_t)a->V, top) == target;
    if (!a->grad_scale)
        return;
    float by = cpu_loss_factor(a) * a->logit_scale;
    float slope = cap != 0.0f ? 1.0f - (z / cap) * (z / cap) : 1.0f;
    fast_loss_gradient(x, a->V, a->logit_scale, cap, z_max, by / sum);
    x[target] -= by * slope;
}

int fast_loss(struct stream *s, const struct loss_args *a)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->V > FAST_SERIAL)
    for (int64_t n = 0; n < a->N; n++)
        loss_row(a, n);
    return 0;
}
