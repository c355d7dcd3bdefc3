/*
 * The product kernel. A block is three warpgroups: two that compute a tile each in turn, so that
 * the epilogue of one runs under the products of the other, and one whose first thread has the copy
 * engine bring stages of 64 along k into a ring in shared memory. Two blocks are a cluster that has
 * two tiles of the same columns: each fetches half of w's for both. Blocks are persistent; pair i
 * of blocks takes the pairs of tiles i, i + pairs, ..., neighbours in rows first, so that what is
 * read at a time stays in the L2 cache. (The frame is CUTLASS's "ping-pong" schedule: NVIDIA,
 * CUTLASS 3.x documentation.)
 *
 * Sums run in ascending k in one accumulator an element: the bits depend on the operands alone.
 */
#ifndef CASTOR_KERNELS_CUDA_PRODUCT_CUH
#define CASTOR_KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/product.h"

namespace product_tile
{
constexpr int ROWS = PRODUCT_ROWS, COLS = PRODUCT_COLS, DEPTH = PRODUCT_DEPTH;
constexpr int GROUP = 128, THREADS = 3 * GROUP;
constexpr int X_BYTES = ROWS * DEPTH * 2;
constexpr int PANEL = DEPTH * 128;       /* bytes of 64 columns where k does not lie together */
constexpr int PANELS = (COLS + 63) / 64; /* of w then; what is too much is not read */
constexpr int SUMS = 2 * 4 * COLS;       /* floats: of each warp that computes */
constexpr int ARRIVALS =
    2 * 4; /* warps that read a stage: of both blocks, since either writes both */
constexpr int COMPUTE_REGISTERS = 240, COPY_REGISTERS = 24;
using bf16 = __nv_bfloat16;

template <enum product_layout LAYOUT> struct shape {
    static constexpr bool W_DEEP = LAYOUT == PRODUCT_FORWARD; /* k lies together */
    static constexpr int W_BYTES = W_DEEP ? COLS * DEPTH * 2 : PANELS * PANEL;
    static constexpr int STAGE_BYTES = X_BYTES + W_BYTES, STAGES = W_DEEP ? 6 : 5;
    static constexpr int BYTES = 1024 + STAGES * STAGE_BYTES + SUMS * 4 + 2 * STAGES * 8;
};

struct memory {
    char *stages; /* 1024-byte aligned, at the same place in both blocks */
    float *sums;
    uint32_t full, empty; /* barriers of the stages, 8 bytes each */
};

template <typename S> __device__ __forceinline__ struct memory memory_of(char *base)
{
    struct memory m;
    m.stages = base + (1024 - (shared_address(base) & 1023)) % 1024;
    m.sums = (float *)(m.stages + S::STAGES * S::STAGE_BYTES);
    m.full = shared_address(m.sums + SUMS);
    m.empty = m.full + 8 * S::STAGES;
    return m;
}

/* --- which tile --- */

struct tile {
    int row, col; /* its first */
};

/* Pairs of tiles, one below the other. */
__host__ __device__ static inline int pair_rows(const struct product &p)
{
    return (p.rows + 2 * ROWS - 1) / (2 * ROWS);
}

__host__ __device__ static inline int pairs_of(const struct product &p)
{
    return pair_rows(p) * ((p.cols + COLS - 1) / COLS);
}

/* The tile of a pair that the cluster's block `rank` has. */
__device__ __forceinline__ struct tile tile_of(const struct product &p, int pair, int rank)
{
    constexpr int BAND = 8;
    int rows = pair_rows(p), cols = (p.cols + COLS - 1) / COLS;
    int first = pair / (BAND * cols) * BAND, in = pair % (BAND * cols);
    int band = min(BAND, rows - first);
    struct tile t;
    t.row = (2 * (first + in % band) + rank) * ROWS;
    t.col = in / band * COLS;
    return t;
}

/* --- copying --- */

/* All of x's 128 rows, and half of w for both blocks: 80 columns, or 32 of k. */
template <typename S>
__device__ __forceinline__ void copy_stage(const struct product &p, char *stage, uint32_t full,
                                           int k, struct tile t, int rank)
{
    char *w = stage + X_BYTES;
    matrix_fetch(stage, &p.x, k, t.row, full);
    matrix_fetch(stage + X_BYTES / 2, &p.x, k, t.row + PRODUCT_X_BOX, full);
    if constexpr (S::W_DEEP) {
        matrix_fetch_pair(w + rank * (S::W_BYTES / 2), &p.w, k, t.col + rank * (COLS / 2), full);
    } else {
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++)
            matrix_fetch_pair(w + panel * PANEL + rank * (PANEL / 2), &p.w, t.col + panel * 64,
                              k + rank * (DEPTH / 2), full);
    }
}

