/*
 * Rounding of bfloat16 matrices to 8 bits, each as a whole (kernels/fp8_scale.h): the largest
 * magnitude in one pass, the copies in another. Either pass reads its input once, 16 bytes a thread
 * and access, and makes the matrix of it on the way where it is made of something (struct
 * round8_args); what an activation is made of is rounded in the same passes, or read in 8 bits.
 * Maxima do not depend on the order they are taken in.
 */
#include <cuda_fp8.h>

#include "kernels/cuda/activation.cuh"

enum { THREADS = 256 };
/* Blocks that fill a multiprocessor: of 2,048 threads, but where it has room for fewer. */
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
enum { FULL = 1536 / THREADS };
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
enum { FULL = 1024 / THREADS };
#else
enum { FULL = 2048 / THREADS };
#endif

static int grid_for(int64_t work)
{
    int64_t blocks = ceil_div(work, THREADS), most = 132 * FULL;
    return (int)(blocks < most ? blocks : most);
}

/* --- the matrix --- */

/* Where the gradient of a gated activation is rounded, a thread makes the gate's and the other's
 * from the same inputs: two planes, (N, width) each, side by side. */
struct source {
    int64_t N, width, ld; /* ld: of x */
    int act;
    const __nv_bfloat16 *x, *dy;
    const uint8_t *x8; /* instead of x */
    const struct fp8_scale *x_scale;
};

/* EIGHT: what an activation is made of is rounded, too, and handed out behind its output; or its
 * gradient is made of what was rounded. */
template <enum round8_of OF, bool GATED, bool EIGHT> struct maker {
    static constexpr int PLANES = OF == ROUND8_ACT_GRAD && GATED ? 2 : 1;
    static constexpr int INPUTS = OF == ROUND8_ACT && EIGHT ? 1 + GATED : 0;

    /* W neighbouring elements of each plane, W 8 or 1. */
    template <int W>
    static __device__ __forceinline__ void make(const source &m, int64_t row, int64_t col,
                                                pack<__nv_bfloat16> (&out)[PLANES + INPUTS])
    {
        const __nv_bfloat16 *x = m.x + row * m.ld + col;
        if constexpr (OF == ROUND8_X) {
            load<W>(x, out[0]);
            return;
        }
        pack<__nv_bfloat16> gate, up, dy;
        if constexpr (OF == ROUND8_ACT_GRAD && EIGHT) {
            int64_t at = row * m.ld + col;
            widen<W>(m, at, gate);
            if constexpr (GATED)
                widen<W>(m, at + m.width, up);
        } else {
            load<W>(x, gate);
            if constexpr (GATED)
                load<W>(x + m.width, up);
        }
        if constexpr (INPUTS > 0)
            out[PLANES] = gate;
        if constexpr (INPUTS > 1)
            out[PLANES + INPUTS - 1] = up;
        if constexpr (OF == ROUND8_ACT_GRAD)
            load<W>(m.dy + row * m.width + col, dy);
#pragma unroll
        for (int i = 0; i < W; i++) {
            float g = to_float(gate.v[i]), u = GATED ? to_float(up.v[i]) : 1.0f;
            if constexpr (OF == ROUND8_ACT) {
                out[0].v[i] = __float2bfloat16_rn(u * act_value<true>(m.act, g));
            } else {
                float d = to_float(dy.v[i]);
                out[0].v[i] = __float2bfloat16_rn(d * u * act_slope<true>(m.act, g));
                if constexpr (GATED)
                    out[PLANES - 1].v[i] = __float2bfloat16_rn(d * act_value<true>(m.act, g));
            }
        }
    }

    template <int W>
    static __device__ __forceinline__ void load(const __nv_bfloat16 *p, pack<__nv_bfloat16> &to)
    {
        if constexpr (W == 1)
            to.v[0] = *p;
        else
            to.bits = *reinterpret_cast<const uint4 *>(p);
    }

    /* Elements of x8 from `at` on: exact, as a power of two scales them. */
    template <int W>
    static __device__ __forceinline__ void widen(const source &m, int64_t at,
                                                 pack<__nv_bfloat16> &to)
    {
        float back = __ldg(&m.x_scale->back);
        if constexpr (W == 1) {
            __half h = __nv_cvt_fp8_to_halfraw(m.x8[at], __NV_E4M3);
            to.v[0] = __float2bfloat16_rn(__half2float(h) * back);
            return;
        }
        union {
            uint2 bits;
            __nv_fp8x2_storage_t two[4];
        } narrow;
        narrow.bits = *reinterpret_cast<const uint2 *>(m.x8 + at);
#pragma unroll
        for (int i = 0; i < W / 2; i++) {
            __half2 h = __nv_cvt_fp8x2_to_halfraw2(narrow.two[i], __NV_E4M3);
            float2 f = __half22float2(h);
            to.v[2 * i] = __float2bfloat16_rn(f.x * back);
            to.v[2 * i + 1] = __float2bfloat16_rn(f.y * back);
        }
    }
};

