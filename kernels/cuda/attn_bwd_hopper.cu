/*
 * Attention backward with Hopper's warpgroup products, for bf16 and f16 and head dimensions up to
 * 256, in the frame of attn_hopper.cuh. Two passes, so that every gradient has one owner and no
 * order of additions is left to chance: that over keys is attn_dkv_hopper.cu, that over queries is
 * here (seven products where one pass with shared sums of dq would have five). Each holds its rows
 * so that its sums take their left operand from registers: nothing but the tiles that all
 * warpgroups read goes through shared memory. Before both, delta = dout . o.
 *
 * dq, dk, dv assigned. T == S.
 */
#include "kernels/cuda/attn_hopper.cuh"

enum { DELTA_WARPS = 4 };

/* Workspace: statistics (stats_row), spans and the next items of both passes (attn_params). */
static size_t stats_bytes(const struct attn_args *a)
{
    return (size_t)(a->B * a->H * ceil_div(a->T, SPAN)) * 2 * SPAN * sizeof(float);
}

static size_t spans_bytes(const struct attn_args *a)
{
    return (size_t)(a->B * ceil_div(a->T, SPAN)) * sizeof(int2);
}

/* --- statistics: delta = dout . o, LANES lanes a row, and lse; rows up to a whole SPAN, zeros from
 * T on; and the spans --- */

template <typename T, int LANES>
__global__ void attn_delta_kernel(const __grid_constant__ struct attn_params p)
{
    constexpr int ROWS = DELTA_WARPS * 32 / LANES;
    int whole = (p.T + SPAN - 1) / SPAN * SPAN;
    int64_t rows = (int64_t)p.B * whole * p.H;
    int64_t at = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES, h = (int)(at % p.H);
    int i = (int)(at / p.H % whole), b = (int)(at / p.H / whole);
    int64_t offset = ((int64_t)b * p.T + i) * p.ldo + (int64_t)h * p.D + lane * 8;
    float sum = 0;
    if (blockIdx.x == 0 && threadIdx.x < 2)
        p.next[threadIdx.x] = 0;
    if (at < rows && i < p.T && lane * 8 < p.D) {
        float d[8], o[8];
        load_pack((const T *)p.dout + offset, d);
        load_pack((const T *)p.o + offset, o);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += d[j] * o[j];
    }
    sum = warp_sum<LANES>(sum);
    if (lane == 0 && at < rows) {
        float *to = p.delta + stats_row(p, b, h, i);
        to[0] = i < p.T ? p.lse[((int64_t)b * p.H + h) * p.T + i] * LOG2E : 0.0f;
        to[SPAN] = sum;
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
    int64_t spans = p.B * ceil_div(p.T, SPAN), rows = spans * SPAN * p.H;
    if (p.spans)
        attn_spans_kernel<<<(unsigned)ceil_div(spans, DELTA_WARPS), THREADS, 0, s>>>(p);
    if (p.D <= 64)
        attn_delta_kernel<T, 8><<<(unsigned)ceil_div(rows, THREADS / 8), THREADS, 0, s>>>(p);
    else if (p.D > 128)
        attn_delta_kernel<T, 32><<<(unsigned)ceil_div(rows, THREADS / 32), THREADS, 0, s>>>(p);
    else
        attn_delta_kernel<T, 16><<<(unsigned)ceil_div(rows, THREADS / 16), THREADS, 0, s>>>(p);
    return launch_status();
}

/* --- queries' pass --- */

/* At D 256 the warpgroups share 64 queries and take every other tile: for more there is no room. */
template <int D, int NC> static constexpr int dq_queries = D <= 128 ? NC * 64 : 64;

template <typename T, int D, int NC, int STAGES, int AHEAD>
struct dq_shape
    : pass_shape<T, D, NC, dq_queries<D, NC>, 64, STAGES, 2, AHEAD, 0, dq_queries<D, NC> * 2> {
    static constexpr int BN = 64;
};

/* A warpgroup's 64 queries of an item, from `first` on; its thread's first `row`; their greatest
 * first key. */
struct dq_place {
    int b, h, first, row, most;
};

template <typename S> struct dq_rows {
    kept_rows<S::D, S::BM, false> q, d;
    float dq[S::D / 8][4], lse2[2], delta[2];
};

/* Gradients of scores from dot = q k^T and dp = dout v^T; rows are queries from `row`, columns keys
 * from `key0`. `bits`: of dropout, with DROP. */
template <int BN, enum mask MASK, bool DROP>
__device__ __forceinline__ void dq_gradients(const struct attn_params &p, int b, int row, int key0,
                                             uint32_t bits, const float (&lse2)[2],
                                             const float (&delta)[2], const float (&s)[BN / 8][4],
                                             float (&dp)[BN / 8][4])
{
    float scale = p.scale * LOG2E;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = row + half * 8;
        int first = MASK == MASK_FIRST ? attn_first(p, b, min(i, p.T - 1)) : 0;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
                int key = key0 + n * 8 + threadIdx.x % 4 * 2 + e % 2;
                float x = fast_exp2(fmaf(s[n][e], scale, -lse2[half]));
                if (MASK != MASK_NONE && (key > i || key < first))
                    x = 0;
                if (DROP)
                    dp[n][e] = kept_of_rows(bits, n, e, dp[n][e]) * p.dropout.scale;
                dp[n][e] = x * (dp[n][e] - delta[half]);
            }
        }
    }
}

