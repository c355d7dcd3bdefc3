/*
 * What the attention kernels of Hopper (sm_90a) share. A block is NC warpgroups that compute, 64
 * rows each, and one that copies: tiles travel through a ring of stages in shared memory, each with
 * a barrier that says it is full and one that says it is empty (FlashAttention-3: Shah et al.,
 * 2024), so that no two warpgroups ever wait for each other and the products of one run under the
 * arithmetic of another. Blocks are persistent: block i takes the items i, i + gridDim.x, ... of a
 * list, the longest first (in forward a few heads at a time, so that what they read stays in the L2
 * cache), and the copying warpgroup is already in the next item while the others finish the last.
 * Results do not depend on the number of blocks.
 *
 * Head dimensions: multiples of 8 up to D (64, 128, in forward 256), the rest of D being zeros.
 */
#ifndef CASTOR_KERNELS_CUDA_ATTN_HOPPER_CUH
#define CASTOR_KERNELS_CUDA_ATTN_HOPPER_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { GROUP = 128 }; /* threads of a warpgroup */

/* Registers a thread of each role: 65,536 in all (with 3 or 4 warpgroups). */
template <int NC> struct role_registers;
template <> struct role_registers<2> {
    static constexpr int COMPUTE = 240, COPY = 24;
};
template <> struct role_registers<3> {
    static constexpr int COMPUTE = 160, COPY = 32;
};

template <int N> __device__ __forceinline__ void registers_raise()
{
    WGMMA_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void registers_lower()
{
    WGMMA_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* --- barriers of shared memory (mbarrier) --- */

static __device__ __forceinline__ void barrier_init(uint64_t *bar, int arrivals)
{
    WGMMA_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals)
              : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *bar)
{
    WGMMA_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

/* Arrive once the copies that this thread has queued are done. */
static __device__ __forceinline__ void barrier_arrive_copied(uint64_t *bar)
{
    WGMMA_ASM("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(bar))
              : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint64_t *bar, uint32_t phase)
{
    uint32_t done = 0;
    while (!done)
        WGMMA_ASM("{.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                  "selp.u32 %0, 1, 0, p;}"
                  : "=r"(done)
                  : "r"(shared_address(bar)), "r"(phase)
                  : "memory");
}

/* Barrier of one warpgroup. */
static __device__ __forceinline__ void group_sync(int group)
{
    WGMMA_ASM("bar.sync %0, %1;" ::"r"(group + 1), "n"((int)GROUP) : "memory");
}

/* A place in a ring of N stages. */
template <int N> struct ring {
    int at = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void next()
    {
        if (++at == N) {
            at = 0;
            phase ^= 1;
        }
    }
};

/* What a stage holds, for the warpgroups that compute. */
enum { STAGE_TILE = 1, STAGE_LAST = 2 }; /* it has a tile; the item ends with it */
struct stage_head {
    int first, head, clear, state; /* first row of the tile; query head; see its kernel */
};

/* --- copying --- */

/* A warpgroup queues the copy of ROWS rows from `first` on; rows from `rows` on and columns from
 * `width` on become zeros. */
template <typename T, int ROWS, int D>
__device__ __forceinline__ void panel_fill(T *tile, const T *base, int64_t ld, int first, int rows,
                                           int width)
{
    if constexpr (D > 128) { /* two panels at a time */
        panel_fill<T, ROWS, 128>(tile, base, ld, first, rows, width);
        panel_fill<T, ROWS, D - 128>(tile + ROWS * 128, base + 128, ld, first, rows, width - 128);
        return;
    }
    constexpr int CHUNKS = (D > 128 ? 128 : D) / 8;
    constexpr int STEP = GROUP / CHUNKS; /* a multiple of 8: same swizzle */
    int r = threadIdx.x % GROUP / CHUNKS, c = threadIdx.x % CHUNKS;
    T *to = tile + panel_offset(ROWS, r, c);
    const T *from = base + (int64_t)(first + r) * ld + c * 8;
#pragma unroll 4 /* few registers are left for this */
    for (int i = 0; i < ROWS / STEP; i++) {
        bool inside = first + r + i * STEP < rows && c * 8 < width;
        copy16_async(to + i * STEP * 64, inside ? from : base, inside);
        from += STEP * ld;
    }
}

/* --- 64 rows of D that a warpgroup keeps as A operand, in registers or in shared memory --- */

template <typename T, int D, bool REGISTERS> struct kept_rows {
    uint32_t a[D / 16][4];
};
template <typename T, int D> struct kept_rows<T, D, false> {
    T *tile;
};

template <typename T, int D>
__device__ __forceinline__ void kept_load(kept_rows<T, D, true> &k, const T *base, int64_t ld,
                                          int first, int rows, int width)
{
    int lane = threadIdx.x % 32, row = first + threadIdx.x % GROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        const T *from = base + (int64_t)r * ld + lane % 4 * 2;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            bool inside = r < rows && c * 8 < width;
            k.a[c / 2][c % 2 * 2 + half] = inside ? *(const uint32_t *)(from + c * 8) : 0;
        }
    }
}