/* --- the largest magnitude --- */

/* As integers, magnitudes compare as they do as numbers, and NaN lies above infinity. */
static __device__ __forceinline__ uint32_t max_pair(uint32_t top, uint32_t two)
{
    return __vmaxu2(top, two & 0x7fff7fffu);
}

static __device__ __forceinline__ void keep_largest(uint32_t pair, float *amax)
{
    uint32_t top = max(pair & 0xffffu, pair >> 16);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        top = max(top, __shfl_xor_sync(FULL_WARP, top, offset));
    if ((threadIdx.x & 31) == 0 && top > 0)
        atomicMax(reinterpret_cast<unsigned int *>(amax), top << 16);
}

template <int W>
static __device__ __forceinline__ uint32_t max_pack(uint32_t top, const pack<__nv_bfloat16> &v)
{
    if constexpr (W == 1)
        return max_pair(top, __bfloat16_as_ushort(v.v[0]));
    else
        return max_pair(max_pair(max_pair(max_pair(top, v.bits.x), v.bits.y), v.bits.z), v.bits.w);
}

template <enum round8_of OF, bool GATED, bool EIGHT, int W>
__global__ void __launch_bounds__(THREADS, FULL)
    amax_kernel(source m, float *amax, float *input_amax)
{
    typedef maker<OF, GATED, EIGHT> made;
    uint32_t in_row = (uint32_t)(m.width / W), n = (uint32_t)m.N * in_row;
    uint32_t step = gridDim.x * THREADS, top = 0, input_top = 0;
#pragma unroll(OF == ROUND8_X ? 4 : OF == ROUND8_ACT_GRAD && EIGHT ? 1 : 2)
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        uint32_t row = i / in_row;
        pack<__nv_bfloat16> v[made::PLANES + made::INPUTS];
        made::template make<W>(m, row, (int64_t)(i - row * in_row) * W, v);
#pragma unroll
        for (int p = 0; p < made::PLANES; p++)
            top = max_pack<W>(top, v[p]);
#pragma unroll
        for (int p = 0; p < made::INPUTS; p++)
            input_top = max_pack<W>(input_top, v[made::PLANES + p]);
    }
    keep_largest(top, amax);
    if constexpr (made::INPUTS > 0)
        keep_largest(input_top, input_amax);
}

/* --- copies --- */

struct copies {
    struct fp8_scale *scale;
    uint8_t *rows, *cols;          /* or NULL */
    struct fp8_scale *input_scale; /* of what the activation is made of, in e4m3 */
    uint8_t *input;
};

/* 2^e, NaN for tensors that are not finite; one thread leaves its inverse for the products. */
template <enum fp8_format F>
static __device__ __forceinline__ float take_scale(struct fp8_scale *scale)
{
    uint32_t amax = __float_as_uint(scale->amax);
    int e = fp8_exponent(F, amax);
    bool finite = fp8_finite(amax);
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        scale->back = __uint_as_float(finite ? fp8_power_bits(-e) : 0x7fffffffu);
    return __uint_as_float(finite ? fp8_power_bits(e) : 0x7fffffffu);
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

/* The tile's columns from col0 on, as rows of the transposed matrix from to_col on. */
static __device__ __forceinline__ void store_turned(const uint32_t *tile, const source &m,
                                                    int64_t row0, int64_t col0, int64_t plane,
                                                    uint8_t *cols)
{
    int lane = threadIdx.x & 31, word = (int)(threadIdx.x >> 5) * 4 + (lane >> 3), rows = lane & 7;
    if (row0 + rows * 16 >= m.N || col0 + word * 4 >= m.width)
        return;
    uint32_t w[16];
#pragma unroll
    for (int i = 0; i < 16; i++)
        w[i] = tile[swizzled(rows * 16 + i, word)];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint8_t *to = cols + (plane * m.width + col0 + word * 4 + i) * m.N + row0 + rows * 16;
        *reinterpret_cast<uint4 *>(to) =
            make_uint4(column(w, i), column(w + 4, i), column(w + 8, i), column(w + 12, i));
    }
}

