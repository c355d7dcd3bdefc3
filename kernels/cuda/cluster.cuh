/*
 * Clusters of blocks (PTX ISA, "cluster", sm_90a): their barrier, stores into each other's shared
 * memory, and of pairs barriers of one that the other arrives at, and copies of matrices' boxes
 * into the shared memory of both. Beside tma.cuh, which it follows in all.
 */
#ifndef CASTOR_KERNELS_CUDA_CLUSTER_CUH
#define CASTOR_KERNELS_CUDA_CLUSTER_CUH

#include "kernels/cuda/tma.cuh"

/* --- clusters --- */

static __device__ __forceinline__ int cluster_rank()
{
    uint32_t rank = 0;
    WGMMA_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}

/* The two halves of a barrier of all threads of all blocks of the cluster. */
static __device__ __forceinline__ void cluster_arrive()
{
    WGMMA_ASM("barrier.cluster.arrive.release;" ::: "memory");
}

static __device__ __forceinline__ void cluster_wait()
{
    WGMMA_ASM("barrier.cluster.wait.acquire;" ::: "memory");
}

static __device__ __forceinline__ void cluster_sync()
{
    cluster_arrive();
    cluster_wait();
}

/* Store at this address in the shared memory of the cluster's block `rank`. */
static __device__ __forceinline__ void store_at(void *shared, int rank, uint4 x)
{
    WGMMA_ASM("{.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
              "st.shared::cluster.v4.b32 [there], {%2, %3, %4, %5};}" ::"r"(shared_address(shared)),
              "r"(rank), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
              : "memory");
}

/* --- barriers --- */

/* Arrive at the same barrier of the cluster's block `rank`. */
static __device__ __forceinline__ void barrier_arrive_at(uint32_t bar, int rank)
{
    WGMMA_ASM("{.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
              "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(bar),
              "r"(rank)
              : "memory");
}

/* --- copies of a map's box at (x, y), x being what lies together --- */

static __device__ __forceinline__ void matrix_fetch(void *to, const CUtensorMap *map, int x, int y,
                                                    uint32_t bar)
{
    WGMMA_ASM("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
              "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
              "l"(map), "r"(x), "r"(y), "r"(bar)
              : "memory");
}

/* Into the shared memory of both blocks of a pair, each of whose barriers is told. */
static __device__ __forceinline__ void matrix_fetch_pair(void *to, const CUtensorMap *map, int x,
                                                         int y, uint32_t bar)
{
    WGMMA_ASM("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
              ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
              "l"(map), "r"(x), "r"(y), "r"(bar), "h"((uint16_t)3)
              : "memory");
}

#endif
