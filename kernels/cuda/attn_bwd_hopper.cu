/*
 * Attention backward with Hopper's warpgroup products, for bf16 and f16 and head dimensions up to
 * 128, in the frame of attn_hopper.cuh. Two passes, so that every gradient has one owner and no
 * order of additions is left to chance: an item of the keys' pass is NC * 64 keys, its stages BQ
 * queries with dout; an item of the queries' pass is NC * 64 queries, its stages BN keys and values
 * (seven products where one pass with shared sums of dq would have five). A warpgroup holds its
 * rows transposed so that both sums take their left operand from registers: nothing but the tiles
 * that all of them read goes through shared memory. Before both, delta = dout . o.
 *
 * dq, dk, dv assigned. T == S.
 */
#include "kernels/cuda/attn_hopper.cuh"

enum { SPAN = 64, DELTA_WARPS = 4 }; /* queries a span of first keys */

/* Workspace: delta (attn_params), 1 / log 2 times lse, spans (attn_params). */
static size_t rows_bytes(const struct attn_args *a)
{
    return ((size_t)(a->B * a->H * a->T) * sizeof(float) + 255) & ~(size_t)255;
}

__host__ __device__ static inline float *lse2_of(const struct attn_params &p)
{
    return p.delta + (((int64_t)p.B * p.H * p.T + 63) & ~(int64_t)63);
}

/* --- delta = dout . o, LANES lanes a row; and the spans --- */

template <typename T, int LANES>
__global__ void attn_delta_kernel(const __grid_constant__ struct attn_params p)
{
    constexpr int ROWS = DELTA_WARPS * 32 / LANES;
    int64_t rows = (int64_t)p.B * p.T * p.H, at = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES, h = (int)(at % p.H);
    int i = (int)(at / p.H % p.T), b = (int)(at / p.H / p.T);
    int64_t offset = ((int64_t)b * p.T + i) * p.ldo + (int64_t)h * p.D + lane * 8;
    float sum = 0;
    if (at < rows && lane * 8 < p.D) {
        float d[8], o[8];
        load_pack((const T *)p.dout + offset, d);
        load_pack((const T *)p.o + offset, o);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += d[j] * o[j];
    }
    sum = warp_sum<LANES>(sum);
    if (lane == 0 && at < rows) {
        int64_t row = ((int64_t)b * p.H + h) * p.T + i;
        p.delta[row] = sum;
        lse2_of(p)[row] = p.lse[row] * LOG2E;
    }
}

/* A warp a span. */
static __global__ void attn_spans_kernel(const __grid_constant__ struct attn_params p)
{
    int per_row = (p.T + SPAN - 1) / SPAN, at = blockIdx.x * DELTA_WARPS + threadIdx.x / 32;
    if (at >= p.B * per_row)
        return;
    int2 span = first_keys(p, at / per_row, at % per_row * SPAN, at % per_row * SPAN + SPAN);
    if (threadIdx.x % 32 == 0)
        ((int2 *)p.spans)[at] = span;
}

template <typename T> static int delta_launch(cudaStream_t s, const struct attn_params &p)
{
    constexpr int THREADS = DELTA_WARPS * 32;
    int64_t rows = (int64_t)p.B * p.T * p.H, spans = p.B * ceil_div(p.T, SPAN);
    if (p.spans)
        attn_spans_kernel<<<(unsigned)ceil_div(spans, DELTA_WARPS), THREADS, 0, s>>>(p);
    if (p.D <= 64)
        attn_delta_kernel<T, 8><<<(unsigned)ceil_div(rows, THREADS / 8), THREADS, 0, s>>>(p);
    else
        attn_delta_kernel<T, 16><<<(unsigned)ceil_div(rows, THREADS / 16), THREADS, 0, s>>>(p);
    return launch_status();
}

/* --- keys' pass --- */

template <typename T_, int D_, int NC_, int STAGES_> struct dkv_shape {
    using T = T_;
    static constexpr int D = D_, NC = NC_, BQ = SPAN, STAGES = STAGES_;
    static constexpr bool REGISTERS = D == 64, DEFER = D == 64; /* k and v as operands */
    static constexpr int THREADS = (NC + 1) * GROUP, BN = NC * 64, TILE = BQ * D;
    static constexpr int KEPT = REGISTERS ? 0 : BN * D;
    static constexpr size_t BYTES = (size_t)(STAGES * 2 * TILE + 2 * KEPT) * 2 + 1024;
};

