/* The gradient norm of parameters stored in bfloat16: a gradient is rounded as it is read. */
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"

enum { SPAN = 2048 };
_Static_assert(SUMSQ_BLOCK % SPAN == 0, "a block is whole spans");

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
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
            round_span((const float *)a->x + i, n, x);
            sum += fast_sumsq_block(x, n);
        }
        a->partial[b] = sum;
    }
    return 0;
}