template <typename S>
__device__ __forceinline__ void copy_tiles(const struct product &p, const struct memory &m)
{
    int rank = cluster_rank(), pairs = pairs_of(p), at = 0;
    uint32_t phase = 1; /* a new barrier counts as having passed */
    for (int pair = blockIdx.x / 2; pair < pairs; pair += gridDim.x / 2) {
        struct tile t = tile_of(p, pair, rank);
        for (int k = 0; k < p.k; k += DEPTH) {
            barrier_wait(m.empty + 8 * at, phase);
            barrier_expect(m.full + 8 * at, S::STAGE_BYTES);
            copy_stage<S>(p, m.stages + at * S::STAGE_BYTES, m.full + 8 * at, k, t, rank);
            if (++at == S::STAGES) {
                at = 0;
                phase ^= 1;
            }
        }
    }
}

/* --- products --- */

#define NAMES_160                                                                                  \
    NAMES_128 ", "                                                                                 \
              "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define ACC_160 ACC_128, ACC16(16)

/* acc (64, 160) = or += x w with both operands in shared memory, 16 along k, which lies together in
 * x, and in w unless ACROSS. */
template <int ACROSS>
__device__ __forceinline__ void multiply(float (&acc)[20][4], uint64_t x, uint64_t w, int add)
{
    WGMMA_ASM("{.reg .pred p; setp.ne.b32 p, %82, 0;\n"
              "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {" NAMES_160
              "}, %80, %81, p, 1, 1, 0, %83;}"
              : ACC_160
              : "l"(x), "l"(w), "r"(add), "n"(ACROSS));
}

/* The descriptor of an operand in a stage (as panel_descriptor's): groups of 8 rows 1,024 bytes
 * apart; the stride of panels is read only where w has several. */
__device__ __forceinline__ uint64_t operand(uint32_t stage, int offset)
{
    constexpr uint32_t LOW = (uint32_t)(PANEL >> 4) << 16, HIGH = 1024 >> 4 | 1u << 30;
    return (uint64_t)HIGH << 32 | (stage + (uint32_t)(offset >> 4) + LOW);
}

template <typename S>
__device__ __forceinline__ void multiply_stage(const char *at, float (&acc)[2][20][4], bool first)
{
    uint32_t stage = (shared_address(at) & 0x3FFFF) >> 4;
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < DEPTH / 16; step++) {
        uint64_t w = operand(stage, X_BYTES + (S::W_DEEP ? step * 32 : step * 16 * 128));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int x = half * (X_BYTES / 2) + step * 32;
            multiply<!S::W_DEEP>(acc[half], operand(stage, x), w, !first || step > 0);
        }
    }
    wgmma_commit();
}

/* This warp has read the stage: both blocks may be written again. */
__device__ __forceinline__ void release(uint32_t empty)
{
    if (threadIdx.x % 32 < 2)
        barrier_arrive_at(empty, threadIdx.x % 32);
}

/* The two warpgroups that compute take turns at the ring. One that waited for stages further ahead
 * than the ring is long could not tell the phases of their barriers apart. */
__device__ __forceinline__ void await_turn(int group)
{
    WGMMA_ASM("bar.sync %0, %1;" ::"r"(group + 3), "n"(2 * GROUP) : "memory");
}

__device__ __forceinline__ void pass_turn(int group)
{
    WGMMA_ASM("bar.arrive %0, %1;" ::"r"(4 - group), "n"(2 * GROUP) : "memory");
}