template <enum fp8_format F, enum round8_of OF, bool GATED, bool EIGHT>
__global__ void __launch_bounds__(THREADS) tile_kernel(source m, copies c)
{
    typedef maker<OF, GATED, EIGHT> made;
    __shared__ uint32_t tile[made::PLANES][TILE * ROW_WORDS];
    int64_t row0 = (int64_t)blockIdx.y * TILE, col0 = (int64_t)blockIdx.x * TILE;
    float scale = take_scale<F>(c.scale), input_scale = 0;
    if constexpr (made::INPUTS > 0)
        input_scale = take_scale<FP8_E4M3>(c.input_scale);

#pragma unroll(OF == ROUND8_X ? 8 : OF == ROUND8_ACT ? 4 : 2)
    for (int i = 0; i < TILE * PACKS / THREADS; i++) {
        int row = (int)threadIdx.x / PACKS + i * (THREADS / PACKS), at = (int)threadIdx.x % PACKS;
        pack<__nv_bfloat16> v[made::PLANES + made::INPUTS];
        if (row0 + row >= m.N || col0 + at * 8 >= m.width)
            continue;
        made::template make<8>(m, row0 + row, col0 + at * 8, v);
#pragma unroll
        for (int p = 0; p < made::PLANES; p++) {
            uint2 narrow = narrow8<F>(v[p].bits, scale);
            int64_t to = ((row0 + row) * made::PLANES + p) * m.width + col0 + at * 8;
            if (c.rows)
                *reinterpret_cast<uint2 *>(c.rows + to) = narrow;
            *reinterpret_cast<uint2 *>(&tile[p][swizzled(row, at * 2)]) = narrow;
        }
#pragma unroll
        for (int p = 0; p < made::INPUTS; p++) {
            int64_t to = ((row0 + row) * made::INPUTS + p) * m.width + col0 + at * 8;
            *reinterpret_cast<uint2 *>(c.input + to) =
                narrow8<FP8_E4M3>(v[made::PLANES + p].bits, input_scale);
        }
    }
    if (!c.cols)
        return;
    __syncthreads();
#pragma unroll
    for (int p = 0; p < made::PLANES; p++)
        store_turned(tile[p], m, row0, col0, p, c.cols);
}

template <enum fp8_format F>
static __device__ __forceinline__ uint8_t narrow1(__nv_bfloat16 x, float s)
{
    return __nv_cvt_float_to_fp8(to_float(x) * s, __NV_SATFINITE,
                                 F == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2);
}

/* Sides that are no multiples of 16: an element a thread. */
template <enum fp8_format F, enum round8_of OF, bool GATED, bool EIGHT>
__global__ void single_kernel(source m, copies c)
{
    typedef maker<OF, GATED, EIGHT> made;
    int64_t n = m.N * m.width, step = (int64_t)gridDim.x * THREADS;
    float scale = take_scale<F>(c.scale), input_scale = 0;
    if constexpr (made::INPUTS > 0)
        input_scale = take_scale<FP8_E4M3>(c.input_scale);

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        int64_t row = i / m.width, col = i - row * m.width;
        pack<__nv_bfloat16> v[made::PLANES + made::INPUTS];
        made::template make<1>(m, row, col, v);
        for (int p = 0; p < made::PLANES; p++) {
            uint8_t q = narrow1<F>(v[p].v[0], scale);
            if (c.rows)
                c.rows[(row * made::PLANES + p) * m.width + col] = q;
            if (c.cols)
                c.cols[(p * m.width + col) * m.N + row] = q;
        }
        for (int p = 0; p < made::INPUTS; p++)
            c.input[(row * made::INPUTS + p) * m.width + col] =
                narrow1<FP8_E4M3>(v[made::PLANES + p].v[0], input_scale);
    }
}

/* --- and back --- */

