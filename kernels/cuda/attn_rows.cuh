/*
 * What a warpgroup of Hopper's attention does with its 64 rows: products of rows that it keeps with
 * tiles of shared memory, sums over tiles, the pairs that dropout keeps, stores. Tiles are panels
 * (wgmma.cuh) at 32-bit addresses of shared memory.
 */
#ifndef CASTOR_KERNELS_CUDA_ATTN_ROWS_CUH
#define CASTOR_KERNELS_CUDA_ATTN_ROWS_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { GROUP = 128 }; /* threads of a warpgroup */

/* Barrier of two warpgroups. */
static __device__ __forceinline__ void pair_sync()
{
    WGMMA_ASM("bar.sync 1, %0;" ::"n"(2 * GROUP) : "memory");
}

static __device__ __forceinline__ void shared_write4(uint32_t to, const float (&x)[4])
{
    WGMMA_ASM("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]),
              "f"(x[3])
              : "memory");
}

static __device__ __forceinline__ void shared_read4(float (&x)[4], uint32_t from)
{
    WGMMA_ASM("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
              : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
              : "r"(from)
              : "memory");
}

/* --- 64 rows of D that a warpgroup keeps as A operand, in registers or in shared memory; there
 * they are part of a tile of PANEL rows --- */

template <int D, int PANEL, bool REGISTERS> struct kept_rows {
    uint32_t a[D / 16][4];
};
template <int D, int PANEL> struct kept_rows<D, PANEL, false> {
    uint32_t tile;
};

/* The calling warpgroup's rows of a tile are those from address `rows` on. */
template <int D, int PANEL>
__device__ __forceinline__ void kept_take(kept_rows<D, PANEL, true> &k, uint32_t rows)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % GROUP / 32 * 16 + lane % 16;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        int chunk = kk % 4 * 2 + lane / 16;
        ldmatrix4_at(k.a[kk], rows + kk / 4 * PANEL * 128 + row * 128 + ((chunk ^ row) & 7) * 16);
    }
}

template <int D, int PANEL>
__device__ __forceinline__ void kept_take(kept_rows<D, PANEL, false> &k, uint32_t rows)
{
    k.tile = rows;
}

/* s (64, N) = kept rows times the transpose of a tile of N rows. */
template <typename T, int D, int N, int PANEL>
__device__ __forceinline__ void kept_product(float (&s)[N / 8][4],
                                             const kept_rows<D, PANEL, true> &k, uint32_t tile)
{
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
        wgmma_rows<T, N>(s, k.a[kk],
                         panel_descriptor(tile + kk / 4 * N * 128 + kk % 4 * 32, 1024, 16), kk > 0);
}

template <typename T, int D, int N, int PANEL>
__device__ __forceinline__ void kept_product(float (&s)[N / 8][4],
                                             const kept_rows<D, PANEL, false> &k, uint32_t tile)
{
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
        wgmma_rows<T, N>(s, panel_descriptor(k.tile + kk / 4 * PANEL * 128 + kk % 4 * 32, 1024, 16),
                         panel_descriptor(tile + kk / 4 * N * 128 + kk % 4 * 32, 1024, 16), kk > 0);
}

/* acc (64, D) += a (64, N) times a tile of N rows of D. */
template <typename T, int D, int N>
__device__ __forceinline__ void tile_sum(float (&acc)[D / 8][4], const uint32_t (&a)[N / 16][4],
                                         uint32_t tile)
{
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++)
        wgmma_columns<T, D>(acc, a[kk], panel_descriptor(tile + kk * 16 * 128, 1024, N * 128));
}

template <typename T, int N>
__device__ __forceinline__ void pack_operand(uint32_t (&a)[N / 16][4], const float (&s)[N / 8][4])
{
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++)
        acc_to_a<T>(a[kk], s[kk * 2], s[kk * 2 + 1]);
}

template <int N> __device__ __forceinline__ void rows_clear(float (&acc)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
}

/* Each half's rows times its own factor. */
template <int N>
__device__ __forceinline__ void rows_scale(float (&acc)[N][4], const float (&scale)[2])
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            acc[n][e] *= scale[e / 2];
    }
}

