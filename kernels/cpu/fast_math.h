/*
 * Elementary functions of the fast table as branch-free scalar code that the compiler turns into
 * vector code in any loop around it. Only single products and sums, no contraction: the same bits
 * for every instruction set. Relative errors measured by tests/ops/test_fast.c against double;
 * the polynomials are least-squares fits of our own, reweighted towards the largest relative error.
 */
#ifndef CASTOR_KERNELS_CPU_FAST_MATH_H
#define CASTOR_KERNELS_CPU_FAST_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/op_table.h"

/* A function built once for each instruction set and chosen when the program starts. Parallel
 * regions stay outside such functions: the compiler would build their bodies once only. Not by
 * clang, which gives the function that chooses another name than callers in other files look for.
 */
#if defined(__x86_64__) && !defined(__clang__)
#define FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST_CLONES
#endif
#define FAST_INLINE static inline __attribute__((always_inline))

/* e^x: x = n ln 2 + r, |r| <= ln 2 / 2; relative error 1.5e-7. 0 below -87.3, where results would
 * be subnormal; the value of 88.7 above it. */
FAST_INLINE float fast_exp(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float c = x < -87.3f ? -87.3f : x;
    c = c > 88.3f ? 88.3f : c;
    float shifted = c * 1.44269504f + magic;
    float n = shifted - magic;
    float r = c - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float q = 0.00138144668f;
    q = q * r + 0.00836878082f;
    q = q * r + 0.0416683942f;
    q = q * r + 0.166665201f;
    q = q * r + 0.499999934f;
    float p = 1.0f + (r + r * r * q);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -87.3f ? 0.0f : p * scale;
}

/* 1 / (1 + e^-x) */
FAST_INLINE float fast_sigmoid(float x)
{
    return 1.0f / (1.0f + fast_exp(-x));
}

FAST_INLINE float fast_tanh(float x)
{
    float a = fabsf(x), z = x * x;
    float q = -0.00569198566f;
    q = q * z + 0.0206262918f;
    q = q * z + -0.0537353188f;
    q = q * z + 0.133313814f;
    q = q * z + -0.333332792f;
    float small = x + x * (z * q);
    float large = copysignf(1.0f - 2.0f / (fast_exp(2.0f * a) + 1.0f), x);
    return a < 0.625f ? small : large;
}

/* The normal distribution up to x, and its density: from erfc(z) = exp(-z^2) t P(t), t = 1 / (1 +
 * 0.4 z), for z = |x| / sqrt(2). */
FAST_INLINE float fast_normal(float x, float *density)
{
    float z = fabsf(x) * 0.707106781f, t = 1.0f / (1.0f + 0.4f * z);
    float e = fast_exp(-0.5f * (x * x));
    float p = 0.0459687733f;
    p = p * t + -0.163061897f;
    p = p * t + 0.130503298f;
    p = p * t + 0.0354281497f;
    p = p * t + 0.115473073f;
    p = p * t + 0.178478276f;
    p = p * t + 0.205610811f;
    p = p * t + 0.225936706f;
    p = p * t + 0.225662896f;
    float tail = 0.5f * (e * (t * p));
    *density = 0.398942280f * e;
    return x < 0.0f ? tail : 1.0f - tail;
}

FAST_INLINE float fast_act(enum act_kind act, float x)
{
    float density;
    switch (act) {
    case ACT_NONE:
        return x;
    case ACT_RELU:
        return x > 0.0f ? x : 0.0f;
    case ACT_GELU_ERF:
        return x * fast_normal(x, &density);
    case ACT_GELU_TANH: /* (1 + tanh u) / 2 = sigmoid(2 u) */
        return x * fast_sigmoid(x * (1.59576912f + 0.0713548163f * (x * x)));
    case ACT_SILU:
        return x * fast_sigmoid(x);
    }
    return x;
}

/* d act / dx */
FAST_INLINE float fast_act_slope(enum act_kind act, float x)
{
    float density, s, e;
    switch (act) {
    case ACT_NONE:
        return 1.0f;
    case ACT_RELU:
        return x > 0.0f ? 1.0f : 0.0f;
    case ACT_GELU_ERF:
        s = fast_normal(x, &density);
        return s + x * density;
    case ACT_GELU_TANH:
        e = fast_exp(-(x * (1.59576912f + 0.0713548163f * (x * x))));
        s = 1.0f / (1.0f + e);
        return s + x * (s * (e * s)) * (1.59576912f + 0.214064449f * (x * x));
    case ACT_SILU:
        e = fast_exp(-x);
        s = 1.0f / (1.0f + e);
        return s + x * (s * (e * s));
    }
    return 1.0f;
}

#endif
