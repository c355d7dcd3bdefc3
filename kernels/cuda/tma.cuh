/*
 * Hopper's tensor copies and the barriers that they complete on (PTX ISA, "mbarrier",
 * "cp.async.bulk.tensor", sm_90a). A copy is queued by one thread, costs the others nothing, and
 * its bytes count against the barrier's phase; what lies outside the tensor arrives as zeros.
 *
 * Barriers and tiles are 32-bit addresses of shared memory, so that what is computed from them
 * stays in uniform registers.
 */
#ifndef CASTOR_KERNELS_CUDA_TMA_CUH
#define CASTOR_KERNELS_CUDA_TMA_CUH

#include <cuda.h>

#include "kernels/cuda/wgmma.cuh"

static __device__ __forceinline__ void barrier_init(uint32_t bar, int arrivals)
{
    WGMMA_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}

/* Barriers that this thread has initialised become visible to the copies; a barrier must follow. */
static __device__ __forceinline__ void barrier_publish()
{
    WGMMA_ASM("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint32_t bar)
{
    WGMMA_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* Arrive, and have the phase wait for `bytes` of copies. */
static __device__ __forceinline__ void barrier_expect(uint32_t bar, int bytes)
{
    WGMMA_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
              : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint32_t bar, uint32_t phase)
{
    WGMMA_ASM("{\n.reg .pred p;\n"
              "again:\n"
              "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
              "@p bra done;\n"
              "bra again;\n"
              "done:\n}" ::"r"(bar),
              "r"(phase)
              : "memory");
}

/* Columns, head, row and batch from (column, head, row, b) on, as many as the map's box has. */
static __device__ __forceinline__ void tensor_fetch(uint32_t to, const CUtensorMap *map,
                                                    uint32_t bar, int column, int head, int row,
                                                    int b)
{
    WGMMA_ASM("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
              "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
              "l"(map), "r"(column), "r"(head), "r"(row), "r"(b), "r"(bar)
              : "memory");
}

/* A tile of ROWS rows of D: panels of 64 columns. */
template <int ROWS, int D>
__device__ __forceinline__ void tile_fetch(uint32_t tile, const CUtensorMap *map, uint32_t bar,
                                           int head, int row, int b)
{
#pragma unroll
    for (int c = 0; c < D; c += 64)
        tensor_fetch(tile + c * ROWS * 2, map, bar, c, head, row, b);
}

/* `bytes` in a row; both addresses and `bytes` multiples of 16. */
static __device__ __forceinline__ void bulk_fetch(uint32_t to, const void *from, int bytes,
                                                  uint32_t bar)
{
    WGMMA_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
              "[%0], [%1], %2, [%3];" ::"r"(to),
              "l"(from), "r"(bytes), "r"(bar)
              : "memory");
}

/* A tensor (B, T, H, D) of 16-bit elements, rows ld apart, in boxes of `rows` rows by 64 columns of
 * one head, laid out as panels (wgmma.cuh). Base and ld as the copies want them: multiples of 16
 * bytes. Returns 0 or an enum err_code. */
struct tensor_rows {
    const void *base;
    int B, T, H, D;
    int64_t ld;
};

static inline int tensor_map(CUtensorMap *map, bool bf16, const struct tensor_rows *t, int rows)
{
    /* Found at run time: the program starts on machines that have no driver. */
    void *encode = NULL;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                         cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
        return ERR_DEVICE;
    const cuuint64_t sizes[4] = {(cuuint64_t)t->D, (cuuint64_t)t->H, (cuuint64_t)t->T,
                                 (cuuint64_t)t->B};
    const cuuint64_t strides[3] = {(cuuint64_t)t->D * 2, (cuuint64_t)t->ld * 2,
                                   (cuuint64_t)t->T * (cuuint64_t)t->ld * 2};
    const cuuint32_t box[4] = {64, 1, (cuuint32_t)rows, 1}, steps[4] = {1, 1, 1, 1};
    CUresult rc = ((decltype(&cuTensorMapEncodeTiled))encode)(
        map, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
        (void *)t->base, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return rc == CUDA_SUCCESS ? 0 : ERR_DEVICE;
}

#endif