template <typename T, int D>
__device__ __forceinline__ void kept_load(kept_rows<T, D, false> &k, const T *base, int64_t ld,
                                          int first, int rows, int width)
{
    panel_fill<T, 64, D>(k.tile, base, ld, first, rows, width);
}

/* Both ways, for the calling warpgroup. `shared`: room for those of all warpgroups. */
template <typename T, int D>
__device__ __forceinline__ void rows_load(kept_rows<T, D, true> &k, T *shared, const T *base,
                                          int64_t ld, int first, int rows, int width)
{
    kept_load<T, D>(k, base, ld, first, rows, width);
}

template <typename T, int D>
__device__ __forceinline__ void rows_load(kept_rows<T, D, false> &k, T *shared, const T *base,
                                          int64_t ld, int first, int rows, int width)
{
    int group = threadIdx.x / GROUP;
    k.tile = shared + group * 64 * D;
    group_sync(group); /* nobody reads those of the last item any more */
    kept_load<T, D>(k, base, ld, first, rows, width);
    copy_commit();
    copy_wait<0>();
    wgmma_publish();
    group_sync(group);
}

/* Two of them at once, of the calling warpgroup. `shared`: room for those of all warpgroups. */
template <typename T, int D>
__device__ __forceinline__ void pair_load(kept_rows<T, D, true> &x, kept_rows<T, D, true> &y,
                                          T *shared, const T *from_x, int64_t ldx, const T *from_y,
                                          int64_t ldy, int first, int rows, int width)
{
    kept_load<T, D>(x, from_x, ldx, first, rows, width);
    kept_load<T, D>(y, from_y, ldy, first, rows, width);
}

template <typename T, int D>
__device__ __forceinline__ void pair_load(kept_rows<T, D, false> &x, kept_rows<T, D, false> &y,
                                          T *shared, const T *from_x, int64_t ldx, const T *from_y,
                                          int64_t ldy, int first, int rows, int width)
{
    int group = threadIdx.x / GROUP;
    x.tile = shared + group * 2 * 64 * D;
    y.tile = x.tile + 64 * D;
    group_sync(group); /* nobody reads those of the last item any more */
    kept_load<T, D>(x, from_x, ldx, first, rows, width);
    kept_load<T, D>(y, from_y, ldy, first, rows, width);
    copy_commit();
    copy_wait<0>();
    wgmma_publish();
    group_sync(group);
}

/* s (64, N) = kept rows times the transpose of a tile of N rows. */
template <typename T, int D, int N>
__device__ __forceinline__ void kept_product(float (&s)[N / 8][4], const kept_rows<T, D, true> &k,
                                             const T *tile)
{
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
        wgmma_rows<T, N>(s, k.a[kk],
                         panel_descriptor(tile + kk / 4 * N * 64 + kk % 4 * 16, 1024, 16), kk > 0);
}

