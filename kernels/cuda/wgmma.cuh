/*
 * Hopper's warpgroup products (PTX ISA, "Asynchronous warpgroup level matrix instructions",
 * sm_90a): 64 rows of four warps times a B operand in shared memory, A in shared memory or
 * registers, float32 accumulators laid out as those of mma.cuh, a warp's 16 rows each.
 *
 * Tiles in shared memory: panels of 64 columns (128 bytes a row), the 16-byte chunks of a row
 * exchanged by the row's number modulo 8, as the 128-byte swizzle wants it; panels are 1024-byte
 * aligned.
 */
#ifndef CASTOR_KERNELS_CUDA_WGMMA_CUH
#define CASTOR_KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/mma.cuh"

/* The instructions exist for sm_90a alone; elsewhere these functions are never called. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define WGMMA_ASM(...) __trap()
#endif

/* A tile's descriptor; strides in bytes between the 8-row groups of a panel, and between panels
 * where the operand runs over several. */
static __device__ __forceinline__ uint64_t panel_descriptor(uint32_t tile, int group_stride,
                                                            int panel_stride)
{
    uint32_t low = tile >> 4 | (uint32_t)(panel_stride >> 4) << 16; /* addresses have 18 bits */
    return low | (uint64_t)((uint32_t)(group_stride >> 4) | 1u << 30) << 32;
}

/* Shared memory read or written by this thread so far comes before the asynchronous reads and
 * writes behind a barrier that follows. */
static __device__ __forceinline__ void wgmma_publish()
{
    WGMMA_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_begin()
{
    WGMMA_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_commit()
{
    WGMMA_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Wait until at most N of the groups committed last are under way. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    WGMMA_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Keeps the compiler from moving uses of an accumulator across this place: to follow wgmma_wait. */
template <int N> __device__ __forceinline__ void acc_settle(float (&acc)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            asm volatile("" : "+f"(acc[n][e])::"memory");
    }
}

/* acc (64, N) = or += A B^T with A (64, 16) and B (N, 16), both rows of 16 columns in memory. */
template <typename T, int N>
__device__ __forceinline__ void wgmma_rows(float (&acc)[N / 8][4], uint64_t a, uint64_t b, int add);

/* The same with A in registers. */
template <typename T, int N>
__device__ __forceinline__ void wgmma_rows(float (&acc)[N / 8][4], const uint32_t (&a)[4],
                                           uint64_t b, int add);

/* acc (64, N) += A B with A (64, 16) in registers and B (16, N) rows of N columns in memory. */
template <typename T, int N>
__device__ __forceinline__ void wgmma_columns(float (&acc)[N / 8][4], const uint32_t (&a)[4],
                                              uint64_t b);

#define ACC4(i)  "+f"(acc[i][0]), "+f"(acc[i][1]), "+f"(acc[i][2]), "+f"(acc[i][3])
#define ACC16(i) ACC4(i), ACC4(i + 1), ACC4(i + 2), ACC4(i + 3)
#define ACC_64   ACC16(0), ACC16(4)
#define ACC_128  ACC_64, ACC16(8), ACC16(12)
#define NAMES_64                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_128                                                                                  \
    NAMES_64 ", "                                                                                  \
             "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "    \
             "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* TYPE is T's name in the instruction; N0 to N5 are the numbers of the operands behind the
 * accumulators. */
#define WGMMA_DEFINE(T, TYPE, N, N0, N1, N2, N3, N4, N5)                                           \
    template <>                                                                                    \
    __device__ __forceinline__ void wgmma_rows<T, N>(float(&acc)[N / 8][4], uint64_t a,            \
                                                     uint64_t b, int add)                          \
    {                                                                                              \
        WGMMA_ASM("{.reg .pred p; setp.ne.b32 p, %" #N2 ", 0;\n"                                   \
                  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES_##N   \
                  "}, %" #N0 ", %" #N1 ", p, 1, 1, 0, 0;}"                                         \
                  : ACC_##N                                                                        \
                  : "l"(a), "l"(b), "r"(add));                                                     \
    }                                                                                              \
    template <>                                                                                    \
    __device__ __forceinline__ void wgmma_rows<T, N>(float(&acc)[N / 8][4], const uint32_t(&a)[4], \
                                                     uint64_t b, int add)                          \
    {                                                                                              \
        WGMMA_ASM("{.reg .pred p; setp.ne.b32 p, %" #N5 ", 0;\n"                                   \
                  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES_##N   \
                  "}, {%" #N0 ", %" #N1 ", %" #N2 ", %" #N3 "}, %" #N4 ", p, 1, 1, 0;}"            \
                  : ACC_##N                                                                        \
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                 \
    }                                                                                              \
    template <>                                                                                    \
    __device__ __forceinline__ void wgmma_columns<T, N>(float(&acc)[N / 8][4],                     \
                                                        const uint32_t(&a)[4], uint64_t b)         \
    {                                                                                              \
        WGMMA_ASM("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES_##N   \
                  "}, {%" #N0 ", %" #N1 ", %" #N2 ", %" #N3 "}, %" #N4 ", 1, 1, 1, 1;"             \
                  : ACC_##N                                                                        \
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                           \
    }

#define ACC_256 ACC_128, ACC16(16), ACC16(20), ACC16(24), ACC16(28)
#define NAMES_256                                                                                  \
    NAMES_128 ", "                                                                                 \
              "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "   \
              "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "   \
              "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "   \
              "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "     \
              "%123, %124, %125, %126, %127"

WGMMA_DEFINE(__nv_bfloat16, "bf16", 64, 32, 33, 34, 35, 36, 37)
WGMMA_DEFINE(__nv_bfloat16, "bf16", 128, 64, 65, 66, 67, 68, 69)
WGMMA_DEFINE(__half, "f16", 64, 32, 33, 34, 35, 36, 37)
WGMMA_DEFINE(__half, "f16", 128, 64, 65, 66, 67, 68, 69)
WGMMA_DEFINE(__nv_bfloat16, "bf16", 256, 128, 129, 130, 131, 132, 133)
WGMMA_DEFINE(__half, "f16", 256, 128, 129, 130, 131, 132, 133)

/* Registers of each thread of the calling warpgroup. */
template <int N> __device__ __forceinline__ void registers_raise()
{
    WGMMA_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void registers_lower()
{
    WGMMA_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

#endif