struct dkv_item {
    int b, kv, key0;
};

template <typename S>
__device__ __forceinline__ struct dkv_item dkv_item(const struct attn_params &p, int at)
{
    struct item_place place = item_place(p, at, p.B * p.KV, (p.S + S::BN - 1) / S::BN);
    /* The first keys are seen by most queries. */
    return {place.head / p.KV, place.head % p.KV, place.block * S::BN};
}

template <typename S> __device__ __forceinline__ int dkv_items(const struct attn_params &p)
{
    return p.B * p.KV * ((p.S + S::BN - 1) / S::BN);
}

template <typename S> struct dkv_shared {
    typename S::T *tiles, *kept; /* q and dout of each stage; k and v of each warpgroup */
    uint64_t *full, *empty;
    struct stage_head *heads;
    float *lse, *delta; /* BQ each stage */
};

struct tile_walk { /* the tiles of queries that a block of keys meets, head after head */
    int h, h_end, tile, tile_begin, tile_end, clear;
};

template <int BQ>
__device__ __forceinline__ void walk_settle(struct tile_walk &w, const struct attn_params &p, int b,
                                            int key_last)
{
    for (; w.h < w.h_end; w.h++, w.tile = w.tile_begin) {
        for (; w.tile < w.tile_end; w.tile++) {
            int2 span = p.spans ? p.spans[b * w.tile_end + w.tile] : make_int2(0, 0);
            w.clear = span.y;
            if (span.x <= key_last)
                return;
        }
    }
}

template <typename S>
__device__ __forceinline__ void dkv_fill(const struct attn_params &p, int b,
                                         const struct tile_walk &w,
                                         const struct dkv_shared<S> &shared, int stage)
{
    using T = typename S::T;
    int row = w.tile * S::BQ, i = threadIdx.x % S::BQ;
    T *tile = shared.tiles + stage * 2 * S::TILE;
    const T *q = (const T *)p.q + (int64_t)b * p.T * p.ldq + (int64_t)w.h * p.D;
    const T *d = (const T *)p.dout + (int64_t)b * p.T * p.ldo + (int64_t)w.h * p.D;
    panel_fill<T, S::BQ, S::D>(tile, q, p.ldq, row, p.T, p.D);
    panel_fill<T, S::BQ, S::D>(tile + S::TILE, d, p.ldo, row, p.T, p.D);
    bool second = threadIdx.x % GROUP >= S::BQ, inside = row + i < p.T;
    const float *from = (second ? p.delta : lse2_of(p)) + ((int64_t)b * p.H + w.h) * p.T;
    float *to = (second ? shared.delta : shared.lse) + stage * S::BQ + i;
    copy4_async(to, from + (inside ? row + i : 0), inside);
}

template <typename S>
__device__ __forceinline__ void dkv_copy(const struct attn_params &p,
                                         const struct dkv_shared<S> &shared)
{
    ring<S::STAGES> r;
    for (int at = blockIdx.x; at < dkv_items<S>(p); at += gridDim.x) {
        struct dkv_item item = dkv_item<S>(p, at);
        int key_last = min(item.key0 + S::BN, p.S) - 1;
        struct tile_walk w;
        w.h = item.kv * p.group;
        w.h_end = w.h + p.group;
        w.tile = w.tile_begin = item.key0 / S::BQ; /* query i sees keys up to i */
        w.tile_end = (p.T + S::BQ - 1) / S::BQ;
        walk_settle<S::BQ>(w, p, item.b, key_last);
        int state;
        do {
            struct stage_head head = {w.tile * S::BQ, w.h, w.clear, 0};
            barrier_wait(&shared.empty[r.at], r.phase ^ 1);
            if (w.h < w.h_end) {
                head.state = STAGE_TILE;
                dkv_fill<S>(p, item.b, w, shared, r.at);
                w.tile++;
                walk_settle<S::BQ>(w, p, item.b, key_last);
            }
            head.state = state = head.state | (w.h < w.h_end ? 0 : STAGE_LAST);
            barrier_arrive_copied(&shared.full[r.at]);
            if (threadIdx.x % GROUP == 0) {
                shared.heads[r.at] = head;
                barrier_arrive(&shared.full[r.at]);
            }
            r.next();
        } while (!(state & STAGE_LAST));
    }
}

/* Where a warpgroup stands: keys from `key0`, its thread's first `key`, queries from `row0`. */
struct dkv_place {
    int b, h, key0, key, row0;
};