/* Four lanes exchange words, so that lane q of them has all words q, in the order of the lanes. */
static __device__ __forceinline__ void quad_transpose(uint32_t (&w)[4])
{
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        bool high = threadIdx.x & bit;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int low_word = i * (3 - bit), high_word = low_word + bit;
            uint32_t got = __shfl_xor_sync(FULL_WARP, high ? w[low_word] : w[high_word], bit);
            w[low_word] = high ? got : w[low_word];
            w[high_word] = high ? w[high_word] : got;
        }
    }
}

/* Write a warpgroup's 64 rows from row `first` on, each half's rows scaled by its own factor, 16
 * bytes a lane. */
template <typename T, int D>
__device__ __forceinline__ void rows_store(T *base, int64_t ld, int first, int rows, int width,
                                           const float (&scale)[2], const float (&acc)[D / 8][4])
{
    int lane = threadIdx.x % 32, row = first + threadIdx.x % GROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        T *to = base + (int64_t)r * ld;
#pragma unroll
        for (int n = 0; n < D / 8; n += 4) {
            int column = (n + lane % 4) * 8;
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                w[i] = pack2<T>(acc[n + i][half * 2] * scale[half],
                                acc[n + i][half * 2 + 1] * scale[half]);
            quad_transpose(w);
            if (r < rows && column < width)
                *(uint4 *)(to + column) = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
}

/* --- dropout: which of the 32 pairs that a thread holds of a 64x64 tile are kept, a bit each.
 * Eight neighbouring keys share one block of random numbers (S and `first` are multiples of 8), so
 * each thread makes four for its warp and the bits change hands. --- */

/* Bit j: whether the pair of query i and key + j is kept; key is a multiple of 8. */
static __device__ __forceinline__ uint32_t dropout_group(const struct attn_params &p, int b, int h,
                                                         int i, int key)
{
    struct rng_block block =
        rng_draw4(p.dropout.stream, attn_index(p, b, h, i, key) / DROPOUT_GROUP);
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < DROPOUT_GROUP; j++)
        bits |= (uint32_t)(dropout_number(&block, j) >= p.dropout.threshold) << j;
    return bits;
}

/* Rows are queries, the thread's first `row`; columns are keys from `key0`. Lane 2 h + c of a quad
 * draws half h of its rows, n from 4 c on. */
static __device__ __forceinline__ uint32_t dropout_bits_rows(const struct attn_params &p, int b,
                                                             int h, int row, int key0)
{
    int lane = threadIdx.x % 32, i = row + lane % 4 / 2 * 8, key = key0 + lane % 2 * 32;
    uint32_t own = 0, bits = 0;
#pragma unroll
    for (int n = 0; n < 4; n++)
        own |= dropout_group(p, b, h, i, key + n * 8) << n * 8;
#pragma unroll
    for (int from = 0; from < 4; from++) {
        uint32_t word = __shfl_sync(FULL_WARP, own, (lane & ~3) | from);
        bits |= (word >> lane % 4 * 2 & 0x03030303u) << (from % 2 * 4 + from / 2 * 2);
    }
    return bits;
}

/* x where the element e of n is kept, else 0. */
static __device__ __forceinline__ float kept_of_rows(uint32_t bits, int n, int e, float x)
{
    return bits >> (n % 4 * 8 + n / 4 * 4 + e) & 1 ? x : 0.0f;
}

/* Rows are keys, the thread's first `key`; columns are queries from `row0`. Of the eight lanes that
 * share columns, lane l draws those of n = l. */
static __device__ __forceinline__ uint32_t dropout_bits_columns(const struct attn_params &p, int b,
                                                                int h, int row0, int key)
{
    int lane = threadIdx.x % 32, mine = lane / 4, i = row0 + mine * 8 + lane % 4 * 2;
    uint32_t own = 0, bits = 0;
#pragma unroll
    for (int e = 0; e < 4; e++)
        own |= dropout_group(p, b, h, i + e % 2, key - mine + e / 2 * 8) << e * 8;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        uint32_t word = __shfl_sync(FULL_WARP, own, n * 4 | lane % 4);
        bits |= (word >> mine & 0x01010101u) << n;
    }
    return bits;
}

static __device__ __forceinline__ float kept_of_columns(uint32_t bits, int n, int e, float x)
{
    return bits >> (e * 8 + n) & 1 ? x : 0.0f;
}

#endif
