/*
 * Embedding: out (N, C) = wte[token] * scale + wpe[position + offset], assigned; backward adds to
 * the float32 gradients dwte (V, C) and dwpe (P, C), rows in ascending order. Backward sorts the
 * row numbers by token (stable radix sort, CUB) so that one block owns all rows of a token and adds
 * them one after another: no atomics. Any C; 16-byte accesses where C and pointers allow them.
 *
 * Measured on an H100 80GB, 2026-11-22: bf16, 32768 x 768, forward 2,280, backward
 * 1,060 GB/s (its two sorts included).
 */
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/common.cuh"

enum { THREADS = 256, SUM_THREADS = 128, AHEAD = 8 };

template <typename T, int W> __device__ __forceinline__ void load_w(const T *p, float (&v)[W])
{
    if constexpr (W == 1)
        v[0] = to_float(*p);
    else
        load_pack(p, v);
}

template <typename T, int W>
__global__ void embed_fwd_kernel(const __grid_constant__ struct embed_args a)
{
    int64_t per_row = a.C / W, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= a.N * per_row)
        return;
    int64_t row = at / per_row, c = (at - row * per_row) * W;
    float v[W], p[W];
    load_w<T, W>((const T *)a.wte + a.tokens[row] * a.C + c, v);
    if (a.wpe)
        load_w<T, W>((const T *)a.wpe + (a.positions[row] + a.wpe_offset) * a.C + c, p);
#pragma unroll
    for (int i = 0; i < W; i++)
        v[i] = v[i] * a.scale + (a.wpe ? p[i] : 0.0f);
    T *out = (T *)a.out + row * a.C + c;
    if constexpr (W == 1)
        *out = from_float<T>(v[0]);
    else
        store_pack(out, v);
}

/* keys[i] = token or shifted position of row i, rows[i] = i. */
__global__ void embed_keys_kernel(int64_t N, const int32_t *index, int32_t offset, int32_t *keys,
                                  int32_t *rows)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < N) {
        keys[i] = index[i] + offset;
        rows[i] = (int32_t)i;
    }
}

/* Blocks at the first place of a key sum its rows in order; all others have nothing to do. */
template <typename T, int W>
__global__ void embed_sum_kernel(int64_t N, int64_t C, float scale, const int32_t *keys,
                                 const int32_t *rows, const T *dout, float *dw)
{
    int64_t first = blockIdx.x, end = first + 1;
    int32_t key = keys[first];
    if (first > 0 && keys[first - 1] == key)
        return;
    while (end < N && keys[end] == key)
        end++;
    for (int64_t c = ((int64_t)blockIdx.y * SUM_THREADS + threadIdx.x) * W; c < C;
         c += (int64_t)gridDim.y * SUM_THREADS * W) {
        float *to = dw + key * C + c, acc[W];
#pragma unroll
        for (int j = 0; j < W; j++)
            acc[j] = to[j];
        int64_t i = first;
        for (; i + AHEAD <= end; i += AHEAD) { /* loads ahead of the ordered additions */
            float v[AHEAD][W];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                load_w<T, W>(dout + rows[i + k] * C + c, v[k]);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
#pragma unroll
                for (int j = 0; j < W; j++)
                    acc[j] += v[k][j] * scale;
            }
        }
        for (; i < end; i++) {
            float v[W];
            load_w<T, W>(dout + rows[i] * C + c, v);
#pragma unroll
            for (int j = 0; j < W; j++)
                acc[j] += v[j] * scale;
        }
#pragma unroll
        for (int j = 0; j < W; j++)
            to[j] = acc[j];
    }
}

template <typename T> static int embed_fwd(cudaStream_t s, const struct embed_args *a)
{
    constexpr int W = pack<T>::N;
    if (a->N == 0)
        return 0;
    if (a->C % W == 0 && aligned16(a->wte) && aligned16(a->wpe) && aligned16(a->out))
        embed_fwd_kernel<T, W>
            <<<(unsigned)ceil_div(a->N * (a->C / W), THREADS), THREADS, 0, s>>>(*a);
    else
        embed_fwd_kernel<T, 1><<<(unsigned)ceil_div(a->N * a->C, THREADS), THREADS, 0, s>>>(*a);
    return launch_status();
}

static int bits_for(int64_t values)
{
    int bits = 1;
    while (bits < 31 && ((int64_t)1 << bits) < values)
        bits++;
    return bits;
}

static size_t align256(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

static size_t sort_bytes(int64_t N)
{
    size_t bytes = 0;
    int32_t *none = NULL;
    cub::DeviceRadixSort::SortPairs(NULL, bytes, none, none, none, none, N, 0, 31);
    return align256(bytes);
}

template <typename T>
static int embed_sums(cudaStream_t s, const struct embed_args *a, const int32_t *index,
                      int64_t offset, int64_t values, float scale, float *dw)
{
    constexpr int W = pack<T>::N;
    size_t array = align256((size_t)a->N * sizeof(int32_t)), sort = sort_bytes(a->N);
    char *at = (char *)a->workspace;
    int32_t *keys = (int32_t *)at, *rows = (int32_t *)(at + array);
    int32_t *sorted_keys = (int32_t *)(at + 2 * array), *sorted = (int32_t *)(at + 3 * array);

    embed_keys_kernel<<<(unsigned)ceil_div(a->N, THREADS), THREADS, 0, s>>>(
        a->N, index, (int32_t)offset, keys, rows);
    if (cub::DeviceRadixSort::SortPairs(at + 4 * array, sort, keys, sorted_keys, rows, sorted, a->N,
                                        0, bits_for(values), s) != cudaSuccess)
        return ERR_DEVICE;
    bool wide = a->C % W == 0 && aligned16(a->dout) && aligned16(dw);
    unsigned columns = (unsigned)ceil_div(a->C, SUM_THREADS * (wide ? W : 1));
    dim3 grid((unsigned)a->N, columns < 8 ? columns : 8);
    if (wide)
        embed_sum_kernel<T, W><<<grid, SUM_THREADS, 0, s>>>(a->N, a->C, scale, sorted_keys, sorted,
                                                            (const T *)a->dout, dw);
    else
        embed_sum_kernel<T, 1><<<grid, SUM_THREADS, 0, s>>>(a->N, a->C, scale, sorted_keys, sorted,
                                                            (const T *)a->dout, dw);
    return launch_status();
}

template <typename T> static int embed_bwd(cudaStream_t s, const struct embed_args *a)
{
    int rc = 0;
    if (a->N == 0)
        return 0;
    if (a->dwte)
        rc = embed_sums<T>(s, a, a->tokens, 0, a->V, a->scale, (float *)a->dwte);
    if (rc == 0 && a->dwpe)
        rc = embed_sums<T>(s, a, a->positions, a->wpe_offset, a->P, 1.0f, (float *)a->dwpe);
    return rc;
}

extern "C" int launch_embed_fwd(cudaStream_t s, enum dtype real, const struct embed_args *a)
{
    return DISPATCH_REAL(real, embed_fwd, s, a);
}

extern "C" int launch_embed_bwd(cudaStream_t s, enum dtype real, const struct embed_args *a)
{
    return DISPATCH_REAL(real, embed_bwd, s, a);
}

extern "C" size_t workspace_embed_bwd(const struct embed_args *a)
{
    return 4 * align256((size_t)a->N * sizeof(int32_t)) + sort_bytes(a->N);
}

KERNELS_OF(embed, embed_keys_kernel)
