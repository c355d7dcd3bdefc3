/*
 * LayerNorm (Ba, Kiros, Hinton, 2016) and RMSNorm (Zhang, Sennrich, 2019) with the residual
 * addition before them fused in; x (N, C). y, sum, mean, rstd and dx are assigned, dweight and
 * dbias accumulated: each block of a fixed number keeps its rows' column sums in registers and
 * writes one partial row, and a second kernel adds the partial rows in order, so the bits depend on
 * the shape alone. Rows live in registers up to C = 8192 (16-bit) or 4096 (float32) where C is a
 * whole number of 16-byte packs and pointers are aligned; the rest takes the strided kernels, any
 * C.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16, C = 768 / 2048 / 4096: forward 2,540 / 2,640 / 2,800
 * GB/s, backward 2,220 / 1,830 / 2,530 GB/s.
 */
#include "kernels/cuda/common.cuh"

/* Blocks of the backward kernel, hence partial rows, are a fixed number for each multiprocessor of
 * an H100: as many as registers allow, since a block has one row in flight. */
enum { PARTIALS = 264, MOST_PARTIALS = 2 * PARTIALS, STRIDED = 256 };

/* A row is shared by LANES threads, each holding ITERS packs; ROWS rows a block. */
template <typename T, int LANES, int ITERS> struct row_shape {
    static constexpr int W = pack<T>::N;
    static constexpr int ROWS = LANES == 32 ? 8 : 1;
    static constexpr int THREADS = LANES * ROWS;
    static constexpr int MAX_C = LANES * ITERS * W;
    static constexpr bool LIGHT = LANES > 32 && ITERS == 1;
    static constexpr int BLOCKS = LIGHT && LANES <= 256 ? 4 : 2; /* of backward, a multiprocessor */
    static constexpr int PARTS = PARTIALS / 2 * BLOCKS;
};

template <int LANES> __device__ __forceinline__ float row_sum(float x, float *scratch)
{
    if constexpr (LANES == 32)
        return warp_sum(x);
    else
        return block_sum<LANES>(x, scratch);
}

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

static __device__ __forceinline__ float weight_of(const struct norm_args &a, float w)
{
    return a.kind == NORM_RMS_PLUS_ONE ? 1.0f + w : w;
}

template <typename T, int LANES, int ITERS>
__global__ void __launch_bounds__(row_shape<T, LANES, ITERS>::THREADS)
    norm_fwd_kernel(const __grid_constant__ struct norm_args a)
{
    using shape = row_shape<T, LANES, ITERS>;
    constexpr int W = shape::W;
    __shared__ float scratch[32];
    int lane = threadIdx.x % LANES;
    int64_t row = (int64_t)blockIdx.x * shape::ROWS + threadIdx.x / LANES;
    int C = (int)a.C;
    int64_t ld = a.ld;
    if (row >= a.N)
        return;
    const T *x = (const T *)a.x + row * ld;
    float v[ITERS][W], total = 0;
#pragma unroll
    for (int i = 0; i < ITERS; i++) {
        int c = (i * LANES + lane) * W;
        if (c < C)
            load_pack(x + c, v[i]);
    }
    if (a.residual) {
        const T *residual = (const T *)a.residual + row * ld;
        T *sum = (T *)a.sum + row * ld;
#pragma unroll
        for (int i = 0; i < ITERS; i++) {
            int c = (i * LANES + lane) * W;
            if (c < C) {
                float r[W];
                load_pack(residual + c, r);
#pragma unroll
                for (int j = 0; j < W; j++)
                    v[i][j] = rounded<T>(v[i][j] + r[j]);
                store_pack(sum + c, v[i]);
            }
        }
    }
    float mean = 0;
    if (a.kind == NORM_LAYER) {
#pragma unroll
        for (int i = 0; i < ITERS; i++) {
            if ((i * LANES + lane) * W < C) {
#pragma unroll
                for (int j = 0; j < W; j++)
                    total += v[i][j];
            }
        }
        mean = row_sum<LANES>(total, scratch) / (float)C;
        total = 0;
    }
#pragma unroll
    for (int i = 0; i < ITERS; i++) {
        if ((i * LANES + lane) * W < C) {
#pragma unroll
            for (int j = 0; j < W; j++)
                total += (v[i][j] - mean) * (v[i][j] - mean);
        }
    }
    float rstd = 1.0f / sqrtf(row_sum<LANES>(total, scratch) / (float)C + a.eps);
    if (lane == 0) {
        ((float *)a.rstd)[row] = rstd;
        if (a.mean)
            ((float *)a.mean)[row] = mean;
    }
    T *y = (T *)a.y + row * ld;
#pragma unroll
    for (int i = 0; i < ITERS; i++) {
        int c = (i * LANES + lane) * W;
        if (c < C) {
            float w[W], b[W];
            if (a.weight)
                load_pack((const T *)a.weight + c, w);
            if (a.bias)
                load_pack((const T *)a.bias + c, b);
#pragma unroll
            for (int j = 0; j < W; j++) {
                float n = (v[i][j] - mean) * rstd;
                n = a.weight ? n * weight_of(a, w[j]) : n;
                v[i][j] = a.bias ? n + b[j] : n;
            }
            store_pack(y + c, v[i]);
        }
    }
}

