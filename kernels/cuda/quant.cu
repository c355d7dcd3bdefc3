/*
 * Decoding of quantised weights (kernels/quant.h) into a matrix that cuBLASLt multiplies: eight
 * elements a thread, whose codes are one read of 4 or 8 bytes and whose values are one write of 16
 * (float32: two); levels are looked up in shared memory, where sixteen words do not collide.
 *
 * Floor: 0.5625 (nf4) or 1.0625 (int8) bytes read and the matrix written, once each.
 */
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, WIDE = 8 };

static __constant__ float nf4_levels[16] = QUANT_NF4_LEVELS;

template <enum quant_format F>
static __device__ __forceinline__ float decode_one(const uint8_t *codes, const float *scales,
                                                   int64_t i)
{
    float level;
    if constexpr (F == QUANT_INT8)
        level = (float)(int8_t)codes[i];
    else
        level = nf4_levels[i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15];
    return level * scales[i / QUANT_BLOCK];
}

/* Elements [first + 8 at, first + 8 at + 8), first a multiple of 8. */
template <typename T, enum quant_format F>
__global__ void __launch_bounds__(THREADS)
    decode_kernel(int64_t count, int64_t first, const uint8_t *codes, const float *scales, T *out)
{
    __shared__ float level[16];
    if (F == QUANT_NF4 && threadIdx.x < 16)
        level[threadIdx.x] = nf4_levels[threadIdx.x];
    if (F == QUANT_NF4)
        __syncthreads();
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, i = first + at * WIDE;
    if (at >= count)
        return;
    float scale = scales[i / QUANT_BLOCK], v[WIDE];
    if constexpr (F == QUANT_INT8) {
        char4 low = __ldcs(reinterpret_cast<const char4 *>(codes + i)),
              high = __ldcs(reinterpret_cast<const char4 *>(codes + i + 4));
        const int8_t code[WIDE] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < WIDE; k++)
            v[k] = (float)code[k] * scale;
    } else {
        uint32_t bytes = __ldcs(reinterpret_cast<const uint32_t *>(codes + i / 2));
#pragma unroll
        for (int k = 0; k < WIDE; k++)
            v[k] = level[bytes >> (k / 2 * 8 + (k % 2 == 0 ? 4 : 0)) & 15] * scale;
    }
    constexpr int W = pack<T>::N;
#pragma unroll
    for (int k = 0; k < WIDE; k += W)
        store_pack(out + at * WIDE + k, reinterpret_cast<const float(&)[W]>(v[k]));
}

/* Elements [first + from, first + n), one a thread. */
template <typename T, enum quant_format F>
__global__ void decode_rest_kernel(int64_t from, int64_t n, int64_t first, const uint8_t *codes,
                                   const float *scales, T *out)
{
    int64_t at = from + (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < n)
        out[at] = from_float<T>(decode_one<F>(codes, scales, first + at));
}

template <typename T, enum quant_format F>
static int decode(cudaStream_t s, const struct op_quant *q, const void *codes, int64_t n, void *to)
{
    const uint8_t *c = (const uint8_t *)codes;
    T *out = (T *)to;
    int64_t wide = aligned16(codes) && aligned16(to) && q->first % WIDE == 0 ? n / WIDE : 0;
    int64_t done = wide * WIDE;
    if (wide > 0)
        decode_kernel<T, F><<<(unsigned)ceil_div(wide, THREADS), THREADS, 0, s>>>(wide, q->first, c,
                                                                                  q->scales, out);
    if (done < n)
        decode_rest_kernel<T, F><<<(unsigned)ceil_div(n - done, THREADS), THREADS, 0, s>>>(
            done, n, q->first, c, q->scales, out);
    return launch_status();
}

template <typename T>
static int decode_as(cudaStream_t s, const struct op_quant *q, const void *codes, int64_t n,
                     void *to)
{
    return q->format == QUANT_NF4 ? decode<T, QUANT_NF4>(s, q, codes, n, to)
                                  : decode<T, QUANT_INT8>(s, q, codes, n, to);
}

extern "C" int launch_quant_decode(cudaStream_t s, enum dtype real, const struct op_quant *q,
                                   const void *codes, int64_t n, void *to)
{
    return DISPATCH_REAL(real, decode_as, s, q, codes, n, to);
}

KERNELS_OF(quant, decode_rest_kernel<float, QUANT_NF4>)