template <typename T, int D, int N>
__device__ __forceinline__ void kept_product(float (&s)[N / 8][4], const kept_rows<T, D, false> &k,
                                             const T *tile)
{
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
        wgmma_rows<T, N>(s, panel_descriptor(k.tile + kk / 4 * 64 * 64 + kk % 4 * 16, 1024, 16),
                         panel_descriptor(tile + kk / 4 * N * 64 + kk % 4 * 16, 1024, 16), kk > 0);
}

/* acc (64, D) += a (64, N) times a tile of N rows of D. */
template <typename T, int D, int N>
__device__ __forceinline__ void tile_sum(float (&acc)[D / 8][4], const uint32_t (&a)[N / 16][4],
                                         const T *tile)
{
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++)
        wgmma_columns<T, D>(acc, a[kk], panel_descriptor(tile + kk * 16 * 64, 1024, N * 128));
}

template <typename T, int N>
__device__ __forceinline__ void pack_operand(uint32_t (&a)[N / 16][4], const float (&s)[N / 8][4])
{
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++)
        acc_to_a<T>(a[kk], s[kk * 2], s[kk * 2 + 1]);
}

template <int N> __device__ __forceinline__ void rows_clear(float (&acc)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
}

/* Write a warpgroup's 64 rows from row `first` on, each half's rows scaled by its own factor. */
template <typename T, int D>
__device__ __forceinline__ void rows_store(T *base, int64_t ld, int first, int rows, int width,
                                           const float (&scale)[2], const float (&acc)[D / 8][4])
{
    int lane = threadIdx.x % 32, row = first + threadIdx.x % GROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        if (r >= rows)
            continue;
        T *to = base + (int64_t)r * ld + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            if (n * 8 < width)
                *(uint32_t *)(to + n * 8) =
                    pack2<T>(acc[n][half * 2] * scale[half], acc[n][half * 2 + 1] * scale[half]);
        }
    }
}

/* Least and greatest first key of the rows from `first` to `end` - 1; a whole warp calls it. */
static __device__ __forceinline__ int2 first_keys(const struct attn_params &p, int b, int first,
                                                  int end)
{
    if (!p.first_key && p.window == 0)
        return make_int2(0, 0);
    int least = p.S, most = 0;
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

/* --- dropout: which of the 32 pairs that a thread holds of a 64x64 tile are kept, a bit each.
 * Eight neighbouring keys share one block of random numbers (S and `first` are multiples of 8), so
 * each thread makes four for its warp and the bits change hands. --- */

/* Bit j: whether the pair of query i and key + j is kept; key is a multiple of 8. */
static __device__ __forceinline__ uint32_t dropout_group(const struct attn_params &p, int b, int h,
                                                         int i, int key)
{
    struct rng_block block =
        rng_draw4(p.dropout.stream, attn_index(p, b, h, i, key) / DROPOUT_GROUP);
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < DROPOUT_GROUP; j++)
        bits |= (uint32_t)(dropout_number(&block, j) >= p.dropout.threshold) << j;
    return bits;
}

/* Rows are queries, the thread's first `row`; columns are keys from `key0`. Lane 2 h + c of a quad
 * draws half h of its rows, n from 4 c on. */
static __device__ __forceinline__ uint32_t dropout_bits_rows(const struct attn_params &p, int b,
                                                             int h, int row, int key0)
{
    int lane = threadIdx.x % 32, i = row + lane % 4 / 2 * 8, key = key0 + lane % 2 * 32;
    uint32_t own = 0, bits = 0;
#pragma unroll
    for (int n = 0; n < 4; n++)
        own |= dropout_group(p, b, h, i, key + n * 8) << n * 8;
#pragma unroll
    for (int from = 0; from < 4; from++) {
        uint32_t word = __shfl_sync(FULL_WARP, own, (lane & ~3) | from);
        bits |= (word >> lane % 4 * 2 & 0x03030303u) << (from % 2 * 4 + from / 2 * 2);
    }
    return bits;
}

/* x where the element e of n is kept, else 0. */
static __device__ __forceinline__ float kept_of_rows(uint32_t bits, int n, int e, float x)
{
    return bits >> (n % 4 * 8 + n / 4 * 4 + e) & 1 ? x : 0.0f;
}

