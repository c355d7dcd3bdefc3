/*
 * Attention forward on tensor cores for bf16 and f16: FlashAttention-2 (Dao, 2023, algorithm 1). A
 * block owns BM queries of one head and walks over the key tiles they see, BN keys at a time, two
 * tiles deep. o and lse assigned. Head dimension: any multiple of 8 up to 256, padded in shared
 * memory to 64, 96, 128 or 256; pointers 16-byte aligned, strides multiples of 8.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16 causal, B32 T1024 H12 D64 152
 * TFLOP/s, B4 T4096 H32 D128 286 TFLOP/s.
 */
#include "kernels/cuda/attn_tiles.cuh"

template <int D_, int BM_, int BN_> struct fwd_shape {
    static constexpr int D = D_, BM = BM_, BN = BN_;
    static constexpr int MT = BM / (16 * WARPS); /* m16 tiles a warp */
    static constexpr int Q = BM * tile_row<D>::STRIDE, KV = BN * tile_row<D>::STRIDE;
    static constexpr size_t BYTES = (size_t)(Q + 4 * KV) * 2; /* q; k and v twice */
};

/* What a thread keeps of its rows while tiles pass: outputs, the largest score (in units of log 2,
 * as the weights' exponents), and its part of the sum of weights. */
template <typename S> struct fwd_rows {
    float o[S::MT][S::D / 8][4], top[S::MT][2], sum[S::MT][2];
};

/* Replace dot products by scores where cap, bias or mask change them; those that are changed come
 * in units of log 2. `row0` is the warp's first row. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void fwd_scores(const struct attn_params &p, float slope, int b,
                                           int row0, bool masked, int key0,
                                           float (&s)[S::MT][S::BN / 8][4])
{
    if (!EXTRA && !masked)
        return;
    each_row<S::MT>(row0, [&](int m, int half, int r) {
        int last = r + p.S - p.T;
        int first = masked ? attn_first(p, b, min(r, p.T - 1)) : 0;
        int origin = EXTRA ? attn_origin(p, b, min(r, p.T - 1)) : 0;
        each_column<S::BN>(key0, half, [&](int n, int e, int key) {
            if (EXTRA) {
                float capped;
                s[m][n][e] =
                    LOG2E * attn_score_any(p, slope, s[m][n][e], key, last, origin, &capped);
            }
            if (masked && (key < first || key > last))
                s[m][n][e] = -INFINITY;
        });
    });
}

/* Scores to weights of exp(score - the largest so far), and what is kept to that base. */
template <typename S>
__device__ __forceinline__ void fwd_weights(struct fwd_rows<S> &rows, float scale,
                                            float (&s)[S::MT][S::BN / 8][4])
{
    each_row<S::MT>(0, [&](int m, int half, int) {
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < S::BN / 8; n++)
            most = fmaxf(most, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
        most = fmaxf(rows.top[m][half], quad_max(most) * scale);
        /* A row that has seen nothing yet keeps factor 1 and weights 0. */
        float base = most == -INFINITY ? 0.0f : most;
        float old = fast_exp2(rows.top[m][half] - base);
        rows.top[m][half] = most;
        float part = 0;
        each_column<S::BN>(0, half, [&](int n, int e, int) {
            s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale, -base));
            part += s[m][n][e];
        });
        rows.sum[m][half] = rows.sum[m][half] * old + part;
        each_column<S::D>(0, half, [&](int n, int e, int) { rows.o[m][n][e] *= old; });
    });
}

template <typename S>
__device__ __forceinline__ void fwd_dropout(const struct attn_params &p, int b, int h, int row0,
                                            int key0, float (&s)[S::MT][S::BN / 8][4])
{
    each_row<S::MT>(row0, [&](int m, int half, int r) {
        each_column<S::BN>(
            key0, half, [&](int n, int e, int key) { s[m][n][e] *= attn_factor(p, b, h, r, key); });
    });
}

template <typename T, typename S>
__device__ __forceinline__ void fwd_store(const struct attn_params &p, int b, int h, int row0,
                                          const struct fwd_rows<S> &rows)
{
    each_row<S::MT>(row0, [&](int m, int half, int r) {
        float total = quad_sum(rows.sum[m][half]), inverse = total > 0 ? 1.0f / total : 0.0f;
        if (r >= p.T)
            return;
        if (threadIdx.x % 4 == 0)
            p.lse[((int64_t)b * p.H + h) * p.T + r] =
                total > 0 ? rows.top[m][half] / LOG2E + logf(total) : -INFINITY;
        T *to = (T *)p.o + ((int64_t)b * p.T + r) * p.ldo + (int64_t)h * p.D;
        row_store<T, S::D>(to, 0, p.D, half, inverse, rows.o[m]);
    });
}

