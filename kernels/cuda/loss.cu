/*
 * Cross entropy and its gradient in place over logits (N, V), rows ldl apart: one pass for the
 * online maximum and sum (Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018),
 * a second that writes the gradient. Between them the row waits in shared memory, so that it is
 * read once: in that of one block, or where it is longer than MAX_STAGE and clusters exist (sm_90)
 * in that of several, which add up their sums there; elsewhere it is read again. row_loss and
 * row_correct are assigned. Any V, stride and alignment: the elements before the first and after
 * the last 16-byte boundary of a row are done one by one.
 *
 * Bounded by instructions, not by memory, unless an element costs few: 16-bit types compute in
 * powers of two, so that an exponential is a multiply-add and the hardware's exp2, and look for the
 * maximum two elements at a time.
 */
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/common.cuh"

enum { THREADS = 512, WARPS = THREADS / 32, AHEAD = 4, MAX_STAGE = 112 << 10, MOST_BLOCKS = 8 };

/* Below every logit, and far enough from the end of the range not to become NaN. */
static constexpr float LOWEST = -1e30f;

/* z = softcap(logit * logit_scale), and what exp(z) is of: in 16-bit types z is in units of log 2,
 * and the exponential is exp2. */
struct z_map {
    float scale, cap, inner; /* scale * logit, or cap * tanh(inner * logit) */
};

template <typename T> struct unit {
    static constexpr float OF_Z = sizeof(T) == 2 ? 1.4426950408889634f : 1.0f; /* z to exponent */
    static constexpr float TO_Z = sizeof(T) == 2 ? 0.6931471805599453f : 1.0f;
};

template <typename T> __device__ __forceinline__ float exp_of(float x)
{
    return sizeof(T) == 2 ? fast_exp2(x) : expf(x);
}

template <bool CAPPED>
__device__ __forceinline__ float z_above(const struct z_map &m, float logit, float base)
{
    return CAPPED ? fmaf(m.cap, tanhf(logit * m.inner), -base) : fmaf(logit, m.scale, -base);
}

template <bool CAPPED> __device__ __forceinline__ float z_slope(const struct z_map &m, float logit)
{
    float t = CAPPED ? tanhf(logit * m.inner) : 0.0f;
    return 1.0f - t * t;
}

/* --- what was seen of a row --- */

struct alignas(16) seen {
    float max, base; /* the largest logit, and its z */
    float sum;       /* of exp(z - base) */
    int tied;        /* does an element before the target equal it? */
};

template <typename T> __device__ __forceinline__ float pack_max(const pack<T> &x)
{
    return fmaxf(fmaxf(x.v[0], x.v[1]), fmaxf(x.v[2], x.v[3]));
}

template <> __device__ __forceinline__ float pack_max(const pack<__nv_bfloat16> &x)
{
    const __nv_bfloat162 *v = reinterpret_cast<const __nv_bfloat162 *>(&x.bits);
    __nv_bfloat162 m = __hmax2(__hmax2(v[0], v[1]), __hmax2(v[2], v[3]));
    return fmaxf(__low2float(m), __high2float(m));
}

template <> __device__ __forceinline__ float pack_max(const pack<__half> &x)
{
    const __half2 *v = reinterpret_cast<const __half2 *>(&x.bits);
    __half2 m = __hmax2(__hmax2(v[0], v[1]), __hmax2(v[2], v[3]));
    return fmaxf(__low2float(m), __high2float(m));
}

/* W neighbours, of which the largest is `most`: one rescaling for all. */
template <typename T, bool CAPPED, int W>
__device__ __forceinline__ void see(struct seen &s, const struct z_map &map, const T (&v)[W],
                                    float most, int first, int target, float at_target)
{
    if (most > s.max) {
        float base = z_above<CAPPED>(map, most, 0.0f);
        s.sum *= exp_of<T>(s.base - base);
        s.max = most;
        s.base = base;
    }
    if (most == at_target && first < target) { /* seldom, and any equal one will do */
#pragma unroll
        for (int j = 0; j < W; j++)
            s.tied |= to_float(v[j]) == at_target && first + j < target;
    }
#pragma unroll
    for (int j = 0; j < W; j++)
        s.sum += exp_of<T>(z_above<CAPPED>(map, to_float(v[j]), s.base));
}

/* Of a warp's lanes together; the same bits in all of them. */
template <typename T> __device__ __forceinline__ struct seen together(struct seen s)
{
    struct seen all;
    all.max = warp_max(s.max);
    all.base = warp_max(s.base); /* that of the largest */
    all.sum = warp_sum(s.sum * exp_of<T>(s.base - all.base));
    all.tied = __any_sync(FULL_WARP, s.tied);
    return all;
}

