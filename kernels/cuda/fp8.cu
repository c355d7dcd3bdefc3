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
/* Threads that a multiprocessor holds. */
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
enum { HELD = 1536 };
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
enum { HELD = 1024 };
#else
enum { HELD = 2048 };
#endif
/* Blocks that fill it: of threads with up to 32 registers, and with up to 40. */
enum { FULL = HELD / THREADS, MOST = FULL * 3 / 4 };

static int grid_for(int64_t work, int room)
{
    int64_t blocks = ceil_div(work, THREADS), most = 132 * room;
    return (int)(blocks < most ? blocks : most);
}

/* --- the matrix --- */

/* Where the gradient of a gated activation is rounded, a thread makes the gate's and the other's
 * from the same inputs: two planes, (N, width) each, side by side. */
struct source {
    int64_t N, width, ld; /* ld: of x, with ROUND8_X */
    int act;
    const __nv_bfloat16 *x, *dy;
    const uint8_t *x8; /* instead of x */
    const struct fp8_scale *x_scale;
};

/* Two elements of bfloat16 in a word. */
static __device__ __forceinline__ __nv_bfloat162 as_pair(uint32_t word)
{
    return *reinterpret_cast<const __nv_bfloat162 *>(&word);
}

static __device__ __forceinline__ uint32_t as_word(__nv_bfloat162 pair)
{
    return *reinterpret_cast<const uint32_t *>(&pair);
}

/* Packs hold W elements, 8 or 1. */
typedef pack<__nv_bfloat16> wide;

template <int W> static __device__ __forceinline__ void load(const __nv_bfloat16 *p, wide &to)
{
    if constexpr (W == 1)
        to.words[0] = __bfloat16_as_ushort(*p);
    else
        to.bits = *reinterpret_cast<const uint4 *>(p);
}

/* Of 8 bits, in the first half of the pack. */
template <int W> static __device__ __forceinline__ void load(const uint8_t *p, wide &to)
{
    if constexpr (W == 1)
        to.words[0] = *p;
    else
        *reinterpret_cast<uint2 *>(to.words) = *reinterpret_cast<const uint2 *>(p);
}

static __device__ __forceinline__ float2 unpack(uint32_t two)
{
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

/* Elements 2 i and 2 i + 1 of e4m3, times a power of two: values of bfloat16, which were rounded
 * to them. */
static __device__ __forceinline__ float2 unpack8(const wide &from, int i, float back)
{
    __nv_fp8x2_storage_t two = (uint16_t)(from.words[i / 2] >> i % 2 * 16);
    float2 f = __half22float2(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3));
    return make_float2(f.x * back, f.y * back);
}

/* EIGHT: what an activation is made of is rounded, too, and handed out behind its output; or its
 * gradient is made of what was rounded. */
