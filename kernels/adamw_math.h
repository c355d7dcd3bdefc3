/*
 * One AdamW element, the same bits on every device: explicit fused multiply-adds, correctly rounded
 * square root and division, and moments below the smallest normal float flushed to zero (so that
 * neither processor meets subnormals, which CPUs handle slowly and GPUs differently by flag).
 * Compiled by gcc with -ffp-contract=off and by nvcc; every product below either feeds fmaf as an
 * operand or stands alone, so that contraction has nothing left to change.
 *
 * bfloat16 states are rounded stochastically: sixteen random bits are added below the part of the
 * float that is kept (as in Zamirai et al., "Revisiting BFloat16 training", 2020, section 3.2).
 *
 * A bfloat16 parameter is its float master rounded to nearest, ties away from zero. That is what
 * makes a master splittable: of the 2^32 floats exactly 2^16 round to each parameter, and the
 * difference of the bits, read as integers, lies in [-2^15, 2^15), so that the parameter and a
 * 16-bit remainder are the master. (Ties to even would give every other parameter 2^16 + 1.)
 */
#ifndef CASTOR_KERNELS_ADAMW_MATH_H
#define CASTOR_KERNELS_ADAMW_MATH_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "core/rng.h" /* CASTOR_HD */

struct adamw_consts { /* derived once a call, in float */
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float eps;
    float decay;     /* 1 - lr * weight_decay, or 1 */
    float step_size; /* lr / bias1                  */
    float inv_sqrt_bias2;
    float grad_coef;
};

/* From the values of a step. Every operation below rounds once, on every device: the divisions and
 * the square root are correctly rounded, the rest cannot be contracted. */
CASTOR_HD static inline struct adamw_consts adamw_consts_make(float beta1, float beta2, float eps,
                                                              float weight_decay, float lr,
                                                              float bias1, float bias2,
                                                              float grad_coef)
{
    struct adamw_consts c;
    c.beta1 = beta1;
    c.one_minus_beta1 = 1.0f - beta1;
    c.beta2 = beta2;
    c.one_minus_beta2 = 1.0f - beta2;
    c.eps = eps;
    c.decay = fmaf(-lr, weight_decay, 1.0f);
    c.step_size = lr / bias1;
    c.inv_sqrt_bias2 = 1.0f / sqrtf(bias2);
    c.grad_coef = grad_coef;
    return c;
}

/* x rounded to bfloat16, up when the 16 lower bits of `random` reach over the part that is cut off.
 * Infinities, NaN and what would round to infinity are cut. */
CASTOR_HD static inline uint16_t adamw_round_bf16(float x, uint32_t random)
{
    uint32_t bits, up;
    memcpy(&bits, &x, sizeof bits);
    up = bits + (random & 0xffff);
    return (uint16_t)(((up & 0x7f800000) == 0x7f800000 ? bits : up) >> 16);
}

/* The bits of a master, every NaN the same but for its sign, so that it splits as others do. */
CASTOR_HD static inline uint32_t adamw_master_bits(float master)
{
    uint32_t bits;
    memcpy(&bits, &master, sizeof bits);
    return master != master ? (bits & 0x80000000u) | 0x7fc00000u : bits;
}

/* The parameter of a master, in the upper half of a word. */
CASTOR_HD static inline uint32_t adamw_param_word(uint32_t master_bits)
{
    return master_bits + 0x8000u;
}

CASTOR_HD static inline uint16_t adamw_param_bf16(float master)
{
    return (uint16_t)(adamw_param_word(adamw_master_bits(master)) >> 16);
}

/* What the parameter lacks of its master: 0 of a NaN. */
CASTOR_HD static inline int16_t adamw_remainder(float master)
{
    return (int16_t)adamw_master_bits(master);
}

/* The master of both: of a word whose upper half is the parameter and one whose lower half is the
 * remainder. */
CASTOR_HD static inline float adamw_join_words(uint32_t param, uint32_t remainder)
{
    uint32_t bits = (param & 0xffff0000u) + (uint32_t)((int32_t)(remainder << 16) >> 16);
    float master;
    memcpy(&master, &bits, sizeof master);
    return master;
}

CASTOR_HD static inline float adamw_join(uint16_t param, int16_t remainder)
{
    return adamw_join_words((uint32_t)param << 16, (uint32_t)(int32_t)remainder);
}

/* A gradient in bfloat16 takes what a call contributes (struct op_narrow): `add` is rounded
 * already; added to zero it stays what it is. */
CASTOR_HD static inline uint16_t narrow_add(uint16_t old, uint16_t add, uint32_t random)
{
    uint32_t old_bits = (uint32_t)old << 16, add_bits = (uint32_t)add << 16;
    float x, y;
    memcpy(&x, &old_bits, sizeof x);
    memcpy(&y, &add_bits, sizeof y);
    return x == 0 ? add : adamw_round_bf16(x + y, random);
}

/* What the rounding of one element draws, from one word: the three are rounded each without bias,
 * not independently of one another. */
struct adamw_bits {
    uint32_t master, m, v;
};

CASTOR_HD static inline struct adamw_bits adamw_bits_of(uint32_t draw)
{
    struct adamw_bits b = {draw >> 16, draw >> 8, draw};
    return b;
}

CASTOR_HD static inline struct rng_stream adamw_stream(uint64_t seed, uint32_t step, uint32_t site)
{
    struct rng_stream s = {seed, step, site, RNG_USE_ROUNDING};
    return s;
}

/* By a mask: compilers let a condition split the paths behind it. */
CASTOR_HD static inline float adamw_flush(float x)
{
    uint32_t bits, tiny = 0u - (uint32_t)(fabsf(x) < FLT_MIN);
    memcpy(&bits, &x, sizeof bits);
    bits &= ~tiny;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The new moments. */
CASTOR_HD static inline void adamw_moments(const struct adamw_consts *c, float grad, float *m,
                                           float *v)
{
    float g = grad * c->grad_coef;
    float t = c->one_minus_beta1 * g;
    *m = adamw_flush(fmaf(c->beta1, *m, t));
    float u = c->one_minus_beta2 * g;
    *v = adamw_flush(fmaf(c->beta2, *v, u * g));
}

/* The new master, by them. */
CASTOR_HD static inline float adamw_master(const struct adamw_consts *c, float m, float v,
                                           float master)
{
    float denom = fmaf(sqrtf(v), c->inv_sqrt_bias2, c->eps);
    float ratio = m / denom;
    float decayed = master * c->decay;
    return fmaf(-c->step_size, ratio, decayed);
}

CASTOR_HD static inline void adamw_element(const struct adamw_consts *c, float grad, float *master,
                                           float *m, float *v)
{
    adamw_moments(c, grad, m, v);
    *master = adamw_master(c, *m, *v, *master);
}

#endif
