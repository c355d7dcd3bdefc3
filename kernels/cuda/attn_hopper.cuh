/*
 * The frame of the attention kernels of Hopper (sm_90a). A block is NC warpgroups that compute,
 * mostly 64 rows each, and one warp that copies: tiles travel through a ring of stages in shared
 * memory, each with a barrier that says it is full and one that says it is empty (FlashAttention-3:
 * Shah et al., 2024), so that the products of one warpgroup run under the arithmetic of another.
 * Blocks are persistent: each takes items of a list, a few heads at a time, so that what they read
 * stays in the L2 cache, and of these the longest first; and the copying warp is already in the
 * next item while the others finish the last: the rows that an item keeps have a ring of their own.
 * Results do not depend on which block takes which item.
 *
 * What steers a warpgroup, stage numbers and addresses among it, is the same in all of its threads
 * and known to be: only then do the operands' descriptors stay in uniform registers.
 *
 * Head dimensions: multiples of 8 up to D (64, 128, 256), the rest of D being zeros.
 */
#ifndef CASTOR_KERNELS_CUDA_ATTN_HOPPER_CUH
#define CASTOR_KERNELS_CUDA_ATTN_HOPPER_CUH

#include <type_traits>

#include "kernels/cuda/attn_rows.cuh"
#include "kernels/cuda/tma.cuh"

/* Registers a thread of each role: 65,536 in all (with 3 or 4 warpgroups). */
template <int NC> struct role_registers;
template <> struct role_registers<2> {
    static constexpr int COMPUTE = 240, COPY = 24;
};
template <> struct role_registers<3> {
    static constexpr int COMPUTE = 160, COPY = 32;
};

/* x, which is the same in all lanes, as a value that the compiler knows to be. */
static __device__ __forceinline__ int uniform(int x)
{
    return __shfl_sync(FULL_WARP, x, 0);
}

/* A place in a ring of N stages. */
template <int N> struct ring {
    int at = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void next()
    {
        bool wraps = at == N - 1;
        at = wraps ? 0 : at + 1;
        phase ^= wraps;
    }
};

/* --- what a launch gets --- */

struct pass_params {
    struct attn_params p;
    CUtensorMap q, k, v, d; /* d: of dout, in backward */
};

/* Boxes of as many rows as a pass fetches at a time of queries' and of keys' tensors. */
template <typename T>
static int pass_resolve(struct pass_params *pass, const struct attn_params &p, int query_rows,
                        int key_rows)
{
    constexpr bool BF16 = std::is_same<T, __nv_bfloat16>::value;
    const struct tensor_rows q = {p.q, p.B, p.T, p.H, p.D, p.ldq};
    const struct tensor_rows k = {p.k, p.B, p.S, p.KV, p.D, p.ldk};
    const struct tensor_rows v = {p.v, p.B, p.S, p.KV, p.D, p.ldv};
    const struct tensor_rows d = {p.dout ? p.dout : p.q, p.B, p.T, p.H, p.D,
                                  p.dout ? p.ldo : p.ldq};
    pass->p = p;
    int rc = tensor_map(&pass->q, BF16, &q, query_rows);
    if (rc == 0)
        rc = tensor_map(&pass->k, BF16, &k, key_rows);
    if (rc == 0)
        rc = tensor_map(&pass->v, BF16, &v, key_rows);
    if (rc == 0)
        rc = tensor_map(&pass->d, BF16, &d, query_rows);
    return rc;
}

/* --- the frame of a pass --- */

/* NC warpgroups compute on stages of two tiles of ROWS rows, and of STATS floats. An item is BM
 * rows, of which it keeps KEPT tiles and KEPT_STATS floats, with AHEAD stages. */
template <typename T_, int D_, int NC_, int BM_, int ROWS_, int STAGES_, int KEPT_, int AHEAD_,
          int STATS_ = 0, int KEPT_STATS_ = 0>
struct pass_shape {
    using T = T_;
    static constexpr int D = D_, NC = NC_, ROWS = ROWS_, STAGES = STAGES_, AHEAD = AHEAD_;
    static constexpr int THREADS = (NC + 1) * GROUP, BM = BM_;
    static constexpr int STATS = STATS_, KEPT_STATS = KEPT_STATS_;
    static constexpr int TILE_BYTES = ROWS * D * 2;
    static constexpr int ROWS_BYTES = BM * D * 2, KEPT_BYTES = KEPT_ * ROWS_BYTES;
    static constexpr size_t BYTES = (size_t)STAGES * (2 * TILE_BYTES + STATS * 4) +
                                    (size_t)AHEAD * (KEPT_BYTES + KEPT_STATS * 4) + 1024;
};

