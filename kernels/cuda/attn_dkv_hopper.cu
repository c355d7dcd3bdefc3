/*
 * The keys' pass of attention's backward (attn_bwd_hopper.cu): dk and dv. An item is NC * 64 keys,
 * its stages BQ queries with dout, their log-sums and deltas; scores are held transposed, rows
 * being keys, so that both sums take their left operand from registers.
 */
#include "kernels/cuda/attn_hopper.cuh"

/* At D 256 the warpgroups share 64 keys, one sums dv and one dk: for both there is no room. */
template <int D, int NC> static constexpr int dkv_keys = D <= 128 ? NC * 64 : 64;

/* DEFER: the sums of a tile run under the arithmetic of the next; k and v are then operands in
 * registers. Without it they must not be: ptxas 13.0 has the sums' operands overwrite them. */
template <typename T, int D, int NC, int STAGES, int AHEAD, bool DEFER_>
struct dkv_shape : pass_shape<T, D, NC, dkv_keys<D, NC>, SPAN, STAGES, 2, AHEAD, 2 * SPAN> {
    static constexpr int BQ = SPAN;
    static constexpr bool DEFER = DEFER_;
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

/* By one thread. */
template <typename S>
__device__ __forceinline__ void dkv_fill(const struct pass_params &pass,
                                         const struct stages<S> &shared, int b, int h, int row,
                                         int stage)
{
    uint32_t full = shared.full + stage * 8;
    barrier_expect(full, 2 * S::TILE_BYTES + S::STATS * 4);
    tile_fetch<S::BQ, S::D>(shared.tile(stage, 0), &pass.q, full, h, row, b);
    tile_fetch<S::BQ, S::D>(shared.tile(stage, 1), &pass.d, full, h, row, b);
    bulk_fetch(shared_address(shared.stats + stage * S::STATS),
               pass.p.delta + stats_row(pass.p, b, h, row), S::STATS * 4, full);
}

/* Where a warpgroup stands: keys from `key0`, its thread's first `key`, queries from `row0`. */
struct dkv_place {
    int b, h, key0, key, row0;
};

static __device__ __forceinline__ enum mask dkv_mask(const struct dkv_place &at, int clear)
{
    return tile_mask(at.key0, at.key0 + 63, at.row0, clear);
}

/* Scores to probabilities; rows are keys, columns queries. */
template <int BQ, enum mask MASK>
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
            int first = MASK == MASK_FIRST ? attn_first(p, at.b, min(i, p.T - 1)) : 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int key = at.key + half * 8;
                float &x = s[n][half * 2 + odd];
                x = fast_exp2(fmaf(x, scale, odd ? -lse2.y : -lse2.x));
                if (MASK != MASK_NONE && (key > i || key < first))
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
    enum mask mask = dkv_mask(at, clear);
    if (mask == MASK_FIRST)
        dkv_probabilities<BQ, MASK_FIRST>(p, at, lse, s);
    else if (mask == MASK_CAUSAL)
        dkv_probabilities<BQ, MASK_CAUSAL>(p, at, lse, s);
    else
        dkv_probabilities<BQ, MASK_NONE>(p, at, lse, s);
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

/* Both. The caller waits for sums behind this branch: ptxas moves a wait up within a block. */
template <int BQ>
__device__ __forceinline__ void dkv_both(const struct attn_params &p, const struct dkv_place &at,
                                         int clear, const float *lse, const float *delta,
                                         float (&s)[BQ / 8][4], float (&dp)[BQ / 8][4])
{
    enum mask mask = dkv_mask(at, clear);
    if (mask == MASK_FIRST) {
        dkv_probabilities<BQ, MASK_FIRST>(p, at, lse, s);
        dkv_gradients<BQ>(delta, s, dp);
    } else if (mask == MASK_CAUSAL) {
        dkv_probabilities<BQ, MASK_CAUSAL>(p, at, lse, s);
        dkv_gradients<BQ>(delta, s, dp);
    } else {
        dkv_probabilities<BQ, MASK_NONE>(p, at, lse, s);
        dkv_gradients<BQ>(delta, s, dp);
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
    kept_rows<S::D, S::BM, S::DEFER> k, v;
    float dk[S::D / 8][4], dv[S::D / 8][4];
};

/* Of a tile, dv takes probabilities times dout, part 1 of its stage, and dk gradients times q. */
template <typename S>
__device__ __forceinline__ void dkv_sums_done(const struct stages<S> &shared, int stage,
                                              struct dkv_rows<S> &rows)
{
    wgmma_wait<0>();
    acc_settle(rows.dk);
    acc_settle(rows.dv);
    stage_release(shared, stage);
}

/* Both, to the end. */
template <typename S>
__device__ __forceinline__ void dkv_sums(const struct stages<S> &shared, int stage,
                                         const uint32_t (&a)[S::BQ / 16][4],
                                         const uint32_t (&c)[S::BQ / 16][4],
                                         struct dkv_rows<S> &rows)
{
    sum_queue(shared, stage, 1, a, rows.dv);
    sum_queue(shared, stage, 0, c, rows.dk);
    dkv_sums_done<S>(shared, stage, rows);
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
    const float *lse = shared.stats + stage * S::STATS, *delta = lse + BQ;
    float s[BQ / 8][4], dp[BQ / 8][4];
    wgmma_begin();
    kept_product<T, D, BQ>(s, rows.k, shared.tile(stage, 0));
    wgmma_commit();
    kept_product<T, D, BQ>(dp, rows.v, shared.tile(stage, 1));
    wgmma_commit();
    if (!FIRST) {
        sum_queue(shared, busy, 1, a, rows.dv);
        sum_queue(shared, busy, 0, c, rows.dk);
    }
    wgmma_wait<BEHIND>();
    acc_settle(s);
    acc_settle(dp);
    if (EXTRA)
        dkv_extra<BQ>(p, at, clear, lse, delta, s, dp);
    else
        dkv_both<BQ>(p, at, clear, lse, delta, s, dp);
    acc_settle(s);
    acc_settle(dp);
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
    const float *lse = shared.stats + stage * S::STATS, *delta = lse + BQ;
    float s[BQ / 8][4], dp[BQ / 8][4];
    uint32_t a[BQ / 16][4];
    wgmma_begin();
    kept_product<T, D, BQ>(s, rows.k, shared.tile(stage, 0));
    wgmma_commit();
    kept_product<T, D, BQ>(dp, rows.v, shared.tile(stage, 1));
    wgmma_commit();
    if (EXTRA) {
        wgmma_wait<0>();
        acc_settle(s);
        acc_settle(dp);
        dkv_extra<BQ>(p, at, clear, lse, delta, s, dp);
        pack_operand<T, BQ>(a, s);
        sum_queue(shared, stage, 1, a, rows.dv);
    } else {
        wgmma_wait<1>();
        acc_settle(s);
        dkv_probabilities<BQ>(p, at, clear, lse, s);
        pack_operand<T, BQ>(a, s);
        sum_queue(shared, stage, 1, a, rows.dv);
        wgmma_wait<1>();
        acc_settle(dp);
        dkv_gradients<BQ>(delta, s, dp);
    }
    uint32_t c[BQ / 16][4];
    pack_operand<T, BQ>(c, dp);
    sum_queue(shared, stage, 0, c, rows.dk);
    dkv_sums_done<S>(shared, stage, rows);
}

/* The tiles of one item, of a warpgroup with keys from `first` on. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void dkv_tiles(const struct attn_params &p,
                                          const struct stages<S> &shared, int b, int first,
                                          struct dkv_rows<S> &rows, ring<S::STAGES> &r)
{
    uint32_t a[S::BQ / 16][4], c[S::BQ / 16][4];
    int key = first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    int busy = -1; /* the stage whose sums are not yet queued */
    bool last;
    do {
        stage_wait(shared, r);
        struct stage_head head = shared.heads[r.at];
        int row0 = uniform(head.row0), clear = uniform(head.clear);
        struct dkv_place place = {b, uniform(head.head), first, key, row0};
        last = uniform(head.last);
        if (row0 + S::BQ > first && first < p.S) {
            if (!S::DEFER)
                dkv_whole_tile<S, EXTRA>(p, shared, place, clear, r.at, rows);
            else if (busy < 0)
                dkv_tile<S, EXTRA, true>(p, shared, place, clear, r.at, busy, a, c, rows);
            else
                dkv_tile<S, EXTRA, false>(p, shared, place, clear, r.at, busy, a, c, rows);
            busy = S::DEFER ? r.at : -1;
        } else {
            if (busy >= 0)
                dkv_sums<S>(shared, busy, a, c, rows);
            busy = -1;
            stage_release(shared, r.at);
        }
        r.next();
    } while (!last);
    if (busy >= 0)
        dkv_sums<S>(shared, busy, a, c, rows);
}

template <typename S> struct dkv_frame {
    using shape = S;
    __host__ __device__ static int items(const struct attn_params &p)
    {
        return p.B * p.KV * ((p.S + S::BM - 1) / S::BM);
    }

    /* The first keys are seen by most queries. */
    __device__ __forceinline__ static struct pass_item item(const struct attn_params &p, int at)
    {
        struct item_place place = item_place(p, at, p.B * p.KV, (p.S + S::BM - 1) / S::BM);
        return {place.head / p.KV, place.head % p.KV, place.block * S::BM, 0, 0};
    }

    __device__ __forceinline__ static void fetch_kept(const struct pass_params &pass,
                                                      const struct stages<S> &shared,
                                                      const struct pass_item &item, int stage)
    {
        uint32_t full = shared.kept_full + stage * 8;
        barrier_expect(full, S::KEPT_BYTES);
        tile_fetch<S::BM, S::D>(shared.kept_tile(stage, 0), &pass.k, full, item.head, item.row0,
                                item.b);
        tile_fetch<S::BM, S::D>(shared.kept_tile(stage, 1), &pass.v, full, item.head, item.row0,
                                item.b);
    }

    __device__ __forceinline__ static void fetch_tiles(const struct pass_params &pass,
                                                       const struct stages<S> &shared,
                                                       const struct pass_item &item,
                                                       ring<S::STAGES> &r)
    {
        const struct attn_params &p = pass.p;
        int key_last = min(item.row0 + S::BM, p.S) - 1;
        struct tile_walk w;
        w.h = item.head * p.group;
        w.h_end = w.h + p.group;
        w.tile = w.tile_begin = item.row0 / S::BQ; /* query i sees keys up to i */
        w.tile_end = (p.T + S::BQ - 1) / S::BQ;
        walk_settle<S::BQ>(w, p, item.b, key_last);
        struct stage_head head;
        do {
            bool some = w.h < w.h_end; /* else one empty stage, which no key is before */
            head = {some ? w.tile * S::BQ : -S::BQ, w.h, w.clear, 0};
            w.tile++;
            walk_settle<S::BQ>(w, p, item.b, key_last);
            head.last = w.h >= w.h_end;
            barrier_wait(shared.empty + r.at * 8, r.phase ^ 1);
            if (threadIdx.x % 32 == 0) {
                shared.heads[r.at] = head;
                if (some)
                    dkv_fill(pass, shared, item.b, head.head, head.row0, r.at);
                else
                    barrier_arrive(shared.full + r.at * 8);
            }
            r.next();
        } while (!head.last);
    }
};

template <typename S, bool EXTRA> struct dkv_pass : dkv_frame<S> {
    __device__ __forceinline__ static void compute(const struct attn_params &p,
                                                   const struct stages<S> &shared, int group,
                                                   const struct pass_item &item,
                                                   struct pass_rings<S> &r)
    {
        using T = typename S::T;
        int first = item.row0 + group * 64;
        struct dkv_rows<S> rows;
        kept_take(rows.k, shared.kept_tile(r.item.at, 0) + group * 64 * 128);
        kept_take(rows.v, shared.kept_tile(r.item.at, 1) + group * 64 * 128);
        if (S::DEFER)
            item_release(shared, r.item.at);
        rows_clear(rows.dk);
        rows_clear(rows.dv);
        dkv_tiles<S, EXTRA>(p, shared, item.b, first, rows, r.tile);
        if (!S::DEFER)
            item_release(shared, r.item.at);
        const float scale[2] = {p.scale, p.scale}, kept[2] = {p.dropout.scale, p.dropout.scale};
        T *dk = (T *)p.dk + (int64_t)item.b * p.S * p.ldk + (int64_t)item.head * p.D;
        T *dv = (T *)p.dv + (int64_t)item.b * p.S * p.ldv + (int64_t)item.head * p.D;
        rows_store<T, S::D>(dk, p.ldk, first, p.S, p.D, scale, rows.dk);
        rows_store<T, S::D>(dv, p.ldv, first, p.S, p.D, kept, rows.dv);
    }
};

/* --- the same where two warpgroups share the keys --- */

/* One tile: its probabilities times dout, added to dv. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void dv_tile(const struct attn_params &p, const struct stages<S> &shared,
                                        const struct dkv_place &at, int clear, int stage,
                                        const kept_rows<S::D, S::BM, false> &k,
                                        float (&dv)[S::D / 8][4])
{
    using T = typename S::T;
    const float *lse = shared.stats + stage * S::STATS;
    float s[S::BQ / 8][4], dp[S::BQ / 8][4];
    uint32_t a[S::BQ / 16][4];
    wgmma_begin();
    kept_product<T, S::D, S::BQ>(s, k, shared.tile(stage, 0));
    wgmma_commit();
    wgmma_wait<0>();
    acc_settle(s);
    rows_clear(dp); /* unused */
    if (EXTRA)
        dkv_extra<S::BQ>(p, at, clear, lse, lse + S::BQ, s, dp);
    else
        dkv_probabilities<S::BQ>(p, at, clear, lse, s);
    pack_operand<T, S::BQ>(a, s);
    wgmma_begin();
    tile_sum<T, S::D, S::BQ>(dv, a, shared.tile(stage, 1));
    wgmma_commit();
    wgmma_wait<0>();
    acc_settle(dv);
}

