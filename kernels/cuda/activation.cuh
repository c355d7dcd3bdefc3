/*
 * Activations and their derivatives. `Fast` takes the hardware's exponential (2 units in the last
 * place of float32), which 16-bit results cannot show; float32 tables use the accurate functions.
 */
#ifndef CASTOR_KERNELS_CUDA_ACTIVATION_CUH
#define CASTOR_KERNELS_CUDA_ACTIVATION_CUH

#include "kernels/cuda/common.cuh"

/* An exponential below the normal range is nothing beside 1. */
template <bool Fast> __device__ __forceinline__ float sigmoid(float x)
{
    return Fast ? __fdividef(1.0f, 1.0f + fast_exp2(x * -LOG2E)) : 1.0f / (1.0f + expf(-x));
}

/* Hendrycks, Gimpel, "Gaussian error linear units", 2016: exact and tanh form. */
#define GELU_C0      0.7978845608028654f /* sqrt(2 / pi) */
#define GELU_C1      0.044715f
#define SQRT_HALF    0.7071067811865476f
#define INV_SQRT_2PI 0.3989422804014327f

/* 1 + erf(x); the sum would lose the small results of float32. */
template <bool Fast> __device__ __forceinline__ float one_plus_erf(float x)
{
    return Fast ? 1.0f + erff(x) : erfcf(-x);
}

/* (1 + tanh(u)) / 2 = sigmoid(2 u), which keeps the small results that the sum would lose. */
template <bool Fast> __device__ __forceinline__ float gelu_gate(float x)
{
    return sigmoid<Fast>(2.0f * GELU_C0 * (x + GELU_C1 * x * x * x));
}

template <bool Fast> __device__ __forceinline__ float act_value(int kind, float x)
{
    switch (kind) {
    case ACT_RELU:
        return x > 0 ? x : 0.0f;
    case ACT_GELU_ERF:
        return 0.5f * x * one_plus_erf<Fast>(x * SQRT_HALF);
    case ACT_GELU_TANH:
        return x * gelu_gate<Fast>(x);
    case ACT_SILU:
        return x * sigmoid<Fast>(x);
    default:
        return x;
    }
}

template <bool Fast> __device__ __forceinline__ float act_slope(int kind, float x)
{
    switch (kind) {
    case ACT_RELU:
        return x > 0 ? 1.0f : 0.0f;
    case ACT_GELU_ERF: {
        float density = INV_SQRT_2PI * (Fast ? __expf(-0.5f * x * x) : expf(-0.5f * x * x));
        return 0.5f * one_plus_erf<Fast>(x * SQRT_HALF) + x * density;
    }
    case ACT_GELU_TANH: {
        float g = gelu_gate<Fast>(x);
        float inner = GELU_C0 * (1.0f + 3.0f * GELU_C1 * x * x);
        return g + 2.0f * x * g * (1.0f - g) * inner;
    }
    case ACT_SILU: {
        float g = sigmoid<Fast>(x);
        return g * (1.0f + x * (1.0f - g));
    }
    default:
        return 1.0f;
    }
}

template <typename T> struct is_fast {
    static constexpr bool value = sizeof(T) == 2;
};

#endif