/* The same with cap, bias and dropout. */
template <int BN>
__device__ __forceinline__ void dq_scores(const struct attn_params &p, int b, int h, int row,
                                          int key0, uint32_t bits, const float (&lse2)[2],
                                          const float (&delta)[2], const float (&s)[BN / 8][4],
                                          float (&dp)[BN / 8][4])
{
    float slope = attn_slope(p, h);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = row + half * 8, first = attn_first(p, b, min(i, p.T - 1));
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
                int key = key0 + n * 8 + threadIdx.x % 4 * 2 + e % 2;
                float capped, kept = kept_of_rows(bits, n, e, dp[n][e]) * p.dropout.scale;
                float x = LOG2E * attn_score(p, slope, s[n][e], key, i, &capped) - lse2[half];
                x = key > i || key < first ? 0.0f : fast_exp2(x);
                dp[n][e] = x * (kept - delta[half]) * attn_cap_slope(p, capped);
            }
        }
    }
}

template <int BN, bool EXTRA>
__device__ __forceinline__ void dq_arithmetic(const struct attn_params &p,
                                              const struct dq_place &at, int key0,
                                              const float (&lse2)[2], const float (&delta)[2],
                                              const float (&s)[BN / 8][4], float (&dp)[BN / 8][4])
{
    uint32_t bits = ~0u;
    if (EXTRA && p.dropout.on)
        bits = dropout_bits_rows(p, at.b, at.h, at.row, key0);
    enum mask mask = tile_mask(key0, key0 + BN - 1, at.first, at.most);
    if (EXTRA && attn_has_scores(p))
        dq_scores<BN>(p, at.b, at.h, at.row, key0, bits, lse2, delta, s, dp);
    else if (mask == MASK_FIRST)
        dq_gradients<BN, MASK_FIRST, EXTRA>(p, at.b, at.row, key0, bits, lse2, delta, s, dp);
    else if (mask == MASK_CAUSAL)
        dq_gradients<BN, MASK_CAUSAL, EXTRA>(p, at.b, at.row, key0, bits, lse2, delta, s, dp);
    else
        dq_gradients<BN, MASK_NONE, EXTRA>(p, at.b, at.row, key0, bits, lse2, delta, s, dp);
}

/* One tile of one warpgroup: its products are queued before the sum of the tile before, of stage
 * `busy`, which so runs under the arithmetic. On return a holds the tile's gradients, not yet
 * summed. FIRST: no tile came before. */
template <typename S, bool EXTRA, bool FIRST>
__device__ __forceinline__ void dq_tile(const struct attn_params &p, const struct stages<S> &shared,
                                        const struct dq_place &at, int key0, int stage, int busy,
                                        uint32_t (&a)[S::BN / 16][4], struct dq_rows<S> &rows)
{
    using T = typename S::T;
    constexpr int D = S::D, BN = S::BN;
    float s[BN / 8][4], dp[BN / 8][4];
    wgmma_begin();
    kept_product<T, D, BN>(s, rows.q, shared.tile(stage, 0));
    kept_product<T, D, BN>(dp, rows.d, shared.tile(stage, 1));
    wgmma_commit();
    if (FIRST) {
        wgmma_wait<0>();
    } else {
        sum_queue(shared, busy, 0, a, rows.dq);
        wgmma_wait<1>();
    }
    acc_settle(s);
    acc_settle(dp);
    dq_arithmetic<BN, EXTRA>(p, at, key0, rows.lse2, rows.delta, s, dp);
    acc_settle(dp);
    if (!FIRST)
        sum_finish(shared, busy, rows.dq);
    pack_operand<T, BN>(a, dp);
}

