/* Embedding, norms, activations, rotary positions, dropout and loss stored in bfloat16. What has a
 * workspace is widened into it, some rows at a time; the rest passes through spans on the stack. */
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"

enum {
    SPAN = 1024,      /* elements of a piece on the stack  */
    CHUNK_ROWS = 256, /* rows of a piece in the workspace  */
    HEADS_SPAN = 8192 /* elements of heads, rotated at a time */
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* --- embedding --- */

int bf16_embed_fwd(struct stream *s, const struct embed_args *a)
{
    int64_t spans = (a->C + SPAN - 1) / SPAN;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->C > FAST_SERIAL)
    for (int64_t i = 0; i < a->N * spans; i++) {
        int64_t n = i / spans, c0 = i % spans * SPAN, count = min64(SPAN, a->C - c0);
        float wte[SPAN], wpe[SPAN];
        bf16_load(wte, (const bf16 *)a->wte + a->tokens[n] * a->C + c0, count);
        if (a->wpe)
            bf16_load(wpe, (const bf16 *)a->wpe + (a->positions[n] + a->wpe_offset) * a->C + c0,
                      count);
        fast_embed_row(wte, a->wpe ? wpe : NULL, a->scale, count, wte);
        bf16_store((bf16 *)a->out + n * a->C + c0, wte, count);
    }
    return 0;
}

size_t bf16_embed_bwd_workspace(const struct embed_args *a)
{
    return (size_t)(min64(CHUNK_ROWS, a->N) * a->C) * sizeof(float);
}

int bf16_embed_bwd(struct stream *s, const struct embed_args *a)
{
    for (int64_t n0 = 0; n0 < a->N; n0 += CHUNK_ROWS) {
        struct embed_args part = *a;
        part.N = min64(CHUNK_ROWS, a->N - n0);
        part.tokens = a->tokens + n0;
        part.positions = a->positions ? a->positions + n0 : NULL;
        part.dout = a->workspace;
        bf16_load_rows(s, a->workspace, a->C, (const bf16 *)a->dout + n0 * a->C, a->C, part.N,
                       a->C);
        fast_embed_bwd(s, &part);
    }
    return 0;
}

/* --- norms --- */

/* weight, bias and their gradients (C), and up to three matrices of a chunk's rows */
size_t bf16_norm_workspace(const struct norm_args *a)
{
    return (size_t)((4 + 3 * min64(CHUNK_ROWS, a->N)) * a->C) * sizeof(float);
}

struct norm_space {
    float *weight, *bias, *dweight, *dbias, *one, *two, *three;
};

static struct norm_space norm_space(const struct norm_args *a)
{
    int64_t rows = min64(CHUNK_ROWS, a->N) * a->C;
    float *at = a->workspace;
    struct norm_space w = {at,
                           at + a->C,
                           at + 2 * a->C,
                           at + 3 * a->C,
                           at + 4 * a->C,
                           at + 4 * a->C + rows,
                           at + 4 * a->C + 2 * rows};

    if (a->weight)
        bf16_load(w.weight, a->weight, a->C);
    if (a->bias)
        bf16_load(w.bias, a->bias, a->C);
    return w;
}

/* The rows [n0, n0 + rows) of an op whose matrices lie in the workspace. */
static struct norm_args norm_part(const struct norm_args *a, const struct norm_space *w, int64_t n0)
{
    struct norm_args part = *a;

    part.ld = 0;
    part.N = min64(CHUNK_ROWS, a->N - n0);
    part.weight = a->weight ? w->weight : NULL;
    part.bias = a->bias ? w->bias : NULL;
    part.mean = a->mean ? (float *)a->mean + n0 : NULL;
    part.rstd = (float *)a->rstd + n0;
    return part;
}

/* The sum is rounded before it is normalised: what backward will see of it. */
int bf16_norm_fwd(struct stream *s, const struct norm_args *a)
{
    struct norm_space w = norm_space(a);
    int64_t ld = a->ld ? a->ld : a->C;

    for (int64_t n0 = 0; n0 < a->N; n0 += CHUNK_ROWS) {
        struct norm_args part = norm_part(a, &w, n0);
        int64_t at = n0 * ld;
        bf16_load_rows(s, w.one, a->C, (const bf16 *)a->x + at, ld, part.N, a->C);
        if (a->residual) {
            bf16_load_rows(s, w.two, a->C, (const bf16 *)a->residual + at, ld, part.N, a->C);
            struct add_args sum = {part.N * a->C, w.two, w.one};
            fast_add(s, &sum);
            bf16_store_rows(s, (bf16 *)a->sum + at, ld, w.one, a->C, part.N, a->C);
            bf16_load_rows(s, w.one, a->C, (const bf16 *)a->sum + at, ld, part.N, a->C);
        }
        part.x = w.one;
        part.residual = NULL;
        part.y = w.two;
        fast_norm_fwd(s, &part);
        bf16_store_rows(s, (bf16 *)a->y + at, ld, w.two, a->C, part.N, a->C);
    }
    return 0;
}

