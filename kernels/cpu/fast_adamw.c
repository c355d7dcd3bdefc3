/*
 * The update that offload lives by: gradient and parameter in bfloat16, perhaps in the same place,
 * moments in float, the master in float or split. One loop reads, computes and writes, so that the
 * processor computes on one block while the next ones are on their way from memory.
 */
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"

enum {
    BLOCK = 64,   /* elements: whole cache lines of every array                             */
    AHEAD = 1024, /* elements that are fetched ahead: one core waits some 100 ns for memory */
    LINE = 64     /* bytes */
};

FAST_INLINE float from_bf16(uint16_t x)
{
    uint32_t b = (uint32_t)x << 16;
    float f;
    memcpy(&f, &b, sizeof f);
    return f;
}

/* A block's gradient has been copied: its place may be the parameter's. One of master and remainder
 * is NULL. */
FAST_INLINE void update(const struct adamw_consts *c, int64_t n, const uint16_t *restrict grad,
                        float *restrict master, int16_t *restrict remainder, float *restrict m,
                        float *restrict v, uint16_t *restrict param)
{
    for (int64_t i = 0; i < n; i++) {
        float w = remainder ? adamw_join(param[i], remainder[i]) : master[i];
        float mi = m[i], vi = v[i];
        adamw_element(c, from_bf16(grad[i]), &w, &mi, &vi);
        if (remainder)
            remainder[i] = adamw_remainder(w);
        else
            master[i] = w;
        m[i] = mi;
        v[i] = vi;
        param[i] = adamw_param_bf16(w);
    }
}

FAST_INLINE void fetch(const void *at, size_t bytes)
{
    for (size_t k = 0; k < bytes; k += LINE)
        __builtin_prefetch((const char *)at + k, 1, 3);
}

FAST_CLONES void fast_adamw_bf16_span(const struct adamw_consts *consts, int64_t n,
                                      const uint16_t *grad, float *master, float *m, float *v,
                                      uint16_t *param)
{
    struct adamw_consts c = *consts;
    uint16_t g[BLOCK];
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        fetch(grad + i + AHEAD, BLOCK * sizeof *grad); /* beyond the end it fetches in vain */
        fetch(master + i + AHEAD, BLOCK * sizeof *master);
        fetch(m + i + AHEAD, BLOCK * sizeof *m);
        fetch(v + i + AHEAD, BLOCK * sizeof *v);
        memcpy(g, grad + i, sizeof g);
        update(&c, BLOCK, g, master + i, NULL, m + i, v + i, param + i);
    }
    memcpy(g, grad + i, (size_t)(n - i) * sizeof *g);
    update(&c, n - i, g, master + i, NULL, m + i, v + i, param + i);
}

FAST_CLONES void fast_adamw_split_span(const struct adamw_consts *consts, int64_t n,
                                       const uint16_t *grad, int16_t *remainder, float *m, float *v,
                                       uint16_t *param)
{
    struct adamw_consts c = *consts;
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        fetch(grad + i + AHEAD, BLOCK * sizeof *grad);
        fetch(param + i + AHEAD, BLOCK * sizeof *param);
        fetch(remainder + i + AHEAD, BLOCK * sizeof *remainder);
        fetch(m + i + AHEAD, BLOCK * sizeof *m);
        fetch(v + i + AHEAD, BLOCK * sizeof *v);
        update(&c, BLOCK, grad + i, NULL, remainder + i, m + i, v + i, param + i);
    }
    update(&c, n - i, grad + i, NULL, remainder + i, m + i, v + i, param + i);
}
