/*
 * Attention forward with Hopper's warpgroup products, for bf16 and f16 and head dimensions up to
 * 128: FlashAttention-2's algorithm in the frame of attn_hopper.cuh. An item is NC * 64 queries of
 * one head; its stages are BN keys and values. Probabilities stay in registers between the two
 * products. o and lse assigned.
 */
#include "kernels/cuda/attn_hopper.cuh"

template <typename T_, int D_, int NC_, int BN_, int STAGES_> struct fwd_shape {
    using T = T_;
    static constexpr int D = D_, NC = NC_, BN = BN_, STAGES = STAGES_;
    static constexpr bool REGISTERS = NC == 2; /* q as operand; with three there are too few */
    static constexpr int THREADS = (NC + 1) * GROUP, BM = NC * 64, TILE = BN * D;
    static constexpr int KEPT = REGISTERS ? 0 : BM * D;
    static constexpr size_t BYTES = (size_t)(STAGES * 2 * TILE + KEPT) * 2 + 1024;
};

struct fwd_item {
    int b, h, row0;
};

template <typename S>
__device__ __forceinline__ struct fwd_item fwd_item(const struct attn_params &p, int at)
{
    int blocks = (p.T + S::BM - 1) / S::BM; /* the longest rows come first */
    struct item_place place = item_place(p, at, p.B * p.H, blocks);
    return {place.head / p.H, place.head % p.H, (blocks - 1 - place.block) * S::BM};
}

template <typename S> __device__ __forceinline__ int fwd_items(const struct attn_params &p)
{
    return p.B * p.H * ((p.T + S::BM - 1) / S::BM);
}

template <typename S> struct fwd_shared {
    typename S::T *tiles, *kept; /* k and v of each stage; q of each warpgroup */
    uint64_t *full, *empty;
    struct stage_head *heads;
};

template <typename S>
__device__ __forceinline__ void fwd_copy(const struct attn_params &p,
                                         const struct fwd_shared<S> &shared)
{
    using T = typename S::T;
    ring<S::STAGES> r;
    for (int at = blockIdx.x; at < fwd_items<S>(p); at += gridDim.x) {
        struct fwd_item item = fwd_item<S>(p, at);
        int kv = item.h / p.group, last = min(item.row0 + S::BM, p.T) - 1 + p.S - p.T;
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

/* Scores of one tile to probabilities, 2^(s scale - max), with the running maximum and sum; `old`
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
        most = fmaxf(top[half], quad_max(most) * scale);
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

template <int BN>
__device__ __forceinline__ void mask_tile(const struct attn_params &p, int b, int row, int key0,
                                          float (&s)[BN / 8][4])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8, last = r + p.S - p.T, first = attn_first(p, b, min(r, p.T - 1));
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
                int key = key0 + n * 8 + threadIdx.x % 4 * 2 + e % 2;
                if (key < first || key > last)
                    s[n][e] = -INFINITY;
            }
        }
    }
}

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
                s[part * 8 + n][e] *= dropout_of_bit(p, bits, n * 4 + e);
        }
    }
}

/* The state of a warpgroup's 64 rows. */
template <int D> struct fwd_rows {
    float o[D / 8][4], top[2], sum[2];
};

template <typename S>
__device__ __forceinline__ void fwd_store(const struct attn_params &p, const struct fwd_item &item,
                                          int first, struct fwd_rows<S::D> &rows)
{
    using T = typename S::T;
    int lane = threadIdx.x % 32, row = first + threadIdx.x % GROUP / 32 * 16 + lane / 4;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        float total = quad_sum(rows.sum[half]);
        inverse[half] = total > 0 ? 1.0f / total : 0.0f;
        if (r < p.T && lane % 4 == 0)
            p.lse[((int64_t)item.b * p.H + item.h) * p.T + r] =
                total > 0 ? rows.top[half] / LOG2E + logf(total) : -INFINITY;
    }
    T *o = (T *)p.o + (int64_t)item.b * p.T * p.ldo + (int64_t)item.h * p.D;
    rows_store<T, S::D>(o, p.ldo, first, p.T, p.D, inverse, rows.o);
}

template <typename S, bool EXTRA>
__device__ __forceinline__ void fwd_scores(const struct attn_params &p, const struct fwd_item &item,
                                           int first, int most, int key0, float (&s)[S::BN / 8][4],
                                           struct fwd_rows<S::D> &rows, float (&old)[2])
{
    int row = first + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    if (EXTRA)
        score_tile<S::BN>(p, attn_slope(p, item.h), row, key0, s);
    if (key0 < most || key0 + S::BN - 1 > first + p.S - p.T)
        mask_tile<S::BN>(p, item.b, row, key0, s);
    softmax_tile<S::BN>(s, rows.top, rows.sum, old, EXTRA ? 1.0f : p.scale * LOG2E);
    if (EXTRA && p.dropout.on)
        drop_tile<S::BN>(p, item.b, item.h, row, key0, s);
}

/* Add a tile's probabilities times values to the output; queued, not waited for. */
template <typename S>
__device__ __forceinline__ void fwd_sum(const struct fwd_shared<S> &shared, int stage,
                                        const uint32_t (&a)[S::BN / 16][4], float (&o)[S::D / 8][4])
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, S::BN>(o, a, shared.tiles + (stage * 2 + 1) * S::TILE);
    wgmma_commit();
}

