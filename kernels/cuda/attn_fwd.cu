/*
 * Attention forward on tensor cores for bf16 and f16: FlashAttention-2 (Dao, 2023, algorithm 1). A
 * block owns BM queries of one head and walks over the key tiles they see, BN keys at a time, two
 * tiles deep. o and lse assigned. Head dimension: any multiple of 8 up to 256, padded in shared
 * memory to 64, 96, 128 or 256; pointers 16-byte aligned, strides multiples of 8.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16 causal, B32 T1024 H12 D64 152
 * TFLOP/s, B4 T4096 H32 D128 286 TFLOP/s.
 */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

enum { WARPS = 4, THREADS = WARPS * 32 };

template <int D_, int BM_, int BN_> struct fwd_shape {
    static constexpr int D = D_, BM = BM_, BN = BN_;
    static constexpr int MT = BM / (16 * WARPS); /* m16 tiles a warp */
    static constexpr int Q = BM * tile_row<D>::STRIDE, KV = BN * tile_row<D>::STRIDE;
    static constexpr size_t BYTES = (size_t)(Q + 4 * KV) * 2; /* q; k and v twice */
};

/* Replace dot products by scores where cap, bias or mask change them; those that are changed come
 * in units of log 2. `row` is the thread's first row. */
template <typename S, bool EXTRA>
__device__ __forceinline__ void fwd_scores(const struct attn_params &p, float slope, int b, int row,
                                           bool masked, int key0, float (&s)[S::MT][S::BN / 8][4])
{
    int column = threadIdx.x % 4 * 2, shift = p.S - p.T;
    if (!EXTRA && !masked)
        return;
#pragma unroll
    for (int m = 0; m < S::MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + m * 16 + half * 8, last = r + shift;
            int first = masked ? attn_first(p, b, min(r, p.T - 1)) : 0;
            int origin = EXTRA ? attn_origin(p, b, min(r, p.T - 1)) : 0;
#pragma unroll
            for (int n = 0; n < S::BN / 8; n++) {
#pragma unroll
                for (int e = half * 2; e < half * 2 + 2; e++) {
                    int key = key0 + n * 8 + column + e % 2;
                    if (EXTRA) {
                        float capped;
                        s[m][n][e] = LOG2E * attn_score_any(p, slope, s[m][n][e], key, last, origin,
                                                            &capped);
                    }
                    if (masked && (key < first || key > last))
                        s[m][n][e] = -INFINITY;
                }
            }
        }
    }
}

