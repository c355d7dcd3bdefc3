/*
 * Rounding of bfloat16 matrices to 8 bits, each as a whole (kernels/fp8_scale.h): the largest
 * magnitude in one pass, the copy in another, as it lies or transposed. Maxima do not depend on
 * the order they are taken in. Each pass reads its input once, 16 bytes a thread.
 */
#include <cuda_fp8.h>

#include "kernels/cuda/common.cuh"

enum { THREADS = 256, WAVES = 8 };

static int grid_for(int64_t work)
{
    int64_t blocks = ceil_div(work, THREADS), most = 132 * WAVES;
    return (int)(blocks < most ? blocks : most);
}

struct matrix {
    int64_t rows, cols, ld;
    const uint16_t *x;
};

/* Where the `i`th group of N elements lies; dense matrices are one long row. */
template <int N> static __device__ __forceinline__ const uint16_t *group(const matrix &m, int64_t i)
{
    if (m.ld == m.cols)
        return m.x + i * N;
    uint32_t in_row = (uint32_t)(m.cols / N), row = (uint32_t)i / in_row;
    return m.x + row * m.ld + ((uint32_t)i - row * in_row) * N;
}

/* ---- the largest magnitude ------------------------------------------------------------------- */

/* As integers, magnitudes compare as they do as numbers, and NaN lies above infinity. */
static __device__ __forceinline__ uint32_t max_pair(uint32_t top, uint32_t two)
{
    return __vmaxu2(top, two & 0x7fff7fffu);
}

static __device__ __forceinline__ void keep_largest(uint32_t pair, uint32_t *amax)
{
    uint32_t top = max(pair & 0xffffu, pair >> 16);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        top = max(top, __shfl_xor_sync(FULL_WARP, top, offset));
    if ((threadIdx.x & 31) == 0 && top > 0)
        atomicMax(amax, top << 16);
}

__global__ void amax_packs(struct matrix m, uint32_t *amax)
{
    int64_t packs = m.rows * (m.cols / 8), step = (int64_t)gridDim.x * THREADS;
    uint32_t top = 0;
#pragma unroll 4
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < packs; i += step) {
        uint4 v = *reinterpret_cast<const uint4 *>(group<8>(m, i));
        top = max_pair(max_pair(max_pair(max_pair(top, v.x), v.y), v.z), v.w);
    }
    keep_largest(top, amax);
}

__global__ void amax_single(struct matrix m, uint32_t *amax)
{
    int64_t n = m.rows * m.cols, step = (int64_t)gridDim.x * THREADS;
    uint32_t top = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step)
        top = max_pair(top, *group<1>(m, i));
    keep_largest(top, amax);
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* 2^e and 2^-e, NaN for tensors that are not finite. */
static __device__ __forceinline__ float scale_of(enum fp8_format format, uint32_t amax, float *back)
{
    int e = fp8_exponent(format, amax);
    bool finite = fp8_finite(amax);
    *back = __uint_as_float(finite ? fp8_power_bits(-e) : 0x7fffffffu);
    return __uint_as_float(finite ? fp8_power_bits(e) : 0x7fffffffu);
}

/* The scale of this kernel's tensor; one thread leaves its inverse for the product. */
static __device__ __forceinline__ float take_scale(const struct fp8_cast &c)
{
    float back, scale = scale_of(c.format, *c.amax, &back);
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        *c.back = back;
    return scale;
}

template <enum fp8_format F>
static __device__ __forceinline__ uint32_t narrow2(uint32_t two, float s)
{
    float2 v = make_float2(__uint_as_float(two << 16) * s, __uint_as_float(two & 0xffff0000u) * s);
    return __nv_cvt_float2_to_fp8x2(v, __NV_SATFINITE, F == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2);
}

template <enum fp8_format F>
static __device__ __forceinline__ uint2 narrow8(const uint4 &v, float s)
{
    return make_uint2(narrow2<F>(v.x, s) | narrow2<F>(v.y, s) << 16,
                      narrow2<F>(v.z, s) | narrow2<F>(v.w, s) << 16);
}

template <enum fp8_format F> __global__ void cast_kernel(struct matrix m, struct fp8_cast c)
{
    int64_t groups = m.rows * (m.cols / 16), step = (int64_t)gridDim.x * THREADS;
    float scale = take_scale(c);
#pragma unroll 2
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < groups; i += step) {
        const uint4 *from = reinterpret_cast<const uint4 *>(group<16>(m, i));
        uint2 low = narrow8<F>(from[0], scale), high = narrow8<F>(from[1], scale);
        reinterpret_cast<uint4 *>(c.out)[i] = make_uint4(low.x, low.y, high.x, high.y);
    }
}

/* A block turns a tile of TILE rows and columns by way of shared memory. Word w of row r lies at
 * w ^ 4 (r / 16 % 8), so that a warp that reads 4 words of 8 groups of 16 rows meets 32 banks. */
enum { TILE = 128, ROW_WORDS = TILE / 4, PACKS = TILE / 8 };

static __device__ __forceinline__ int swizzled(int row, int word)
{
    return row * ROW_WORDS + (word ^ ((row >> 4 & 7) << 2));
}