/* The tiles of one item that a warpgroup needs. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void dq_tiles(const struct attn_params &p,
                                         const struct stages<S> &shared, const struct dq_place &at,
                                         int key0, int n, struct dq_rows<S> &rows,
                                         ring<S::STAGES> &r)
{
    uint32_t a[S::BN / 16][4];
    int busy = 0;
    for (int i = 0; i < n; i++, key0 += S::BN, busy = r.at, r.next()) {
        stage_wait(shared, r);
        if (i == 0)
            dq_tile<S, EXTRA, true>(p, shared, at, key0, r.at, busy, a, rows);
        else
            dq_tile<S, EXTRA, false>(p, shared, at, key0, r.at, busy, a, rows);
    }
    sum_queue(shared, busy, 0, a, rows.dq);
    sum_finish(shared, busy, rows.dq);
}

template <typename S>
__device__ __forceinline__ void dq_take(const struct stages<S> &shared, int stage, int group,
                                        struct dq_rows<S> &rows)
{
    const float *stats = shared.kept_stats + stage * S::KEPT_STATS + group * 2 * SPAN +
                         threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        rows.lse2[half] = stats[half * 8];
        rows.delta[half] = stats[SPAN + half * 8];
    }
    kept_take(rows.q, shared.kept_tile(stage, 0) + group * 64 * 128);
    kept_take(rows.d, shared.kept_tile(stage, 1) + group * 64 * 128);
    rows_clear(rows.dq);
}

template <typename S>
__device__ __forceinline__ void dq_store(const struct attn_params &p, const struct dq_place &at,
                                         const float (&sum)[S::D / 8][4])
{
    using T = typename S::T;
    const float scale[2] = {p.scale, p.scale};
    T *dq = (T *)p.dq + (int64_t)at.b * p.T * p.ldq + (int64_t)at.h * p.D;
    rows_store<T, S::D>(dq, p.ldq, at.first, p.T, p.D, scale, sum);
}

static __device__ __forceinline__ struct dq_place dq_place(const struct pass_item &item, int first,
                                                           int most)
{
    int row = first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    return {item.b, item.head, first, row, most};
}

template <typename S> struct dq_frame : query_pass<S> {
    __device__ __forceinline__ static void fetch_kept(const struct pass_params &pass,
                                                      const struct stages<S> &shared,
                                                      const struct pass_item &item, int stage)
    {
        uint32_t full = shared.kept_full + stage * 8;
        int rows = min((pass.p.T - item.row0 + SPAN - 1) / SPAN * SPAN, S::BM);
        barrier_expect(full, S::KEPT_BYTES + rows * 2 * 4);
        tile_fetch<S::BM, S::D>(shared.kept_tile(stage, 0), &pass.q, full, item.head, item.row0,
                                item.b);
        tile_fetch<S::BM, S::D>(shared.kept_tile(stage, 1), &pass.d, full, item.head, item.row0,
                                item.b);
        bulk_fetch(shared_address(shared.kept_stats + stage * S::KEPT_STATS),
                   pass.p.delta + stats_row(pass.p, item.b, item.head, item.row0), rows * 2 * 4,
                   full);
    }
};

template <typename S, bool EXTRA> struct dq_pass : dq_frame<S> {
    __device__ __forceinline__ static void compute(const struct attn_params &p,
                                                   const struct stages<S> &shared, int group,
                                                   const struct pass_item &item,
                                                   struct pass_rings<S> &r)
    {
        int first = item.row0 + group * 64;
        struct tile_range t = query_tiles<S>(p, item, first);
        struct dq_place at = dq_place(item, first, t.most);
        struct dq_rows<S> rows;
        dq_take(shared, r.item.at, group, rows);
        if (t.begin < t.end) {
            tiles_skip(shared, t.begin, r.tile);
            dq_tiles<S, EXTRA>(p, shared, at, item.begin + t.begin * S::BN, t.end - t.begin, rows,
                               r.tile);
            tiles_skip(shared, item.tiles - t.end, r.tile);
        } else {
            tiles_skip(shared, item.tiles, r.tile);
        }
        item_release(shared, r.item.at);
        dq_store<S>(p, at, rows.dq);
    }
};

/* --- the same where two warpgroups share the queries --- */