/* Rows are keys, the thread's first `key`; columns are queries from `row0`. Of the eight lanes that
 * share columns, lane l draws those of n = l. */
static __device__ __forceinline__ uint32_t dropout_bits_columns(const struct attn_params &p, int b,
                                                                int h, int row0, int key)
{
    int lane = threadIdx.x % 32, mine = lane / 4, i = row0 + mine * 8 + lane % 4 * 2;
    uint32_t own = 0, bits = 0;
#pragma unroll
    for (int e = 0; e < 4; e++)
        own |= dropout_group(p, b, h, i + e % 2, key - mine + e / 2 * 8) << e * 8;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        uint32_t word = __shfl_sync(FULL_WARP, own, n * 4 | lane % 4);
        bits |= (word >> mine & 0x01010101u) << n;
    }
    return bits;
}

static __device__ __forceinline__ float kept_of_columns(uint32_t bits, int n, int e, float x)
{
    return bits >> (e * 8 + n) & 1 ? x : 0.0f;
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

/* --- the frame of a pass --- */

/* NC warpgroups compute on stages of two tiles of ROWS rows, and of STATS floats. Each keeps KEPT
 * times 64 rows in shared memory. An item is NC * 64 rows. */
template <typename T_, int D_, int NC_, int ROWS_, int STAGES_, int KEPT, int STATS_ = 0>
struct pass_shape {
    using T = T_;
    static constexpr int D = D_, NC = NC_, STAGES = STAGES_, STATS = STATS_;
    static constexpr int THREADS = (NC + 1) * GROUP, BM = NC * 64, TILE = ROWS_ * D;
    static constexpr size_t BYTES =
        (size_t)(STAGES * 2 * TILE + KEPT * BM * D) * 2 + (size_t)STAGES * STATS * 4 + 1024;
};

template <typename S> struct stages {
    typename S::T *tiles, *kept; /* two of each stage; rows of each warpgroup */
    float *stats;
    uint64_t *full, *empty;
    struct stage_head *heads;
};

/* The copying warpgroup has queued all copies into a stage. */
template <typename S>
__device__ __forceinline__ void stage_filled(const struct stages<S> &shared, int stage,
                                             const struct stage_head &head)
{
    barrier_arrive_copied(&shared.full[stage]);
    if (threadIdx.x % GROUP == 0) {
        shared.heads[stage] = head;
        barrier_arrive(&shared.full[stage]);
    }
}

/* A thread has read what it needs of a stage. Each arrives for itself: compute-sanitizer's
 * racecheck does not follow an order that goes by __syncwarp and one lane's arrival. */
template <typename S>
__device__ __forceinline__ void stage_release(const struct stages<S> &shared, int stage)
{
    barrier_arrive(&shared.empty[stage]);
}

/* P says what an item is, how it is copied and what is computed:
 *   using shape = pass_shape<...>;
 *   static int items(p);
 *   static void copy(p, stages, at, ring);    the copying warpgroup, item `at`
 *   static void compute(p, stages, at, ring); each of the others */
template <typename P>
__global__ void __launch_bounds__(P::shape::THREADS, 1)
    attn_pass_kernel(const __grid_constant__ struct attn_params p)
{
    using S = typename P::shape;
    extern __shared__ uint4 smem[];
    __shared__ uint64_t full[S::STAGES], empty[S::STAGES];
    __shared__ struct stage_head heads[S::STAGES];
    struct stages<S> shared;
    shared.tiles = (typename S::T *)(((uintptr_t)smem + 1023) & ~(uintptr_t)1023);
    shared.kept = shared.tiles + S::STAGES * 2 * S::TILE;
    shared.stats = (float *)((char *)smem + S::BYTES) - S::STAGES * S::STATS;
    shared.full = full;
    shared.empty = empty;
    shared.heads = heads;
    if (threadIdx.x < S::STAGES) {
        barrier_init(&full[threadIdx.x], GROUP + 1);
        barrier_init(&empty[threadIdx.x], S::NC * GROUP);
    }
    __syncthreads();
    ring<S::STAGES> r;
    if (threadIdx.x >= S::NC * GROUP) {
        registers_lower<role_registers<S::NC>::COPY>();
        for (int at = blockIdx.x; at < P::items(p); at += gridDim.x)
            P::copy(p, shared, at, r);
    } else {
        registers_raise<role_registers<S::NC>::COMPUTE>();
        for (int at = blockIdx.x; at < P::items(p); at += gridDim.x)
            P::compute(p, shared, at, r);
    }
}

template <typename P> static int attn_pass_launch(cudaStream_t s, const struct attn_params &p)
{
    using S = typename P::shape;
    int device = 0, blocks = 1, items = P::items(p);
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
    if (cudaFuncSetAttribute(attn_pass_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)S::BYTES) != cudaSuccess)
        return launch_status();
    blocks = items < blocks ? items : blocks;
    attn_pass_kernel<P><<<(unsigned)blocks, (unsigned)S::THREADS, S::BYTES, s>>>(p);
    return launch_status();
}