template <enum round8_of OF, bool GATED, bool EIGHT> struct maker {
    static constexpr bool FROM8 = OF == ROUND8_ACT_GRAD && EIGHT;
    static constexpr int PLANES = OF == ROUND8_ACT_GRAD && GATED ? 2 : 1;
    static constexpr int INPUTS = OF == ROUND8_ACT && EIGHT ? 1 + GATED : 0;
    static constexpr int BATCH = OF == ROUND8_X ? 2 : 1; /* packs that a thread fetches at once */
    static constexpr int ROOM = OF == ROUND8_X ? FULL : MOST; /* for blocks that find the largest */

    struct inputs {
        wide x[2], dy; /* the gate, or the matrix itself; what it is multiplied by */
    };

    /* What the inputs are multiplied by where they are of 8 bits. */
    static __device__ __forceinline__ float back(const source &m)
    {
        return FROM8 ? m.x_scale->back : 1;
    }

    template <int W>
    static __device__ __forceinline__ void fetch(const source &m, int64_t row, int64_t col,
                                                 inputs &in)
    {
        int64_t at = row * (OF == ROUND8_X ? m.ld : (1 + GATED) * m.width) + col;
        if constexpr (FROM8)
            load<W>(m.x8 + at, in.x[0]);
        else
            load<W>(m.x + at, in.x[0]);
        if constexpr (FROM8 && GATED)
            load<W>(m.x8 + at + m.width, in.x[1]);
        else if constexpr (OF != ROUND8_X && GATED)
            load<W>(m.x + at + m.width, in.x[1]);
        if constexpr (OF == ROUND8_ACT_GRAD)
            load<W>(m.dy + row * m.width + col, in.dy);
    }

    /* W neighbouring elements of each plane. */
    template <int W>
    static __device__ __forceinline__ void make(int act, float back, const inputs &in,
                                                wide (&out)[PLANES + INPUTS])
    {
        if constexpr (INPUTS > 0)
            out[PLANES] = in.x[0];
        if constexpr (INPUTS > 1)
            out[PLANES + 1] = in.x[1];
        if constexpr (OF == ROUND8_X)
            out[0] = in.x[0];
        else
            activate<W>(act, back, in, out);
    }

    template <int W>
    static __device__ __forceinline__ void activate(int act, float back, const inputs &in,
                                                    wide (&out)[PLANES + INPUTS])
    {
        switch (act) { /* once for all of them, so that their chains of arithmetic overlap */
        case ACT_RELU:
            return apply<W, ACT_RELU>(back, in, out);
        case ACT_GELU_ERF:
            return apply<W, ACT_GELU_ERF>(back, in, out);
        case ACT_GELU_TANH:
            return apply<W, ACT_GELU_TANH>(back, in, out);
        case ACT_SILU:
            return apply<W, ACT_SILU>(back, in, out);
        default:
            return apply<W, ACT_NONE>(back, in, out);
        }
    }

    /* Two at a time; of a pack of one the second is nothing. */
    template <int W, enum act_kind ACT>
    static __device__ __forceinline__ void apply(float back, const inputs &in,
                                                 wide (&out)[PLANES + INPUTS])
    {
#pragma unroll
        for (int i = 0; i < (W + 1) / 2; i++) {
            float2 g = input(back, in, 0, i), u = GATED ? input(back, in, 1, i) : make_float2(1, 1);
            if constexpr (OF == ROUND8_ACT) {
                out[0].words[i] = as_word(__floats2bfloat162_rn(u.x * act_value<true>(ACT, g.x),
                                                                u.y * act_value<true>(ACT, g.y)));
            } else {
                float2 d = unpack(in.dy.words[i]);
                out[0].words[i] = as_word(__floats2bfloat162_rn(
                    d.x * u.x * act_slope<true>(ACT, g.x), d.y * u.y * act_slope<true>(ACT, g.y)));
                if constexpr (GATED)
                    out[1].words[i] = as_word(__floats2bfloat162_rn(
                        d.x * act_value<true>(ACT, g.x), d.y * act_value<true>(ACT, g.y)));
            }
        }
    }

    static __device__ __forceinline__ float2 input(float back, const inputs &in, int which, int i)
    {
        if constexpr (FROM8)
            return unpack8(in.x[which], i, back);
        else
            return unpack(in.x[which].words[i]);
    }
};

/* --- the largest magnitude --- */

/* NaN stays, and as an integer lies above infinity, too. */
static __device__ __forceinline__ uint32_t max_pair(uint32_t top, uint32_t two)
{
    return as_word(__hmax2_nan(as_pair(top), __habs2(as_pair(two))));
}

static __device__ __forceinline__ void keep_largest(uint32_t two, float *amax)
{
    uint32_t top = max(two & 0xffffu, two >> 16);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        top = max(top, __shfl_xor_sync(FULL_WARP, top, offset));
    if ((threadIdx.x & 31) == 0 && top > 0)
        atomicMax(reinterpret_cast<unsigned int *>(amax), top << 16);
}

template <int W> static __device__ __forceinline__ uint32_t max_pack(uint32_t top, const wide &v)
{
#pragma unroll
    for (int i = 0; i < (W + 1) / 2; i++)
        top = max_pair(top, v.words[i]);
    return top;
}

/* Where a thread of a grid that strides over packs is. */
struct place {
    uint32_t row, col, rows, cols, in_row; /* rows, cols: how far it strides */

    __device__ __forceinline__ place(uint32_t in_row)
        : row((blockIdx.x * THREADS + threadIdx.x) / in_row),
          col((blockIdx.x * THREADS + threadIdx.x) % in_row), rows(gridDim.x * THREADS / in_row),
          cols(gridDim.x * THREADS % in_row), in_row(in_row)
    {
    }
    __device__ __forceinline__ void next()
    {
        bool wraps = col + cols >= in_row;
        row += rows + wraps;
        col += cols - (wraps ? in_row : 0);
    }
};

