/* Gradients of parameters stored in bfloat16: kept in it, or rounded as the norm reads them. */
#include "kernels/adamw_math.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"

#include <string.h>

enum { SPAN = 2048 };
_Static_assert(SUMSQ_BLOCK % SPAN == 0, "a block is whole spans");

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

struct rng_stream bf16_bias_stream(const struct op_narrow *narrow)
{
    struct rng_stream s = narrow->stream;
    s.site++;
    return s;
}

void bf16_take_gradient(struct rng_stream stream, int64_t at, int64_t n, const float *from,
                        bool add, bf16 *to)
{
    bf16 rounded[SPAN];

    for (int64_t i0 = 0; i0 < n; i0 += SPAN) {
        int64_t count = min64(SPAN, n - i0);
        bf16_store(rounded, from + i0, count);
        if (!add)
            memcpy(to + i0, rounded, (size_t)count * sizeof *to);
        for (int64_t i = 0; add && i < count; i++)
            to[i0 + i] =
                narrow_add(to[i0 + i], rounded[i], rng_draw(stream, (uint64_t)(at + i0 + i)));
    }
}

static void round_span(const float *from, int64_t n, float *to)
{
    bf16 rounded[SPAN];
    bf16_store(rounded, from, n);
    bf16_load(to, rounded, n);
}

int bf16_sumsq(struct stream *s, const struct sumsq_args *a)
{
    int64_t blocks = (a->n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * SUMSQ_BLOCK, end = min64(a->n, first + SUMSQ_BLOCK);
        double sum = 0;
        float x[SPAN];
        for (int64_t i = first; i < end; i += SPAN) {
            int64_t n = min64(SPAN, end - i);
            if (a->narrow)
                bf16_load(x, (const bf16 *)a->x + i, n);
            else
                round_span((const float *)a->x + i, n, x);
            sum += fast_sumsq_block(x, n);
        }
        a->partial[b] = sum;
    }
    return 0;
}