/* An item, as the copying warp hands it on: row `row0` on of a head (queries: of H; keys: of KV);
 * its tiles, of queries' passes from row `begin` on. */
struct pass_item {
    int b, head, row0, begin, tiles;
};

/* What goes with a tile of the keys' pass: its first query, its head, greatest first key. */
struct stage_head {
    int row0, head, clear, last;
};

/* Shared memory. A stage has tiles 0 and 1; kept tiles are numbered likewise. */
template <typename S> struct stages {
    uint32_t tiles, kept, full, empty, kept_full, kept_empty; /* addresses */
    float *stats, *kept_stats;
    struct pass_item *items;
    struct stage_head *heads;

    __device__ __forceinline__ uint32_t tile(int stage, int n) const
    {
        return tiles + (stage * 2 + n) * S::TILE_BYTES;
    }
    __device__ __forceinline__ uint32_t kept_tile(int stage, int n) const
    {
        return kept + stage * S::KEPT_BYTES + n * S::ROWS_BYTES;
    }
};

/* Where the copying warp or a warpgroup stands. */
template <typename S> struct pass_rings {
    ring<S::STAGES> tile;
    ring<S::AHEAD> item;
};

template <typename S>
__device__ __forceinline__ void stage_wait(const struct stages<S> &shared, const ring<S::STAGES> &r)
{
    barrier_wait(shared.full + r.at * 8, r.phase);
}

/* A thread has read what it needs of a stage. Each arrives for itself: compute-sanitizer's
 * racecheck does not follow an order that goes by __syncwarp and one lane's arrival. */
template <typename S>
__device__ __forceinline__ void stage_release(const struct stages<S> &shared, int stage)
{
    barrier_arrive(shared.empty + stage * 8);
}

/* Add a tile's weights, operand a, times the tile `part` of a stage to an accumulator; queued, not
 * waited for. */
template <typename S, int N>
__device__ __forceinline__ void sum_queue(const struct stages<S> &shared, int stage, int part,
                                          const uint32_t (&a)[N][4], float (&acc)[S::D / 8][4])
{
    wgmma_begin();
    tile_sum<typename S::T, S::D, N * 16>(acc, a, shared.tile(stage, part));
    wgmma_commit();
}

/* Wait for all that is queued, with which a stage is done. */
template <typename S>
__device__ __forceinline__ void sum_finish(const struct stages<S> &shared, int stage,
                                           float (&acc)[S::D / 8][4])
{
    wgmma_wait<0>();
    acc_settle(acc);
    stage_release(shared, stage);
}

/* The same of an item and the rows that it keeps. */
template <typename S>
__device__ __forceinline__ void item_release(const struct stages<S> &shared, int stage)
{
    barrier_arrive(shared.kept_empty + stage * 8);
}

template <typename S>
__device__ __forceinline__ struct pass_item item_wait(const struct stages<S> &shared,
                                                      const ring<S::AHEAD> &r)
{
    barrier_wait(shared.kept_full + r.at * 8, r.phase);
    struct pass_item item = shared.items[r.at];
    return {uniform(item.b), uniform(item.head), uniform(item.row0), uniform(item.begin),
            uniform(item.tiles)};
}

/* The item that the copying warp takes in round `round`, or what is not below `items`: from p.next
 * the one that comes next, else block i's share: i, 2 n - 1 - i, 2 n + i, ... of n blocks. */