template <enum round8_of OF, bool GATED, bool EIGHT, int W>
__global__ void __launch_bounds__(THREADS, maker<OF, GATED, EIGHT>::ROOM)
    amax_kernel(source m, float *amax, float *input_amax)
{
    typedef maker<OF, GATED, EIGHT> made;
    uint32_t top = 0, input_top = 0, N = (uint32_t)m.N;
    float back = made::back(m);
    place at((uint32_t)(m.width / W));
#pragma unroll 1
    while (at.row < N) {
        typename made::inputs in[made::BATCH];
#pragma unroll
        for (int b = 0; b < made::BATCH; b++, at.next()) /* beyond the end: some of the last row */
            made::template fetch<W>(m, min(at.row, N - 1), (int64_t)at.col * W, in[b]);
#pragma unroll
        for (int b = 0; b < made::BATCH; b++) {
            wide v[made::PLANES + made::INPUTS];
            made::template make<W>(m.act, back, in[b], v);
#pragma unroll
            for (int p = 0; p < made::PLANES; p++)
                top = max_pack<W>(top, v[p]);
#pragma unroll
            for (int p = 0; p < made::INPUTS; p++)
                input_top = max_pack<W>(input_top, v[made::PLANES + p]);
        }
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

/* Scaled in bfloat16: what falls below its normal numbers, both formats make zero of. */
template <enum fp8_format F>
static __device__ __forceinline__ uint32_t narrow2(uint32_t two, __nv_bfloat162 s)
{
    return __nv_cvt_float2_to_fp8x2(unpack(as_word(__hmul2(as_pair(two), s))), __NV_SATFINITE,
                                    F == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2);
}

template <enum fp8_format F>
static __device__ __forceinline__ uint2 narrow8(const wide &v, float scale)
{
    __nv_bfloat162 s = __float2bfloat162_rn(scale);
    return make_uint2(narrow2<F>(v.words[0], s) | narrow2<F>(v.words[1], s) << 16,
                      narrow2<F>(v.words[2], s) | narrow2<F>(v.words[3], s) << 16);
}

/* A block turns a tile of TILE rows and columns by way of shared memory. Word w of row r lies at
 * w ^ 4 (r / 16 % 8), so that a warp that reads 4 words of 8 groups of 16 rows meets 32 banks. */
enum { TILE = 128, ROW_WORDS = TILE / 4, PACKS = TILE / 8, STEP = THREADS / PACKS };

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
    const uint32_t *from = tile + swizzled(rows * 16, word); /* 16 rows are swizzled alike */
    uint32_t w[16];
#pragma unroll
    for (int i = 0; i < 16; i++)
        w[i] = from[i * ROW_WORDS];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint8_t *to = cols + (plane * m.width + col0 + word * 4 + i) * m.N + row0 + rows * 16;
        *reinterpret_cast<uint4 *>(to) =
            make_uint4(column(w, i), column(w + 4, i), column(w + 8, i), column(w + 12, i));
    }
}

