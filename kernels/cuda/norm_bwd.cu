/*
 * Backward of norms. With g = dy * scale and xhat = (x - mean) * rstd:
 * dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dresidual, without mean(g) for RMS.
 *
 * dx is assigned, dweight and dbias accumulated: each block of a fixed number keeps its rows'
 * column sums in registers and writes one partial row, and a second kernel adds the partial rows in
 * order, so the bits depend on the shape alone.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16, C = 768 / 2048 / 4096: 2,220 / 1,830 / 2,530 GB/s.
 */
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/norm_teams.cuh"

/* As many blocks as registers allow, since a block has one row in flight. */
template <int LANES, int ITERS> struct bwd_grid {
    static constexpr bool LIGHT = LANES > 32 && ITERS == 1;
    static constexpr int BLOCKS = LIGHT && LANES <= 256 ? 4 : 2; /* a multiprocessor */
    static constexpr int PARTS = PARTIALS / 2 * BLOCKS;
};

/* Two sums at once: half the barriers. */
template <int LANES> __device__ __forceinline__ void row_sum2(float &x, float &y, float *scratch)
{
    x = warp_sum(x);
    y = warp_sum(y);
    if constexpr (LANES > 32) {
        __syncthreads();
        if (threadIdx.x % 32 == 0) {
            scratch[threadIdx.x / 32] = x;
            scratch[LANES / 32 + threadIdx.x / 32] = y;
        }
        __syncthreads();
        x = scratch[0];
        y = scratch[LANES / 32];
#pragma unroll
        for (int w = 1; w < LANES / 32; w++) {
            x += scratch[w];
            y += scratch[LANES / 32 + w];
        }
    }
}

/* A thread's share of a row. Packs stay packed until used, twice: registers are what bounds the
 * rows in flight. */
template <typename T, int ITERS> struct bwd_row {
    pack<T> x[ITERS], dy[ITERS], rest[ITERS];
    float mean, rstd;
};

template <typename T, int LANES, int ITERS>
__device__ __forceinline__ void bwd_load(struct bwd_row<T, ITERS> &r, const struct norm_args &a,
                                         int64_t row)
{
    const T *x = (const T *)a.x + row * a.ld, *dy = (const T *)a.dy + row * a.ld;
    r.rstd = ((const float *)a.rstd)[row];
    r.mean = a.kind == NORM_LAYER ? ((const float *)a.mean)[row] : 0.0f;
    each_pack<T, LANES, ITERS>((int)a.C, [&](int i, int c) {
        r.x[i].bits = *reinterpret_cast<const uint4 *>(x + c);
        r.dy[i].bits = *reinterpret_cast<const uint4 *>(dy + c);
        if (a.dresidual)
            r.rest[i].bits =
                *reinterpret_cast<const uint4 *>((const T *)a.dresidual + row * a.ld + c);
    });
}

/* Add the row to the column sums; returns its sums of g and of g * xhat over the thread's part. */
template <typename T, int LANES, int ITERS>
__device__ __forceinline__ float2 bwd_sums(const struct bwd_row<T, ITERS> &r,
                                           const struct norm_args &a,
                                           float (&dw)[ITERS][pack<T>::N],
                                           float (&db)[ITERS][pack<T>::N])
{
    constexpr int W = pack<T>::N;
    float2 sums = make_float2(0, 0);
    each_pack<T, LANES, ITERS>((int)a.C, [&](int i, int c) {
        float w[W];
        if (a.weight)
            load_pack((const T *)a.weight + c, w);
#pragma unroll
        for (int j = 0; j < W; j++) {
            float xhat = (to_float(r.x[i].v[j]) - r.mean) * r.rstd;
            float g = to_float(r.dy[i].v[j]);
            dw[i][j] += g * xhat;
            db[i][j] += g;
            g *= a.weight ? weight_of(a, w[j]) : 1.0f;
            sums.x += g;
            sums.y += g * xhat;
        }
    });
    return sums;
}

template <typename T, int LANES, int ITERS>
__device__ __forceinline__ void bwd_store(const struct bwd_row<T, ITERS> &r,
                                          const struct norm_args &a, int64_t row, float mean_g,
                                          float mean_gx)
{
    constexpr int W = pack<T>::N;
    each_pack<T, LANES, ITERS>((int)a.C, [&](int i, int c) {
        float w[W], d[W];
        if (a.weight)
            load_pack((const T *)a.weight + c, w);
#pragma unroll
        for (int j = 0; j < W; j++) {
            float xhat = (to_float(r.x[i].v[j]) - r.mean) * r.rstd;
            float g = to_float(r.dy[i].v[j]) * (a.weight ? weight_of(a, w[j]) : 1.0f);
            d[j] = r.rstd * (g - mean_g - xhat * mean_gx) +
                   (a.dresidual ? to_float(r.rest[i].v[j]) : 0.0f);
        }
        store_pack((T *)a.dx + row * a.ld + c, d);
    });
}