/* Of all blocks of a row, `blocks` of them, each with its warps' in parts[rank * WARPS]. */
template <typename T>
__device__ __forceinline__ struct seen exchange(struct seen s, int blocks, int rank,
                                                struct seen *parts)
{
    int lane = threadIdx.x % 32;
    s = together<T>(s);
    struct seen *mine = &parts[rank * WARPS + threadIdx.x / 32];
    if (blocks == 1) {
        if (lane == 0)
            *mine = s;
        __syncthreads();
    } else {
        cluster_wait(); /* all blocks have begun */
        if (lane < blocks)
            store_at(mine, lane,
                     make_uint4(__float_as_uint(s.max), __float_as_uint(s.base),
                                __float_as_uint(s.sum), (uint32_t)s.tied));
        cluster_sync();
    }
    s = {LOWEST, LOWEST, 0.0f, 0};
    for (int i = lane; i < blocks * WARPS; i += 32) {
        struct seen part = parts[i];
        float base = fmaxf(s.base, part.base);
        s.sum = s.sum * exp_of<T>(s.base - base) + part.sum * exp_of<T>(part.base - base);
        s.base = base;
        s.max = fmaxf(s.max, part.max);
        s.tied |= part.tied;
    }
    return together<T>(s);
}

/* --- a row --- */

/* A block's share of a row: packs [first, last) behind `head` elements, and of each thread at most
 * one element at the row's ends. */
struct share {
    int head, first, last, single;
};

template <typename T>
__device__ __forceinline__ struct share share_of(const T *row, int V, int blocks, int rank)
{
    constexpr int W = pack<T>::N;
    struct share s;
    s.head = min((int)((16 - ((uintptr_t)row & 15)) & 15) / (int)sizeof(T), V);
    int packs = (V - s.head) / W, tail = s.head + packs * W, each = (packs + blocks - 1) / blocks;
    s.first = min(rank * each, packs);
    s.last = min(s.first + each, packs);
    int at = (int)threadIdx.x < s.head ? (int)threadIdx.x : tail + (int)threadIdx.x - s.head;
    s.single = rank == 0 && at < V && (at < s.head || at >= tail) ? at : -1;
    return s;
}

template <typename T> __device__ void clear(T *row, const struct share &s)
{
    if (s.single >= 0)
        row[s.single] = from_float<T>(0.0f);
    for (int p = s.first + threadIdx.x; p < s.last; p += THREADS)
        *reinterpret_cast<uint4 *>(row + s.head + p * pack<T>::N) = make_uint4(0, 0, 0, 0);
}

/* Gradients of W neighbours in place: share * exp(z - base), less `scale` at the target. */
template <typename T, bool CAPPED, int W>
__device__ __forceinline__ void slopes(float (&v)[W], const struct z_map &map, float base,
                                       float share, float scale, int at)
{
#pragma unroll
    for (int j = 0; j < W; j++) {
        float logit = v[j];
        v[j] = exp_of<T>(z_above<CAPPED>(map, logit, base)) * share;
        if (CAPPED)
            v[j] = (v[j] - (j == at ? scale : 0.0f)) * z_slope<CAPPED>(map, logit);
    }
    if (!CAPPED && at >= 0 && at < W) { /* one pack of the row */
#pragma unroll
        for (int j = 0; j < W; j++)
            v[j] -= j == at ? scale : 0.0f;
    }
}

/* The first pass. `stage`, where it is used, keeps the block's packs for the second, in which each
 * thread meets its own again. */
template <typename T, bool CAPPED>
__device__ __forceinline__ struct seen see_row(const T *row, const struct share &mine,
                                               const struct z_map &map, int target, float at_target,
                                               bool staged, uint4 *stage)
{
    constexpr int W = pack<T>::N;
    const T *packs = row + mine.head;
    struct seen s = {LOWEST, LOWEST, 0.0f, 0};
    if (mine.single >= 0) {
        T v[1] = {row[mine.single]};
        see<T, CAPPED>(s, map, v, to_float(v[0]), mine.single, target, at_target);
    }
    for (int p = mine.first + threadIdx.x; p < mine.last; p += AHEAD * THREADS) {
        pack<T> x[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
            if (p + u * THREADS < mine.last)
                x[u].bits = *reinterpret_cast<const uint4 *>(packs + (p + u * THREADS) * W);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            int at = p + u * THREADS;
            if (at >= mine.last)
                break;
            if (staged)
                stage[at - mine.first] = x[u].bits;
            see<T, CAPPED>(s, map, x[u].v, pack_max<T>(x[u]), mine.head + at * W, target,
                           at_target);
        }
    }
    return s;
}

