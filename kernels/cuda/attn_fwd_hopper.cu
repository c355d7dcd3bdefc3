/*
 * Attention forward with Hopper's warpgroup products, for bf16 and f16 and head dimensions up to
 * 256: FlashAttention-2's algorithm in the frame of attn_hopper.cuh. An item is NC * 64 queries of
 * one head; its stages are BN keys and values. Probabilities stay in registers between the two
 * products. o and lse assigned.
 */
#include "kernels/cuda/attn_hopper.cuh"

template <typename T, int D, int NC, int BN_, int STAGES, int AHEAD>
struct fwd_shape : pass_shape<T, D, NC, NC * 64, BN_, STAGES, 1, AHEAD> {
    static constexpr int BN = BN_;
};

/* How far above the running maximum, in powers of 2, a score may lie before that maximum and all
 * that was summed by it are brought up to it (FlashAttention-4: Zadouri et al., 2026): mostly
 * never after the first tiles. Weights then reach 2^8, which float16 holds. */
#define TOP_SLACK 8.0f

/* Scores of one tile to probabilities, 2^(s scale - top), with the running maximum and sum; `old`
 * is what the output so far has to be multiplied by. */
template <int BN>
__device__ __forceinline__ void softmax_tile(float (&s)[BN / 8][4], float (&top)[2],
                                             float (&sum)[2], float (&old)[2], float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
            most = fmaxf(most, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
        most = quad_max(most) * scale;
        most = most > top[half] + TOP_SLACK ? most : top[half];
        /* A row that has seen nothing yet keeps factor 1 and weights 0. */
        float base = most == -INFINITY ? 0.0f : most, part[2] = {0, 0};
        old[half] = fast_exp2(top[half] - base);
        top[half] = most;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float x = fast_exp2(fmaf(s[n][half * 2 + e], scale, -base));
                s[n][half * 2 + e] = x;
                part[e] += x;
            }
        }
        sum[half] = sum[half] * old[half] + (part[0] + part[1]);
    }
}

/* Scores with cap and bias, in units of log 2. */
template <int BN>
__device__ __forceinline__ void score_tile(const struct attn_params &p, float slope, int row,
                                           int key0, float (&s)[BN / 8][4])
{
#pragma unroll
    for (int n = 0; n < BN / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float capped;
            int key = key0 + n * 8 + threadIdx.x % 4 * 2 + e % 2;
            s[n][e] =
                LOG2E * attn_score(p, slope, s[n][e], key, row + e / 2 * 8 + p.S - p.T, &capped);
        }
    }
}

template <int BN, enum mask MASK>
__device__ __forceinline__ void mask_tile(const struct attn_params &p, int b, int row, int key0,
                                          float (&s)[BN / 8][4])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8, key = key0 + threadIdx.x % 4 * 2, last = r + p.S - p.T - key;
        int first = MASK == MASK_FIRST ? attn_first(p, b, min(r, p.T - 1)) - key : 0;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int i = n * 8 + e;
                if (i > last || (MASK == MASK_FIRST && i < first))
                    s[n][half * 2 + e] = -INFINITY;
            }
        }
    }
}

/* What is kept is scaled with the output. */
template <int BN>
__device__ __forceinline__ void drop_tile(const struct attn_params &p, int b, int h, int row,
                                          int key0, float (&s)[BN / 8][4])
{
#pragma unroll
    for (int part = 0; part < BN / 64; part++) {
        uint32_t bits = dropout_bits_rows(p, b, h, row, key0 + part * 64);
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[part * 8 + n][e] = kept_of_rows(bits, n, e, s[part * 8 + n][e]);
        }
    }
}

/* A warpgroup's 64 queries of an item, from `first` on; their greatest first key. */
struct query_item {
    int b, h, first, most;
};

/* Their state. */
template <int D> struct fwd_rows {
    float o[D / 8][4], top[2], sum[2];
};

