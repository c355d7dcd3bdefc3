/*
 * The keys' pass of attention's backward (attn_bwd_hopper.cu): dk and dv. An item is NC * 64 keys,
 * its stages BQ queries with dout, their log-sums and deltas; scores are held transposed, rows
 * being keys, so that both sums take their left operand from registers.
 */
#include "kernels/cuda/attn_hopper.cuh"

/* DEFER: the sums of a tile run under the arithmetic of the next. */
template <typename T, int D, int NC, int STAGES, bool DEFER_>
struct dkv_shape : pass_shape<T, D, NC, SPAN, STAGES, D == 64 ? 0 : 2, 2 * SPAN> {
    static constexpr int BQ = SPAN;
    static constexpr bool REGISTERS = D == 64, DEFER = DEFER_; /* k and v as operands */
};

struct dkv_item {
    int b, kv, key0;
};

template <typename S>
__device__ __forceinline__ struct dkv_item dkv_item(const struct attn_params &p, int at)
{
    struct item_place place = item_place(p, at, p.B * p.KV, (p.S + S::BM - 1) / S::BM);
    /* The first keys are seen by most queries. */
    return {place.head / p.KV, place.head % p.KV, place.block * S::BM};
}

template <typename S> __host__ __device__ static inline int dkv_items(const struct attn_params &p)
{
    return p.B * p.KV * ((p.S + S::BM - 1) / S::BM);
}

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
                                         const struct tile_walk &w, const struct stages<S> &shared,
                                         int stage)
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
    float *to = shared.stats + (stage * 2 + second) * S::BQ + i; /* lse, delta */
    copy4_async(to, from + (inside ? row + i : 0), inside);
}

template <typename S>
__device__ __forceinline__ void dkv_copy(const struct attn_params &p,
                                         const struct stages<S> &shared, int at, ring<S::STAGES> &r)
{
    struct dkv_item item = dkv_item<S>(p, at);
    int key_last = min(item.key0 + S::BM, p.S) - 1, state;
    struct tile_walk w;
    w.h = item.kv * p.group;
    w.h_end = w.h + p.group;
    w.tile = w.tile_begin = item.key0 / S::BQ; /* query i sees keys up to i */
    w.tile_end = (p.T + S::BQ - 1) / S::BQ;
    walk_settle<S::BQ>(w, p, item.b, key_last);
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
        stage_filled(shared, r.at, head);
        r.next();
    } while (!(state & STAGE_LAST));
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

/* The same with dropout; s becomes the probabilities that are kept. Their scale comes with dv. */
template <int BQ>
__device__ __forceinline__ void dkv_drop(const struct attn_params &p, const struct dkv_place &at,
                                         const float *delta, float (&s)[BQ / 8][4],
                                         float (&dp)[BQ / 8][4])
{
    uint32_t bits = dropout_bits_columns(p, at.b, at.h, at.row0, at.key);
#pragma unroll
    for (int n = 0; n < BQ / 8; n++) {
        float2 d = *(const float2 *)(delta + n * 8 + threadIdx.x % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float kept = kept_of_columns(bits, n, e, dp[n][e]);
            dp[n][e] = s[n][e] * fmaf(kept, p.dropout.scale, e % 2 ? -d.y : -d.x);
            s[n][e] = kept_of_columns(bits, n, e, s[n][e]);
        }
    }
}

/* Probabilities and gradients at once, with cap, bias and dropout. */
template <int BQ>
__device__ __forceinline__ void dkv_scores(const struct attn_params &p, const struct dkv_place &at,
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
                float capped, kept = kept_of_columns(bits, n, e, dp[n][e]);
                float x = LOG2E * attn_score(p, slope, s[n][e], key, i, &capped);
                x = key > i || key < first ? 0.0f : fast_exp2(x - lse[column]);
                s[n][e] = kept_of_columns(bits, n, e, x);
                dp[n][e] =
                    x * fmaf(kept, p.dropout.scale, -delta[column]) * attn_cap_slope(p, capped);
            }
        }
    }
}

template <int BQ>
__device__ __forceinline__ void dkv_extra(const struct attn_params &p, const struct dkv_place &at,
                                          int clear, const float *lse, const float *delta,
                                          float (&s)[BQ / 8][4], float (&dp)[BQ / 8][4])
{
    if (attn_has_scores(p)) {
        dkv_scores<BQ>(p, at, lse, delta, s, dp);
    } else {
        dkv_probabilities<BQ>(p, at, clear, lse, s);
        dkv_drop<BQ>(p, at, delta, s, dp);
    }
}

template <typename S> struct dkv_rows {
    kept_rows<typename S::T, S::D, S::REGISTERS> k, v;
    float dk[S::D / 8][4], dv[S::D / 8][4];
};