/* The second. */
template <typename T, bool CAPPED>
__device__ __forceinline__ void slope_row(T *row, const struct share &mine, const struct z_map &map,
                                          int target, float base, float share, float scale,
                                          bool staged, const uint4 *stage)
{
    constexpr int W = pack<T>::N;
    if (mine.single >= 0) {
        float v[1] = {to_float(row[mine.single])};
        slopes<T, CAPPED>(v, map, base, share, scale, target - mine.single);
        row[mine.single] = from_float<T>(v[0]);
    }
#pragma unroll 2
    for (int p = mine.first + threadIdx.x; p < mine.last; p += THREADS) {
        pack<T> x;
        T *at = row + mine.head + p * W;
        x.bits = staged ? stage[p - mine.first] : *reinterpret_cast<const uint4 *>(at);
        float v[W];
#pragma unroll
        for (int j = 0; j < W; j++)
            v[j] = to_float(x.v[j]);
        slopes<T, CAPPED>(v, map, base, share, scale, target - mine.head - p * W);
        store_pack(at, v);
    }
}

template <typename T, bool CAPPED>
__global__ void __launch_bounds__(THREADS, 2)
    loss_kernel(const __grid_constant__ struct loss_args a, struct z_map map, int blocks,
                int staged)
{
    extern __shared__ uint4 stage[];
    __shared__ struct seen parts[MOST_BLOCKS * WARPS];
    int rank = blocks == 1 ? 0 : cluster_rank();
    int64_t n = blockIdx.x / blocks;
    int target = a.targets[n];
    T *row = (T *)a.logits + n * (a.ldl ? a.ldl : a.V);
    struct share mine = share_of(row, (int)a.V, blocks, rank);
    bool tells = threadIdx.x == 0 && rank == 0;
    if (target < 0) {
        if (tells) {
            ((float *)a.row_loss)[n] = 0;
            a.row_correct[n] = 0;
        }
        if (a.grad_scale)
            clear(row, mine);
        return;
    }
    if (blocks > 1)
        cluster_arrive();
    float at_target = to_float(row[target]);
    struct seen s = see_row<T, CAPPED>(row, mine, map, target, at_target, staged, stage);
    s = exchange<T>(s, blocks, rank, parts);
    if (tells) {
        /* rounded as base is: 0 where the target is all there is */
        float below = s.base - z_above<CAPPED>(map, at_target, 0.0f);
        ((float *)a.row_loss)[n] = logf(s.sum) + below * unit<T>::TO_Z;
        a.row_correct[n] = s.max == at_target && !s.tied;
    }
    if (!a.grad_scale)
        return;
    float scale = *a.grad_scale * a.logit_scale * (a.loss_scale ? a.loss_scale->scale : 1.0f);
    slope_row<T, CAPPED>(row, mine, map, target, s.base, scale / s.sum, scale, staged, stage);
}

static bool has_clusters()
{
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major == 9;
}

/* Blocks that share a row, and the shared memory in which each keeps its part; 0: none does. */
static int blocks_of_row(const struct loss_args *a, size_t size, size_t *stage)
{
    size_t row = (size_t)a->V * size;
    int blocks = 1;
    *stage = 0;
    if (!a->grad_scale)
        return 1;
    if (row > MAX_STAGE && has_clusters())
        while (blocks < MOST_BLOCKS && row > (size_t)blocks * MAX_STAGE)
            blocks *= 2;
    if (row > (size_t)blocks * MAX_STAGE)
        return 1;
    *stage = (row / 16 + blocks - 1) / blocks * 16;
    return blocks;
}

template <typename T, bool CAPPED> static int loss_launch(cudaStream_t s, const struct loss_args *a)
{
    float scale = a->logit_scale * unit<T>::OF_Z, cap = a->softcap * unit<T>::OF_Z;
    struct z_map map = {scale, cap, CAPPED ? a->logit_scale / a->softcap : 0.0f};
    size_t stage;
    int blocks = blocks_of_row(a, sizeof(T), &stage);
    if (stage > 0 &&
        cudaFuncSetAttribute(loss_kernel<T, CAPPED>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             MAX_STAGE) != cudaSuccess)
        return launch_status();
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)blocks;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(a->N * blocks));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = stage;
    config.stream = s;
    config.attrs = &cluster;
    config.numAttrs = blocks > 1;
    (void)cudaLaunchKernelEx(&config, loss_kernel<T, CAPPED>, *a, map, blocks, (int)(stage > 0));
    return launch_status();
}

template <typename T> static int loss(cudaStream_t s, const struct loss_args *a)
{
    if (a->N == 0)
        return 0;
    return a->softcap != 0 ? loss_launch<T, true>(s, a) : loss_launch<T, false>(s, a);
}

extern "C" int launch_loss(cudaStream_t s, enum dtype real, const struct loss_args *a)
{
    return DISPATCH_REAL(real, loss, s, a);
}

KERNELS_OF(loss, loss_kernel<float, false>)