template <typename T, typename S, bool EXTRA>
__global__ void __launch_bounds__(THREADS)
    attn_fwd_kernel(const __grid_constant__ struct attn_params p)
{
    constexpr int D = S::D, BM = S::BM, BN = S::BN, MT = S::MT;
    extern __shared__ uint4 smem[];
    __shared__ int bounds[2];
    T *q_tile = (T *)smem, *k_tile = q_tile + S::Q, *v_tile = k_tile + 2 * S::KV;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int h = blockIdx.x % p.H, b = blockIdx.x / p.H, kv = h / p.group;
    int row0 = (int)(gridDim.y - 1 - blockIdx.y) * BM; /* the longest rows start first */
    int shift = p.S - p.T, rows_end = min(row0 + BM, p.T);
    const T *q = (const T *)p.q + (int64_t)b * p.T * p.ldq + (int64_t)h * p.D;
    const T *k = (const T *)p.k + (int64_t)b * p.S * p.ldk + (int64_t)kv * p.D;
    const T *v = (const T *)p.v + (int64_t)b * p.S * p.ldv + (int64_t)kv * p.D;

    if (threadIdx.x == 0) {
        bounds[0] = p.S;
        bounds[1] = 0;
    }
    tile_load<T, BM, D, THREADS>(q_tile, q, p.ldq, row0, p.T, p.D);
    __syncthreads();
    for (int r = row0 + threadIdx.x; r < rows_end; r += THREADS) {
        int first = attn_first(p, b, r);
        atomicMin(&bounds[0], first); /* of integers: the order does not show */
        atomicMax(&bounds[1], first);
    }
    __syncthreads();
    int tile = bounds[0] / BN, tile_end = (rows_end - 1 + shift) / BN + 1;
    int clear_from = bounds[1], clear_to = row0 + shift; /* keys that every row sees */

    float o[MT][D / 8][4], top[MT][2], sum[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
        top[m][0] = top[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0;
    }
    acc_clear(o);
    float scale = EXTRA ? 1.0f : p.scale * LOG2E, slope = attn_slope(p, h);

    tile_load<T, BN, D, THREADS>(k_tile, k, p.ldk, tile * BN, p.S, p.D);
    tile_load<T, BN, D, THREADS>(v_tile, v, p.ldv, tile * BN, p.S, p.D);
    copy_commit();
    for (int stage = 0; tile < tile_end; tile++, stage ^= 1) {
        copy_wait<0>();
        __syncthreads(); /* this tile is there, and nobody reads the other stage any more */
        if (tile + 1 < tile_end) {
            tile_load<T, BN, D, THREADS>(k_tile + (stage ^ 1) * S::KV, k, p.ldk, (tile + 1) * BN,
                                         p.S, p.D);
            tile_load<T, BN, D, THREADS>(v_tile + (stage ^ 1) * S::KV, v, p.ldv, (tile + 1) * BN,
                                         p.S, p.D);
        }
        copy_commit();
        const T *k_now = k_tile + stage * S::KV, *v_now = v_tile + stage * S::KV;

        float s[MT][BN / 8][4];
        acc_clear(s);
        tile_product<T, MT, BN, D>(s, q_tile, warp * MT * 16, k_now);
        int key0 = tile * BN;
        bool masked = key0 < clear_from || key0 + BN - 1 > clear_to;
        fwd_scores<S, EXTRA>(p, slope, b, row0 + warp * MT * 16 + lane / 4, masked, key0, s);

#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = -INFINITY;
#pragma unroll
                for (int n = 0; n < BN / 8; n++)
                    most = fmaxf(most, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
                most = fmaxf(top[m][half], quad_max(most) * scale);
                /* A row that has seen nothing yet keeps factor 1 and weights 0. */
                float base = most == -INFINITY ? 0.0f : most;
                float old = fast_exp2(top[m][half] - base);
                top[m][half] = most;
                float part = 0;
#pragma unroll
                for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                    for (int e = half * 2; e < half * 2 + 2; e++) {
                        s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale, -base));
                        part += s[m][n][e];
                    }
                }
                sum[m][half] = sum[m][half] * old + part;
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    o[m][n][half * 2] *= old;
                    o[m][n][half * 2 + 1] *= old;
                }
            }
        }
        if (EXTRA && p.dropout.on) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        s[m][n][e] *=
                            attn_factor(p, b, h, row0 + (warp * MT + m) * 16 + e / 2 * 8 + lane / 4,
                                        key0 + n * 8 + lane % 4 * 2 + e % 2);
                }
            }
        }
        tile_accumulate<T, MT, BN, D, D>(o, s, v_now, 0);
    }

#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row0 + (warp * MT + m) * 16 + half * 8 + lane / 4;
            float total = quad_sum(sum[m][half]), inverse = total > 0 ? 1.0f / total : 0.0f;
            if (r >= p.T)
                continue;
            if (lane % 4 == 0)
                p.lse[((int64_t)b * p.H + h) * p.T + r] =
                    total > 0 ? top[m][half] / LOG2E + logf(total) : -INFINITY;
            T *to = (T *)p.o + ((int64_t)b * p.T + r) * p.ldo + (int64_t)h * p.D;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                int c = n * 8 + lane % 4 * 2;
                if (c < p.D)
                    *(uint32_t *)(to + c) =
                        pack2<T>(o[m][n][half * 2] * inverse, o[m][n][half * 2 + 1] * inverse);
            }
        }
    }
}

template <typename T, typename S, bool EXTRA>
static int attn_fwd_launch(cudaStream_t s, const struct attn_params &p)
{
    auto kernel = attn_fwd_kernel<T, S, EXTRA>;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::BYTES) !=
        cudaSuccess)
        return launch_status();
    dim3 grid((unsigned)(p.B * p.H), (unsigned)ceil_div(p.T, S::BM));
    kernel<<<grid, THREADS, S::BYTES, s>>>(p);
    return launch_status();
}

template <typename T, typename S> static int attn_fwd_pick(cudaStream_t s, struct attn_params &p)
{
    if (p.cap != 0 || p.slopes || p.dropout.on)
        return attn_fwd_launch<T, S, true>(s, p);
    return attn_fwd_launch<T, S, false>(s, p);
}

template <typename T> static int attn_fwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    if (a->B * a->H * a->T == 0)
        return 0;
    if (p.D <= 64)
        return attn_fwd_pick<T, fwd_shape<64, 128, 64>>(s, p);
    if (p.D <= 96)
        return attn_fwd_pick<T, fwd_shape<96, 128, 64>>(s, p);
    if (p.D <= 128)
        return attn_fwd_pick<T, fwd_shape<128, 128, 64>>(s, p);
    return attn_fwd_pick<T, fwd_shape<256, 64, 32>>(s, p);
}

extern "C" int launch_attn_fwd_mma(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return real == DT_BF16 ? attn_fwd<__nv_bfloat16>(s, a) : attn_fwd<__half>(s, a);
}
