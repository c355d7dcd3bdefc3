/*
 * Cross entropy and its gradient in place over logits (N, V), rows ldl apart: a block a row, one
 * pass for the online maximum and sum (Milakov, Gimelshein, "Online normalizer calculation for
 * softmax", 2018), a second that writes the gradient. Between them a row of up to 112 KiB waits in
 * shared memory, two blocks a multiprocessor; a longer one is read again. row_loss and row_correct
 * are assigned. Any V, stride and alignment: the elements before the first and after the last
 * 16-byte boundary of a row are done one by one.
 */
#include "kernels/cuda/common.cuh"

enum { THREADS = 1024, MAX_STAGE = 112 << 10 };

struct partial_sum { /* sum of exp(z - max) over what was seen */
    float max, sum;
};

template <typename T> __device__ __forceinline__ float exp_of(float x)
{
    return sizeof(T) == 2 ? __expf(x) : expf(x);
}

template <typename T>
__device__ __forceinline__ struct partial_sum merge(struct partial_sum a, struct partial_sum b)
{
    struct partial_sum r;
    r.max = fmaxf(a.max, b.max);
    /* An empty part has max -inf: its weight must be 0, not NaN. */
    float wa = a.max == r.max ? 1.0f : exp_of<T>(a.max - r.max);
    float wb = b.max == r.max ? 1.0f : exp_of<T>(b.max - r.max);
    r.sum = a.sum * wa + b.sum * wb;
    return r;
}

struct z_map { /* z = softcap(logit * scale) */
    float scale, cap, inv_cap;
};

static __device__ __forceinline__ float z_of(const struct z_map &m, float logit)
{
    float z = logit * m.scale;
    return m.cap > 0 ? m.cap * tanhf(z * m.inv_cap) : z;
}

static __device__ __forceinline__ float z_slope(const struct z_map &m, float z)
{
    float t = z * m.inv_cap;
    return m.cap > 0 ? 1.0f - t * t : 1.0f;
}

/* Call f(i, value) on every element of the row that is this thread's. WRITE stores what f returns.
 * `stage`, or NULL, keeps the packs of the row between two passes: one that does not write fills
 * it, one that does reads it. Each thread meets its own packs again, so no barrier is needed. */
template <bool WRITE, typename T, typename F>
__device__ __forceinline__ void for_row(T *row, int64_t V, uint4 *stage, F f)
{
    constexpr int W = pack<T>::N;
    int64_t head = (int64_t)((16 - ((uintptr_t)row & 15)) & 15) / (int64_t)sizeof(T);
    if (head > V)
        head = V;
    int packs = (int)((V - head) / W);
    int64_t tail = head + (int64_t)packs * W;
    if ((int64_t)threadIdx.x < head) {
        float v = f((int64_t)threadIdx.x, to_float(row[threadIdx.x]));
        if (WRITE)
            row[threadIdx.x] = from_float<T>(v);
    }
    for (int p = threadIdx.x; p < packs; p += THREADS) {
        pack<T> x;
        T *at = row + head + (int64_t)p * W;
        x.bits = WRITE && stage ? stage[p] : *reinterpret_cast<const uint4 *>(at);
        if (!WRITE && stage)
            stage[p] = x.bits;
#pragma unroll
        for (int j = 0; j < W; j++)
            x.v[j] = from_float<T>(f(head + (int64_t)p * W + j, to_float(x.v[j])));
        if (WRITE)
            *reinterpret_cast<uint4 *>(at) = x.bits;
    }
    if (tail + (int64_t)threadIdx.x < V) {
        int64_t i = tail + threadIdx.x;
        float v = f(i, to_float(row[i]));
        if (WRITE)
            row[i] = from_float<T>(v);
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
    loss_kernel(const __grid_constant__ struct loss_args a, struct z_map map, int staged)
{
    extern __shared__ uint4 row_stage[];
    __shared__ struct partial_sum parts[32];
    int64_t n = blockIdx.x, V = a.V;
    T *row = (T *)a.logits + n * (a.ldl ? a.ldl : V);
    int64_t target = a.targets[n];
    uint4 *stage = staged ? row_stage : NULL;
    if (target < 0) {
        if (threadIdx.x == 0) {
            ((float *)a.row_loss)[n] = 0;
            a.row_correct[n] = 0;
        }
        if (a.grad_scale)
            for_row<true>(row, V, NULL, [](int64_t, float) { return 0.0f; });
        return;
    }
    float at_target = to_float(row[target]);
    struct partial_sum mine = {-INFINITY, 0.0f};
    int beaten = 0;
    for_row<false>(row, V, stage, [&](int64_t i, float x) {
        float z = z_of(map, x);
        if (z > mine.max) {
            mine.sum *= exp_of<T>(mine.max - z);
            mine.max = z;
        }
        mine.sum += exp_of<T>(z - mine.max);
        beaten |= x > at_target || (x == at_target && i < target);
        return x;
    });
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        struct partial_sum other = {__shfl_xor_sync(FULL_WARP, mine.max, offset),
                                    __shfl_xor_sync(FULL_WARP, mine.sum, offset)};
        mine = merge<T>(mine, other);
    }
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = mine;
    beaten = __syncthreads_or(beaten); /* also the barrier before `parts` is read */
    struct partial_sum all = parts[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; w++)
        all = merge<T>(all, parts[w]);
    float inverse = 1.0f / all.sum;
    if (threadIdx.x == 0) {
        ((float *)a.row_loss)[n] = logf(all.sum) + (all.max - z_of(map, at_target));
        a.row_correct[n] = !beaten;
    }
    if (!a.grad_scale)
        return;
    float scale = *a.grad_scale * map.scale;
    for_row<true>(row, V, stage, [&](int64_t i, float x) {
        float z = z_of(map, x);
        return (exp_of<T>(z - all.max) * inverse - (i == target ? 1.0f : 0.0f)) * scale *
               z_slope(map, z);
    });
}

template <typename T> static int loss(cudaStream_t s, const struct loss_args *a)
{
    struct z_map map = {a->logit_scale, a->softcap, a->softcap > 0 ? 1.0f / a->softcap : 0.0f};
    if (a->N == 0)
        return 0;
    size_t bytes = (size_t)a->V * sizeof(T);
    if (!a->grad_scale || bytes > MAX_STAGE)
        bytes = 0;
    else if (cudaFuncSetAttribute(loss_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  MAX_STAGE) != cudaSuccess)
        return launch_status();
    loss_kernel<T><<<(unsigned)a->N, THREADS, bytes, s>>>(*a, map, bytes > 0);
    return launch_status();
}

extern "C" int launch_loss(cudaStream_t s, enum dtype real, const struct loss_args *a)
{
    return DISPATCH_REAL(real, loss, s, a);
}