template <typename S>
__device__ __forceinline__ void fwd_sum_done(const struct fwd_shared<S> &shared, int stage,
                                             float (&o)[S::D / 8][4])
{
    wgmma_wait<0>();
    acc_settle(o);
    stage_release(&shared.empty[stage]);
}

/* One tile: its scores are queued before the sum of the tile before, of stage `busy`, so that this
 * sum runs under the softmax. On return a holds the tile's probabilities, not yet summed. FIRST: no
 * tile came before. */
template <typename S, bool EXTRA, bool FIRST>
__device__ __forceinline__ void fwd_tile(const struct attn_params &p,
                                         const struct fwd_shared<S> &shared,
                                         const struct fwd_item &item, int first, int most, int key0,
                                         int stage, int busy,
                                         const kept_rows<typename S::T, S::D, S::REGISTERS> &q,
                                         uint32_t (&a)[S::BN / 16][4], struct fwd_rows<S::D> &rows)
{
    using T = typename S::T;
    float s[S::BN / 8][4], old[2];
    wgmma_publish();
    wgmma_begin();
    kept_product<T, S::D, S::BN>(s, q, shared.tiles + stage * 2 * S::TILE);
    wgmma_commit();
    if (FIRST) {
        wgmma_wait<0>();
    } else {
        fwd_sum<S>(shared, busy, a, rows.o);
        wgmma_wait<1>();
    }
    acc_settle(s);
    fwd_scores<S, EXTRA>(p, item, first, most, key0, s, rows, old);
    if (!FIRST)
        fwd_sum_done<S>(shared, busy, rows.o);
#pragma unroll
    for (int n = 0; n < S::D / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            rows.o[n][e] *= old[e / 2];
    }
    pack_operand<T, S::BN>(a, s);
}