/* Scores to probabilities; rows are keys, columns queries. */
template <int BQ, bool MASKED>
__device__ __forceinline__ void dkv_probabilities(const struct attn_params &p,
                                                  const struct dkv_place &at, const float *lse,
                                                  float (&s)[BQ / 8][4])
{
    float scale = p.scale * LOG2E;
#pragma unroll
    for (int n = 0; n < BQ / 8; n++) {
        int column = n * 8 + threadIdx.x % 4 * 2;
        float2 lse2 = *(const float2 *)(lse + column);
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            int i = at.row0 + column + odd;
            int first = MASKED ? attn_first(p, at.b, min(i, p.T - 1)) : 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int key = at.key + half * 8;
                float &x = s[n][half * 2 + odd];
                x = fast_exp2(fmaf(x, scale, odd ? -lse2.y : -lse2.x));
                if (MASKED && (key > i || key < first))
                    x = 0;
            }
        }
    }
}

template <int BQ>
__device__ __forceinline__ void dkv_probabilities(const struct attn_params &p,
                                                  const struct dkv_place &at, int clear,
                                                  const float *lse, float (&s)[BQ / 8][4])
{
    if (at.key0 + 63 > at.row0 || at.key0 < clear)
        dkv_probabilities<BQ, true>(p, at, lse, s);
    else
        dkv_probabilities<BQ, false>(p, at, lse, s);
}

/* Their gradients, from dp = v dout^T: ds = p (dp - delta), without `scale`. */
template <int BQ>
__device__ __forceinline__ void dkv_gradients(const float *delta, const float (&s)[BQ / 8][4],
                                              float (&dp)[BQ / 8][4])
{
#pragma unroll
    for (int n = 0; n < BQ / 8; n++) {
        float2 d = *(const float2 *)(delta + n * 8 + threadIdx.x % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; e++)
            dp[n][e] = s[n][e] * (dp[n][e] - (e % 2 ? d.y : d.x));
    }
}

/* Both at once, with cap, bias and dropout: s becomes the dropped probabilities. */
template <int BQ>
__device__ __forceinline__ void dkv_extra(const struct attn_params &p, const struct dkv_place &at,
                                          const float *lse, const float *delta,
                                          float (&s)[BQ / 8][4], float (&dp)[BQ / 8][4])
{
    float slope = attn_slope(p, at.h);
    uint32_t bits = ~0u;
    if (p.dropout.on)
        bits = dropout_bits_columns(p, at.b, at.h, at.row0, at.key);
#pragma unroll
    for (int n = 0; n < BQ / 8; n++) {
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            int column = n * 8 + threadIdx.x % 4 * 2 + odd, i = at.row0 + column;
            int first = attn_first(p, at.b, min(i, p.T - 1));
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int key = at.key + half * 8, e = half * 2 + odd;
                float capped, factor = dropout_of_bit(p, bits, n * 4 + e);
                float x = LOG2E * attn_score(p, slope, s[n][e], key, i, &capped);
                x = key > i || key < first ? 0.0f : fast_exp2(x - lse[column]);
                s[n][e] = x * factor;
                dp[n][e] = x * (dp[n][e] * factor - delta[column]) * attn_cap_slope(p, capped);
            }
        }
    }
}

template <typename S> struct dkv_rows {
    kept_rows<typename S::T, S::D, S::REGISTERS> k, v;
    float dk[S::D / 8][4], dv[S::D / 8][4];
};

/* Add a tile's probabilities times dout to dv; queued, not waited for. */
template <typename S>
__device__ __forceinline__ void dv_sum(const struct dkv_shared<S> &shared, int stage,
                                       const uint32_t (&a)[S::BQ / 16][4], struct dkv_rows<S> &rows)
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, S::BQ>(rows.dv, a, shared.tiles + (stage * 2 + 1) * S::TILE);
    wgmma_commit();
}

/* The same of its gradients and q, to dk. */
template <typename S>
__device__ __forceinline__ void dk_sum(const struct dkv_shared<S> &shared, int stage,
                                       const uint32_t (&a)[S::BQ / 16][4], struct dkv_rows<S> &rows)
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, S::BQ>(rows.dk, a, shared.tiles + stage * 2 * S::TILE);
    wgmma_commit();
}