template <typename S>
__device__ __forceinline__ void fwd_store(const struct attn_params &p,
                                          const struct query_item &item,
                                          struct fwd_rows<S::D> &rows)
{
    using T = typename S::T;
    int lane = threadIdx.x % 32, row = item.first + threadIdx.x % GROUP / 32 * 16 + lane / 4;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        float total = quad_sum(rows.sum[half]);
        inverse[half] = total > 0 ? p.dropout.scale / total : 0.0f;
        if (r < p.T && lane % 4 == 0)
            p.lse[((int64_t)item.b * p.H + item.h) * p.T + r] =
                total > 0 ? rows.top[half] / LOG2E + logf(total) : -INFINITY;
    }
    T *o = (T *)p.o + (int64_t)item.b * p.T * p.ldo + (int64_t)item.h * p.D;
    rows_store<T, S::D>(o, p.ldo, item.first, p.T, p.D, inverse, rows.o);
}

template <typename S, bool EXTRA>
__device__ __forceinline__ void fwd_scores(const struct attn_params &p,
                                           const struct query_item &item, int key0,
                                           float (&s)[S::BN / 8][4], struct fwd_rows<S::D> &rows,
                                           float (&old)[2])
{
    int row = item.first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    bool plain = !EXTRA || !attn_has_scores(p);
    if (!plain)
        score_tile<S::BN>(p, attn_slope(p, item.h), row, key0, s);
    enum mask mask = tile_mask(key0, key0 + S::BN - 1, item.first + p.S - p.T, item.most);
    if (mask == MASK_FIRST)
        mask_tile<S::BN, MASK_FIRST>(p, item.b, row, key0, s);
    else if (mask == MASK_CAUSAL)
        mask_tile<S::BN, MASK_CAUSAL>(p, item.b, row, key0, s);
    softmax_tile<S::BN>(s, rows.top, rows.sum, old, plain ? p.scale * LOG2E : 1.0f);
    if (EXTRA && p.dropout.on)
        drop_tile<S::BN>(p, item.b, item.h, row, key0, s);
}

/* One tile: its scores are queued before the sum of the tile before, of stage `busy`, so that this
 * sum runs under the softmax. On return a holds the tile's probabilities, not yet summed. FIRST: no
 * tile came before. */
template <typename S, bool EXTRA, bool FIRST>
__device__ __forceinline__ void fwd_tile(const struct attn_params &p,
                                         const struct stages<S> &shared,
                                         const struct query_item &item, int key0, int stage,
                                         int busy, const kept_rows<S::D, S::BM, false> &q,
                                         uint32_t (&a)[S::BN / 16][4], struct fwd_rows<S::D> &rows)
{
    using T = typename S::T;
    float s[S::BN / 8][4], old[2];
    wgmma_begin();
    kept_product<T, S::D, S::BN>(s, q, shared.tile(stage, 0));
    wgmma_commit();
    if (FIRST) {
        wgmma_wait<0>();
    } else {
        sum_queue(shared, busy, 1, a, rows.o);
        wgmma_wait<1>();
    }
    acc_settle(s);
    fwd_scores<S, EXTRA>(p, item, key0, s, rows, old);
    acc_settle(s);
    /* The wait stands behind a branch: within a block ptxas moves it up, before the softmax. */
    if (__any_sync(FULL_WARP, old[0] != 1 || old[1] != 1)) {
        if (!FIRST)
            sum_finish(shared, busy, rows.o);
        rows_scale(rows.o, old);
    } else if (!FIRST) {
        sum_finish(shared, busy, rows.o);
    }
    pack_operand<T, S::BN>(a, s);
}

