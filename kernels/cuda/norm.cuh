/*
 * LayerNorm (Ba, Kiros, Hinton, 2016) and RMSNorm (Zhang, Sennrich, 2019), forward (norm_fwd.cu)
 * and backward (norm_bwd.cu): x (N, C). Rows live in registers up to C = 8192 (16-bit) or 4096
 * (float32) where C is a whole number of 16-byte packs and pointers are aligned; the rest takes the
 * strided kernels, any C.
 */
#ifndef CASTOR_KERNELS_CUDA_NORM_CUH
#define CASTOR_KERNELS_CUDA_NORM_CUH

#include "kernels/cuda/common.cuh"

enum { STRIDED = 256 }; /* threads of a strided kernel's block, which has one row */

/* Blocks of backward, hence partial rows of its column sums: a fixed number for each multiprocessor
 * of an H100. */
enum { PARTIALS = 264, MOST_PARTIALS = 2 * PARTIALS };

/* A row is shared by LANES threads, each holding ITERS packs; ROWS rows a block. */
template <typename T, int LANES, int ITERS> struct row_shape {
    static constexpr int W = pack<T>::N;
    static constexpr int ROWS = LANES == 32 ? 8 : 1;
    static constexpr int THREADS = LANES * ROWS;
    static constexpr int MAX_C = LANES * ITERS * W;
};

/* f(i, c) for each pack of its row that a thread holds: the i-th, at column c. */
template <typename T, int LANES, int ITERS, typename F>
__device__ __forceinline__ void each_pack(int C, F f)
{
#pragma unroll
    for (int i = 0; i < ITERS; i++) {
        int c = (i * LANES + threadIdx.x % LANES) * pack<T>::N;
        if (c < C)
            f(i, c);
    }
}

static __device__ __forceinline__ float weight_of(const struct norm_args &a, float w)
{
    return a.kind == NORM_RMS_PLUS_ONE ? 1.0f + w : w;
}

/* Whether rows are whole packs. */
static inline bool norm_is_wide(const struct norm_args *a, int W)
{
    return a->C % W == 0 && a->ld % W == 0 && aligned16(a->x) && aligned16(a->residual) &&
           aligned16(a->weight) && aligned16(a->bias) && aligned16(a->sum) && aligned16(a->y) &&
           aligned16(a->dy) && aligned16(a->dresidual) && aligned16(a->dx);
}

#endif