/* With g = dy * scale and xhat = (x - mean) * rstd:
 * dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dresidual, without mean(g) for RMS. */
template <typename T, int LANES, int ITERS>
__global__ void __launch_bounds__(row_shape<T, LANES, ITERS>::THREADS,
                                  row_shape<T, LANES, ITERS>::BLOCKS)
    norm_bwd_kernel(const __grid_constant__ struct norm_args a)
{
    using shape = row_shape<T, LANES, ITERS>;
    constexpr int W = shape::W;
    __shared__ float scratch[32];
    __shared__ float sums[shape::ROWS > 1 ? 2 * shape::MAX_C : 1];
    int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES, C = (int)a.C;
    int64_t ld = a.ld;
    float dw[ITERS][W], db[ITERS][W];
#pragma unroll
    for (int i = 0; i < ITERS; i++) {
#pragma unroll
        for (int j = 0; j < W; j++)
            dw[i][j] = db[i][j] = 0;
    }
    for (int64_t row = (int64_t)blockIdx.x * shape::ROWS + slot; row < a.N;
         row += (int64_t)shape::PARTS * shape::ROWS) {
        const T *x = (const T *)a.x + row * ld, *dy = (const T *)a.dy + row * ld;
        float rstd = ((const float *)a.rstd)[row];
        float mean = a.kind == NORM_LAYER ? ((const float *)a.mean)[row] : 0.0f;
        /* Packs stay packed until used, twice: registers are what bounds the rows in flight. */
        pack<T> x_row[ITERS], dy_row[ITERS], rest[ITERS];
        float sum_g = 0, sum_gx = 0;
#pragma unroll
        for (int i = 0; i < ITERS; i++) {
            int c = (i * LANES + lane) * W;
            if (c < C) {
                x_row[i].bits = *reinterpret_cast<const uint4 *>(x + c);
                dy_row[i].bits = *reinterpret_cast<const uint4 *>(dy + c);
                if (a.dresidual)
                    rest[i].bits =
                        *reinterpret_cast<const uint4 *>((const T *)a.dresidual + row * ld + c);
            }
        }
#pragma unroll
        for (int i = 0; i < ITERS; i++) {
            int c = (i * LANES + lane) * W;
            if (c < C) {
                float w[W];
                if (a.weight)
                    load_pack((const T *)a.weight + c, w);
#pragma unroll
                for (int j = 0; j < W; j++) {
                    float xhat = (to_float(x_row[i].v[j]) - mean) * rstd;
                    float g = to_float(dy_row[i].v[j]);
                    dw[i][j] += g * xhat;
                    db[i][j] += g;
                    g *= a.weight ? weight_of(a, w[j]) : 1.0f;
                    sum_g += g;
                    sum_gx += g * xhat;
                }
            }
        }
        row_sum2<LANES>(sum_gx, sum_g, scratch);
        float mean_gx = sum_gx / (float)C, mean_g = a.kind == NORM_LAYER ? sum_g / (float)C : 0.0f;
#pragma unroll
        for (int i = 0; i < ITERS; i++) {
            int c = (i * LANES + lane) * W;
            if (c < C) {
                float w[W], d[W];
                if (a.weight)
                    load_pack((const T *)a.weight + c, w);
#pragma unroll
                for (int j = 0; j < W; j++) {
                    float xhat = (to_float(x_row[i].v[j]) - mean) * rstd;
                    float g = to_float(dy_row[i].v[j]) * (a.weight ? weight_of(a, w[j]) : 1.0f);
                    d[j] = rstd * (g - mean_g - xhat * mean_gx) +
                           (a.dresidual ? to_float(rest[i].v[j]) : 0.0f);
                }
                store_pack((T *)a.dx + row * ld + c, d);
            }
        }
    }
    if (!a.dweight && !a.dbias)
        return;
    /* One partial row of dweight and one of dbias for each block; its warps add theirs in turn. */
    float *partial = (float *)a.workspace + (int64_t)blockIdx.x * 2 * C;
    for (int turn = 0; turn < shape::ROWS; turn++) {
        if (slot == turn) {
#pragma unroll
            for (int i = 0; i < ITERS; i++) {
                int c = (i * LANES + lane) * W;
                if (c < C) {
#pragma unroll
                    for (int j = 0; j < W; j++) {
                        float *w = shape::ROWS > 1 ? sums + c + j : partial + c + j;
                        float *b = w + C;
                        *w = (turn > 0 ? *w : 0.0f) + dw[i][j];
                        *b = (turn > 0 ? *b : 0.0f) + db[i][j];
                    }
                }
            }
        }
        if (shape::ROWS > 1)
            __syncthreads();
    }
    if (shape::ROWS > 1) {
        for (int c = threadIdx.x; c < 2 * C; c += shape::THREADS)
            partial[c] = sums[c];
    }
}