template <typename S>
__device__ __forceinline__ void dkv_sums_done(const struct dkv_shared<S> &shared, int stage,
                                              struct dkv_rows<S> &rows)
{
    wgmma_wait<0>();
    acc_settle(rows.dk);
    acc_settle(rows.dv);
    stage_release(&shared.empty[stage]);
}

/* Probabilities and gradients of one tile as operands a and c. The sums of the tile before, of
 * stage `busy`, are queued behind this one's products and run under the arithmetic. FIRST: no tile
 * came before. */
template <typename S, bool EXTRA, bool FIRST>
__device__ __forceinline__ void dkv_tile(const struct attn_params &p,
                                         const struct dkv_shared<S> &shared,
                                         const struct dkv_place &at, int clear, int stage, int busy,
                                         uint32_t (&a)[S::BQ / 16][4], uint32_t (&c)[S::BQ / 16][4],
                                         struct dkv_rows<S> &rows)
{
    using T = typename S::T;
    constexpr int D = S::D, BQ = S::BQ, BEHIND = FIRST ? 0 : 2;
    const T *q = shared.tiles + stage * 2 * S::TILE;
    const float *lse = shared.lse + stage * BQ, *delta = shared.delta + stage * BQ;
    float s[BQ / 8][4], dp[BQ / 8][4];
    wgmma_publish();
    wgmma_begin();
    kept_product<T, D, BQ>(s, rows.k, q);
    wgmma_commit();
    kept_product<T, D, BQ>(dp, rows.v, q + S::TILE);
    wgmma_commit();
    if (!FIRST) {
        dv_sum<S>(shared, busy, a, rows);
        dk_sum<S>(shared, busy, c, rows);
    }
    wgmma_wait<BEHIND + 1>();
    acc_settle(s);
    if (!EXTRA)
        dkv_probabilities<BQ>(p, at, clear, lse, s);
    wgmma_wait<BEHIND>();
    acc_settle(dp);
    if (EXTRA)
        dkv_extra<BQ>(p, at, lse, delta, s, dp);
    else
        dkv_gradients<BQ>(delta, s, dp);
    if (!FIRST)
        dkv_sums_done<S>(shared, busy, rows);
    pack_operand<T, BQ>(a, s);
    pack_operand<T, BQ>(c, dp);
}