template <enum fp8_format F>
__global__ void spread_kernel(int64_t n, const uint8_t *from, const struct fp8_scale *scale,
                              __nv_bfloat16 *to)
{
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        __half wide = __nv_cvt_fp8_to_halfraw(from[i], F == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2);
        to[i] = __float2bfloat16_rn(__half2float(wide) * scale->back);
    }
}

/* --- launchers --- */

static bool fits_packs(const struct round8_args *a, const source &m)
{
    return m.N % 16 == 0 && m.width % 16 == 0 && m.ld % 8 == 0 && aligned16(m.x) &&
           aligned16(m.dy) && aligned16(a->x8) && aligned16(a->rows) && aligned16(a->cols);
}

template <enum fp8_format F, enum round8_of OF, bool GATED, bool EIGHT>
static int round8(cudaStream_t s, const struct round8_args *a)
{
    bool halves = OF == ROUND8_ACT_GRAD && GATED;
    source m = {a->N,
                halves ? a->C / 2 : a->C,
                a->ldx ? a->ldx : a->C,
                a->act,
                (const __nv_bfloat16 *)a->x,
                (const __nv_bfloat16 *)a->dy,
                (const uint8_t *)a->x8,
                a->x_scale};
    if (OF == ROUND8_ACT && GATED)
        m.ld = 2 * a->C;
    copies c = {a->scale, (uint8_t *)a->rows, (uint8_t *)a->cols, a->x_scale, (uint8_t *)a->x8};
    float *amax = &a->scale->amax, *input_amax = EIGHT ? &a->x_scale->amax : NULL;
    bool packs = fits_packs(a, m), inputs = maker<OF, GATED, EIGHT>::INPUTS > 0;
    int64_t n = m.N * m.width;

    if (n >= (int64_t)1 << 32)
        return ERR_UNSUPPORTED;
    if (!a->known && packs)
        amax_kernel<OF, GATED, EIGHT, 8><<<grid_for(n / 8), THREADS, 0, s>>>(m, amax, input_amax);
    else if (!a->known)
        amax_kernel<OF, GATED, EIGHT, 1><<<grid_for(n), THREADS, 0, s>>>(m, amax, input_amax);
    if (!a->rows && !a->cols && !inputs)
        return launch_status();
    dim3 tiles((unsigned)ceil_div(m.width, TILE), (unsigned)ceil_div(m.N, TILE));
    if (packs)
        tile_kernel<F, OF, GATED, EIGHT><<<tiles, THREADS, 0, s>>>(m, c);
    else
        single_kernel<F, OF, GATED, EIGHT><<<grid_for(n), THREADS, 0, s>>>(m, c);
    return launch_status();
}

template <enum fp8_format F, enum round8_of OF>
static int of_activation(cudaStream_t s, const struct round8_args *a)
{
    if (a->gated)
        return a->x8 ? round8<F, OF, true, true>(s, a) : round8<F, OF, true, false>(s, a);
    return a->x8 ? round8<F, OF, false, true>(s, a) : round8<F, OF, false, false>(s, a);
}

template <enum fp8_format F> static int in_format(cudaStream_t s, const struct round8_args *a)
{
    switch (a->of) {
    case ROUND8_X:
        return round8<F, ROUND8_X, false, false>(s, a);
    case ROUND8_ACT:
        return of_activation<F, ROUND8_ACT>(s, a);
    case ROUND8_ACT_GRAD:
        return of_activation<F, ROUND8_ACT_GRAD>(s, a);
    }
    return ERR_UNSUPPORTED;
}

extern "C" int launch_round8(cudaStream_t s, const struct round8_args *a)
{
    return a->format == FP8_E4M3 ? in_format<FP8_E4M3>(s, a) : in_format<FP8_E5M2>(s, a);
}

extern "C" int launch_fp8_spread(cudaStream_t s, enum fp8_format format, int64_t n,
                                 const void *from, const struct fp8_scale *scale, void *to)
{
    const uint8_t *bytes = (const uint8_t *)from;
    __nv_bfloat16 *out = (__nv_bfloat16 *)to;

    if (format == FP8_E4M3)
        spread_kernel<FP8_E4M3><<<grid_for(n), THREADS, 0, s>>>(n, bytes, scale, out);
    else
        spread_kernel<FP8_E5M2><<<grid_for(n), THREADS, 0, s>>>(n, bytes, scale, out);
    return launch_status();
}
