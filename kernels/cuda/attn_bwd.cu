/*
 * Attention backward on tensor cores for bf16 and f16: FlashAttention-2 (Dao, 2023, algorithm 2)
 * cut into two passes so that every gradient has one owner and no atomics are needed: a block of
 * keys accumulates dk and dv over the queries that see it, a block of queries accumulates dq over
 * its keys; both recompute the probabilities from lse. Before them delta = dout . o, and the span
 * of first visible keys of each tile of queries, by which tiles are skipped.
 *
 * dq, dk, dv assigned. T == S. Head dimension: any multiple of 8 up to 256, padded in shared memory
 * to 64, 96, 128 or 256; pointers 16-byte aligned, strides multiples of 8.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16 causal, B32 T1024 H12 D64 120
 * TFLOP/s, B4 T4096 H32 D128 211 TFLOP/s, counting 5 products (7 are done).
 */
#include "kernels/cuda/attn_tiles.cuh"

enum { SPAN = 32 };

/* delta of one row a warp; warps of head 0 also see to the spans. */
template <typename T>
__global__ void attn_delta_kernel(const __grid_constant__ struct attn_params p)
{
    int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (at >= (int64_t)p.B * p.T * p.H)
        return;
    int lane = threadIdx.x % 32, h = (int)(at % p.H);
    int i = (int)(at / p.H % p.T), b = (int)(at / p.H / p.T);
    int64_t offset = ((int64_t)b * p.T + i) * p.ldo + (int64_t)h * p.D + lane * 8;
    float sum = 0;
    if (lane * 8 < p.D) {
        float d[8], o[8];
        load_pack((const T *)p.dout + offset, d);
        load_pack((const T *)p.o + offset, o);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += d[j] * o[j];
    }
    sum = warp_sum(sum);
    if (lane == 0)
        p.delta[((int64_t)b * p.H + h) * p.T + i] = sum;
    if (h == 0 && i % SPAN == 0 && p.spans) {
        int first = attn_first(p, b, min(i + lane, p.T - 1));
        int least = first, most = first;
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            least = min(least, __shfl_xor_sync(FULL_WARP, least, offset));
            most = max(most, __shfl_xor_sync(FULL_WARP, most, offset));
        }
        if (lane == 0)
            ((int2 *)p.spans)[(int64_t)b * ((p.T + SPAN - 1) / SPAN) + i / SPAN] =
                make_int2(least, most);
    }
}

/* Least and greatest first key over the queries of one tile. */
template <int ROWS>
__device__ __forceinline__ int2 span_of(const struct attn_params &p, int b, int row)
{
    if (!p.spans)
        return make_int2(0, 0);
    int per_row = (p.T + SPAN - 1) / SPAN, at = row / SPAN;
    const int2 *spans = p.spans + (int64_t)b * per_row;
    int2 span = spans[at];
#pragma unroll
    for (int i = 1; i < ROWS / SPAN; i++) {
        if (at + i < per_row) {
            int2 more = spans[at + i];
            span.x = min(span.x, more.x);
            span.y = max(span.y, more.y);
        }
    }
    return span;
}

/* Probability and gradient of one pair, from dot = q k^T and dp = dout v^T. On return dot holds the
 * dropped probability and dp the gradient of the score, without `scale`. */
template <bool EXTRA>
__device__ __forceinline__ void bwd_pair(const struct attn_params &p, float slope, int b, int h,
                                         int i, int key, int origin, bool hidden, float lse2,
                                         float delta, float &dot, float &dp)
{
    float capped = 0, prob, factor = 1;
    if (EXTRA) {
        prob = fast_exp2(LOG2E * attn_score_any(p, slope, dot, key, i, origin, &capped) - lse2);
        factor = attn_factor(p, b, h, i, key);
    } else {
        prob = fast_exp2(fmaf(dot, p.scale * LOG2E, -lse2));
    }
    prob = hidden ? 0.0f : prob;
    dot = prob * factor;
    dp = prob * (dp * factor - delta);
    if (EXTRA)
        dp *= attn_cap_slope(p, capped);
}