int bf16_norm_bwd(struct stream *s, const struct norm_args *a)
{
    struct norm_space w = norm_space(a);
    int64_t ld = a->ld ? a->ld : a->C;

    if (a->narrow.on)
        memset(w.dweight, 0, 2 * (size_t)a->C * sizeof(float));
    for (int64_t n0 = 0; n0 < a->N; n0 += CHUNK_ROWS) {
        struct norm_args part = norm_part(a, &w, n0);
        int64_t at = n0 * ld;
        bf16_load_rows(s, w.one, a->C, (const bf16 *)a->x + at, ld, part.N, a->C);
        bf16_load_rows(s, w.two, a->C, (const bf16 *)a->dy + at, ld, part.N, a->C);
        if (a->dresidual)
            bf16_load_rows(s, w.three, a->C, (const bf16 *)a->dresidual + at, ld, part.N, a->C);
        part.x = w.one;
        part.dy = w.two;
        part.dresidual = a->dresidual ? w.three : NULL;
        part.dx = w.three;
        if (a->narrow.on) {
            part.dweight = a->dweight ? w.dweight : NULL;
            part.dbias = a->dbias ? w.dbias : NULL;
        }
        fast_norm_bwd(s, &part);
        bf16_store_rows(s, (bf16 *)a->dx + at, ld, w.three, a->C, part.N, a->C);
    }
    if (a->narrow.on && a->dweight)
        bf16_take_gradient(a->narrow.stream, 0, a->C, w.dweight, true, a->dweight);
    if (a->narrow.on && a->dbias)
        bf16_take_gradient(bf16_bias_stream(&a->narrow), 0, a->C, w.dbias, true, a->dbias);
    return 0;
}

/* --- activations --- */

int bf16_act_fwd(struct stream *s, const struct act_args *a)
{
    int64_t spans = (a->F + SPAN - 1) / SPAN;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->F > FAST_SERIAL)
    for (int64_t i = 0; i < a->N * spans; i++) {
        int64_t n = i / spans, f0 = i % spans * SPAN, count = min64(SPAN, a->F - f0);
        const bf16 *row = (const bf16 *)a->x + n * a->F * (a->gated ? 2 : 1) + f0;
        float x[SPAN], up[SPAN];
        bf16_load(x, row, count);
        if (a->gated)
            bf16_load(up, row + a->F, count);
        fast_act_row(a->act, count, x, a->gated ? up : NULL, x);
        bf16_store((bf16 *)a->y + n * a->F + f0, x, count);
    }
    return 0;
}

int bf16_act_bwd(struct stream *s, const struct act_args *a)
{
    int64_t spans = (a->F + SPAN - 1) / SPAN;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->F > FAST_SERIAL)
    for (int64_t i = 0; i < a->N * spans; i++) {
        int64_t n = i / spans, f0 = i % spans * SPAN, count = min64(SPAN, a->F - f0);
        int64_t at = n * a->F * (a->gated ? 2 : 1) + f0;
        float x[SPAN], up[SPAN], dy[SPAN], dx[SPAN], dup[SPAN];
        bf16_load(x, (const bf16 *)a->x + at, count);
        bf16_load(dy, (const bf16 *)a->dy + n * a->F + f0, count);
        if (a->gated)
            bf16_load(up, (const bf16 *)a->x + at + a->F, count);
        fast_act_grad_row(a->act, count, x, a->gated ? up : NULL, dy, dx, a->gated ? dup : NULL);
        bf16_store((bf16 *)a->dx + at, dx, count);
        if (a->gated)
            bf16_store((bf16 *)a->dx + at + a->F, dup, count);
    }
    return 0;
}

/* --- rotary positions --- */

static void rope_row(const struct rope_args *a, int64_t n)
{
    int64_t ldx = a->ldx ? a->ldx : a->heads * a->head_dim, fit = HEADS_SPAN / a->head_dim;
    float heads[HEADS_SPAN];

    for (int64_t h = 0; h < a->heads; h += fit) {
        struct rope_args part = *a;
        part.heads = min64(fit, a->heads - h);
        part.ldx = 0;
        part.positions = a->positions + n;
        part.x = heads;
        bf16 *x = (bf16 *)a->x + n * ldx + h * a->head_dim;
        bf16_load(heads, x, part.heads * a->head_dim);
        fast_rope_row(&part, 0);
        bf16_store(x, heads, part.heads * a->head_dim);
    }
}

