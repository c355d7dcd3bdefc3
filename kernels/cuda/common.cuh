/*
 * What the kernels of this folder share: conversions, 16-byte packs, reductions of a warp and of a
 * block in a fixed order, and dropout as core/rng.h defines it. Arithmetic is in float32.
 */
#ifndef CASTOR_KERNELS_CUDA_COMMON_CUH
#define CASTOR_KERNELS_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/adamw_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/dropout.h"

#define FULL_WARP 0xffffffffu
#define LOG2E     1.4426950408889634f

/* One of this file's kernels: kernels.h. */
#define KERNELS_OF(file, ...)                                                                      \
    extern "C" const void *kernels_of_##file(void)                                                 \
    {                                                                                              \
        return (const void *)(__VA_ARGS__);                                                        \
    }

static inline int launch_status(void)
{
    return cudaGetLastError() == cudaSuccess ? 0 : ERR_DEVICE;
}

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline bool aligned16(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

/* Call F<T>(args...) with the C type of a table's compute type. */
#define DISPATCH_REAL(real, F, ...)                                                                \
    ((real) == DT_F32    ? F<float>(__VA_ARGS__)                                                   \
     : (real) == DT_BF16 ? F<__nv_bfloat16>(__VA_ARGS__)                                           \
                         : F<__half>(__VA_ARGS__))

static __device__ __forceinline__ float to_float(float x)
{
    return x;
}
static __device__ __forceinline__ float to_float(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
static __device__ __forceinline__ float to_float(__half x)
{
    return __half2float(x);
}

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half from_float<__half>(float x)
{
    return __float2half_rn(x);
}

/* The hardware's 2^x: 2 units in the last place, results below the normal range become 0. */
static __device__ __forceinline__ float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* x as it will read back after a store. */
template <typename T> __device__ __forceinline__ float rounded(float x)
{
    return to_float(from_float<T>(x));
}

/* Elements of T in one 16-byte access. */
template <typename T> struct pack {
    static constexpr int N = 16 / sizeof(T);
    union {
        uint4 bits;
        uint32_t words[4];
        T v[N];
    };
    __device__ __forceinline__ pack()
    {
    }
};

template <typename T>
__device__ __forceinline__ void load_pack(const T *p, float (&out)[pack<T>::N])
{
    pack<T> x;
    x.bits = *reinterpret_cast<const uint4 *>(p);
#pragma unroll
    for (int i = 0; i < pack<T>::N; i++)
        out[i] = to_float(x.v[i]);
}

template <typename T>
__device__ __forceinline__ void store_pack(T *p, const float (&in)[pack<T>::N])
{
    pack<T> x;
#pragma unroll
    for (int i = 0; i < pack<T>::N; i++)
        x.v[i] = from_float<T>(in[i]);
    *reinterpret_cast<uint4 *>(p) = x.bits;
}

/* Butterfly sums: every lane holds the total, and the order is the same in all of them. */
template <int WIDTH = 32, typename A> __device__ __forceinline__ A warp_sum(A x)
{
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

template <int WIDTH = 32> __device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

/* Total over a block of THREADS; every thread gets it. `scratch` holds THREADS / 32 elements and
 * may be reused after the next barrier that all threads pass. */
template <int THREADS, typename A> __device__ __forceinline__ A block_sum(A x, A *scratch)
{
    x = warp_sum(x);
    if (THREADS == 32)
        return x;
    __syncthreads();
    if ((threadIdx.x & 31) == 0)
        scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    A total = scratch[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; w++)
        total += scratch[w];
    return total;
}

/* Element i of a weight gradient takes what a call contributes: op_table.h, struct op_narrow. */
static __device__ __forceinline__ void take_gradient(__nv_bfloat16 *to, int64_t i, float x,
                                                     bool add, struct rng_stream stream)
{
    uint16_t near = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    uint16_t sum = add ? narrow_add(__bfloat16_as_ushort(to[i]), near, rng_draw(stream, i)) : near;
    to[i] = __ushort_as_bfloat16(sum);
}
static __device__ __forceinline__ void take_gradient(float *to, int64_t i, float x, bool add,
                                                     struct rng_stream stream)
{
    to[i] = add ? to[i] + x : x;
}

static inline struct rng_stream bias_stream(const struct op_narrow *n)
{
    struct rng_stream s = n->stream;
    s.site++;
    return s;
}

/* What kept elements are multiplied by. */
static inline float dropout_scale(float p)
{
    return 1.0f / (1.0f - p);
}

/* How a kernel needs op_dropout. */
struct dropout_params {
    struct rng_stream stream;
    uint32_t threshold;
    float scale; /* of kept elements */
    int64_t first;
    int on;
};

static inline struct dropout_params dropout_resolve(const struct op_dropout *d)
{
    struct dropout_params p;
    p.stream = d->stream;
    p.on = d->p > 0;
    p.threshold = p.on ? dropout_threshold(d->p) : 0;
    p.scale = p.on ? dropout_scale(d->p) : 1.0f;
    p.first = d->first;
    return p;
}

/* The factor of the element with this index: 0 or the scale. */
static __device__ __forceinline__ float dropout_factor(const struct dropout_params &d,
                                                       uint64_t index)
{
    return dropout_drops(d.stream, d.threshold, index) ? 0.0f : d.scale;
}

#endif