static __device__ __forceinline__ int item_next(const struct attn_params &p, int round)
{
    int at = 0;
    if (!p.next)
        return round * (int)gridDim.x + (int)(round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (threadIdx.x % 32 == 0)
        at = atomicAdd(p.next, 1);
    return uniform(at);
}

/* P says what an item is, how it is copied and what is computed:
 *   using shape = pass_shape<...>;
 *   static int items(p);
 *   static item item(p, at);                            the copying warp
 *   static void fetch_kept(pass, shared, item, stage);  one thread of it
 *   static void fetch_tiles(pass, shared, item, ring);  the copying warp
 *   static void compute(p, shared, group, item, rings); each warpgroup that computes */
template <typename P>
__device__ __forceinline__ void pass_copy(const struct pass_params &pass,
                                          const struct stages<typename P::shape> &shared)
{
    using S = typename P::shape;
    struct pass_rings<S> r;
    int items = P::items(pass.p), at;
    for (int round = 0; (at = item_next(pass.p, round)) < items; round++) {
        struct pass_item item = P::item(pass.p, at);
        barrier_wait(shared.kept_empty + r.item.at * 8, r.item.phase ^ 1);
        if (threadIdx.x % 32 == 0) {
            shared.items[r.item.at] = item;
            P::fetch_kept(pass, shared, item, r.item.at);
        }
        P::fetch_tiles(pass, shared, item, r.tile);
        r.item.next();
    }
    barrier_wait(shared.kept_empty + r.item.at * 8, r.item.phase ^ 1);
    if (threadIdx.x % 32 == 0) {
        shared.items[r.item.at].b = -1; /* no more */
        barrier_arrive(shared.kept_full + r.item.at * 8);
    }
}

template <typename P>
__device__ __forceinline__ void pass_compute(const struct attn_params &p,
                                             const struct stages<typename P::shape> &shared,
                                             int group)
{
    struct pass_rings<typename P::shape> r;
    struct pass_item item;
    while ((item = item_wait(shared, r.item)).b >= 0) {
        P::compute(p, shared, group, item, r);
        r.item.next();
    }
}

template <typename P>
__global__ void __launch_bounds__(P::shape::THREADS, 1)
    attn_pass_kernel(const __grid_constant__ struct pass_params pass)
{
    using S = typename P::shape;
    extern __shared__ uint4 smem[];
    __shared__ uint64_t barriers[2 * S::STAGES + 2 * S::AHEAD];
    __shared__ struct pass_item items[S::AHEAD];
    __shared__ struct stage_head heads[S::STAGES];
    struct stages<S> shared;
    uint32_t base = shared_address(smem);
    shared.tiles = (base + 1023) & ~1023u;
    shared.kept = shared.tiles + S::STAGES * 2 * S::TILE_BYTES;
    shared.stats = (float *)((char *)smem + (shared.kept - base) + S::AHEAD * S::KEPT_BYTES);
    shared.kept_stats = shared.stats + S::STAGES * S::STATS;
    shared.full = shared_address(barriers);
    shared.empty = shared.full + S::STAGES * 8;
    shared.kept_full = shared.empty + S::STAGES * 8;
    shared.kept_empty = shared.kept_full + S::AHEAD * 8;
    shared.items = items;
    shared.heads = heads;
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(shared.full + i * 8, 1);
            barrier_init(shared.empty + i * 8, S::NC * GROUP);
        }
        for (int i = 0; i < S::AHEAD; i++) {
            barrier_init(shared.kept_full + i * 8, 1);
            barrier_init(shared.kept_empty + i * 8, S::NC * GROUP);
        }
        barrier_publish();
    }
    __syncthreads();
    int group = uniform(threadIdx.x / GROUP);
    if (group == S::NC) {
        registers_lower<role_registers<S::NC>::COPY>();
        if (uniform(threadIdx.x / 32) % 4 == 0)
            pass_copy<P>(pass, shared);
    } else {
        registers_raise<role_registers<S::NC>::COMPUTE>();
        pass_compute<P>(pass.p, shared, group);
    }
}

template <typename P>
static int attn_pass_launch(cudaStream_t s, const struct attn_params &p, int query_rows,
                            int key_rows)
{
    using S = typename P::shape;
    int device = 0, blocks = 1, items = P::items(p);
    struct pass_params pass;
    int rc = pass_resolve<typename S::T>(&pass, p, query_rows, key_rows);
    if (rc != 0)
        return rc;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
    if (cudaFuncSetAttribute(attn_pass_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)S::BYTES) != cudaSuccess)
        return launch_status();
    blocks = items < blocks ? items : blocks;
    attn_pass_kernel<P><<<(unsigned)blocks, (unsigned)S::THREADS, S::BYTES, s>>>(pass);
    return launch_status();
}

/* --- items --- */

struct item_place {
    int head, block;
};

/* Item `at` of heads times blocks: p.chunk heads at a time, of these all that are block 0 first. */
static __device__ __forceinline__ struct item_place item_place(const struct attn_params &p, int at,
                                                               int heads, int blocks)
{
    int chunk = at / (p.chunk * blocks), rest = at % (p.chunk * blocks);
    int width = min(p.chunk, heads - chunk * p.chunk);
    return {chunk * p.chunk + rest % width, rest / width};
}

/* Heads of `bytes` each that a quarter of the L2 cache holds: its halves keep copies of each
 * other's lines, and there is more to it than the rows that are read again and again. */
static inline int heads_at_once(int64_t bytes)
{
    int device = 0, cache = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
    return (int)(cache / 4 / (bytes > 0 ? bytes : 1)) + 1;
}

