/*
 * What the kernels of attn_fwd.cu and attn_bwd.cu share: blocks of four warps whose rows are
 * queries or keys of one head, walking over tiles of the other, two of them deep in shared memory.
 * A warp owns 16 MT rows; of an accumulator's 8 columns a thread has two, in rows `half` = 0 and 1,
 * eight apart (mma.cuh).
 */
#ifndef CASTOR_KERNELS_CUDA_ATTN_TILES_CUH
#define CASTOR_KERNELS_CUDA_ATTN_TILES_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

enum { WARPS = 4, THREADS = WARPS * 32 };

/* The two tiles of keys and of values of a block of queries. S: a shape with D, BN and KV, the
 * elements of a tile. */
template <typename T> struct key_tiles {
    const T *k, *v;     /* of the head in memory     */
    T *k_tile, *v_tile; /* of stage 0; the other one lies behind */
};

template <typename T>
__device__ __forceinline__ struct key_tiles<T> key_tiles_of(const struct attn_params &p, int b,
                                                            int kv, T *k_tile, T *v_tile) {
    return {(const T *)p.k + (int64_t)b * p.S * p.ldk + (int64_t)kv * p.D,
            (const T *)p.v + (int64_t)b *p.S *p.ldv + (int64_t)kv *p.D, k_tile, v_tile};
}

template <typename T, typename S>
__device__ __forceinline__ void key_tiles_fetch(const struct key_tiles<T> &t,
                                                const struct attn_params &p, int tile, int stage)
{
    tile_load<T, S::BN, S::D, THREADS>(t.k_tile + stage * S::KV, t.k, p.ldk, tile * S::BN, p.S,
                                       p.D);
    tile_load<T, S::BN, S::D, THREADS>(t.v_tile + stage * S::KV, t.v, p.ldv, tile * S::BN, p.S,
                                       p.D);
}

/* Wait for the tile that was fetched last, and fetch the next one where there is one. */
template <typename T, typename S>
__device__ __forceinline__ void key_tiles_advance(const struct key_tiles<T> &t,
                                                  const struct attn_params &p, int tile,
                                                  int tile_end, int stage)
{
    copy_wait<0>();
    __syncthreads(); /* this tile is there, and nobody reads the other stage any more */
    if (tile + 1 < tile_end)
        key_tiles_fetch<T, S>(t, p, tile + 1, stage ^ 1);
    copy_commit();
}

/* f(m, half, row) for each row of which the calling thread holds a part; the warp's first is row0.
 */
template <int MT, typename F> __device__ __forceinline__ void each_row(int row0, F f)
{
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            f(m, half, row0 + m * 16 + half * 8 + threadIdx.x % 32 / 4);
    }
}

/* f(n, e, column) for each element that the thread holds of one of its rows, COLUMNS wide. */
template <int COLUMNS, typename F>
__device__ __forceinline__ void each_column(int column0, int half, F f)
{
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++)
            f(n, e, column0 + n * 8 + threadIdx.x % 4 * 2 + e % 2);
    }
}

/* Write the two elements that a thread holds of a row, scaled: columns from column0, those from
 * `width` on left out. */
template <typename T, int COLUMNS>
__device__ __forceinline__ void row_store(T *to, int column0, int width, int half, float scale,
                                          const float (&acc)[COLUMNS / 8][4])
{
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
        int c = column0 + n * 8 + threadIdx.x % 4 * 2;
        if (c < width)
            *(uint32_t *)(to + c) =
                pack2<T>(acc[n][half * 2] * scale, acc[n][half * 2 + 1] * scale);
    }
}

template <typename K>
static int launch_shaped(cudaStream_t s, K kernel, dim3 grid, size_t bytes,
                         const struct attn_params &p)
{
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) !=
        cudaSuccess)
        return launch_status();
    kernel<<<grid, THREADS, bytes, s>>>(p);
    return launch_status();
}

#endif