/* One item of one warpgroup. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void fwd_compute(const struct attn_params &p,
                                            const struct fwd_shared<S> &shared,
                                            const struct fwd_item &item, ring<S::STAGES> &r)
{
    using T = typename S::T;
    constexpr int D = S::D, BN = S::BN;
    int first = item.row0 + threadIdx.x / GROUP * 64, last = first + 63 + p.S - p.T;
    int2 span = first_keys(p, item.b, first, first + 64);
    kept_rows<T, D, S::REGISTERS> q;
    const T *from = (const T *)p.q + (int64_t)item.b * p.T * p.ldq + (int64_t)item.h * p.D;
    rows_load<T, D>(q, shared.kept, from, p.ldq, first, p.T, p.D);
    struct fwd_rows<D> rows;
    rows.top[0] = rows.top[1] = -INFINITY;
    rows.sum[0] = rows.sum[1] = 0;
    rows_clear(rows.o);
    int busy = -1, state;
    uint32_t a[BN / 16][4];
    do {
        barrier_wait(&shared.full[r.at], r.phase);
        struct stage_head head = shared.heads[r.at];
        state = head.state;
        if ((state & STAGE_TILE) && head.first <= last && head.first + BN > span.x && first < p.T) {
            if (busy < 0)
                fwd_tile<S, EXTRA, true>(p, shared, item, first, span.y, head.first, r.at, busy, q,
                                         a, rows);
            else
                fwd_tile<S, EXTRA, false>(p, shared, item, first, span.y, head.first, r.at, busy, q,
                                          a, rows);
            busy = r.at;
        } else {
            stage_release(&shared.empty[r.at]);
        }
        r.next();
    } while (!(state & STAGE_LAST));
    if (busy >= 0) {
        fwd_sum<S>(shared, busy, a, rows.o);
        fwd_sum_done<S>(shared, busy, rows.o);
    }
    fwd_store<S>(p, item, first, rows);
}

template <typename S, bool EXTRA>
__global__ void __launch_bounds__(S::THREADS, 1)
    attn_fwd_hopper_kernel(const __grid_constant__ struct attn_params p)
{
    extern __shared__ uint4 smem[];
    __shared__ uint64_t full[S::STAGES], empty[S::STAGES];
    __shared__ struct stage_head heads[S::STAGES];
    struct fwd_shared<S> shared;
    shared.tiles = (typename S::T *)(((uintptr_t)smem + 1023) & ~(uintptr_t)1023);
    shared.kept = shared.tiles + S::STAGES * 2 * S::TILE;
    shared.full = full;
    shared.empty = empty;
    shared.heads = heads;
    if (threadIdx.x < S::STAGES) {
        barrier_init(&full[threadIdx.x], GROUP + 1);
        barrier_init(&empty[threadIdx.x], S::NC * 4);
    }
    __syncthreads();
    if (threadIdx.x >= S::NC * GROUP) {
        registers_lower<role_registers<S::NC>::COPY>();
        fwd_copy<S>(p, shared);
    } else {
        registers_raise<role_registers<S::NC>::COMPUTE>();
        ring<S::STAGES> r;
        for (int at = blockIdx.x; at < fwd_items<S>(p); at += gridDim.x)
            fwd_compute<S, EXTRA>(p, shared, fwd_item<S>(p, at), r);
    }
}

template <typename S, bool EXTRA> static int attn_fwd_launch(cudaStream_t s, struct attn_params p)
{
    p.chunk = heads_at_once((int64_t)p.S * p.D * 4 / p.group); /* k and v */
    int64_t items = (int64_t)p.B * p.H * ceil_div(p.T, S::BM);
    return launch_persistent(s, attn_fwd_hopper_kernel<S, EXTRA>, items, S::THREADS, S::BYTES, p);
}

template <typename T> static int attn_fwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    bool extra = p.cap != 0 || p.slopes || p.dropout.on;
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.D <= 64)
        return extra ? attn_fwd_launch<fwd_shape<T, 64, 2, 128, 4>, true>(s, p)
                     : attn_fwd_launch<fwd_shape<T, 64, 3, 128, 4>, false>(s, p);
    return extra ? attn_fwd_launch<fwd_shape<T, 128, 2, 128, 3>, true>(s, p)
                 : attn_fwd_launch<fwd_shape<T, 128, 2, 128, 3>, false>(s, p);
}

extern "C" int launch_attn_fwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return real == DT_BF16 ? attn_fwd<__nv_bfloat16>(s, a) : attn_fwd<__half>(s, a);
}