/* The sums of one tile, whose first stage is the ring's number `position`. */
template <typename S>
__device__ __forceinline__ void multiply_tile(const struct memory &m, int position, int steps,
                                              int group, float (&acc)[2][20][4])
{
    if (position > 0)
        await_turn(group);
    int at = position % S::STAGES, last = at;
    uint32_t phase = position / S::STAGES & 1;
    for (int step = 0; step < steps; step++) {
        barrier_wait(m.full + 8 * at, phase);
        multiply_stage<S>(m.stages + at * S::STAGE_BYTES, acc, step == 0);
        wgmma_wait<1>();
        if (step > 0)
            release(m.empty + 8 * last);
        last = at;
        if (++at == S::STAGES) {
            at = 0;
            phase ^= 1;
        }
    }
    pass_turn(group); /* all its stages are there */
    wgmma_wait<0>();
    release(m.empty + 8 * last);
    acc_settle<20>(acc[0]);
    acc_settle<20>(acc[1]);
}

/* --- epilogues --- */

/* Of the four lanes of a quad, lane i gives x[q] to lane q, which has it as x[i]. */
__device__ __forceinline__ void quad_transpose(float (&x)[4])
{
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        float got = __shfl_xor_sync(FULL_WARP, odd ? x[i] : x[i + 1], 1);
        x[i] = odd ? got : x[i];
        x[i + 1] = odd ? x[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float got = __shfl_xor_sync(FULL_WARP, upper ? x[i] : x[i + 2], 2);
        x[i] = upper ? got : x[i];
        x[i + 2] = upper ? x[i + 2] : got;
    }
}

/* Eight neighbouring elements of a row: columns 8 q to 8 q + 7 of the 32 of four accumulators. */
__device__ __forceinline__ void eight_of(const float (&acc)[20][4], int first, int pair,
                                         float (&v)[8])
{
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[i] = acc[first + i][pair + e];
        quad_transpose(x);
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[2 * i + e] = x[i];
    }
}

/* What an epilogue reads besides the product: of c or aux. */
template <enum product_epilogue E>
__device__ __forceinline__ const bf16 *other_of(const struct product &p, int row, int col)
{
    if (E == PRODUCT_PLAIN)
        return p.c ? (const bf16 *)p.c + row * p.ldc + col : NULL;
    if (E == PRODUCT_RELU_SLOPE || E == PRODUCT_GELU_SLOPE)
        return (const bf16 *)p.aux + row * p.ld_aux + col;
    return NULL;
}

/* v becomes what d gets; `other` is what other_of pointed to. */
template <enum product_epilogue E>
__device__ __forceinline__ void finish_eight(const struct product &p, int row, int col,
                                             const float (&bias)[8], const pack<bf16> &other,
                                             float (&v)[8])
{
    constexpr int ACT = E == PRODUCT_RELU_SLOPE ? ACT_RELU : ACT_GELU_TANH;
#pragma unroll
    for (int j = 0; j < 8; j++)
        v[j] = v[j] * p.alpha + bias[j];
    if constexpr (E == PRODUCT_PLAIN) {
        if (p.c) {
#pragma unroll
            for (int j = 0; j < 8; j++)
                v[j] += to_float(other.v[j]);
        }
    } else if constexpr (E == PRODUCT_GELU) {
        if (p.aux && row < p.rows && col < p.cols)
            store_pack((bf16 *)p.aux + row * p.ld_aux + col, v);
#pragma unroll
        for (int j = 0; j < 8; j++) /* as a pass over aux does: of rounded values, without a -0 */
            v[j] = act_value<true>(ACT, to_float(from_float<bf16>(v[j]))) + 0.0f;
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] *= act_slope<true>(ACT, to_float(other.v[j]));
    }
}

/* Sums over the warp's rows of eight columns a lane; its first four lanes write them. */
__device__ __forceinline__ void add_rows(float *sums, int at, float (&column)[8])
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2)
            column[j] += __shfl_xor_sync(FULL_WARP, column[j], offset);
    }
    if (threadIdx.x % 32 < 4) {
#pragma unroll
        for (int j = 0; j < 8; j++)
            sums[at + j] = column[j];
    }
}

__device__ __forceinline__ void group_barrier(int group)
{
    WGMMA_ASM("bar.sync %0, %1;" ::"r"(group + 1), "n"((int)GROUP) : "memory");
}

/* The four warps' sums of columns, in order. */
__device__ __forceinline__ void store_sums(const struct product &p, struct tile t, int group,
                                           const float *sums)
{
    group_barrier(group);
    for (int c = threadIdx.x % GROUP; c < COLS; c += GROUP) {
        float total = sums[c];
#pragma unroll
        for (int warp = 1; warp < 4; warp++)
            total += sums[warp * COLS + c];
        if (t.row < p.rows && t.col + c < p.cols)
            p.sums[(int64_t)(t.row / ROWS) * p.cols + t.col + c] = total;
    }
    group_barrier(group);
}