/* Least and greatest first key of rows [row0, end), by all threads. */
static __device__ __forceinline__ int2 fwd_span(const struct attn_params &p, int b, int row0,
                                                int end)
{
    __shared__ int bounds[2];
    if (threadIdx.x == 0) {
        bounds[0] = p.S;
        bounds[1] = 0;
    }
    __syncthreads();
    for (int r = row0 + threadIdx.x; r < end; r += THREADS) {
        int first = attn_first(p, b, r);
        atomicMin(&bounds[0], first); /* of integers: the order does not show */
        atomicMax(&bounds[1], first);
    }
    __syncthreads();
    return make_int2(bounds[0], bounds[1]);
}

template <typename T, typename S, bool EXTRA>
__global__ void __launch_bounds__(THREADS)
    attn_fwd_kernel(const __grid_constant__ struct attn_params p)
{
    constexpr int BM = S::BM, BN = S::BN, MT = S::MT;
    extern __shared__ uint4 smem[];
    T *q_tile = (T *)smem, *k_tile = q_tile + S::Q;
    int warp_row = threadIdx.x / 32 * MT * 16;
    int h = blockIdx.x % p.H, b = blockIdx.x / p.H, kv = h / p.group;
    int block_row = (int)(gridDim.y - 1 - blockIdx.y) * BM; /* the longest rows start first */
    int shift = p.S - p.T, rows_end = min(block_row + BM, p.T), row0 = block_row + warp_row;
    const T *q = (const T *)p.q + (int64_t)b * p.T * p.ldq + (int64_t)h * p.D;
    struct key_tiles<T> keys = key_tiles_of<T>(p, b, kv, k_tile, k_tile + 2 * S::KV);

    tile_load<T, BM, S::D, THREADS>(q_tile, q, p.ldq, block_row, p.T, p.D);
    int2 span = fwd_span(p, b, block_row, rows_end);
    int tile = span.x / BN, tile_end = (rows_end - 1 + shift) / BN + 1;
    int clear_from = span.y, clear_to = block_row + shift; /* keys that every row sees */

    struct fwd_rows<S> rows;
    each_row<MT>(0, [&](int m, int half, int) {
        rows.top[m][half] = -INFINITY;
        rows.sum[m][half] = 0;
    });
    acc_clear(rows.o);
    float scale = EXTRA ? 1.0f : p.scale * LOG2E, slope = attn_slope(p, h);

    key_tiles_fetch<T, S>(keys, p, tile, 0);
    copy_commit();
    for (int stage = 0; tile < tile_end; tile++, stage ^= 1) {
        key_tiles_advance<T, S>(keys, p, tile, tile_end, stage);
        float s[MT][BN / 8][4];
        acc_clear(s);
        tile_product<T, MT, BN, S::D>(s, q_tile, warp_row, keys.k_tile + stage * S::KV);
        int key0 = tile * BN;
        bool masked = key0 < clear_from || key0 + BN - 1 > clear_to;
        fwd_scores<S, EXTRA>(p, slope, b, row0, masked, key0, s);
        fwd_weights<S>(rows, scale, s);
        if (EXTRA && p.dropout.on)
            fwd_dropout<S>(p, b, h, row0, key0, s);
        tile_accumulate<T, MT, BN, S::D, S::D>(rows.o, s, keys.v_tile + stage * S::KV, 0);
    }
    fwd_store<T, S>(p, b, h, row0, rows);
}

template <typename T, typename S, bool EXTRA>
static int attn_fwd_launch(cudaStream_t s, const struct attn_params &p)
{
    dim3 grid((unsigned)(p.B * p.H), (unsigned)ceil_div(p.T, S::BM));
    return launch_shaped(s, attn_fwd_kernel<T, S, EXTRA>, grid, S::BYTES, p);
}

template <typename T, typename S> static int attn_fwd_pick(cudaStream_t s, struct attn_params &p)
{
    if (attn_is_extra(p))
        return attn_fwd_launch<T, S, true>(s, p);
    return attn_fwd_launch<T, S, false>(s, p);
}

using fwd_64 = fwd_shape<64, 128, 64>;

template <typename T> static int attn_fwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.D <= 64)
        return attn_fwd_pick<T, fwd_64>(s, p);
    if (p.D <= 96)
        return attn_fwd_pick<T, fwd_shape<96, 128, 64>>(s, p);
    if (p.D <= 128)
        return attn_fwd_pick<T, fwd_shape<128, 128, 64>>(s, p);
    return attn_fwd_pick<T, fwd_shape<256, 64, 32>>(s, p);
}

extern "C" int launch_attn_fwd_mma(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return real == DT_BF16 ? attn_fwd<__nv_bfloat16>(s, a) : attn_fwd<__half>(s, a);
}

KERNELS_OF(attn_fwd, attn_fwd_kernel<__half, fwd_64, false>)