/* One tile: the gradients of its scores times q, added to dk. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void dk_tile(const struct attn_params &p, const struct stages<S> &shared,
                                        const struct dkv_place &at, int clear, int stage,
                                        const kept_rows<S::D, S::BM, false> &k,
                                        const kept_rows<S::D, S::BM, false> &v,
                                        float (&dk)[S::D / 8][4])
{
    using T = typename S::T;
    const float *lse = shared.stats + stage * S::STATS;
    float s[S::BQ / 8][4], dp[S::BQ / 8][4];
    uint32_t a[S::BQ / 16][4];
    wgmma_begin();
    kept_product<T, S::D, S::BQ>(s, k, shared.tile(stage, 0));
    kept_product<T, S::D, S::BQ>(dp, v, shared.tile(stage, 1));
    wgmma_commit();
    wgmma_wait<0>();
    acc_settle(s);
    acc_settle(dp);
    if (EXTRA)
        dkv_extra<S::BQ>(p, at, clear, lse, lse + S::BQ, s, dp);
    else
        dkv_both<S::BQ>(p, at, clear, lse, lse + S::BQ, s, dp);
    pack_operand<T, S::BQ>(a, dp);
    wgmma_begin();
    tile_sum<T, S::D, S::BQ>(dk, a, shared.tile(stage, 0));
    wgmma_commit();
    wgmma_wait<0>();
    acc_settle(dk);
}

template <typename S, bool EXTRA> struct dkv_shared_pass : dkv_frame<S> {
    __device__ __forceinline__ static void compute(const struct attn_params &p,
                                                   const struct stages<S> &shared, int group,
                                                   const struct pass_item &item,
                                                   struct pass_rings<S> &r)
    {
        using T = typename S::T;
        int first = item.row0, key = first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
        kept_rows<S::D, S::BM, false> k, v;
        kept_take(k, shared.kept_tile(r.item.at, 0));
        kept_take(v, shared.kept_tile(r.item.at, 1));
        float sum[S::D / 8][4];
        bool last;
        rows_clear(sum);
        do {
            stage_wait(shared, r.tile);
            struct stage_head head = shared.heads[r.tile.at];
            int row0 = uniform(head.row0), clear = uniform(head.clear);
            struct dkv_place at = {item.b, uniform(head.head), first, key, row0};
            last = uniform(head.last);
            if (row0 < 0)
                ; /* an empty stage */
            else if (group == 0)
                dv_tile<S, EXTRA>(p, shared, at, clear, r.tile.at, k, sum);
            else
                dk_tile<S, EXTRA>(p, shared, at, clear, r.tile.at, k, v, sum);
            stage_release(shared, r.tile.at);
            r.tile.next();
        } while (!last);
        item_release(shared, r.item.at);
        const float factor = group == 0 ? p.dropout.scale : p.scale, scale[2] = {factor, factor};
        int64_t ld = group == 0 ? p.ldv : p.ldk;
        T *to =
            (T *)(group == 0 ? p.dv : p.dk) + (int64_t)item.b * p.S * ld + (int64_t)item.head * p.D;
        rows_store<T, S::D>(to, ld, first, p.S, p.D, scale, sum);
    }
};

