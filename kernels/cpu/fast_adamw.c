/*
 * The update that offload lives by: gradient and parameter in bfloat16, perhaps in the same place,
 * master and moments in float. One loop reads, computes and writes, so that the processor computes
 * on one block while the next ones are on their way from memory.
 */
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"

enum {
    BLOCK = 64,   /* elements: whole cache lines of every array                             */
    AHEAD = 1024, /* elements that are fetched ahead: one core waits some 100 ns for memory */
    LINE = 64     /* bytes */
};

/* Rounded to nearest even, as kernels/dtype.c does. */
FAST_INLINE uint16_t to_bf16(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1)) >> 16;
    uint32_t quiet_nan = (b >> 16 & 0x8000u) | 0x7fc0u;
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

FAST_INLINE float from_bf16(uint16_t x)
{
    uint32_t b = (uint32_t)x << 16;
    float f;
    memcpy(&f, &b, sizeof f);
    return f;
}

/* A block's gradient has been copied: its place may be the parameter's. */
FAST_INLINE void update(const struct adamw_consts *c, int64_t n, const uint16_t *restrict grad,
                        float *restrict master, float *restrict m, float *restrict v,
                        uint16_t *restrict param)
{
    for (int64_t i = 0; i < n; i++) {
        float w = master[i], mi = m[i], vi = v[i];
        adamw_element(c, from_bf16(grad[i]), &w, &mi, &vi);
        master[i] = w;
        m[i] = mi;
        v[i] = vi;
        param[i] = to_bf16(w);
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
        update(&c, BLOCK, g, master + i, m + i, v + i, param + i);
    }
    memcpy(g, grad + i, (size_t)(n - i) * sizeof *g);
    update(&c, n - i, g, master + i, m + i, v + i, param + i);
}