/* --- passes over queries: an item is BM queries of a head, its stages are keys and values --- */

struct query_item {
    int b, h, row0;
};

template <typename S> __host__ __device__ static inline int query_items(const struct attn_params &p)
{
    return p.B * p.H * ((p.T + S::BM - 1) / S::BM);
}

template <typename S>
__device__ __forceinline__ struct query_item query_item(const struct attn_params &p, int at)
{
    int blocks = (p.T + S::BM - 1) / S::BM; /* the longest rows come first */
    struct item_place place = item_place(p, at, p.B * p.H, blocks);
    return {place.head / p.H, place.head % p.H, (blocks - 1 - place.block) * S::BM};
}

/* A warpgroup keeps the stage of its last tile until its next one, or the item's end, while tiles
 * that only those behind it see pass by: with fewer stages the copies would wait for it, and it for
 * them. */
template <typename S, int ROWS>
static constexpr int stages_needed = (S::BM - 64 + ROWS - 1) / ROWS + 1;

/* Every tile of ROWS keys that a query of the item may see. */
template <typename S, int ROWS>
__device__ __forceinline__ void keys_copy(const struct attn_params &p,
                                          const struct stages<S> &shared, int at,
                                          ring<S::STAGES> &r)
{
    static_assert(S::STAGES >= stages_needed<S, ROWS>, "the ring would come to a standstill");
    using T = typename S::T;
    struct query_item item = query_item<S>(p, at);
    int kv = item.h / p.group, last = min(item.row0 + S::BM, p.T) - 1 + p.S - p.T;
    const T *k = (const T *)p.k + (int64_t)item.b * p.S * p.ldk + (int64_t)kv * p.D;
    const T *v = (const T *)p.v + (int64_t)item.b * p.S * p.ldv + (int64_t)kv * p.D;
    int key = first_keys(p, item.b, item.row0, item.row0 + S::BM).x / ROWS * ROWS;
    bool ends = false;
    for (; !ends; key += ROWS, r.next()) {
        bool some = key <= last;
        ends = key + ROWS > last;
        barrier_wait(&shared.empty[r.at], r.phase ^ 1);
        if (some) {
            T *tile = shared.tiles + r.at * 2 * S::TILE;
            panel_fill<T, ROWS, S::D>(tile, k, p.ldk, key, p.S, p.D);
            panel_fill<T, ROWS, S::D>(tile + S::TILE, v, p.ldv, key, p.S, p.D);
        }
        stage_filled(shared, r.at,
                     {key, item.h, 0, (some ? STAGE_TILE : 0) | (ends ? STAGE_LAST : 0)});
    }
}

/* --- what the passes of backward share --- */

enum { SPAN = 64 }; /* queries a span of first keys, and a stage of the keys' pass */

/* Of each row 1 / log 2 times lse, behind delta. */
__host__ __device__ static inline float *lse2_of(const struct attn_params &p)
{
    return p.delta + (((int64_t)p.B * p.H * p.T + 63) & ~(int64_t)63);
}

/* dk and dv, from delta and the spans in p. */
int launch_attn_dkv_hopper(cudaStream_t s, enum dtype real, const struct attn_params &p);

#endif