/* The same with its sums, for head dimensions that leave no registers for operands that wait. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void dkv_whole_tile(const struct attn_params &p,
                                               const struct dkv_shared<S> &shared,
                                               const struct dkv_place &at, int clear, int stage,
                                               struct dkv_rows<S> &rows)
{
    using T = typename S::T;
    constexpr int D = S::D, BQ = S::BQ;
    const T *q = shared.tiles + stage * 2 * S::TILE;
    const float *lse = shared.lse + stage * BQ, *delta = shared.delta + stage * BQ;
    float s[BQ / 8][4], dp[BQ / 8][4];
    uint32_t a[BQ / 16][4];
    wgmma_publish();
    wgmma_begin();
    kept_product<T, D, BQ>(s, rows.k, q);
    wgmma_commit();
    kept_product<T, D, BQ>(dp, rows.v, q + S::TILE);
    wgmma_commit();
    if (EXTRA) {
        wgmma_wait<0>();
        acc_settle(s);
        acc_settle(dp);
        dkv_extra<BQ>(p, at, lse, delta, s, dp);
        pack_operand<T, BQ>(a, s);
        dv_sum<S>(shared, stage, a, rows);
    } else {
        wgmma_wait<1>();
        acc_settle(s);
        dkv_probabilities<BQ>(p, at, clear, lse, s);
        pack_operand<T, BQ>(a, s);
        dv_sum<S>(shared, stage, a, rows);
        wgmma_wait<1>();
        acc_settle(dp);
        dkv_gradients<BQ>(delta, s, dp);
    }
    uint32_t c[BQ / 16][4];
    pack_operand<T, BQ>(c, dp);
    dk_sum<S>(shared, stage, c, rows);
    dkv_sums_done<S>(shared, stage, rows);
}

template <typename S, bool EXTRA>
__device__ __forceinline__ void dkv_compute(const struct attn_params &p,
                                            const struct dkv_shared<S> &shared,
                                            const struct dkv_item &item, ring<S::STAGES> &r)
{
    using T = typename S::T;
    constexpr int D = S::D;
    int first = item.key0 + threadIdx.x / GROUP * 64, busy = -1, state;
    struct dkv_rows<S> rows;
    int64_t token = (int64_t)item.b * p.S, column = (int64_t)item.kv * p.D;
    const T *k = (const T *)p.k + token * p.ldk + column;
    const T *v = (const T *)p.v + token * p.ldv + column;
    pair_load<T, D>(rows.k, rows.v, shared.kept, k, p.ldk, v, p.ldv, first, p.S, p.D);
    rows_clear(rows.dk);
    rows_clear(rows.dv);
    uint32_t a[S::BQ / 16][4], c[S::BQ / 16][4];
    do {
        barrier_wait(&shared.full[r.at], r.phase);
        struct stage_head head = shared.heads[r.at];
        state = head.state;
        if ((state & STAGE_TILE) && head.first + S::BQ > first && first < p.S) {
            int key = first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
            struct dkv_place place = {item.b, head.head, first, key, head.first};
            if (!S::DEFER) {
                dkv_whole_tile<S, EXTRA>(p, shared, place, head.clear, r.at, rows);
            } else {
                if (busy < 0)
                    dkv_tile<S, EXTRA, true>(p, shared, place, head.clear, r.at, busy, a, c, rows);
                else
                    dkv_tile<S, EXTRA, false>(p, shared, place, head.clear, r.at, busy, a, c, rows);
                busy = r.at;
            }
        } else {
            stage_release(&shared.empty[r.at]);
        }
        r.next();
    } while (!(state & STAGE_LAST));
    if (busy >= 0) {
        dv_sum<S>(shared, busy, a, rows);
        dk_sum<S>(shared, busy, c, rows);
        dkv_sums_done<S>(shared, busy, rows);
    }
    const float scale[2] = {p.scale, p.scale}, one[2] = {1, 1};
    T *dk = (T *)p.dk + (int64_t)item.b * p.S * p.ldk + (int64_t)item.kv * p.D;
    T *dv = (T *)p.dv + (int64_t)item.b * p.S * p.ldv + (int64_t)item.kv * p.D;
    rows_store<T, D>(dk, p.ldk, first, p.S, p.D, scale, rows.dk);
    rows_store<T, D>(dv, p.ldv, first, p.S, p.D, one, rows.dv);
}

template <typename S, bool EXTRA>
__global__ void __launch_bounds__(S::THREADS, 1)
    attn_dkv_hopper_kernel(const __grid_constant__ struct attn_params p)
{
    extern __shared__ uint4 smem[];
    __shared__ uint64_t full[S::STAGES], empty[S::STAGES];
    __shared__ struct stage_head heads[S::STAGES];
    __shared__ float2 lse[S::STAGES * S::BQ / 2], delta[S::STAGES * S::BQ / 2];
    struct dkv_shared<S> shared;
    shared.tiles = (typename S::T *)(((uintptr_t)smem + 1023) & ~(uintptr_t)1023);
    shared.kept = shared.tiles + S::STAGES * 2 * S::TILE;
    shared.full = full;
    shared.empty = empty;
    shared.heads = heads;
    shared.lse = (float *)lse;
    shared.delta = (float *)delta;
    if (threadIdx.x < S::STAGES) {
        barrier_init(&full[threadIdx.x], GROUP + 1);
        barrier_init(&empty[threadIdx.x], S::NC * 4);
    }
    __syncthreads();
    if (threadIdx.x >= S::NC * GROUP) {
        registers_lower<role_registers<S::NC>::COPY>();
        dkv_copy<S>(p, shared);
    } else {
        registers_raise<role_registers<S::NC>::COMPUTE>();
        ring<S::STAGES> r;
        for (int at = blockIdx.x; at < dkv_items<S>(p); at += gridDim.x)
            dkv_compute<S, EXTRA>(p, shared, dkv_item<S>(p, at), r);
    }
}

/* --- queries' pass --- */

template <typename T_, int D_, int NC_, int STAGES_> struct dq_shape {
    using T = T_;
    static constexpr int D = D_, NC = NC_, BN = 64, STAGES = STAGES_;
    static constexpr bool REGISTERS = D == 64 && NC == 2; /* q and dout as operands */
    static constexpr int THREADS = (NC + 1) * GROUP, BM = NC * 64, TILE = BN * D;
    static constexpr int KEPT = REGISTERS ? 0 : BM * D;
    static constexpr size_t BYTES = (size_t)(STAGES * 2 * TILE + 2 * KEPT) * 2 + 1024;
};

struct dq_item {
    int b, h, row0;
};