/* From the last tiles to the first: what the pass before read last may still lie in the cache. */
template <enum fp8_format F, enum round8_of OF, bool GATED, bool EIGHT>
__global__ void __launch_bounds__(THREADS, MOST) tile_kernel(source m, copies c)
{
    typedef maker<OF, GATED, EIGHT> made;
    __shared__ uint32_t tile[made::PLANES][TILE * ROW_WORDS];
    int64_t row0 = (int64_t)(gridDim.y - 1 - blockIdx.y) * TILE;
    int64_t col0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * TILE;
    float scale = take_scale<F>(c.scale), input_scale = 0, back = made::back(m);
    if constexpr (made::INPUTS > 0)
        input_scale = take_scale<FP8_E4M3>(c.input_scale);

    int first = (int)threadIdx.x / PACKS, at = (int)threadIdx.x % PACKS;
    int passes = (int)(m.N - row0 < TILE ? m.N - row0 : TILE) / STEP;
    if (col0 + at * 8 >= m.width)
        passes = 0;
#pragma unroll 1
    for (int pass = 0; pass < passes; pass += made::BATCH) {
        typename made::inputs in[made::BATCH];
#pragma unroll
        for (int b = 0; b < made::BATCH; b++)
            if (pass + b < passes)
                made::template fetch<8>(m, row0 + first + (pass + b) * STEP, col0 + at * 8, in[b]);
#pragma unroll
        for (int b = 0; b < made::BATCH; b++) {
            if (pass + b >= passes)
                break;
            static_assert(STEP == 16, "the rows of a pass are swizzled alike");
            int row = first + (pass + b) * STEP;
            int lies = first * ROW_WORDS + swizzled((pass + b) * STEP, at * 2);
            wide v[made::PLANES + made::INPUTS];
            made::template make<8>(m.act, back, in[b], v);
#pragma unroll
            for (int p = 0; p < made::PLANES; p++) {
                uint2 narrow = narrow8<F>(v[p], scale);
                int64_t to = ((row0 + row) * made::PLANES + p) * m.width + col0 + at * 8;
                if (c.rows)
                    *reinterpret_cast<uint2 *>(c.rows + to) = narrow;
                *reinterpret_cast<uint2 *>(&tile[p][lies]) = narrow;
            }
#pragma unroll
            for (int p = 0; p < made::INPUTS; p++) {
                int64_t to = ((row0 + row) * made::INPUTS + p) * m.width + col0 + at * 8;
                *reinterpret_cast<uint2 *>(c.input + to) =
                    narrow8<FP8_E4M3>(v[made::PLANES + p], input_scale);
            }
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
    float scale = take_scale<F>(c.scale), input_scale = 0, back = made::back(m);
    if constexpr (made::INPUTS > 0)
        input_scale = take_scale<FP8_E4M3>(c.input_scale);

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        int64_t row = i / m.width, col = i - row * m.width;
        typename made::inputs in;
        wide v[made::PLANES + made::INPUTS];
        made::template fetch<1>(m, row, col, in);
        made::template make<1>(m.act, back, in, v);
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
    copies c = {a->scale, (uint8_t *)a->rows, (uint8_t *)a->cols, a->x_scale, (uint8_t *)a->x8};
    float *amax = &a->scale->amax, *input_amax = EIGHT ? &a->x_scale->amax : NULL;
    bool packs = fits_packs(a, m), inputs = maker<OF, GATED, EIGHT>::INPUTS > 0;
    int64_t n = m.N * m.width;

    if (n >= (int64_t)1 << 32)
        return ERR_UNSUPPORTED;
    int room = maker<OF, GATED, EIGHT>::ROOM;
    if (!a->known && packs)
        amax_kernel<OF, GATED, EIGHT, 8>
            <<<grid_for(n / 8, room), THREADS, 0, s>>>(m, amax, input_amax);
    else if (!a->known)
        amax_kernel<OF, GATED, EIGHT, 1><<<grid_for(n, room), THREADS, 0, s>>>(m, amax, input_amax);
    if (!a->rows && !a->cols && !inputs)
        return launch_status();
    dim3 tiles((unsigned)ceil_div(m.width, TILE), (unsigned)ceil_div(m.N, TILE));
    if (packs)
        tile_kernel<F, OF, GATED, EIGHT><<<tiles, THREADS, 0, s>>>(m, c);
    else
        single_kernel<F, OF, GATED, EIGHT><<<grid_for(n, FULL), THREADS, 0, s>>>(m, c);
    return launch_status();
}

template <enum fp8_format F, enum round8_of OF>
static int of_activation(cudaStream_t s, const struct round8_args *a)
{
    if (a->gated)
        return a->x8 ? round8<F, OF, true, true>(s, a) : round8<F, OF, true, false>(s, a);
    return a->x8 ? round8<F, OF, false, true>(s, a) : round8<F, OF, false, false>(s, a);
}

extern "C" int launch_round8(cudaStream_t s, const struct round8_args *a)
{
    bool e4m3 = a->format == FP8_E4M3;

    switch (a->of) {
    case ROUND8_X:
        return e4m3 ? round8<FP8_E4M3, ROUND8_X, false, false>(s, a)
                    : round8<FP8_E5M2, ROUND8_X, false, false>(s, a);
    case ROUND8_ACT:
        return e4m3 ? of_activation<FP8_E4M3, ROUND8_ACT>(s, a) : ERR_UNSUPPORTED;
    case ROUND8_ACT_GRAD:
        return e4m3 ? ERR_UNSUPPORTED : of_activation<FP8_E5M2, ROUND8_ACT_GRAD>(s, a);
    }
    return ERR_UNSUPPORTED;
}

extern "C" int launch_fp8_spread(cudaStream_t s, enum fp8_format format, int64_t n,
                                 const void *from, const struct fp8_scale *scale, void *to)
{
    const uint8_t *bytes = (const uint8_t *)from;
    __nv_bfloat16 *out = (__nv_bfloat16 *)to;

    if (format == FP8_E4M3)
        spread_kernel<FP8_E4M3><<<grid_for(n, FULL), THREADS, 0, s>>>(n, bytes, scale, out);
    else
        spread_kernel<FP8_E5M2><<<grid_for(n, FULL), THREADS, 0, s>>>(n, bytes, scale, out);
    return launch_status();
}

KERNELS_OF(fp8, spread_kernel<FP8_E4M3>)