/* Keys' pass: BN keys, BQ queries a tile; one block yields DOUT columns of dk and dv. */
template <int D_, int DOUT_, int BN_, int BQ_> struct dkv_shape {
    static constexpr int D = D_, DOUT = DOUT_, BN = BN_, BQ = BQ_;
    static constexpr int MT = BN / (16 * WARPS);
    static constexpr int KV = BN * tile_row<D>::STRIDE, Q = BQ * tile_row<D>::STRIDE;
    static constexpr size_t BYTES = (size_t)(2 * KV + 4 * Q) * 2 + 4 * BQ * sizeof(float);
};

struct tile_walk { /* the tiles of queries that a block of keys meets, head after head */
    int h, h_end, tile, tile_begin, tile_end;
};

template <int BQ>
__device__ __forceinline__ struct tile_walk walk_start(const struct attn_params &p, int kv,
                                                       int key0)
{
    int h = kv * p.group, begin = key0 / BQ; /* query i sees keys up to i */
    return {h, h + p.group, begin, begin, (p.T + BQ - 1) / BQ};
}

/* Go on to a tile whose queries see a key up to key_last, or to the end. */
template <int BQ>
__device__ __forceinline__ void walk_settle(struct tile_walk &w, const struct attn_params &p, int b,
                                            int key_last)
{
    while (w.h < w.h_end) {
        for (; w.tile < w.tile_end; w.tile++) {
            if (span_of<BQ>(p, b, w.tile * BQ).x <= key_last)
                return;
        }
        w.h++;
        w.tile = w.tile_begin;
    }
}

template <typename T, typename S>
__device__ __forceinline__ void dkv_fetch(const struct attn_params &p, int b,
                                          const struct tile_walk &w, T *q_tile, T *d_tile,
                                          float *stats)
{
    constexpr int BQ = S::BQ;
    int row = w.tile * BQ;
    const T *q = (const T *)p.q + (int64_t)b * p.T * p.ldq + (int64_t)w.h * p.D;
    const T *d = (const T *)p.dout + (int64_t)b * p.T * p.ldo + (int64_t)w.h * p.D;
    int64_t stat = ((int64_t)b * p.H + w.h) * p.T;
    tile_load<T, BQ, S::D, THREADS>(q_tile, q, p.ldq, row, p.T, p.D);
    tile_load<T, BQ, S::D, THREADS>(d_tile, d, p.ldo, row, p.T, p.D);
    for (int i = threadIdx.x; i < BQ; i += THREADS) {
        bool inside = row + i < p.T;
        int64_t from = stat + (inside ? row + i : 0);
        copy4_async(stats + i, p.lse + from, inside);
        copy4_async(stats + BQ + i, p.delta + from, inside);
    }
}

/* Write an accumulator of 16 MT rows as rows row0.. of a matrix, scaled. */
template <typename T, int MT, int DOUT>
__device__ __forceinline__ void acc_store(T *base, int64_t ld, int row0, int rows, int column0,
                                          int width, float scale,
                                          const float (&acc)[MT][DOUT / 8][4])
{
    each_row<MT>(row0, [&](int m, int half, int r) {
        if (r < rows)
            row_store<T, DOUT>(base + r * ld, column0, width, half, scale, acc[m]);
    });
}

/* bwd_pair over a tile of the keys' pass: rows are keys from `key0`, columns queries from `row0`.
 */
template <typename S, bool EXTRA, bool MASKED>
__device__ __forceinline__ void dkv_pairs(const struct attn_params &p, float slope, int b, int h,
                                          int row0, int key0, const float *lse, const float *delta,
                                          float (&s)[S::MT][S::BQ / 8][4],
                                          float (&dp)[S::MT][S::BQ / 8][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < S::BQ / 8; n++) {
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            int column = n * 8 + lane % 4 * 2 + odd, i = row0 + column;
            int first = MASKED ? attn_first(p, b, min(i, p.T - 1)) : 0;
            int origin = EXTRA ? attn_origin(p, b, min(i, p.T - 1)) : 0;
            float lse2 = lse[column] * LOG2E, delta_i = delta[column];
#pragma unroll
            for (int m = 0; m < S::MT; m++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int key = key0 + m * 16 + half * 8 + lane / 4;
                    bool hidden = MASKED && (key > i || key < first);
                    bwd_pair<EXTRA>(p, slope, b, h, i, key, origin, hidden, lse2, delta_i,
                                    s[m][n][half * 2 + odd], dp[m][n][half * 2 + odd]);
                }
            }
        }
    }
}