/* sum of warpgroup 0 += that of warpgroup 1, by way of `room`, the item's rows: nobody needs them
 * any more. */
template <int N>
__device__ __forceinline__ void halves_add(uint32_t room, int group, float (&sum)[N][4])
{
    uint32_t at = room + threadIdx.x % GROUP * 16;
    pair_sync(); /* both have read the rows */
    if (group == 1) {
#pragma unroll
        for (int n = 0; n < N; n++)
            shared_write4(at + n * GROUP * 16, sum[n]);
    }
    pair_sync();
    if (group == 0) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            float other[4];
            shared_read4(other, at + n * GROUP * 16);
#pragma unroll
            for (int e = 0; e < 4; e++)
                sum[n][e] += other[e];
        }
    }
    wgmma_publish(); /* before the copies that come next */
}

template <typename S, bool EXTRA> struct dq_shared_pass : dq_frame<S> {
    __device__ __forceinline__ static void compute(const struct attn_params &p,
                                                   const struct stages<S> &shared, int group,
                                                   const struct pass_item &item,
                                                   struct pass_rings<S> &r)
    {
        static_assert(S::NC == 2 && S::KEPT_BYTES >= GROUP * S::D / 8 * 16, "room for halves_add");
        struct dq_place at = dq_place(item, item.row0, query_tiles<S>(p, item, item.row0).most);
        struct dq_rows<S> rows;
        uint32_t a[S::BN / 16][4];
        dq_take(shared, r.item.at, 0, rows);
#pragma unroll 1
        for (int i = 0; i < item.tiles; i++, r.tile.next()) {
            stage_wait(shared, r.tile);
            if (i % 2 != group) {
                stage_release(shared, r.tile.at);
                continue;
            }
            dq_tile<S, EXTRA, true>(p, shared, at, item.begin + i * S::BN, r.tile.at, 0, a, rows);
            sum_queue(shared, r.tile.at, 0, a, rows.dq);
            sum_finish(shared, r.tile.at, rows.dq);
        }
        halves_add(shared.kept_tile(r.item.at, 0), group, rows.dq);
        item_release(shared, r.item.at);
        if (group == 0)
            dq_store<S>(p, at, rows.dq);
    }
};

/* --- launching --- */

template <typename S, bool EXTRA>
static int attn_dq_launch(cudaStream_t s, const struct attn_params &p)
{
    using P =
        typename std::conditional<S::D <= 128, dq_pass<S, EXTRA>, dq_shared_pass<S, EXTRA>>::type;
    return attn_pass_launch<P>(s, p, S::BM, S::BN);
}

template <typename T> static int attn_dq(cudaStream_t s, struct attn_params p)
{
    bool extra = attn_is_extra(p);
    p.chunk = heads_at_once((int64_t)p.S * p.D * 4 / p.group); /* k and v */
    p.next++;
    if (p.D <= 64)
        return extra ? attn_dq_launch<dq_shape<T, 64, 2, 6, 2>, true>(s, p)
                     : attn_dq_launch<dq_shape<T, 64, 3, 6, 2>, false>(s, p);
    if (p.D <= 128)
        return extra ? attn_dq_launch<dq_shape<T, 128, 2, 4, 1>, true>(s, p)
                     : attn_dq_launch<dq_shape<T, 128, 2, 4, 1>, false>(s, p);
    return extra ? attn_dq_launch<dq_shape<T, 256, 2, 2, 1>, true>(s, p)
                 : attn_dq_launch<dq_shape<T, 256, 2, 2, 1>, false>(s, p);
}

extern "C" int launch_attn_bwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    bool bf16 = real == DT_BF16;
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.window > 0 || p.first_key)
        p.spans = (const int2 *)((char *)a->workspace + stats_bytes(a));
    p.next = (int *)((char *)a->workspace + stats_bytes(a) + spans_bytes(a));
    int rc = bf16 ? delta_launch<__nv_bfloat16>(s, p) : delta_launch<__half>(s, p);
    if (rc == 0)
        rc = launch_attn_dkv_hopper(s, real, p);
    if (rc == 0)
        rc = bf16 ? attn_dq<__nv_bfloat16>(s, p) : attn_dq<__half>(s, p);
    return rc;
}

extern "C" size_t workspace_attn_bwd_hopper(const struct attn_args *a)
{
    return stats_bytes(a) + spans_bytes(a) + 2 * sizeof(int);
}

KERNELS_OF(attn_bwd_hopper, attn_spans_kernel)