/* One partial row of dweight and one of dbias for each block; its warps add theirs in turn. */
template <typename T, int LANES, int ITERS>
__device__ __forceinline__ void bwd_partial(const struct norm_args &a, float *sums,
                                            const float (&dw)[ITERS][pack<T>::N],
                                            const float (&db)[ITERS][pack<T>::N])
{
    using shape = row_shape<T, LANES, ITERS>;
    int C = (int)a.C, slot = threadIdx.x / LANES;
    float *partial = (float *)a.workspace + (int64_t)blockIdx.x * 2 * C;
    for (int turn = 0; turn < shape::ROWS; turn++) {
        if (slot == turn) {
            each_pack<T, LANES, ITERS>(C, [&](int i, int c) {
#pragma unroll
                for (int j = 0; j < shape::W; j++) {
                    float *w = shape::ROWS > 1 ? sums + c + j : partial + c + j;
                    float *b = w + C;
                    *w = (turn > 0 ? *w : 0.0f) + dw[i][j];
                    *b = (turn > 0 ? *b : 0.0f) + db[i][j];
                }
            });
        }
        if (shape::ROWS > 1)
            __syncthreads();
    }
    if (shape::ROWS > 1) {
        for (int c = threadIdx.x; c < 2 * C; c += shape::THREADS)
            partial[c] = sums[c];
    }
}

template <typename T, int LANES, int ITERS>
__global__ void __launch_bounds__(row_shape<T, LANES, ITERS>::THREADS,
                                  bwd_grid<LANES, ITERS>::BLOCKS)
    norm_bwd_kernel(const __grid_constant__ struct norm_args a)
{
    using shape = row_shape<T, LANES, ITERS>;
    __shared__ float scratch[32];
    __shared__ float sums[shape::ROWS > 1 ? 2 * shape::MAX_C : 1];
    int slot = threadIdx.x / LANES;
    float dw[ITERS][shape::W], db[ITERS][shape::W];
#pragma unroll
    for (int i = 0; i < ITERS; i++) {
#pragma unroll
        for (int j = 0; j < shape::W; j++)
            dw[i][j] = db[i][j] = 0;
    }
    for (int64_t row = (int64_t)blockIdx.x * shape::ROWS + slot; row < a.N;
         row += (int64_t)bwd_grid<LANES, ITERS>::PARTS * shape::ROWS) {
        struct bwd_row<T, ITERS> r;
        bwd_load<T, LANES, ITERS>(r, a, row);
        float2 sum = bwd_sums<T, LANES, ITERS>(r, a, dw, db);
        row_sum2<LANES>(sum.y, sum.x, scratch);
        float mean_gx = sum.y / (float)(int)a.C;
        float mean_g = a.kind == NORM_LAYER ? sum.x / (float)(int)a.C : 0.0f;
        bwd_store<T, LANES, ITERS>(r, a, row, mean_g, mean_gx);
    }
    if (a.dweight || a.dbias)
        bwd_partial<T, LANES, ITERS>(a, sums, dw, db);
}

/* For every other C: a block a row, elements STRIDED apart. */
template <typename T>
__global__ void norm_bwd_strided_kernel(const __grid_constant__ struct norm_args a)
{
    __shared__ float scratch[32];
    int64_t row = blockIdx.x, C = a.C, ld = a.ld;
    const T *x = (const T *)a.x + row * ld, *dy = (const T *)a.dy + row * ld;
    float rstd = ((const float *)a.rstd)[row], sum_g = 0, sum_gx = 0;
    float mean = a.kind == NORM_LAYER ? ((const float *)a.mean)[row] : 0.0f;
    for (int64_t c = threadIdx.x; c < C; c += STRIDED) {
        float w = a.weight ? weight_of(a, to_float(((const T *)a.weight)[c])) : 1.0f;
        float g = to_float(dy[c]) * w;
        sum_g += g;
        sum_gx += g * (to_float(x[c]) - mean) * rstd;
    }
    float mean_gx = block_sum<STRIDED>(sum_gx, scratch) / (float)C;
    float mean_g = a.kind == NORM_LAYER ? block_sum<STRIDED>(sum_g, scratch) / (float)C : 0.0f;
    for (int64_t c = threadIdx.x; c < C; c += STRIDED) {
        float w = a.weight ? weight_of(a, to_float(((const T *)a.weight)[c])) : 1.0f;
        float g = to_float(dy[c]) * w, xhat = (to_float(x[c]) - mean) * rstd;
        float d = rstd * (g - mean_g - xhat * mean_gx);
        d += a.dresidual ? to_float(((const T *)a.dresidual)[row * ld + c]) : 0.0f;
        ((T *)a.dx)[row * ld + c] = from_float<T>(d);
    }
}