/* Column by column of the tile's five times 32; a lane has 4 rows of 8 columns in each. */
template <enum product_epilogue E>
__device__ __forceinline__ void finish_tile(const struct product &p, struct tile t, int group,
                                            float *sums, const float (&acc)[2][20][4])
{
    constexpr bool SLOPE = E == PRODUCT_RELU_SLOPE || E == PRODUCT_GELU_SLOPE;
    int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP / 32;
    int row0 = t.row + warp * 16 + lane / 4;
#pragma unroll
    for (int part = 0; part < COLS / 32; part++) {
        int at = part * 32 + lane % 4 * 8, col = t.col + at;
        float bias[8] = {0}, column[8] = {0};
        pack<bf16> other[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int row = row0 + r / 2 * 64 + r % 2 * 8;
            const bf16 *from = other_of<E>(p, row, col);
            other[r].bits = make_uint4(0, 0, 0, 0);
            if (from && row < p.rows && col < p.cols)
                other[r].bits = *reinterpret_cast<const uint4 *>(from);
        }
        if (!SLOPE && p.bias && col < p.cols)
            load_pack((const bf16 *)p.bias + col, bias);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int row = row0 + r / 2 * 64 + r % 2 * 8;
            bf16 *d = (bf16 *)p.d + row * p.ldd + col;
            float v[8];
            eight_of(acc[r / 2], part * 4, r % 2 * 2, v);
            finish_eight<E>(p, row, col, bias, other[r], v);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                other[r].v[j] = from_float<bf16>(v[j]);
                column[j] += to_float(other[r].v[j]);
            }
            if (row < p.rows && col < p.cols)
                *reinterpret_cast<uint4 *>(d) = other[r].bits;
        }
        if (SLOPE && p.sums)
            add_rows(sums + warp * COLS, at, column);
    }
    if (SLOPE && p.sums)
        store_sums(p, t, group, sums);
}

template <typename S, enum product_epilogue E>
__device__ __forceinline__ void compute_tiles(const struct product &p, const struct memory &m)
{
    int group = threadIdx.x / GROUP, clusters = gridDim.x / 2, rank = cluster_rank();
    int pairs = pairs_of(p), steps = (p.k + DEPTH - 1) / DEPTH, position = group * steps;
    for (int pair = blockIdx.x / 2 + group * clusters; pair < pairs; pair += 2 * clusters) {
        float acc[2][20][4];
        multiply_tile<S>(m, position, steps, group, acc);
        finish_tile<E>(p, tile_of(p, pair, rank), group, m.sums + group * 4 * COLS, acc);
        position += 2 * steps;
    }
}

template <typename S, enum product_epilogue E>
__global__ void __launch_bounds__(THREADS, 1)
    product_kernel(const __grid_constant__ struct product p)
{
    extern __shared__ char base[];
    struct memory m = memory_of<S>(base);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(m.full + 8 * i, 1);
            barrier_init(m.empty + 8 * i, ARRIVALS);
        }
        barrier_publish();
    }
    cluster_sync();
    if (threadIdx.x >= 2 * GROUP) {
        registers_lower<COPY_REGISTERS>();
        if (threadIdx.x == 2 * GROUP)
            copy_tiles<S>(p, m);
    } else {
        registers_raise<COMPUTE_REGISTERS>();
        compute_tiles<S, E>(p, m);
    }
    cluster_sync(); /* nobody leaves while another may still write to it */
}

/* --- launching --- */

template <enum product_layout L, enum product_epilogue E>
static int launch(cudaStream_t s, const struct product *p)
{
    using S = shape<L>;
    int device = 0, blocks = 2, pairs = pairs_of(*p);
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
    if (cudaFuncSetAttribute(product_kernel<S, E>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             S::BYTES) != cudaSuccess)
        return launch_status();
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = 2;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(2 * (pairs < blocks / 2 ? pairs : blocks / 2)));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = S::BYTES;
    config.stream = s;
    config.attrs = &cluster;
    config.numAttrs = 1;
    (void)cudaLaunchKernelEx(&config, product_kernel<S, E>, *p);
    return launch_status();
}
} // namespace product_tile

#endif