/* Add a tile's probabilities times dout to dv; queued, not waited for. */
template <typename S>
__device__ __forceinline__ void dv_sum(const struct stages<S> &shared, int stage,
                                       const uint32_t (&a)[S::BQ / 16][4], struct dkv_rows<S> &rows)
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, S::BQ>(rows.dv, a, shared.tiles + (stage * 2 + 1) * S::TILE);
    wgmma_commit();
}

/* The same of its gradients and q, to dk. */
template <typename S>
__device__ __forceinline__ void dk_sum(const struct stages<S> &shared, int stage,
                                       const uint32_t (&a)[S::BQ / 16][4], struct dkv_rows<S> &rows)
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, S::BQ>(rows.dk, a, shared.tiles + stage * 2 * S::TILE);
    wgmma_commit();
}

template <typename S>
__device__ __forceinline__ void dkv_sums_done(const struct stages<S> &shared, int stage,
                                              struct dkv_rows<S> &rows)
{
    wgmma_wait<0>();
    acc_settle(rows.dk);
    acc_settle(rows.dv);
    stage_release(shared, stage);
}

/* Probabilities and gradients of one tile as operands a and c. The sums of the tile before, of
 * stage `busy`, are queued behind this one's products and run under the arithmetic. FIRST: no tile
 * came before. */
template <typename S, bool EXTRA, bool FIRST>
__device__ __forceinline__ void dkv_tile(const struct attn_params &p,
                                         const struct stages<S> &shared, const struct dkv_place &at,
                                         int clear, int stage, int busy,
                                         uint32_t (&a)[S::BQ / 16][4], uint32_t (&c)[S::BQ / 16][4],
                                         struct dkv_rows<S> &rows)
{
    using T = typename S::T;
    constexpr int D = S::D, BQ = S::BQ, BEHIND = FIRST ? 0 : 2;
    const T *q = shared.tiles + stage * 2 * S::TILE;
    const float *lse = shared.stats + stage * 2 * BQ, *delta = lse + BQ;
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
        dkv_extra<BQ>(p, at, clear, lse, delta, s, dp);
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
                                               const struct stages<S> &shared,
                                               const struct dkv_place &at, int clear, int stage,
                                               struct dkv_rows<S> &rows)
{
    using T = typename S::T;
    constexpr int D = S::D, BQ = S::BQ;
    const T *q = shared.tiles + stage * 2 * S::TILE;
    const float *lse = shared.stats + stage * 2 * BQ, *delta = lse + BQ;
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
        dkv_extra<BQ>(p, at, clear, lse, delta, s, dp);
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
                                            const struct stages<S> &shared,
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
            stage_release(shared, r.at);
        }
        r.next();
    } while (!(state & STAGE_LAST));
    if (busy >= 0) {
        dv_sum<S>(shared, busy, a, rows);
        dk_sum<S>(shared, busy, c, rows);
        dkv_sums_done<S>(shared, busy, rows);
    }
    const float scale[2] = {p.scale, p.scale}, kept[2] = {p.dropout.scale, p.dropout.scale};
    T *dk = (T *)p.dk + (int64_t)item.b * p.S * p.ldk + (int64_t)item.kv * p.D;
    T *dv = (T *)p.dv + (int64_t)item.b * p.S * p.ldv + (int64_t)item.kv * p.D;
    rows_store<T, D>(dk, p.ldk, first, p.S, p.D, scale, rows.dk);
    rows_store<T, D>(dv, p.ldv, first, p.S, p.D, kept, rows.dv);
}

template <typename S, bool EXTRA> struct dkv_pass {
    using shape = S;
    __host__ __device__ static int items(const struct attn_params &p)
    {
        return dkv_items<S>(p);
    }
    __device__ __forceinline__ static void copy(const struct attn_params &p,
                                                const struct stages<S> &shared, int at,
                                                ring<S::STAGES> &r)
    {
        dkv_copy<S>(p, shared, at, r);
    }
    __device__ __forceinline__ static void compute(const struct attn_params &p,
                                                   const struct stages<S> &shared, int at,
                                                   ring<S::STAGES> &r)
    {
        dkv_compute<S, EXTRA>(p, shared, dkv_item<S>(p, at), r);
    }
};

template <typename T> static int attn_dkv(cudaStream_t s, const struct attn_params &p)
{
    bool extra = attn_has_scores(p) || p.dropout.on;
    if (p.D <= 64)
        return extra ? attn_pass_launch<dkv_pass<dkv_shape<T, 64, 2, 6, false>, true>>(s, p)
                     : attn_pass_launch<dkv_pass<dkv_shape<T, 64, 2, 6, true>, false>>(s, p);
    return extra ? attn_pass_launch<dkv_pass<dkv_shape<T, 128, 2, 4, false>, true>>(s, p)
                 : attn_pass_launch<dkv_pass<dkv_shape<T, 128, 2, 4, false>, false>>(s, p);
}

int launch_attn_dkv_hopper(cudaStream_t s, enum dtype real, const struct attn_params &p)
{
    return real == DT_BF16 ? attn_dkv<__nv_bfloat16>(s, p) : attn_dkv<__half>(s, p);
}