/* The kernels for every other C: a block a row, elements STRIDED apart. */
template <typename T>
__global__ void norm_fwd_strided_kernel(const __grid_constant__ struct norm_args a)
{
    __shared__ float scratch[32];
    int64_t row = blockIdx.x, C = a.C, ld = a.ld;
    const T *x = (const T *)a.x + row * ld;
    float total = 0, mean = 0;
    if (a.residual) {
        T *sum = (T *)a.sum + row * ld;
        for (int64_t c = threadIdx.x; c < C; c += STRIDED)
            sum[c] =
                from_float<T>(to_float(x[c]) + to_float(((const T *)a.residual)[row * ld + c]));
        x = sum; /* each thread reads back only what it wrote */
    }
    if (a.kind == NORM_LAYER) {
        for (int64_t c = threadIdx.x; c < C; c += STRIDED)
            total += to_float(x[c]);
        mean = block_sum<STRIDED>(total, scratch) / (float)C;
        total = 0;
    }
    for (int64_t c = threadIdx.x; c < C; c += STRIDED)
        total += (to_float(x[c]) - mean) * (to_float(x[c]) - mean);
    float rstd = 1.0f / sqrtf(block_sum<STRIDED>(total, scratch) / (float)C + a.eps);
    if (threadIdx.x == 0) {
        ((float *)a.rstd)[row] = rstd;
        if (a.mean)
            ((float *)a.mean)[row] = mean;
    }
    for (int64_t c = threadIdx.x; c < C; c += STRIDED) {
        float n = (to_float(x[c]) - mean) * rstd;
        n = a.weight ? n * weight_of(a, to_float(((const T *)a.weight)[c])) : n;
        n = a.bias ? n + to_float(((const T *)a.bias)[c]) : n;
        ((T *)a.y)[row * ld + c] = from_float<T>(n);
    }
}

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

static bool wide(const struct norm_args *a, int W)
{
    return a->C % W == 0 && a->ld % W == 0 && aligned16(a->x) && aligned16(a->residual) &&
           aligned16(a->weight) && aligned16(a->bias) && aligned16(a->sum) && aligned16(a->y) &&
           aligned16(a->dy) && aligned16(a->dresidual) && aligned16(a->dx);
}

template <typename T, int LANES, int ITERS>
static int norm_fwd_rows(cudaStream_t s, const struct norm_args *a)
{
    using shape = row_shape<T, LANES, ITERS>;
    unsigned blocks = (unsigned)ceil_div(a->N, shape::ROWS);
    norm_fwd_kernel<T, LANES, ITERS><<<blocks, shape::THREADS, 0, s>>>(*a);
    return launch_status();
}

template <typename T> static int norm_fwd(cudaStream_t s, const struct norm_args *a)
{
    constexpr int W = pack<T>::N;
    if (a->N == 0)
        return 0;
    if (wide(a, W)) {
        if (a->C <= 32 * 4 * W)
            return norm_fwd_rows<T, 32, 4>(s, a);
        if (a->C <= 256 * W)
            return norm_fwd_rows<T, 256, 1>(s, a);
        if (a->C <= 256 * 2 * W)
            return norm_fwd_rows<T, 256, 2>(s, a);
        if (a->C <= 256 * 4 * W)
            return norm_fwd_rows<T, 256, 4>(s, a);
    }
    norm_fwd_strided_kernel<T><<<(unsigned)a->N, STRIDED, 0, s>>>(*a);
    return launch_status();
}

#include "kernels/cuda/norm_teams.cuh"

template <typename T, int LANES, int ITERS>
static int norm_bwd_rows(cudaStream_t s, const struct norm_args *a)
{
    using shape = row_shape<T, LANES, ITERS>;
    int parts = 0;
    if constexpr (LANES > 32 && ITERS == 1)
        parts = norm_bwd_teams<T, LANES>(s, a);
    if (parts == 0) {
        parts = shape::PARTS;
        norm_bwd_kernel<T, LANES, ITERS><<<parts, shape::THREADS, 0, s>>>(*a);
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
    if (wide(a, W)) {
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

extern "C" int launch_norm_fwd(cudaStream_t s, enum dtype real, const struct norm_args *a)
{
    struct norm_args own = *a;
    own.ld = a->ld ? a->ld : a->C;
    return DISPATCH_REAL(real, norm_fwd, s, &own);
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