template <typename S>
__device__ __forceinline__ struct dq_item dq_item(const struct attn_params &p, int at)
{
    int blocks = (p.T + S::BM - 1) / S::BM; /* the longest rows come first */
    struct item_place place = item_place(p, at, p.B * p.H, blocks);
    return {place.head / p.H, place.head % p.H, (blocks - 1 - place.block) * S::BM};
}

template <typename S> __device__ __forceinline__ int dq_items(const struct attn_params &p)
{
    return p.B * p.H * ((p.T + S::BM - 1) / S::BM);
}

template <typename S> struct dq_shared {
    typename S::T *tiles, *kept; /* k and v of each stage; q and dout of each warpgroup */
    uint64_t *full, *empty;
    struct stage_head *heads;
};

template <typename S>
__device__ __forceinline__ void dq_copy(const struct attn_params &p,
                                        const struct dq_shared<S> &shared)
{
    using T = typename S::T;
    ring<S::STAGES> r;
    for (int at = blockIdx.x; at < dq_items<S>(p); at += gridDim.x) {
        struct dq_item item = dq_item<S>(p, at);
        int kv = item.h / p.group, last = min(item.row0 + S::BM, p.T) - 1;
        const T *k = (const T *)p.k + (int64_t)item.b * p.S * p.ldk + (int64_t)kv * p.D;
        const T *v = (const T *)p.v + (int64_t)item.b * p.S * p.ldv + (int64_t)kv * p.D;
        int key = first_keys(p, item.b, item.row0, item.row0 + S::BM).x / S::BN * S::BN;
        bool ends = false;
        for (; !ends; key += S::BN, r.next()) {
            bool some = key <= last;
            ends = key + S::BN > last;
            barrier_wait(&shared.empty[r.at], r.phase ^ 1);
            if (some) {
                T *tile = shared.tiles + r.at * 2 * S::TILE;
                panel_fill<T, S::BN, S::D>(tile, k, p.ldk, key, p.S, p.D);
                panel_fill<T, S::BN, S::D>(tile + S::TILE, v, p.ldv, key, p.S, p.D);
            }
            barrier_arrive_copied(&shared.full[r.at]);
            if (threadIdx.x % GROUP == 0) {
                shared.heads[r.at] = {key, item.h, 0,
                                      (some ? STAGE_TILE : 0) | (ends ? STAGE_LAST : 0)};
                barrier_arrive(&shared.full[r.at]);
            }
        }
    }
}

template <typename S> struct dq_rows {
    kept_rows<typename S::T, S::D, S::REGISTERS> q, d;
    float dq[S::D / 8][4], lse2[2], delta[2];
};

/* Gradients of scores from dot = q k^T and dp = dout v^T; rows are queries from `row`, columns keys
 * from `key0`. */
template <int BN, bool MASKED>
__device__ __forceinline__ void dq_gradients(const struct attn_params &p, int b, int row, int key0,
                                             const float (&lse2)[2], const float (&delta)[2],
                                             const float (&s)[BN / 8][4], float (&dp)[BN / 8][4])
{
    float scale = p.scale * LOG2E;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = row + half * 8, first = MASKED ? attn_first(p, b, min(i, p.T - 1)) : 0;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
                int key = key0 + n * 8 + threadIdx.x % 4 * 2 + e % 2;
                float x = fast_exp2(fmaf(s[n][e], scale, -lse2[half]));
                if (MASKED && (key > i || key < first))
                    x = 0;
                dp[n][e] = x * (dp[n][e] - delta[half]);
            }
        }
    }
}

/* The same with cap, bias and dropout. */
template <int BN>
__device__ __forceinline__ void dq_extra(const struct attn_params &p, int b, int h, int row,
                                         int key0, const float (&lse2)[2], const float (&delta)[2],
                                         const float (&s)[BN / 8][4], float (&dp)[BN / 8][4])
{
    float slope = attn_slope(p, h);
    uint32_t bits = ~0u;
    if (p.dropout.on)
        bits = dropout_bits_rows(p, b, h, row, key0);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = row + half * 8, first = attn_first(p, b, min(i, p.T - 1));
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
                int key = key0 + n * 8 + threadIdx.x % 4 * 2 + e % 2;
                float capped, factor = dropout_of_bit(p, bits, n * 4 + e);
                float x = LOG2E * attn_score(p, slope, s[n][e], key, i, &capped) - lse2[half];
                x = key > i || key < first ? 0.0f : fast_exp2(x);
                dp[n][e] = x * (dp[n][e] * factor - delta[half]) * attn_cap_slope(p, capped);
            }
        }
    }
}

