/*
 * Tensor-core tiles for 16-bit types: the m16n8k16 product with float32 accumulators, the
 * shared-memory loads that feed it, and asynchronous copies into shared memory (PTX ISA,
 * "Warp-level matrix instructions", "cp.async"). Works on sm_80 and later.
 *
 * Tiles in shared memory are rows of D elements, rows D + 8 apart: 16 bytes of padding make eight
 * consecutive rows fall into different banks.
 */
#ifndef CASTOR_KERNELS_CUDA_MMA_CUH
#define CASTOR_KERNELS_CUDA_MMA_CUH

#include "kernels/cuda/common.cuh"

/* The instructions exist from sm_80 on; before it these functions are never called. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define MMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define MMA_ASM(...) __trap()
#endif

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void ldmatrix4_at(uint32_t (&r)[4], uint32_t row)
{
    MMA_ASM("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
            : "r"(row));
}

static __device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], const void *row)
{
    ldmatrix4_at(r, shared_address(row));
}

static __device__ __forceinline__ void ldmatrix4_trans(uint32_t (&r)[4], const void *row)
{
    MMA_ASM("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
            : "r"(shared_address(row)));
}

/* acc (16, 8) += a (16, 16) b (16, 8). */
template <typename T>
__device__ __forceinline__ void mma16816(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1);
template <>
__device__ __forceinline__ void mma16816<__nv_bfloat16>(float (&acc)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1)
{
    MMA_ASM("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma16816<__half>(float (&acc)[4], const uint32_t (&a)[4],
                                                 uint32_t b0, uint32_t b1)
{
    MMA_ASM("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T> __device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <> __device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&v);
}
template <> __device__ __forceinline__ uint32_t pack2<__half>(float lo, float hi)
{
    __half2 v = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&v);
}

/* 16 bytes from global to shared memory, or zeros. */
static __device__ __forceinline__ void copy16_async(void *to, const void *from, bool inside)
{
    MMA_ASM("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
            "r"(inside ? 16 : 0)
            : "memory");
}

/* 4 bytes, or zeros. */
static __device__ __forceinline__ void copy4_async(void *to, const void *from, bool inside)
{
    MMA_ASM("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
            "r"(inside ? 4 : 0)
            : "memory");
}

static __device__ __forceinline__ void copy_commit()
{
    MMA_ASM("cp.async.commit_group;" ::: "memory");
}

/* Wait until at most N of the groups committed last are under way. */
template <int N> __device__ __forceinline__ void copy_wait()
{
    MMA_ASM("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

template <int D> struct tile_row {
    static constexpr int STRIDE = D + 8;
};

/* Queue the copy of ROWS rows (first, first + 1, ...; rows outside [0, rows) and columns from
 * `width` on become zeros) of a matrix whose rows are ld apart. */
template <typename T, int ROWS, int D, int THREADS>
__device__ __forceinline__ void tile_load(T *tile, const T *base, int64_t ld, int first, int rows,
                                          int width)
{
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int at = threadIdx.x; at < ROWS * CHUNKS; at += THREADS) {
        int r = at / CHUNKS, c = at % CHUNKS * 8, row = first + r;
        bool inside = row >= 0 && row < rows && c < width;
        const T *from = inside ? base + row * ld + c : base;
        copy16_async(tile + r * tile_row<D>::STRIDE + c, from, inside);
    }
}

/* A operand: 16 rows from `row`, 16 columns from `k`, of a tile of rows of D. */
template <typename T, int D>
__device__ __forceinline__ void tile_a(uint32_t (&a)[4], const T *tile, int row, int k)
{
    int lane = threadIdx.x % 32;
    ldmatrix4(a, tile + (row + lane % 16) * tile_row<D>::STRIDE + k + lane / 16 * 8);
}

/* B operands of two neighbouring n8 tiles, for products with the tile's transpose: n = tile rows
 * from `n`, k = columns from `k`. b[0], b[1] belong to the first, b[2], b[3] to the second. */
template <typename T, int D>
__device__ __forceinline__ void tile_b(uint32_t (&b)[4], const T *tile, int n, int k)
{
    int lane = threadIdx.x % 32;
    ldmatrix4(b,
              tile + (n + lane / 16 * 8 + lane % 8) * tile_row<D>::STRIDE + k + lane / 8 % 2 * 8);
}

/* The same for products with the tile itself: k = tile rows from `k`, n = columns from `n`. */
template <typename T, int D>
__device__ __forceinline__ void tile_b_trans(uint32_t (&b)[4], const T *tile, int k, int n)
{
    int lane = threadIdx.x % 32;
    ldmatrix4_trans(b, tile + (k + lane % 16) * tile_row<D>::STRIDE + n + lane / 16 * 8);
}

/* The A operand made of two neighbouring accumulators: their 16 columns become its k. */
template <typename T>
__device__ __forceinline__ void acc_to_a(uint32_t (&a)[4], const float (&lo)[4],
                                         const float (&hi)[4])
{
    a[0] = pack2<T>(lo[0], lo[1]);
    a[1] = pack2<T>(lo[2], lo[3]);
    a[2] = pack2<T>(hi[0], hi[1]);
    a[3] = pack2<T>(hi[2], hi[3]);
}

template <int M, int N> __device__ __forceinline__ void acc_clear(float (&acc)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                acc[m][n][e] = 0;
        }
    }
}

/* acc (16 MT, BN) += a_tile rows from `row` times b_tile's transpose, over D. */
template <typename T, int MT, int BN, int D>
__device__ __forceinline__ void tile_product(float (&acc)[MT][BN / 8][4], const T *a_tile, int row,
                                             const T *b_tile)
{
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
            tile_a<T, D>(a[m], a_tile, row + m * 16, k);
#pragma unroll
        for (int n = 0; n < BN; n += 16) {
            uint32_t b[4];
            tile_b<T, D>(b, b_tile, n, k);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma16816<T>(acc[m][n / 8], a[m], b[0], b[1]);
                mma16816<T>(acc[m][n / 8 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* acc (16 MT, DOUT) += x (16 MT, BN), rounded to T, times columns column0.. of b_tile (BN, D). */
template <typename T, int MT, int BN, int D, int DOUT>
__device__ __forceinline__ void tile_accumulate(float (&acc)[MT][DOUT / 8][4],
                                                const float (&x)[MT][BN / 8][4], const T *b_tile,
                                                int column0)
{
#pragma unroll
    for (int k = 0; k < BN; k += 16) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
            acc_to_a<T>(a[m], x[m][k / 8], x[m][k / 8 + 1]);
#pragma unroll
        for (int n = 0; n < DOUT; n += 16) {
            uint32_t b[4];
            tile_b_trans<T, D>(b, b_tile, k, column0 + n);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma16816<T>(acc[m][n / 8], a[m], b[0], b[1]);
                mma16816<T>(acc[m][n / 8 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Sum and maximum over the four lanes that share a row of an accumulator. */
static __device__ __forceinline__ float quad_sum(float x)
{
    return warp_sum<4>(x);
}
static __device__ __forceinline__ float quad_max(float x)
{
    return warp_max<4>(x);
}

#endif
