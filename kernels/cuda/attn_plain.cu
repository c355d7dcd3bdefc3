/*
 * Attention for every case (any head dimension up to 256, any stride and alignment, float32): a
 * warp a query for o and dq, a warp a key for dk and dv. Lanes take 32 keys (or queries) at a time
 * for the scores and then share the head dimension. Online softmax (Dao et al., "FlashAttention",
 * 2022). All outputs assigned, no atomics. Reads k and v once a query: for what the tensor-core
 * kernels do not cover, and to check them.
 */
#include "kernels/cuda/attention.cuh"

enum { WARPS = 4, DIMS = 8 }; /* DIMS * 32 = greatest head dimension */

template <typename T> __device__ __forceinline__ float dot_row(const float *x, const T *row, int D)
{
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    int d = 0;
    for (; d + 8 <= D; d += 8) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum[i] += x[d + i] * to_float(row[d + i]);
    }
    for (; d < D; d++)
        sum[0] += x[d] * to_float(row[d]);
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* acc[i] += sum over the warp's 32 rows of weight * row[lane + 32 i]; rows `stride` apart. */
template <typename T>
__device__ __forceinline__ void add_rows(float (&acc)[DIMS], float weight, const T *rows,
                                         int64_t stride, int count, int D)
{
    int lane = threadIdx.x % 32;
    for (int j = 0; j < count; j++) {
        float w = __shfl_sync(FULL_WARP, weight, j);
#pragma unroll
        for (int i = 0; i < DIMS; i++) {
            if (lane + 32 * i < D)
                acc[i] += w * to_float(rows[j * stride + lane + 32 * i]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void write_row(T *to, const float (&acc)[DIMS], float scale, int D)
{
#pragma unroll
    for (int i = 0; i < DIMS; i++) {
        int d = threadIdx.x % 32 + 32 * i;
        if (d < D)
            to[d] = from_float<T>(acc[i] * scale);
    }
}

struct query_at {
    int b, h, i;
    bool inside;
};

static __device__ __forceinline__ struct query_at query_of_warp(const struct attn_params &p)
{
    int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    struct query_at r;
    r.inside = at < (int64_t)p.B * p.H * p.T;
    r.i = (int)(at % p.T);
    r.h = (int)(at / p.T % p.H);
    r.b = (int)(at / p.T / p.H);
    return r;
}

template <typename T>
__device__ __forceinline__ const T *row_of(const void *base, int64_t ld, int64_t rows, int b, int i,
                                           int head, int D)
{
    return (const T *)base + ((int64_t)b * rows + i) * ld + (int64_t)head * D;
}

/* Copy a row of D to shared memory as float. */
template <typename T> __device__ __forceinline__ void stage(float *to, const T *row, int D)
{
    for (int d = threadIdx.x % 32; d < D; d += 32)
        to[d] = to_float(row[d]);
    __syncwarp();
}

template <typename T>
__global__ void attn_fwd_plain_kernel(const __grid_constant__ struct attn_params p)
{
    __shared__ float q_rows[WARPS][DIMS * 32];
    struct query_at at = query_of_warp(p);
    if (!at.inside)
        return;
    int lane = threadIdx.x % 32, last = at.i + p.S - p.T, kv = at.h / p.group;
    int origin = attn_origin(p, at.b, at.i);
    float *q = q_rows[threadIdx.x / 32], slope = attn_slope(p, at.h), capped;
    stage(q, row_of<T>(p.q, p.ldq, p.T, at.b, at.i, at.h, p.D), p.D);
    float acc[DIMS] = {0}, top = -INFINITY, sum = 0;
    for (int first = attn_first(p, at.b, at.i); first <= last; first += 32) {
        int key = first + lane, count = min(32, last - first + 1);
        float score = -INFINITY;
        if (key <= last)
            score = attn_score_any(p, slope,
                                   dot_row(q, row_of<T>(p.k, p.ldk, p.S, at.b, key, kv, p.D), p.D),
                                   key, last, origin, &capped);
        float next = fmaxf(top, warp_max(score)), old = expf(top - next);
        float weight = key <= last ? expf(score - next) : 0.0f;
        sum = sum * old + warp_sum(weight);
        top = next;
#pragma unroll
        for (int i = 0; i < DIMS; i++)
            acc[i] *= old;
        if (key <= last)
            weight *= attn_factor(p, at.b, at.h, at.i, key);
        add_rows(acc, weight, row_of<T>(p.v, p.ldv, p.S, at.b, first, kv, p.D), p.ldv, count, p.D);
    }
    T *o = (T *)row_of<T>(p.o, p.ldo, p.T, at.b, at.i, at.h, p.D);
    write_row(o, acc, sum > 0 ? 1.0f / sum : 0.0f, p.D);
    if (lane == 0)
        p.lse[((int64_t)at.b * p.H + at.h) * p.T + at.i] = sum > 0 ? top + logf(sum) : -INFINITY;
}

/* dq, and delta = dout . o on the way for the keys' kernel. */
template <typename T>
__global__ void attn_dq_plain_kernel(const __grid_constant__ struct attn_params p)
{
    __shared__ float q_rows[WARPS][DIMS * 32], d_rows[WARPS][DIMS * 32];
    struct query_at at = query_of_warp(p);
    if (!at.inside)
        return;
    int lane = threadIdx.x % 32, last = at.i + p.S - p.T, kv = at.h / p.group;
    int origin = attn_origin(p, at.b, at.i);
    float *q = q_rows[threadIdx.x / 32], *dout = d_rows[threadIdx.x / 32];
    float slope = attn_slope(p, at.h), capped, delta = 0;
    int64_t stat = ((int64_t)at.b * p.H + at.h) * p.T + at.i;
    const T *o = row_of<T>(p.o, p.ldo, p.T, at.b, at.i, at.h, p.D);
    stage(q, row_of<T>(p.q, p.ldq, p.T, at.b, at.i, at.h, p.D), p.D);
    stage(dout, row_of<T>(p.dout, p.ldo, p.T, at.b, at.i, at.h, p.D), p.D);
    for (int d = lane; d < p.D; d += 32)
        delta += dout[d] * to_float(o[d]);
    delta = warp_sum(delta);
    if (lane == 0)
        p.delta[stat] = delta;
    float acc[DIMS] = {0}, lse = p.lse[stat];
    for (int first = attn_first(p, at.b, at.i); first <= last; first += 32) {
        int key = first + lane, count = min(32, last - first + 1);
        float ds = 0;
        if (key <= last) {
            float dot = dot_row(q, row_of<T>(p.k, p.ldk, p.S, at.b, key, kv, p.D), p.D);
            float prob = expf(attn_score_any(p, slope, dot, key, last, origin, &capped) - lse);
            float dp = dot_row(dout, row_of<T>(p.v, p.ldv, p.S, at.b, key, kv, p.D), p.D);
            dp *= attn_factor(p, at.b, at.h, at.i, key);
            ds = prob * (dp - delta) * attn_cap_slope(p, capped);
        }
        add_rows(acc, ds, row_of<T>(p.k, p.ldk, p.S, at.b, first, kv, p.D), p.ldk, count, p.D);
    }
    write_row((T *)row_of<T>(p.dq, p.ldq, p.T, at.b, at.i, at.h, p.D), acc, p.scale, p.D);
}

template <typename T>
__global__ void attn_dkv_plain_kernel(const __grid_constant__ struct attn_params p)
{
    __shared__ float k_rows[WARPS][DIMS * 32], v_rows[WARPS][DIMS * 32];
    int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (at >= (int64_t)p.B * p.KV * p.S)
        return;
    int lane = threadIdx.x % 32, key = (int)(at % p.S), kv = (int)(at / p.S % p.KV);
    int b = (int)(at / p.S / p.KV);
    float *k = k_rows[threadIdx.x / 32], *v = v_rows[threadIdx.x / 32], capped;
    stage(k, row_of<T>(p.k, p.ldk, p.S, b, key, kv, p.D), p.D);
    stage(v, row_of<T>(p.v, p.ldv, p.S, b, key, kv, p.D), p.D);
    float dk[DIMS] = {0}, dv[DIMS] = {0};
    for (int h = kv * p.group; h < (kv + 1) * p.group; h++) {
        float slope = attn_slope(p, h);
        /* T == S: query i sees keys up to i. */
        for (int first = key; first < p.T; first += 32) {
            int i = first + lane, count = min(32, p.T - first);
            float ds = 0, weight = 0;
            if (i < p.T && attn_first(p, b, i) <= key) {
                int64_t stat = ((int64_t)b * p.H + h) * p.T + i;
                float dot = dot_row(k, row_of<T>(p.q, p.ldq, p.T, b, i, h, p.D), p.D);
                int origin = attn_origin(p, b, i);
                float prob =
                    expf(attn_score_any(p, slope, dot, key, i, origin, &capped) - p.lse[stat]);
                float dp = dot_row(v, row_of<T>(p.dout, p.ldo, p.T, b, i, h, p.D), p.D);
                float factor = attn_factor(p, b, h, i, key);
                weight = prob * factor;
                ds = prob * (dp * factor - p.delta[stat]) * attn_cap_slope(p, capped);
            }
            add_rows(dk, ds, row_of<T>(p.q, p.ldq, p.T, b, first, h, p.D), p.ldq, count, p.D);
            add_rows(dv, weight, row_of<T>(p.dout, p.ldo, p.T, b, first, h, p.D), p.ldo, count,
                     p.D);
        }
    }
    write_row((T *)row_of<T>(p.dk, p.ldk, p.S, b, key, kv, p.D), dk, p.scale, p.D);
    write_row((T *)row_of<T>(p.dv, p.ldv, p.S, b, key, kv, p.D), dv, 1.0f, p.D);
}

template <typename T> static int attn_fwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    int64_t warps = a->B * a->H * a->T;
    if (warps == 0)
        return 0;
    attn_fwd_plain_kernel<T><<<(unsigned)ceil_div(warps, WARPS), WARPS * 32, 0, s>>>(p);
    return launch_status();
}

template <typename T> static int attn_bwd(cudaStream_t s, const struct attn_args *a)
{
    struct attn_params p = attn_resolve(a);
    int64_t queries = a->B * a->H * a->T, keys = a->B * a->KV * a->S;
    if (queries == 0)
        return 0;
    attn_dq_plain_kernel<T><<<(unsigned)ceil_div(queries, WARPS), WARPS * 32, 0, s>>>(p);
    attn_dkv_plain_kernel<T><<<(unsigned)ceil_div(keys, WARPS), WARPS * 32, 0, s>>>(p);
    return launch_status();
}

extern "C" int launch_attn_fwd_plain(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return DISPATCH_REAL(real, attn_fwd, s, a);
}

extern "C" int launch_attn_bwd_plain(cudaStream_t s, enum dtype real, const struct attn_args *a)
{
    return DISPATCH_REAL(real, attn_bwd, s, a);
}

extern "C" size_t workspace_attn_bwd_plain(const struct attn_args *a)
{
    return (size_t)(a->B * a->H * a->T) * sizeof(float);
}

KERNELS_OF(attn_plain, attn_fwd_plain_kernel<float>)