/* Least and greatest first key of the rows from `first` to `end` - 1; a whole warp calls it. */
static __device__ __forceinline__ int2 first_keys(const struct attn_params &p, int b, int first,
                                                  int end)
{
    if (!p.first_key && p.window == 0)
        return make_int2(0, 0);
    int least = p.S, most = 0;
#pragma unroll 1
    for (int r = first + threadIdx.x % 32; r < min(end, p.T); r += 32) {
        int key = attn_first(p, b, r);
        least = min(least, key);
        most = max(most, key);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        least = min(least, __shfl_xor_sync(FULL_WARP, least, offset));
        most = max(most, __shfl_xor_sync(FULL_WARP, most, offset));
    }
    return make_int2(least, most);
}

/* What hides pairs of a tile: nothing, that keys come after their queries, or first keys too. */
enum mask { MASK_NONE, MASK_CAUSAL, MASK_FIRST };

/* Of queries from `row` (as keys count them) on and keys from `key` to `last`; `most`: the queries'
 * greatest first key. */
static __device__ __forceinline__ enum mask tile_mask(int key, int last, int row, int most)
{
    return key < most ? MASK_FIRST : last > row ? MASK_CAUSAL : MASK_NONE;
}

/* --- passes over queries: an item is BM queries of a head, its stages are keys and values --- */

template <typename S> struct query_pass {
    using shape = S;
    __host__ __device__ static int items(const struct attn_params &p)
    {
        return p.B * p.H * ((p.T + S::BM - 1) / S::BM);
    }

    /* The longest rows come first. Tiles: all that a query of the item may see. */
    __device__ __forceinline__ static struct pass_item item(const struct attn_params &p, int at)
    {
        int blocks = (p.T + S::BM - 1) / S::BM;
        struct item_place place = item_place(p, at, p.B * p.H, blocks);
        int b = place.head / p.H, row0 = (blocks - 1 - place.block) * S::BM;
        int begin = first_keys(p, b, row0, row0 + S::BM).x / S::ROWS * S::ROWS;
        int keys = min(row0 + S::BM, p.T) + p.S - p.T - begin;
        return {b, place.head % p.H, row0, begin, max((keys + S::ROWS - 1) / S::ROWS, 0)};
    }

    __device__ __forceinline__ static void fetch_tiles(const struct pass_params &pass,
                                                       const struct stages<S> &shared,
                                                       const struct pass_item &item,
                                                       ring<S::STAGES> &r)
    {
        int kv = item.head / pass.p.group, key = item.begin;
#pragma unroll 1
        for (int i = 0; i < item.tiles; i++, key += S::ROWS, r.next()) {
            barrier_wait(shared.empty + r.at * 8, r.phase ^ 1);
            if (threadIdx.x % 32 != 0)
                continue;
            uint32_t full = shared.full + r.at * 8;
            barrier_expect(full, 2 * S::TILE_BYTES);
            tile_fetch<S::ROWS, S::D>(shared.tile(r.at, 0), &pass.k, full, kv, key, item.b);
            tile_fetch<S::ROWS, S::D>(shared.tile(r.at, 1), &pass.v, full, kv, key, item.b);
        }
    }
};

/* The item's tiles from `begin` to `end` - 1 are those that 64 queries from `first` on may see;
 * `most`: their greatest first key. */
struct tile_range {
    int begin, end, most;
};

template <typename S>
__device__ __forceinline__ struct tile_range query_tiles(const struct attn_params &p,
                                                         const struct pass_item &item, int first)
{
    int2 keys = first_keys(p, item.b, first, first + 64);
    int last = first + 63 + p.S - p.T - item.begin;
    int begin = uniform(max(keys.x - item.begin, 0) / S::ROWS);
    int end = first < p.T ? min(item.tiles, last / S::ROWS + 1) : 0;
    return {min(begin, item.tiles), max(end, 0), uniform(keys.y)};
}

/* Let tiles pass by that others need. */
template <typename S>
__device__ __forceinline__ void tiles_skip(const struct stages<S> &shared, int n,
                                           ring<S::STAGES> &r)
{
#pragma unroll 1
    for (; n > 0; n--, r.next()) {
        stage_wait(shared, r);
        stage_release(shared, r.at);
    }
}

/* --- what the passes of backward share --- */

enum { SPAN = 64 }; /* queries a span of first keys, and a stage of the keys' pass */

/* Statistics of a head's rows: of each SPAN first 1 / log 2 times lse, then delta. */
__host__ __device__ static inline int64_t stats_row(const struct attn_params &p, int b, int h,
                                                    int i)
{
    int spans = (p.T + SPAN - 1) / SPAN;
    return (((int64_t)b * p.H + h) * spans + i / SPAN) * 2 * SPAN + i % SPAN;
}

/* dk and dv, from delta and the spans in p. */
int launch_attn_dkv_hopper(cudaStream_t s, enum dtype real, const struct attn_params &p);

#endif