/* Byte `at` of each of four words, in a word. */
static __device__ __forceinline__ uint32_t column(const uint32_t *w, int at)
{
    uint32_t pick = (uint32_t)at | (uint32_t)(at + 4) << 4;
    uint32_t low = __byte_perm(w[0], w[1], pick), high = __byte_perm(w[2], w[3], pick);
    return __byte_perm(low, high, 0x5410);
}

template <enum fp8_format F> __global__ void transpose_kernel(struct matrix m, struct fp8_cast c)
{
    __shared__ uint32_t tile[TILE * ROW_WORDS];
    int64_t row0 = (int64_t)blockIdx.x * TILE, col0 = (int64_t)blockIdx.y * TILE;
    float scale = take_scale(c);

#pragma unroll
    for (int i = 0; i < TILE * PACKS / THREADS; i++) {
        int row = (int)threadIdx.x / PACKS + i * (THREADS / PACKS), pack = (int)threadIdx.x % PACKS;
        if (row0 + row >= m.rows || col0 + pack * 8 >= m.cols)
            continue;
        const uint16_t *from = m.x + (row0 + row) * m.ld + col0 + pack * 8;
        *reinterpret_cast<uint2 *>(&tile[swizzled(row, pack * 2)]) =
            narrow8<F>(*reinterpret_cast<const uint4 *>(from), scale);
    }
    __syncthreads();
    int lane = threadIdx.x & 31, word = (int)(threadIdx.x >> 5) * 4 + (lane >> 3), rows = lane & 7;
    if (row0 + rows * 16 >= m.rows || col0 + word * 4 >= m.cols)
        return;
    uint32_t w[16];
#pragma unroll
    for (int i = 0; i < 16; i++)
        w[i] = tile[swizzled(rows * 16 + i, word)];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint8_t *to = (uint8_t *)c.out + (col0 + word * 4 + i) * m.rows + row0 + rows * 16;
        *reinterpret_cast<uint4 *>(to) =
            make_uint4(column(w, i), column(w + 4, i), column(w + 8, i), column(w + 12, i));
    }
}

template <enum fp8_format F> __global__ void round_kernel(struct matrix m, struct fp8_cast c)
{
    int64_t n = m.rows * m.cols, step = (int64_t)gridDim.x * THREADS;
    float back, scale = scale_of(c.format, *c.amax, &back);

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        float x = __uint_as_float((uint32_t)*group<1>(m, i) << 16) * scale;
        __nv_fp8_storage_t q =
            __nv_cvt_float_to_fp8(x, __NV_SATFINITE, F == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2);
        __half wide = __nv_cvt_fp8_to_halfraw(q, F == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2);
        reinterpret_cast<__nv_bfloat16 *>(c.out)[i] =
            __float2bfloat16_rn(__half2float(wide) * back);
    }
}

/* ---- launchers ------------------------------------------------------------------------------- */

static struct matrix matrix_of(const struct fp8_cast *c)
{
    struct matrix m = {c->rows, c->cols, c->ld, (const uint16_t *)c->x};
    return m;
}

extern "C" int launch_fp8_amax(cudaStream_t s, const struct fp8_cast *c)
{
    struct matrix m = matrix_of(c);
    bool packs = aligned16(c->x) && c->ld % 8 == 0 && c->cols % 8 == 0;

    if (packs)
        amax_packs<<<grid_for(m.rows * m.cols / 8), THREADS, 0, s>>>(m, c->amax);
    else
        amax_single<<<grid_for(m.rows * m.cols), THREADS, 0, s>>>(m, c->amax);
    return launch_status();
}

extern "C" int launch_fp8_cast(cudaStream_t s, const struct fp8_cast *c)
{
    struct matrix m = matrix_of(c);
    int grid = grid_for(m.rows * m.cols / 16);

    if (c->format == FP8_E4M3)
        cast_kernel<FP8_E4M3><<<grid, THREADS, 0, s>>>(m, *c);
    else
        cast_kernel<FP8_E5M2><<<grid, THREADS, 0, s>>>(m, *c);
    return launch_status();
}

extern "C" int launch_fp8_cast_transposed(cudaStream_t s, const struct fp8_cast *c)
{
    struct matrix m = matrix_of(c);
    dim3 grid((unsigned)ceil_div(m.rows, TILE), (unsigned)ceil_div(m.cols, TILE));

    if (c->format == FP8_E4M3)
        transpose_kernel<FP8_E4M3><<<grid, THREADS, 0, s>>>(m, *c);
    else
        transpose_kernel<FP8_E5M2><<<grid, THREADS, 0, s>>>(m, *c);
    return launch_status();
}

extern "C" int launch_fp8_round(cudaStream_t s, const struct fp8_cast *c)
{
    struct matrix m = matrix_of(c);
    int grid = grid_for(m.rows * m.cols);

    if (c->format == FP8_E4M3)
        round_kernel<FP8_E4M3><<<grid, THREADS, 0, s>>>(m, *c);
    else
        round_kernel<FP8_E5M2><<<grid, THREADS, 0, s>>>(m, *c);
    return launch_status();
}