/* --- launching --- */

template <typename S, bool EXTRA>
static int attn_dkv_launch(cudaStream_t s, const struct attn_params &p)
{
    using P =
        typename std::conditional<S::D <= 128, dkv_pass<S, EXTRA>, dkv_shared_pass<S, EXTRA>>::type;
    return attn_pass_launch<P>(s, p, S::BQ, S::BM);
}

template <typename T> using dkv_64 = dkv_shape<T, 64, 2, 6, 2, true>;

template <typename T> static int attn_dkv(cudaStream_t s, struct attn_params p)
{
    bool extra = attn_is_extra(p);
    p.chunk = heads_at_once((int64_t)p.T * p.D * 4 * p.group); /* q and dout */
    if (p.D <= 64)
        return extra ? attn_dkv_launch<dkv_shape<T, 64, 2, 6, 2, false>, true>(s, p)
                     : attn_dkv_launch<dkv_64<T>, false>(s, p);
    if (p.D <= 128)
        return extra ? attn_dkv_launch<dkv_shape<T, 128, 2, 4, 1, false>, true>(s, p)
                     : attn_dkv_launch<dkv_shape<T, 128, 2, 4, 1, false>, false>(s, p);
    return extra ? attn_dkv_launch<dkv_shape<T, 256, 2, 2, 1, false>, true>(s, p)
                 : attn_dkv_launch<dkv_shape<T, 256, 2, 2, 1, false>, false>(s, p);
}

int launch_attn_dkv_hopper(cudaStream_t s, enum dtype real, const struct attn_params &p)
{
    return real == DT_BF16 ? attn_dkv<__nv_bfloat16>(s, p) : attn_dkv<__half>(s, p);
}

KERNELS_OF(attn_dkv_hopper, attn_pass_kernel<dkv_pass<dkv_64<__half>, false>>)
