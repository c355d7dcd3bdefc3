/* Passes over parameters: sums, norm, AdamW, casts. All are bound by memory. */
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"

enum { SPAN = 1 << 14 }; /* elements of one task */

static int64_t span_count(int64_t n, int64_t i0)
{
    return n - i0 < SPAN ? n - i0 : SPAN;
}

FAST_CLONES static void add_span(const float *x, int64_t n, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

int fast_add(struct stream *s, const struct add_args *a)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += SPAN)
        add_span((const float *)a->x + i0, span_count(a->n, i0), (float *)a->y + i0);
    return 0;
}

/* Thirty-two sums side by side, the same on every instruction set. */
FAST_CLONES static double sumsq_block(const float *x, int64_t n)
{
    typedef float floats __attribute__((vector_size(32), aligned(4)));
    typedef double doubles __attribute__((vector_size(64)));
    doubles sum[4] = {{0}};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 4; k++) {
            doubles d = __builtin_convertvector(*(const floats *)(x + i + 8 * k), doubles);
            sum[k] += d * d;
        }
    doubles all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (; i < n; i++)
        all[0] += (double)x[i] * (double)x[i];
    return ((all[0] + all[1]) + (all[2] + all[3])) + ((all[4] + all[5]) + (all[6] + all[7]));
}

int fast_sumsq(struct stream *s, const struct sumsq_args *a)
{
    int64_t blocks = (a->n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * SUMSQ_BLOCK, left = a->n - first;
        a->partial[b] =
            sumsq_block((const float *)a->x + first, left < SUMSQ_BLOCK ? left : SUMSQ_BLOCK);
    }
    return 0;
}

/* kernels/adamw_math.h, whose operations are all correctly rounded: vectors give its bits. */
FAST_CLONES static void adamw_span(const struct adamw_consts *consts, int64_t n,
                                   const float *restrict grad, float *restrict master,
                                   float *restrict m, float *restrict v)
{
    struct adamw_consts c = *consts;
    for (int64_t i = 0; i < n; i++) {
        float w = master[i], mi = m[i], vi = v[i];
        adamw_element(&c, grad[i], &w, &mi, &vi);
        master[i] = w;
        m[i] = mi;
        v[i] = vi;
    }
}

int fast_adamw(struct stream *s, const struct adamw_args *a)
{
    if (!a->clip->finite)
        return 0;
    struct adamw_consts decayed = cpu_adamw_consts(a, true), plain = cpu_adamw_consts(a, false);

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += SPAN) {
        int64_t n = span_count(a->n, i0), cut = a->n_decay - i0;
        const float *grad = (const float *)a->grad + i0;
        float *master = (float *)a->master + i0, *m = (float *)a->m + i0, *v = (float *)a->v + i0;
        cut = cut < 0 ? 0 : cut > n ? n : cut;
        adamw_span(&decayed, cut, grad, master, m, v);
        adamw_span(&plain, n - cut, grad + cut, master + cut, m + cut, v + cut);
        if (a->param)
            memcpy((float *)a->param + i0, master, (size_t)n * sizeof *master);
    }
    return 0;
}

int fast_cast(struct stream *s, const struct cast_args *a)
{
    size_t from = dtype_size(a->from), to = dtype_size(a->to);

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += SPAN)
        dtype_convert(a->to, (char *)a->dst + (size_t)i0 * to, a->from,
                      (const char *)a->src + (size_t)i0 * from, span_count(a->n, i0));
    return 0;
}
