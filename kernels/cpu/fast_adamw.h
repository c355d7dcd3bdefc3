/*
 * Updates beside bfloat16 gradients and parameters: what offload lives by. One loop reads, computes
 * and writes, so that the processor computes on one block while the next ones are on their way from
 * memory. How such loops stand to each other: moments are floats (fast_adamw.c) or 8-bit codes
 * (fast_adamw8.c), the master is a float or split (kernels/adamw_math.h).
 */
#ifndef CASTOR_KERNELS_CPU_FAST_ADAMW_H
#define CASTOR_KERNELS_CPU_FAST_ADAMW_H

#include "kernels/adamw_math.h"
#include "kernels/cpu/fast_math.h"

/* n elements of an update whose gradient and parameter are bfloat16 and lie apart or in the same
 * place, its states float. */
void fast_adamw_bf16_span(const struct adamw_consts *consts, int64_t n, const uint16_t *grad,
                          float *master, float *m, float *v, uint16_t *param);
/* Likewise of a split master; gradient and parameter lie apart. */
void fast_adamw_split_span(const struct adamw_consts *consts, int64_t n, const uint16_t *grad,
                           int16_t *remainder, float *m, float *v, uint16_t *param);

/* Elements [i0, i0 + n) of an update with 8-bit moments, i0 a multiple of MOMENT_BLOCK, whose
 * gradient and parameter are bfloat16 and whose master is float or split. */
void fast_adamw8_span(const struct adamw_args *a, const struct adamw_consts *consts, int64_t i0,
                      int64_t n);
/* Such moments as floats, and back. */
void fast_moments_load(const struct adamw_args *a, int64_t i0, int64_t n, float *m, float *v);
void fast_moments_store(const struct adamw_args *a, int64_t i0, int64_t n, const float *m,
                        const float *v);

/* --- pieces of the loops --- */

enum { FAST_LINE = 64 /* bytes of a cache line */ };

/* Fetch what will be read and written, or read only. An address past the end is fetched in vain. */
FAST_INLINE void fast_fetch(const void *at, size_t bytes)
{
    for (size_t k = 0; k < bytes; k += FAST_LINE)
        __builtin_prefetch((const char *)at + k, 1, 3);
}

FAST_INLINE void fast_fetch_once(const void *at, size_t bytes)
{
    for (size_t k = 0; k < bytes; k += FAST_LINE)
        __builtin_prefetch((const char *)at + k, 0, 3);
}

FAST_INLINE float fast_widen(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

#endif
