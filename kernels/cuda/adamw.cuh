/* Pieces of AdamW kernels: constants, and four elements of an array at a time. */
#ifndef CASTOR_KERNELS_CUDA_ADAMW_CUH
#define CASTOR_KERNELS_CUDA_ADAMW_CUH

#include <type_traits>

#include "kernels/adamw_math.h"
#include "kernels/cuda/common.cuh"

static __device__ __forceinline__ struct adamw_consts consts_of(const struct adamw_args &a)
{
    return adamw_consts_make(a.beta1, a.beta2, a.eps, a.weight_decay, a.step->lr, a.step->bias1,
                             a.step->bias2, a.clip->coef);
}

/* Of element `at`: weight decay is for the first ones. By value: a choice between two structs would
 * put both into local memory, from which every element would read them. */
static __device__ __forceinline__ struct adamw_consts consts_at(struct adamw_consts c,
                                                                const struct adamw_args &a,
                                                                int64_t at)
{
    c.decay = at < a.n_decay ? c.decay : 1.0f;
    return c;
}

/* Read or written once: past the caches. */
static __device__ __forceinline__ void load4(const float *p, float (&v)[4])
{
    float4 f = __ldcs((const float4 *)p);
    v[0] = f.x;
    v[1] = f.y;
    v[2] = f.z;
    v[3] = f.w;
}

template <typename T> __device__ __forceinline__ void load4(const T *p, float (&v)[4])
{
    union {
        uint2 bits;
        T v[4];
    } x;
    x.bits = __ldcs((const uint2 *)p);
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = to_float(x.v[i]);
}

/* The remainders of split masters, beside the parameters in p. */
static __device__ __forceinline__ void load_split4(const int16_t *r, const __nv_bfloat16 *p,
                                                   float (&v)[4])
{
    union {
        uint2 bits;
        int16_t v[4];
    } low;
    union {
        uint2 bits;
        uint16_t v[4];
    } high;
    low.bits = __ldcs((const uint2 *)r);
    high.bits = __ldcs((const uint2 *)p);
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = adamw_join(high.v[i], low.v[i]);
}

/* A parameter as kernels/adamw_math.h rounds it. */
template <typename T> __device__ __forceinline__ T param_of(float master)
{
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
        return __ushort_as_bfloat16(adamw_param_bf16(master));
    else
        return from_float<T>(master);
}

template <typename T> __device__ __forceinline__ void store_param4(T *p, const float (&v)[4])
{
    if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        union {
            uint2 bits;
            T v[4];
        } x;
#pragma unroll
        for (int i = 0; i < 4; i++)
            x.v[i] = param_of<T>(v[i]);
        *reinterpret_cast<uint2 *>(p) = x.bits;
    }
}

/* A state value as it will lie in memory: float as it is, of a split master the remainder, bfloat16
 * by the random bits. */
template <typename S> __device__ __forceinline__ S state_of(float x, uint32_t random)
{
    if constexpr (sizeof(S) == 4)
        return x;
    else if constexpr (std::is_same_v<S, int16_t>)
        return adamw_remainder(x);
    else
        return __ushort_as_bfloat16(adamw_round_bf16(x, random));
}

template <typename S, int SHIFT>
__device__ __forceinline__ void store_state4(S *p, float (&x)[4], const struct rng_block &draw)
{
    union {
        float4 f4;
        uint2 u2;
        S v[4];
    } out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out.v[i] = state_of<S>(x[i], draw.v[i] >> SHIFT);
        if constexpr (std::is_same_v<S, __nv_bfloat16>)
            x[i] = to_float(out.v[i]);
    }
    if constexpr (sizeof(S) == 4)
        __stcs((float4 *)p, out.f4);
    else
        __stcs((uint2 *)p, out.u2);
}

/* The update with 8-bit moments; `real` as in launch_adamw. */
int adamw8_launch(cudaStream_t s, enum dtype real, const struct adamw_args *a);

#endif
