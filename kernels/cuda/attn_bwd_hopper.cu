/*
 * Attention backward with Hopper's warpgroup products, for bf16 and f16 and head dimensions up to
 * 128, in the frame of attn_hopper.cuh. Two passes, so that every gradient has one owner and no
 * order of additions is left to chance: that over keys is attn_dkv_hopper.cu, that over queries is
 * here (seven products where one pass with shared sums of dq would have five). Each holds its rows
 * so that its sums take their left operand from registers: nothing but the tiles that all
 * warpgroups read goes through shared memory. Before both, delta = dout . o.
 *
 * dq, dk, dv assigned. T == S.
 */
#include "kernels/cuda/attn_hopper.cuh"

enum { DELTA_WARPS = 4 };

/* Workspace: delta (attn_params), 1 / log 2 times lse, spans (attn_params). */
static size_t rows_bytes(const struct attn_args *a)
{
    return ((size_t)(a->B * a->H * a->T) * sizeof(float) + 255) & ~(size_t)255;
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

/* --- queries' pass --- */

template <typename T, int D, int NC, int STAGES, bool REGISTERS_ /* q and dout as operands */>
struct dq_shape : pass_shape<T, D, NC, 64, STAGES, REGISTERS_ ? 0 : 2> {
    static constexpr int BN = 64;
    static constexpr bool REGISTERS = REGISTERS_;
};

template <typename S> struct dq_rows {
    kept_rows<typename S::T, S::D, S::REGISTERS> q, d;
    float dq[S::D / 8][4], lse2[2], delta[2];
};

/* Gradients of scores from dot = q k^T and dp = dout v^T; rows are queries from `row`, columns keys
 * from `key0`. `bits`: of dropout, with DROP. */
template <int BN, bool MASKED, bool DROP>
__device__ __forceinline__ void dq_gradients(const struct attn_params &p, int b, int row, int key0,
                                             uint32_t bits, const float (&lse2)[2],
                                             const float (&delta)[2], const float (&s)[BN / 8][4],
                                             float (&dp)[BN / 8][4])
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
                                              const struct query_item &item, int row, bool masked,
                                              int key0, const float (&lse2)[2],
                                              const float (&delta)[2], const float (&s)[BN / 8][4],
                                              float (&dp)[BN / 8][4])
{
    uint32_t bits = ~0u;
    if (EXTRA && p.dropout.on)
        bits = dropout_bits_rows(p, item.b, item.h, row, key0);
    if (EXTRA && attn_has_scores(p))
        dq_scores<BN>(p, item.b, item.h, row, key0, bits, lse2, delta, s, dp);
    else if (masked)
        dq_gradients<BN, true, EXTRA>(p, item.b, row, key0, bits, lse2, delta, s, dp);
    else
        dq_gradients<BN, false, EXTRA>(p, item.b, row, key0, bits, lse2, delta, s, dp);
}

/* Add a tile's gradients times keys to dq; queued, not waited for. */
template <typename S>
__device__ __forceinline__ void dq_sum(const struct stages<S> &shared, int stage,
                                       const uint32_t (&a)[S::BN / 16][4], float (&dq)[S::D / 8][4])
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, S::BN>(dq, a, shared.tiles + stage * 2 * S::TILE);
    wgmma_commit();
}

template <typename S>
__device__ __forceinline__ void dq_sum_done(const struct stages<S> &shared, int stage,
                                            float (&dq)[S::D / 8][4])
{
    wgmma_wait<0>();
    acc_settle(dq);
    stage_release(shared, stage);
}

/* One tile of one warpgroup: its products are queued before the sum of the tile before, of stage
 * `busy`, which so runs under the arithmetic. On return a holds the tile's gradients, not yet
 * summed. FIRST: no tile came before. */
template <typename S, bool EXTRA, bool FIRST>
__device__ __forceinline__ void dq_tile(const struct attn_params &p, const struct stages<S> &shared,
                                        const struct query_item &item, int first, int clear,
                                        int key0, int stage, int busy, uint32_t (&a)[S::BN / 16][4],
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
    bool masked = key0 < clear || key0 + BN - 1 > first;
    dq_arithmetic<BN, EXTRA>(p, item, row, masked, key0, rows.lse2, rows.delta, s, dp);
    if (!FIRST)
        dq_sum_done<S>(shared, busy, rows.dq);
    pack_operand<T, BN>(a, dp);
}

template <typename S>
__device__ __forceinline__ void dq_load(const struct attn_params &p, const struct stages<S> &shared,
                                        const struct query_item &item, int first,
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
                                           const struct stages<S> &shared,
                                           const struct query_item &item, ring<S::STAGES> &r)
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
            stage_release(shared, r.at);
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

template <typename S, bool EXTRA> struct dq_pass {
    using shape = S;
    __host__ __device__ static int items(const struct attn_params &p)
    {
        return query_items<S>(p);
    }
    __device__ __forceinline__ static void copy(const struct attn_params &p,
                                                const struct stages<S> &shared, int at,
                                                ring<S::STAGES> &r)
    {
        keys_copy<S, S::BN>(p, shared, at, r);
    }
    __device__ __forceinline__ static void compute(const struct attn_params &p,
                                                   const struct stages<S> &shared, int at,
                                                   ring<S::STAGES> &r)
    {
        dq_compute<S, EXTRA>(p, shared, query_item<S>(p, at), r);
    }
};

/* --- launching --- */

template <typename T> static int attn_dq(cudaStream_t s, const struct attn_params &p)
{
    bool extra = attn_has_scores(p) || p.dropout.on;
    if (p.D <= 64)
        return extra ? attn_pass_launch<dq_pass<dq_shape<T, 64, 2, 6, true>, true>>(s, p)
                     : attn_pass_launch<dq_pass<dq_shape<T, 64, 3, 6, false>, false>>(s, p);
    return extra ? attn_pass_launch<dq_pass<dq_shape<T, 128, 2, 4, false>, true>>(s, p)
                 : attn_pass_launch<dq_pass<dq_shape<T, 128, 2, 4, false>, false>>(s, p);
}

extern "C" int launch_attn_bwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    bool bf16 = real == DT_BF16;
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.window > 0 || p.first_key)
        p.spans = (const int2 *)((char *)a->workspace + 2 * rows_bytes(a));
    int rc = bf16 ? delta_launch<__nv_bfloat16>(s, p) : delta_launch<__half>(s, p);
    if (rc == 0)
        rc = launch_attn_dkv_hopper(s, real, p);
    if (rc == 0)
        rc = bf16 ? attn_dq<__nv_bfloat16>(s, p) : attn_dq<__half>(s, p);
    return rc;
}

extern "C" size_t workspace_attn_bwd_hopper(const struct attn_args *a)
{
    return 2 * rows_bytes(a) + (size_t)(a->B * ceil_div(a->T, SPAN)) * sizeof(int2);
}