/* Add a tile's gradients times keys to dq; queued, not waited for. */
template <typename S>
__device__ __forceinline__ void dq_sum(const struct dq_shared<S> &shared, int stage,
                                       const uint32_t (&a)[S::BN / 16][4], float (&dq)[S::D / 8][4])
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, S::BN>(dq, a, shared.tiles + stage * 2 * S::TILE);
    wgmma_commit();
}

template <typename S>
__device__ __forceinline__ void dq_sum_done(const struct dq_shared<S> &shared, int stage,
                                            float (&dq)[S::D / 8][4])
{
    wgmma_wait<0>();
    acc_settle(dq);
    stage_release(&shared.empty[stage]);
}

/* One tile of one warpgroup: its products are queued before the sum of the tile before, of stage
 * `busy`, which so runs under the arithmetic. On return a holds the tile's gradients, not yet
 * summed. FIRST: no tile came before. */
template <typename S, bool EXTRA, bool FIRST>
__device__ __forceinline__ void dq_tile(const struct attn_params &p,
                                        const struct dq_shared<S> &shared,
                                        const struct dq_item &item, int first, int clear, int key0,
                                        int stage, int busy, uint32_t (&a)[S::BN / 16][4],
                                        struct dq_rows<S> &rows)
{
    using T = typename S::T;
    constexpr int D = S::D, BN = S::BN;
    const T *k = shared.tiles + stage * 2 * S::TILE, *v = k + S::TILE;
    int row = first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    float s[BN / 8][4], dp[BN / 8][4];
    wgmma_publish();
    wgmma_begin();
    kept_product<T, D, BN>(s, rows.q, k);
    kept_product<T, D, BN>(dp, rows.d, v);
    wgmma_commit();
    if (FIRST) {
        wgmma_wait<0>();
    } else {
        dq_sum<S>(shared, busy, a, rows.dq);
        wgmma_wait<1>();
    }
    acc_settle(s);
    acc_settle(dp);
    if (EXTRA)
        dq_extra<BN>(p, item.b, item.h, row, key0, rows.lse2, rows.delta, s, dp);
    else if (key0 < clear || key0 + BN - 1 > first)
        dq_gradients<BN, true>(p, item.b, row, key0, rows.lse2, rows.delta, s, dp);
    else
        dq_gradients<BN, false>(p, item.b, row, key0, rows.lse2, rows.delta, s, dp);
    if (!FIRST)
        dq_sum_done<S>(shared, busy, rows.dq);
    pack_operand<T, BN>(a, dp);
}

template <typename S>
__device__ __forceinline__ void dq_load(const struct attn_params &p,
                                        const struct dq_shared<S> &shared,
                                        const struct dq_item &item, int first,
                                        struct dq_rows<S> &rows)
{
    using T = typename S::T;
    int64_t token = (int64_t)item.b * p.T, column = (int64_t)item.h * p.D;
    int row = first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    const T *q = (const T *)p.q + token * p.ldq + column;
    const T *d = (const T *)p.dout + token * p.ldo + column;
    pair_load<T, S::D>(rows.q, rows.d, shared.kept, q, p.ldq, d, p.ldo, first, p.T, p.D);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t stat = ((int64_t)item.b * p.H + item.h) * p.T + min(row + half * 8, p.T - 1);
        rows.lse2[half] = p.lse[stat] * LOG2E;
        rows.delta[half] = p.delta[stat];
    }
    rows_clear(rows.dq);
}