template <typename T, typename S, bool EXTRA>
__global__ void __launch_bounds__(THREADS)
    attn_dkv_kernel(const __grid_constant__ struct attn_params p)
{
    constexpr int D = S::D, BN = S::BN, BQ = S::BQ, MT = S::MT, DOUT = S::DOUT;
    extern __shared__ uint4 smem[];
    T *k_tile = (T *)smem, *v_tile = k_tile + S::KV, *q_tile = v_tile + S::KV;
    T *d_tile = q_tile + 2 * S::Q;
    float *stats = (float *)(d_tile + 2 * S::Q);
    int warp = threadIdx.x / 32;
    int kv = blockIdx.x % p.KV, b = blockIdx.x / p.KV, column0 = blockIdx.z * DOUT;
    int key0 = blockIdx.y * BN, key_last = min(key0 + BN, p.S) - 1;
    const T *k = (const T *)p.k + (int64_t)b * p.S * p.ldk + (int64_t)kv * p.D;
    const T *v = (const T *)p.v + (int64_t)b * p.S * p.ldv + (int64_t)kv * p.D;
    struct tile_walk walk = walk_start<BQ>(p, kv, key0);

    float dk[MT][DOUT / 8][4], dv[MT][DOUT / 8][4];
    acc_clear(dk);
    acc_clear(dv);
    tile_load<T, BN, D, THREADS>(k_tile, k, p.ldk, key0, p.S, p.D);
    tile_load<T, BN, D, THREADS>(v_tile, v, p.ldv, key0, p.S, p.D);
    walk_settle<BQ>(walk, p, b, key_last);
    if (walk.h < walk.h_end)
        dkv_fetch<T, S>(p, b, walk, q_tile, d_tile, stats);
    copy_commit();
    for (int stage = 0; walk.h < walk.h_end; stage ^= 1) {
        int h = walk.h, row0 = walk.tile * BQ;
        int2 span = span_of<BQ>(p, b, row0);
        copy_wait<0>();
        __syncthreads();
        walk.tile++;
        walk_settle<BQ>(walk, p, b, key_last);
        if (walk.h < walk.h_end)
            dkv_fetch<T, S>(p, b, walk, q_tile + (stage ^ 1) * S::Q, d_tile + (stage ^ 1) * S::Q,
                            stats + (stage ^ 1) * 2 * BQ);
        copy_commit();
        const T *q_now = q_tile + stage * S::Q, *d_now = d_tile + stage * S::Q;
        const float *lse = stats + stage * 2 * BQ, *delta = lse + BQ;

        float s[MT][BQ / 8][4], dp[MT][BQ / 8][4];
        acc_clear(s);
        acc_clear(dp);
        tile_product<T, MT, BQ, D>(s, k_tile, warp * MT * 16, q_now);
        tile_product<T, MT, BQ, D>(dp, v_tile, warp * MT * 16, d_now);
        bool masked = key_last > row0 || key0 < span.y;
        float slope = EXTRA ? attn_slope(p, h) : 0.0f;
        if (masked)
            dkv_pairs<S, EXTRA, true>(p, slope, b, h, row0, key0 + warp * MT * 16, lse, delta, s,
                                      dp);
        else
            dkv_pairs<S, EXTRA, false>(p, slope, b, h, row0, key0 + warp * MT * 16, lse, delta, s,
                                       dp);
        tile_accumulate<T, MT, BQ, D, DOUT>(dv, s, d_now, column0);
        tile_accumulate<T, MT, BQ, D, DOUT>(dk, dp, q_now, column0);
    }
    int row = key0 + warp * MT * 16;
    T *dk_to = (T *)p.dk + (int64_t)b * p.S * p.ldk + (int64_t)kv * p.D;
    T *dv_to = (T *)p.dv + (int64_t)b * p.S * p.ldv + (int64_t)kv * p.D;
    acc_store<T, MT, DOUT>(dk_to, p.ldk, row, p.S, column0, p.D, p.scale, dk);
    acc_store<T, MT, DOUT>(dv_to, p.ldv, row, p.S, column0, p.D, 1.0f, dv);
}