int bf16_rope(struct stream *s, const struct rope_args *a)
{
    if (a->head_dim > HEADS_SPAN)
        return ERR_UNSUPPORTED;
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->heads > 64)
    for (int64_t n = 0; n < a->N; n++)
        rope_row(a, n);
    return 0;
}

/* --- dropout --- */

static void dropout(struct stream *s, const struct op_dropout *d, int64_t n, const bf16 *from,
                    const bf16 *residual, bf16 *to)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (n > FAST_SERIAL)
    for (int64_t i0 = 0; i0 < n; i0 += SPAN) {
        int64_t count = min64(SPAN, n - i0);
        float x[SPAN], mask[SPAN], other[SPAN];
        bf16_load(x, from + i0, count);
        if (residual)
            bf16_load(other, residual + i0, count);
        if (d->p > 0)
            fast_dropout_mask(d, i0, i0 + count, mask);
        else
            for (int64_t i = 0; i < count; i++)
                mask[i] = 1.0f;
        fast_dropout_span(x, mask, residual ? other : NULL, count, x);
        bf16_store(to + i0, x, count);
    }
}

int bf16_dropout_fwd(struct stream *s, const struct dropout_args *a)
{
    dropout(s, &a->dropout, a->n, a->x, a->residual, a->y);
    return 0;
}

int bf16_dropout_bwd(struct stream *s, const struct dropout_args *a)
{
    dropout(s, &a->dropout, a->n, a->dy, NULL, a->dx);
    return 0;
}

/* --- loss --- */

/* The largest and the smallest logit of a row, and the first index of the largest. */
static int64_t row_range(const bf16 *row, int64_t V, float *low, float *top)
{
    int64_t best = V;
    float x[SPAN];

    *low = INFINITY;
    *top = -INFINITY;
    for (int64_t v0 = 0; v0 < V; v0 += SPAN) {
        int64_t count = min64(SPAN, V - v0);
        float before = *top;
        bf16_load(x, row + v0, count);
        fast_range(x, count, low, top);
        if (*top > before)
            best = v0 + fast_first_of(x, (int32_t)count, *top);
    }
    return best;
}

static float row_sum(const struct loss_args *a, const bf16 *row, float z_max)
{
    float x[SPAN], sum = 0;

    for (int64_t v0 = 0; v0 < a->V; v0 += SPAN) {
        int64_t count = min64(SPAN, a->V - v0);
        bf16_load(x, row + v0, count);
        sum += fast_loss_sum(x, count, a->logit_scale, a->softcap, z_max);
    }
    return sum;
}

static void row_gradient(const struct loss_args *a, bf16 *row, int64_t target, float z_max, float z,
                         float sum)
{
    float by = cpu_loss_factor(a) * a->logit_scale, x[SPAN], cap = a->softcap;
    float slope = cap != 0.0f ? 1.0f - (z / cap) * (z / cap) : 1.0f;

    for (int64_t v0 = 0; v0 < a->V; v0 += SPAN) {
        int64_t count = min64(SPAN, a->V - v0);
        bf16_load(x, row + v0, count);
        fast_loss_gradient(x, count, a->logit_scale, cap, z_max, by / sum);
        if (target >= v0 && target < v0 + count)
            x[target - v0] -= by * slope;
        bf16_store(row + v0, x, count);
    }
}

static void loss_row(const struct loss_args *a, int64_t n)
{
    bf16 *row = (bf16 *)a->logits + n * (a->ldl ? a->ldl : a->V);
    float *loss = (float *)a->row_loss + n, low, top, logit;
    int32_t target = a->targets[n];

    if (target < 0) {
        *loss = 0;
        a->row_correct[n] = 0;
        if (a->grad_scale)
            memset(row, 0, (size_t)a->V * sizeof *row);
        return;
    }
    a->row_correct[n] = row_range(row, a->V, &low, &top) == target;
    /* z is monotone in the logit */
    float z_max = fast_loss_z(a->logit_scale < 0.0f ? low : top, a->logit_scale, a->softcap);
    float sum = row_sum(a, row, z_max);
    bf16_load(&logit, row + target, 1);
    float z = fast_loss_z(logit, a->logit_scale, a->softcap);
    *loss = (z_max - z) + logf(sum);
    if (a->grad_scale)
        row_gradient(a, row, target, z_max, z, sum);
}

int bf16_loss(struct stream *s, const struct loss_args *a)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->V > FAST_SERIAL)
    for (int64_t n = 0; n < a->N; n++)
        loss_row(a, n);
    return 0;
}