/* The tiles of one item that a warpgroup needs. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void fwd_tiles(const struct attn_params &p,
                                          const struct stages<S> &shared,
                                          const struct query_item &item, int key0, int n,
                                          const kept_rows<S::D, S::BM, false> &q,
                                          struct fwd_rows<S::D> &rows, ring<S::STAGES> &r)
{
    uint32_t a[S::BN / 16][4];
    int busy = 0;
    for (int i = 0; i < n; i++, key0 += S::BN, busy = r.at, r.next()) {
        stage_wait(shared, r);
        if (i == 0)
            fwd_tile<S, EXTRA, true>(p, shared, item, key0, r.at, busy, q, a, rows);
        else
            fwd_tile<S, EXTRA, false>(p, shared, item, key0, r.at, busy, q, a, rows);
    }
    sum_queue(shared, busy, 1, a, rows.o);
    sum_finish(shared, busy, rows.o);
}

template <typename S, bool EXTRA> struct fwd_pass : query_pass<S> {
    __device__ __forceinline__ static void fetch_kept(const struct pass_params &pass,
                                                      const struct stages<S> &shared,
                                                      const struct pass_item &item, int stage)
    {
        uint32_t full = shared.kept_full + stage * 8;
        barrier_expect(full, S::KEPT_BYTES);
        tile_fetch<S::BM, S::D>(shared.kept_tile(stage, 0), &pass.q, full, item.head, item.row0,
                                item.b);
    }

    __device__ __forceinline__ static void compute(const struct attn_params &p,
                                                   const struct stages<S> &shared, int group,
                                                   const struct pass_item &item,
                                                   struct pass_rings<S> &r)
    {
        int first = item.row0 + group * 64;
        struct tile_range t = query_tiles<S>(p, item, first);
        struct query_item place = {item.b, item.head, first, t.most};
        kept_rows<S::D, S::BM, false> q;
        kept_take(q, shared.kept_tile(r.item.at, 0) + group * 64 * 128);
        struct fwd_rows<S::D> rows;
        rows.top[0] = rows.top[1] = -INFINITY;
        rows.sum[0] = rows.sum[1] = 0;
        rows_clear(rows.o);
        if (t.begin < t.end) {
            tiles_skip(shared, t.begin, r.tile);
            fwd_tiles<S, EXTRA>(p, shared, place, item.begin + t.begin * S::BN, t.end - t.begin, q,
                                rows, r.tile);
            tiles_skip(shared, item.tiles - t.end, r.tile);
        } else {
            tiles_skip(shared, item.tiles, r.tile);
        }
        item_release(shared, r.item.at);
        fwd_store<S>(p, place, rows);
    }
};

template <typename S, bool EXTRA> static int attn_fwd_launch(cudaStream_t s, struct attn_params p)
{
    p.chunk = heads_at_once((int64_t)p.S * p.D * 4 / p.group); /* k and v */
    return attn_pass_launch<fwd_pass<S, EXTRA>>(s, p, S::BM, S::BN);
}

template <typename T> using fwd_64 = fwd_shape<T, 64, 3, 128, 4, 2>;

template <typename T> static int attn_fwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    bool extra = attn_is_extra(p);
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.D <= 64)
        return extra ? attn_fwd_launch<fwd_shape<T, 64, 2, 128, 4, 2>, true>(s, p)
                     : attn_fwd_launch<fwd_64<T>, false>(s, p);
    if (p.D <= 128)
        return extra ? attn_fwd_launch<fwd_shape<T, 128, 2, 128, 3, 1>, true>(s, p)
                     : attn_fwd_launch<fwd_shape<T, 128, 2, 128, 3, 1>, false>(s, p);
    return extra ? attn_fwd_launch<fwd_shape<T, 256, 2, 64, 2, 1>, true>(s, p)
                 : attn_fwd_launch<fwd_shape<T, 256, 2, 64, 2, 1>, false>(s, p);
}

extern "C" int launch_attn_fwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return real == DT_BF16 ? attn_fwd<__nv_bfloat16>(s, a) : attn_fwd<__half>(s, a);
}

KERNELS_OF(attn_fwd_hopper, attn_pass_kernel<fwd_pass<fwd_64<__half>, false>>)