/* Queries' pass: BM queries, BN keys a tile. */
template <int D_, int BM_, int BN_> struct dq_shape {
    static constexpr int D = D_, BM = BM_, BN = BN_;
    static constexpr int MT = BM / (16 * WARPS);
    static constexpr int Q = BM * tile_row<D>::STRIDE, KV = BN * tile_row<D>::STRIDE;
    static constexpr size_t BYTES = (size_t)(2 * Q + 4 * KV) * 2;
};

/* bwd_pair over a tile of the queries' pass: rows are queries from `row0`, columns keys from
 * `key0`. */
template <typename S, bool EXTRA, bool MASKED>
__device__ __forceinline__ void dq_pairs(const struct attn_params &p, float slope, int b, int h,
                                         int row0, int key0, const float (&lse2)[S::MT][2],
                                         const float (&delta)[S::MT][2],
                                         float (&s)[S::MT][S::BN / 8][4],
                                         float (&dp)[S::MT][S::BN / 8][4])
{
    each_row<S::MT>(row0, [&](int m, int half, int i) {
        int first = MASKED ? attn_first(p, b, min(i, p.T - 1)) : 0;
        int origin = EXTRA ? attn_origin(p, b, min(i, p.T - 1)) : 0;
        each_column<S::BN>(key0, half, [&](int n, int e, int key) {
            bool hidden = MASKED && (key > i || key < first);
            bwd_pair<EXTRA>(p, slope, b, h, i, key, origin, hidden, lse2[m][half], delta[m][half],
                            s[m][n][e], dp[m][n][e]);
        });
    });
}

template <typename T, typename S, bool EXTRA>
__global__ void __launch_bounds__(THREADS)
    attn_dq_kernel(const __grid_constant__ struct attn_params p)
{
    constexpr int D = S::D, BM = S::BM, BN = S::BN, MT = S::MT;
    extern __shared__ uint4 smem[];
    T *q_tile = (T *)smem, *d_tile = q_tile + S::Q, *k_tile = d_tile + S::Q;
    int warp_row = threadIdx.x / 32 * MT * 16;
    int h = blockIdx.x % p.H, b = blockIdx.x / p.H, kv = h / p.group;
    int block_row = (int)(gridDim.y - 1 - blockIdx.y) * BM, rows_end = min(block_row + BM, p.T);
    int row0 = block_row + warp_row;
    const T *q = (const T *)p.q + (int64_t)b * p.T * p.ldq + (int64_t)h * p.D;
    const T *d = (const T *)p.dout + (int64_t)b * p.T * p.ldo + (int64_t)h * p.D;
    struct key_tiles<T> keys = key_tiles_of<T>(p, b, kv, k_tile, k_tile + 2 * S::KV);
    int2 span = span_of<BM>(p, b, block_row);
    int tile = span.x / BN, tile_end = (rows_end - 1) / BN + 1;

    tile_load<T, BM, D, THREADS>(q_tile, q, p.ldq, block_row, p.T, p.D);
    tile_load<T, BM, D, THREADS>(d_tile, d, p.ldo, block_row, p.T, p.D);
    key_tiles_fetch<T, S>(keys, p, tile, 0);
    copy_commit();
    float lse2[MT][2], delta[MT][2], slope = EXTRA ? attn_slope(p, h) : 0.0f;
    each_row<MT>(row0, [&](int m, int half, int r) {
        int64_t stat = ((int64_t)b * p.H + h) * p.T + min(r, p.T - 1);
        lse2[m][half] = p.lse[stat] * LOG2E;
        delta[m][half] = p.delta[stat];
    });
    float dq[MT][D / 8][4];
    acc_clear(dq);
    for (int stage = 0; tile < tile_end; tile++, stage ^= 1) {
        key_tiles_advance<T, S>(keys, p, tile, tile_end, stage);
        const T *k_now = keys.k_tile + stage * S::KV, *v_now = keys.v_tile + stage * S::KV;
        float s[MT][BN / 8][4], dp[MT][BN / 8][4];
        acc_clear(s);
        acc_clear(dp);
        tile_product<T, MT, BN, D>(s, q_tile, warp_row, k_now);
        tile_product<T, MT, BN, D>(dp, d_tile, warp_row, v_now);
        int key0 = tile * BN;
        bool masked = key0 < span.y || key0 + BN - 1 > block_row;
        if (masked)
            dq_pairs<S, EXTRA, true>(p, slope, b, h, row0, key0, lse2, delta, s, dp);
        else
            dq_pairs<S, EXTRA, false>(p, slope, b, h, row0, key0, lse2, delta, s, dp);
        tile_accumulate<T, MT, BN, D, D>(dq, dp, k_now, 0);
    }
    T *to = (T *)p.dq + (int64_t)b * p.T * p.ldq + (int64_t)h * p.D;
    acc_store<T, MT, D>(to, p.ldq, row0, p.T, 0, p.D, p.scale, dq);
}