/* Partial rows p, p + PARTIALS, ... of one column. grid (C / 32, PARTIALS / 8), block (32, 8). */
template <typename T>
__global__ void norm_columns_kernel(const __grid_constant__ struct norm_args a)
{
    int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    int slot = blockIdx.y * 8 + threadIdx.y;
    if (c >= a.C)
        return;
    float dw = 0, db = 0;
    for (int64_t row = slot; row < a.N; row += PARTIALS) {
        float mean = a.kind == NORM_LAYER ? ((const float *)a.mean)[row] : 0.0f;
        float g = to_float(((const T *)a.dy)[row * a.ld + c]);
        dw +=
            g * (to_float(((const T *)a.x)[row * a.ld + c]) - mean) * ((const float *)a.rstd)[row];
        db += g;
    }
    float *partial = (float *)a.workspace + (int64_t)slot * 2 * a.C;
    partial[c] = dw;
    partial[a.C + c] = db;
}

/* dweight, dbias += the partial rows, in order within each of 16 slices, then slice by slice. */
template <typename G>
__global__ void norm_reduce_kernel(const __grid_constant__ struct norm_args a, int rows,
                                   struct rng_stream bias)
{
    __shared__ float part[16][33];
    int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x, width = 2 * a.C;
    const float *partial = (const float *)a.workspace;
    float sum = 0;
    if (c < width) {
#pragma unroll 8
        for (int row = threadIdx.y; row < rows; row += 16)
            sum += partial[row * width + c];
    }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || c >= width)
        return;
    for (int i = 1; i < 16; i++)
        sum += part[i][threadIdx.x];
    G *to = (G *)(c < a.C ? a.dweight : a.dbias);
    if (to && c < a.C)
        take_gradient(to, c, sum, true, a.narrow.stream);
    else if (to)
        take_gradient(to, c - a.C, sum, true, bias);
}

static void norm_reduce(cudaStream_t s, const struct norm_args *a, int parts)
{
    unsigned blocks = (unsigned)ceil_div(2 * a->C, 32);
    dim3 threads(32, 16);
    if (a->narrow.on)
        norm_reduce_kernel<__nv_bfloat16>
            <<<blocks, threads, 0, s>>>(*a, parts, bias_stream(&a->narrow));
    else
        norm_reduce_kernel<float><<<blocks, threads, 0, s>>>(*a, parts, a->narrow.stream);
}

template <typename T, int LANES, int ITERS>
static int norm_bwd_rows(cudaStream_t s, const struct norm_args *a)
{
    int parts = 0;
    if constexpr (LANES > 32 && ITERS == 1)
        parts = norm_bwd_teams<T, LANES>(s, a);
    if (parts == 0) {
        parts = bwd_grid<LANES, ITERS>::PARTS;
        norm_bwd_kernel<T, LANES, ITERS><<<parts, row_shape<T, LANES, ITERS>::THREADS, 0, s>>>(*a);
    }
    if (a->dweight || a->dbias)
        norm_reduce(s, a, parts);
    return launch_status();
}

template <typename T> static int norm_bwd(cudaStream_t s, const struct norm_args *a)
{
    constexpr int W = pack<T>::N;
    if (a->N == 0)
        return 0;
    if (norm_is_wide(a, W)) {
        if (a->C <= 32 * 3 * W)
            return norm_bwd_rows<T, 32, 3>(s, a);
        if (a->C <= 128 * W)
            return norm_bwd_rows<T, 128, 1>(s, a);
        if (a->C <= 256 * W)
            return norm_bwd_rows<T, 256, 1>(s, a);
        if (a->C <= 512 * W)
            return norm_bwd_rows<T, 512, 1>(s, a);
        if (a->C <= 256 * 4 * W)
            return norm_bwd_rows<T, 256, 4>(s, a);
    }
    /* Columns first: dx may take the place of dresidual, never of x or dy. */
    if (a->dweight || a->dbias) {
        dim3 grid((unsigned)ceil_div(a->C, 32), PARTIALS / 8);
        norm_columns_kernel<T><<<grid, dim3(32, 8), 0, s>>>(*a);
        norm_reduce(s, a, PARTIALS);
    }
    norm_bwd_strided_kernel<T><<<(unsigned)a->N, STRIDED, 0, s>>>(*a);
    return launch_status();
}

extern "C" int launch_norm_bwd(cudaStream_t s, enum dtype real, const struct norm_args *a)
{
    struct norm_args own = *a;
    if (a->narrow.on && real == DT_F16)
        return ERR_UNSUPPORTED;
    own.ld = a->ld ? a->ld : a->C;
    own.narrow.on = a->narrow.on && real == DT_BF16;
    return DISPATCH_REAL(real, norm_bwd, s, &own);
}

extern "C" size_t workspace_norm_bwd(const struct norm_args *a)
{
    return (size_t)MOST_PARTIALS * 2 * (size_t)a->C * sizeof(float);
}

KERNELS_OF(norm_bwd, norm_columns_kernel<float>)
