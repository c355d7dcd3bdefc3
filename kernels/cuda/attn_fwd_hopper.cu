/*
 * Attention forward with Hopper's warpgroup products, for bf16 and f16 and head dimensions of 64
 * and 128: the algorithm of attn_fwd.cu (FlashAttention-2), two warpgroups of 64 queries each,
 * scores and output by wgmma, probabilities kept in registers between the two. Packed rows and
 * windows, but neither caps, position biases nor dropout. o and lse assigned.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16 causal, B32 T1024 H12 D64 215
 * TFLOP/s, B4 T4096 H32 D128 349 TFLOP/s, with 8 key heads 403.
 */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { GROUPS = 2, THREADS = GROUPS * 128, BM = GROUPS * 64 };

template <typename T, int ROWS, int D>
__device__ __forceinline__ void panel_load(T *tile, const T *base, int64_t ld, int first, int rows)
{
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, r = at / CHUNKS, c = at % CHUNKS, row = first + r;
        bool inside = row < rows;
        copy16_async(tile + panel_offset(ROWS, r, c), base + (inside ? row * ld : 0) + c * 8,
                     inside);
    }
}

/* Scores of one tile to probabilities, 2^(s scale - max), with the running maximum and sum. */
template <int D, int BN>
__device__ __forceinline__ void softmax_tile(float (&s)[BN / 8][4], float (&o)[D / 8][4],
                                             float (&top)[2], float (&sum)[2], float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
            most = fmaxf(most, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
        most = fmaxf(top[half], quad_max(most) * scale);
        /* A row that has seen nothing yet keeps factor 1 and weights 0. */
        float base = most == -INFINITY ? 0.0f : most, old = fast_exp2(top[half] - base), part = 0;
        top[half] = most;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
                s[n][e] = fast_exp2(fmaf(s[n][e], scale, -base));
                part += s[n][e];
            }
        }
        sum[half] = sum[half] * old + part;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            o[n][half * 2] *= old;
            o[n][half * 2 + 1] *= old;
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

template <typename T, int D, int BN, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    attn_fwd_hopper_kernel(const __grid_constant__ struct attn_params p)
{
    constexpr int Q = BM * D, KV = BN * D;
    extern __shared__ uint4 smem[];
    __shared__ int bounds[2];
    T *q_tile = (T *)(((uintptr_t)smem + 1023) & ~(uintptr_t)1023);
    T *k_tile = q_tile + Q, *v_tile = k_tile + 2 * KV;
    int group = threadIdx.x / 128, lane = threadIdx.x % 32;
    int h = blockIdx.x % p.H, b = blockIdx.x / p.H, kv = h / p.group;
    int row0 = (int)(gridDim.y - 1 - blockIdx.y) * BM; /* the longest rows start first */
    int shift = p.S - p.T, rows_end = min(row0 + BM, p.T);
    int row = row0 + threadIdx.x / 32 * 16 + lane / 4;
    const T *q = (const T *)p.q + (int64_t)b * p.T * p.ldq + (int64_t)h * D;
    const T *k = (const T *)p.k + (int64_t)b * p.S * p.ldk + (int64_t)kv * D;
    const T *v = (const T *)p.v + (int64_t)b * p.S * p.ldv + (int64_t)kv * D;

    if (threadIdx.x == 0) {
        bounds[0] = p.S;
        bounds[1] = 0;
    }
    panel_load<T, BM, D>(q_tile, q, p.ldq, row0, p.T);
    __syncthreads();
    if (p.first_key || p.window > 0) {
        for (int r = row0 + threadIdx.x; r < rows_end; r += THREADS) {
            int first = attn_first(p, b, r);
            atomicMin(&bounds[0], first); /* of integers: the order does not show */
            atomicMax(&bounds[1], first);
        }
    } else if (threadIdx.x == 0) {
        bounds[0] = 0;
    }
    __syncthreads();
    int tile = bounds[0] / BN, tile_end = (rows_end - 1 + shift) / BN + 1;
    int clear_from = bounds[1], clear_to = row0 + shift; /* keys that every row sees */

    float o[D / 8][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    panel_load<T, BN, D>(k_tile, k, p.ldk, tile * BN, p.S);
    panel_load<T, BN, D>(v_tile, v, p.ldv, tile * BN, p.S);
    copy_commit();
    for (int stage = 0; tile < tile_end; tile++, stage ^= 1) {
        copy_wait<0>();
        wgmma_publish();
        __syncthreads(); /* this tile is there, and nobody reads the other stage any more */
        if (tile + 1 < tile_end) {
            panel_load<T, BN, D>(k_tile + (stage ^ 1) * KV, k, p.ldk, (tile + 1) * BN, p.S);
            panel_load<T, BN, D>(v_tile + (stage ^ 1) * KV, v, p.ldv, (tile + 1) * BN, p.S);
        }
        copy_commit();

        float s[BN / 8][4];
        wgmma_begin();
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
            int panel = kk / 4, column = kk % 4 * 16;
            const T *a = q_tile + (panel * BM + group * 64) * 64 + column;
            const T *bk = k_tile + stage * KV + panel * BN * 64 + column;
            wgmma_rows<T, BN>(s, panel_descriptor(a, 1024, 16), panel_descriptor(bk, 1024, 16),
                              kk > 0);
        }
        wgmma_end();
        int key0 = tile * BN;
        if (key0 < clear_from || key0 + BN - 1 > clear_to)
            mask_tile<BN>(p, b, row, key0, s);
        softmax_tile<D, BN>(s, o, top, sum, p.scale * LOG2E);
        uint32_t a[BN / 16][4];
#pragma unroll
        for (int kk = 0; kk < BN / 16; kk++)
            acc_to_a<T>(a[kk], s[kk * 2], s[kk * 2 + 1]);
        wgmma_begin();
#pragma unroll
        for (int kk = 0; kk < BN / 16; kk++)
            wgmma_columns<T, D>(
                o, a[kk], panel_descriptor(v_tile + stage * KV + kk * 16 * 64, 1024, BN * 128));
        wgmma_end();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        float total = quad_sum(sum[half]), inverse = total > 0 ? 1.0f / total : 0.0f;
        if (r >= p.T)
            continue;
        if (lane % 4 == 0)
            p.lse[((int64_t)b * p.H + h) * p.T + r] =
                total > 0 ? top[half] / LOG2E + logf(total) : -INFINITY;
        T *to = (T *)p.o + ((int64_t)b * p.T + r) * p.ldo + (int64_t)h * D;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(uint32_t *)(to + n * 8 + lane % 4 * 2) =
                pack2<T>(o[n][half * 2] * inverse, o[n][half * 2 + 1] * inverse);
    }
}

template <typename T, int D, int BN, int BLOCKS>
static int attn_fwd_launch(cudaStream_t s, const struct attn_params &p)
{
    auto kernel = attn_fwd_hopper_kernel<T, D, BN, BLOCKS>;
    size_t bytes = (size_t)(BM + 4 * BN) * D * 2 + 1024;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) !=
        cudaSuccess)
        return launch_status();
    dim3 grid((unsigned)(p.B * p.H), (unsigned)ceil_div(p.T, BM));
    kernel<<<grid, THREADS, bytes, s>>>(p);
    return launch_status();
}

template <typename T> static int attn_fwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.D == 64)
        return attn_fwd_launch<T, 64, 64, 2>(s, p);
    return attn_fwd_launch<T, 128, 128, 1>(s, p);
}

extern "C" int launch_attn_fwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return real == DT_BF16 ? attn_fwd<__nv_bfloat16>(s, a) : attn_fwd<__half>(s, a);
}