template <typename T, typename KVS, typename QS, bool EXTRA>
static int attn_bwd_launch(cudaStream_t s, const struct attn_params &p)
{
    dim3 keys((unsigned)(p.B * p.KV), (unsigned)ceil_div(p.S, KVS::BN), KVS::D / KVS::DOUT);
    dim3 queries((unsigned)(p.B * p.H), (unsigned)ceil_div(p.T, QS::BM));
    int rc = launch_shaped(s, attn_dkv_kernel<T, KVS, EXTRA>, keys, KVS::BYTES, p);
    if (rc != 0)
        return rc;
    return launch_shaped(s, attn_dq_kernel<T, QS, EXTRA>, queries, QS::BYTES, p);
}

template <typename T, typename KVS, typename QS>
static int attn_bwd_pick(cudaStream_t s, const struct attn_params &p)
{
    if (attn_is_extra(p))
        return attn_bwd_launch<T, KVS, QS, true>(s, p);
    return attn_bwd_launch<T, KVS, QS, false>(s, p);
}

static size_t delta_bytes(const struct attn_args *a)
{
    return ((size_t)(a->B * a->H * a->T) * sizeof(float) + 255) & ~(size_t)255;
}

template <typename T> static int attn_bwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    int64_t rows = a->B * a->H * a->T;
    if (rows == 0)
        return 0;
    if (p.window > 0 || p.first_key)
        p.spans = (const int2 *)((char *)a->workspace + delta_bytes(a));
    attn_delta_kernel<T><<<(unsigned)ceil_div(rows, WARPS), THREADS, 0, s>>>(p);
    int rc = launch_status();
    if (rc != 0)
        return rc;
    if (p.D <= 64)
        return attn_bwd_pick<T, dkv_shape<64, 64, 128, 32>, dq_shape<64, 128, 32>>(s, p);
    if (p.D <= 96)
        return attn_bwd_pick<T, dkv_shape<96, 96, 64, 64>, dq_shape<96, 128, 32>>(s, p);
    if (p.D <= 128)
        return attn_bwd_pick<T, dkv_shape<128, 128, 64, 64>, dq_shape<128, 128, 32>>(s, p);
    return attn_bwd_pick<T, dkv_shape<256, 128, 64, 32>, dq_shape<256, 64, 32>>(s, p);
}

extern "C" int launch_attn_bwd_mma(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return real == DT_BF16 ? attn_bwd<__nv_bfloat16>(s, a) : attn_bwd<__half>(s, a);
}

extern "C" size_t workspace_attn_bwd_mma(const struct attn_args *a)
{
    return delta_bytes(a) + (size_t)(a->B * ceil_div(a->T, SPAN)) * sizeof(int2);
}

KERNELS_OF(attn_bwd, attn_delta_kernel<__half>)