template <typename S, bool EXTRA>
__device__ __forceinline__ void dq_compute(const struct attn_params &p,
                                           const struct dq_shared<S> &shared,
                                           const struct dq_item &item, ring<S::STAGES> &r)
{
    using T = typename S::T;
    int first = item.row0 + threadIdx.x / GROUP * 64, busy = -1, state;
    int2 span = first_keys(p, item.b, first, first + 64);
    struct dq_rows<S> rows;
    dq_load<S>(p, shared, item, first, rows);
    uint32_t a[S::BN / 16][4];
    do {
        barrier_wait(&shared.full[r.at], r.phase);
        struct stage_head head = shared.heads[r.at];
        state = head.state;
        if ((state & STAGE_TILE) && head.first <= first + 63 && head.first + S::BN > span.x &&
            first < p.T) {
            if (busy < 0)
                dq_tile<S, EXTRA, true>(p, shared, item, first, span.y, head.first, r.at, busy, a,
                                        rows);
            else
                dq_tile<S, EXTRA, false>(p, shared, item, first, span.y, head.first, r.at, busy, a,
                                         rows);
            busy = r.at;
        } else {
            stage_release(&shared.empty[r.at]);
        }
        r.next();
    } while (!(state & STAGE_LAST));
    if (busy >= 0) {
        dq_sum<S>(shared, busy, a, rows.dq);
        dq_sum_done<S>(shared, busy, rows.dq);
    }
    const float scale[2] = {p.scale, p.scale};
    T *dq = (T *)p.dq + (int64_t)item.b * p.T * p.ldq + (int64_t)item.h * p.D;
    rows_store<T, S::D>(dq, p.ldq, first, p.T, p.D, scale, rows.dq);
}

template <typename S, bool EXTRA>
__global__ void __launch_bounds__(S::THREADS, 1)
    attn_dq_hopper_kernel(const __grid_constant__ struct attn_params p)
{
    extern __shared__ uint4 smem[];
    __shared__ uint64_t full[S::STAGES], empty[S::STAGES];
    __shared__ struct stage_head heads[S::STAGES];
    struct dq_shared<S> shared;
    shared.tiles = (typename S::T *)(((uintptr_t)smem + 1023) & ~(uintptr_t)1023);
    shared.full = full;
    shared.empty = empty;
    shared.heads = heads;
    shared.kept = shared.tiles + S::STAGES * 2 * S::TILE;
    if (threadIdx.x < S::STAGES) {
        barrier_init(&full[threadIdx.x], GROUP + 1);
        barrier_init(&empty[threadIdx.x], S::NC * 4);
    }
    __syncthreads();
    if (threadIdx.x >= S::NC * GROUP) {
        registers_lower<role_registers<S::NC>::COPY>();
        dq_copy<S>(p, shared);
    } else {
        registers_raise<role_registers<S::NC>::COMPUTE>();
        ring<S::STAGES> r;
        for (int at = blockIdx.x; at < dq_items<S>(p); at += gridDim.x)
            dq_compute<S, EXTRA>(p, shared, dq_item<S>(p, at), r);
    }
}

/* --- launching --- */

template <typename KS, typename QS, bool EXTRA>
static int attn_bwd_launch(cudaStream_t s, const struct attn_params &p)
{
    int64_t keys = (int64_t)p.B * p.KV * ceil_div(p.S, KS::BN);
    int64_t queries = (int64_t)p.B * p.H * ceil_div(p.T, QS::BM);
    int rc =
        launch_persistent(s, attn_dkv_hopper_kernel<KS, EXTRA>, keys, KS::THREADS, KS::BYTES, p);
    if (rc != 0)
        return rc;
    return launch_persistent(s, attn_dq_hopper_kernel<QS, EXTRA>, queries, QS::THREADS, QS::BYTES,
                             p);
}

template <typename T> static int attn_bwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    bool extra = p.cap != 0 || p.slopes || p.dropout.on;
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.window > 0 || p.first_key)
        p.spans = (const int2 *)((char *)a->workspace + 2 * rows_bytes(a));
    int rc = delta_launch<T>(s, p);
    if (rc != 0)
        return rc;
    if (p.D <= 64)
        return extra ? attn_bwd_launch<dkv_shape<T, 64, 2, 6>, dq_shape<T, 64, 2, 6>, true>(s, p)
                     : attn_bwd_launch<dkv_shape<T, 64, 2, 6>, dq_shape<T, 64, 3, 6>, false>(s, p);
    return extra ? attn_bwd_launch<dkv_shape<T, 128, 2, 4>, dq_shape<T, 128, 2, 4>, true>(s, p)
                 : attn_bwd_launch<dkv_shape<T, 128, 2, 4>, dq_shape<T, 128, 2, 4>, false>(s, p);
}

extern "C" int launch_attn_bwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return real == DT_BF16 ? attn_bwd<__nv_bfloat16>(s, a) : attn_bwd<__half>(s, a);
}

extern "C" size_t workspace_attn_bwd_hopper(const struct attn_args *a)
{
    return 2 * rows_bytes(a) + (size_t)(a->B * ceil_div(a->T, SPAN)) * sizeof(int2);
}
