/*
 * Gradient norm: sumsq writes one double for each SUMSQ_BLOCK elements of x (of the table's type
 * where narrow, else float32 and rounded to it on their way), assigned; clip adds them and derives
 * the factor of every gradient. A block of threads sums one SUMSQ_BLOCK in an order that depends on
 * nothing else, so a partial is the same wherever the tensor's piece lies. clip's additions have
 * the CPU's order, and so its roundings: a thread adds a group of partials, one thread the groups.
 *
 * Measured on an H100 80GB, 2026-11-22: sumsq 3,020 GB/s.
 */
#include "kernels/cuda/common.cuh"

enum { THREADS = 512, CLIP_THREADS = 512 };

/* T: the table's type; X: that of x. */
template <typename T, typename X, bool Wide>
__global__ void sumsq_kernel(int64_t n, const X *x, double *partial)
{
    __shared__ double scratch[THREADS / 32];
    int64_t first = (int64_t)blockIdx.x * SUMSQ_BLOCK;
    int count = (int)(n - first < SUMSQ_BLOCK ? n - first : SUMSQ_BLOCK);
    constexpr int W = pack<X>::N;
    double sum[4] = {0, 0, 0, 0};
    /* Thread t owns elements W t + {0..W} of every W * THREADS, aligned or not: same bits. */
#pragma unroll 4
    for (int i = threadIdx.x * W; i < count; i += THREADS * W) {
        float v[W] = {};
        if (Wide && i + W <= count) {
            load_pack(x + first + i, v);
        } else {
#pragma unroll
            for (int j = 0; j < W; j++) {
                if (i + j < count)
                    v[j] = to_float(x[first + i + j]);
            }
        }
#pragma unroll
        for (int j = 0; j < W; j++) {
            double x = (double)rounded<T>(v[j]);
            sum[j % 4] = fma(x, x, sum[j % 4]);
        }
    }
    double total = block_sum<THREADS>((sum[0] + sum[1]) + (sum[2] + sum[3]), scratch);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = total;
}

/* One block: thread t adds group t of every CLIP_THREADS, thread 0 the groups in their order. */
__global__ void clip_kernel(const __grid_constant__ struct clip_args a)
{
    __shared__ double part[2][CLIP_THREADS];
    int64_t groups = (a.n + CLIP_GROUP - 1) / CLIP_GROUP;
    double sum = 0;
    int side = 0;
    for (int64_t first = 0; first < groups; first += CLIP_THREADS, side ^= 1) {
        int64_t at = (first + threadIdx.x) * CLIP_GROUP;
        int count = (int)(a.n - at < CLIP_GROUP ? a.n - at : CLIP_GROUP);
        double group = 0;
#pragma unroll 16
        for (int i = 0; i < count; i++)
            group = __dadd_rn(group, a.partial[at + i]);
        part[side][threadIdx.x] = group;
        __syncthreads(); /* the other side is read only by thread 0, before this barrier */
        if (threadIdx.x == 0) {
            int here = (int)(groups - first < CLIP_THREADS ? groups - first : CLIP_THREADS);
#pragma unroll 8
            for (int i = 0; i < here; i++)
                sum = __dadd_rn(sum, part[side][i]);
        }
    }
    if (threadIdx.x != 0)
        return;
    struct clip_result r = {0, 0, 0, 0, 0};
    float inv_scale = a.loss_scale ? 1.0f / a.loss_scale->scale : 1.0f;
    r.norm = __dmul_rn(__dsqrt_rn(sum), (double)inv_scale);
    r.finite = isfinite(r.norm) ? 1 : 0;
    if (r.finite) {
        double ratio =
            a.max_norm > 0 ? __ddiv_rn((double)a.max_norm, __dadd_rn(r.norm, 1e-6)) : 1.0;
        r.clipped = ratio < 1;
        r.coef = r.clipped ? (float)__dmul_rn((double)inv_scale, ratio) : inv_scale;
    }
    *a.result = r;
    if (a.loss_scale)
        *a.loss_scale = loss_scale_after(*a.loss_scale, r.finite);
}

template <typename T, typename X> static int sumsq_of(cudaStream_t s, const struct sumsq_args *a)
{
    unsigned blocks = (unsigned)ceil_div(a->n, SUMSQ_BLOCK);
    const X *x = (const X *)a->x;
    if (blocks == 0)
        return 0;
    if (aligned16(x))
        sumsq_kernel<T, X, true><<<blocks, THREADS, 0, s>>>(a->n, x, a->partial);
    else
        sumsq_kernel<T, X, false><<<blocks, THREADS, 0, s>>>(a->n, x, a->partial);
    return launch_status();
}

template <typename T> static int sumsq(cudaStream_t s, const struct sumsq_args *a)
{
    return a->narrow ? sumsq_of<T, T>(s, a) : sumsq_of<T, float>(s, a);
}

extern "C" int launch_sumsq(cudaStream_t s, enum dtype real, const struct sumsq_args *a)
{
    return DISPATCH_REAL(real, sumsq, s, a);
}

extern "C" int launch_clip(cudaStream_t s, const struct clip_args *a)
{
    clip_kernel<<<1, CLIP_THREADS, 0, s>>>(*a);
    return launch_status();
}

KERNELS_OF(gradnorm, clip_kernel)
