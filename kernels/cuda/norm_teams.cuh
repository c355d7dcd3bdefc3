/*
 * Backward of norms whose rows are a pack for each of up to 512 threads: a block fills a
 * multiprocessor with teams of LANES threads, a row each at a time, and every thread has its share
 * of the next rows copied into a ring of its own in shared memory, so that reading never stops at a
 * barrier. One partial row of column sums a block.
 *
 * For norm_bwd.cu. Needs 192 KiB of shared memory (sm_90).
 */
#ifndef CASTOR_KERNELS_CUDA_NORM_TEAMS_CUH
#define CASTOR_KERNELS_CUDA_NORM_TEAMS_CUH

#include <cuda_pipeline.h>

#include "kernels/cuda/norm.cuh"

enum { TEAM_THREADS = 1024, TEAM_STAGES = 4, TEAM_BLOCKS = PARTIALS / 2 };
constexpr size_t TEAM_BYTES = (size_t)TEAM_STAGES * 3 * TEAM_THREADS * 16;
/* Two sums for each of up to 8 elements a thread. */
static_assert(TEAM_BYTES >= (size_t)TEAM_THREADS * 8 * 2 * sizeof(float), "");

/* A thread's share of x, dy and dresidual in one stage. */
struct team_slot {
    uint4 part[3][TEAM_THREADS];
};

template <typename T>
__device__ __forceinline__ void team_fetch(const struct norm_args &a, struct team_slot *slot,
                                           int64_t row, int c)
{
    const void *from[3] = {a.x, a.dy, a.dresidual};
    if (row < a.N && c < (int)a.C) {
#pragma unroll
        for (int i = 0; i < 3; i++)
            if (from[i])
                __pipeline_memcpy_async(&slot->part[i][threadIdx.x],
                                        (const T *)from[i] + row * a.ld + c, 16);
    }
    __pipeline_commit();
}

template <int LANES> __device__ __forceinline__ void team_sync(int team)
{
    asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(LANES) : "memory");
}

/* Both sums over the team's threads, with one barrier: `scratch` alternates between two places, of
 * which the older is free once a team has passed the barrier behind the newer. */
template <int LANES>
__device__ __forceinline__ void team_sum2(float &x, float &y, float2 *scratch, int team)
{
    x = warp_sum(x);
    y = warp_sum(y);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x % LANES / 32] = make_float2(x, y);
    team_sync<LANES>(team);
    x = y = 0;
#pragma unroll
    for (int w = 0; w < LANES / 32; w++) {
        x += scratch[w].x;
        y += scratch[w].y;
    }
}

/* What a row gives: its share of dx is stored, and of the column sums added. */
template <typename T, int LANES>
__device__ __forceinline__ void team_row(const struct norm_args &a, const struct team_slot *slot,
                                         int64_t row, float mean, float rstd, const pack<T> &weight,
                                         float2 *scratch, int team, float (&dw)[pack<T>::N],
                                         float (&db)[pack<T>::N])
{
    constexpr int W = pack<T>::N;
    int c = threadIdx.x % LANES * W;
    bool inside = c < (int)a.C;
    pack<T> x, dy, rest;
    float sum_g = 0, sum_gx = 0;
    x.bits = slot->part[0][threadIdx.x];
    dy.bits = slot->part[1][threadIdx.x];
    if (a.dresidual)
        rest.bits = slot->part[2][threadIdx.x];
#pragma unroll
    for (int j = 0; j < W && inside; j++) {
        float xhat = (to_float(x.v[j]) - mean) * rstd, g = to_float(dy.v[j]);
        dw[j] += g * xhat;
        db[j] += g;
        g *= a.weight ? weight_of(a, to_float(weight.v[j])) : 1.0f;
        sum_g += g;
        sum_gx += g * xhat;
    }
    team_sum2<LANES>(sum_gx, sum_g, scratch, team);
    float mean_gx = sum_gx / (float)a.C, mean_g = a.kind == NORM_LAYER ? sum_g / (float)a.C : 0.0f;
    if (!inside)
        return;
    float d[W];
#pragma unroll
    for (int j = 0; j < W; j++) {
        float xhat = (to_float(x.v[j]) - mean) * rstd;
        float g = to_float(dy.v[j]) * (a.weight ? weight_of(a, to_float(weight.v[j])) : 1.0f);
        d[j] = rstd * (g - mean_g - xhat * mean_gx) + (a.dresidual ? to_float(rest.v[j]) : 0.0f);
    }
    store_pack((T *)a.dx + row * a.ld + c, d);
}

/* The block's partial row of dweight, then of dbias: its teams' sums in their order. */
template <int W, int TEAMS>
__device__ __forceinline__ void team_partial(const struct norm_args &a, float *sums, int team,
                                             int c, const float (&dw)[W], const float (&db)[W])
{
    int C = (int)a.C;
    float *partial = (float *)a.workspace + (int64_t)blockIdx.x * 2 * C;
    __pipeline_wait_prior(0);
    __syncthreads(); /* the ring, where the sums go, is not read any more */
    if (c < C) {
        float *own = sums + team * 2 * C + c;
#pragma unroll
        for (int j = 0; j < W; j++) {
            own[j] = dw[j];
            own[C + j] = db[j];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * C; i += TEAM_THREADS) {
        float sum = sums[i];
#pragma unroll
        for (int t = 1; t < TEAMS; t++)
            sum += sums[t * 2 * C + i];
        partial[i] = sum;
    }
}

template <typename T, int LANES>
__global__ void __launch_bounds__(TEAM_THREADS, 1)
    norm_bwd_teams_kernel(const __grid_constant__ struct norm_args a)
{
    constexpr int W = pack<T>::N, TEAMS = TEAM_THREADS / LANES;
    extern __shared__ struct team_slot ring[];
    __shared__ float2 scratch[2][TEAMS][LANES / 32];
    int team = threadIdx.x / LANES, c = threadIdx.x % LANES * W, at = 0;
    int64_t first = (int64_t)blockIdx.x * TEAMS + team, stride = (int64_t)TEAM_BLOCKS * TEAMS;
    const float *means = (const float *)a.mean, *rstds = (const float *)a.rstd;
    float dw[W] = {0}, db[W] = {0};
    pack<T> weight;
    if (a.weight && c < (int)a.C)
        weight.bits = *reinterpret_cast<const uint4 *>((const T *)a.weight + c);
#pragma unroll
    for (int i = 0; i < TEAM_STAGES - 1; i++)
        team_fetch<T>(a, ring + i, first + i * stride, c);
    bool centred = a.kind == NORM_LAYER;
    float mean = 0, rstd = 0;
    if (first < a.N) {
        mean = centred ? means[first] : 0.0f;
        rstd = rstds[first];
    }
    for (int64_t row = first; row < a.N; row += stride) {
        int64_t next = row + stride;
        float next_mean = centred && next < a.N ? means[next] : 0.0f;
        float next_rstd = next < a.N ? rstds[next] : 0.0f;
        __pipeline_wait_prior(TEAM_STAGES - 2);
        team_fetch<T>(a, ring + (at + TEAM_STAGES - 1) % TEAM_STAGES,
                      row + (TEAM_STAGES - 1) * stride, c);
        team_row<T, LANES>(a, ring + at % TEAM_STAGES, row, mean, rstd, weight,
                           scratch[at % 2][team], team, dw, db);
        mean = next_mean;
        rstd = next_rstd;
        at++;
    }
    /* Where only the teams before this one had a last row. Nothing depends on it, but racecheck
     * counts a thread's barriers to tell which accesses of others are behind the same one. */
    if (first - team + at * stride < a.N)
        team_sync<LANES>(team);
    if (a.dweight || a.dbias)
        team_partial<W, TEAMS>(a, (float *)ring, team, c, dw, db);
}

/* 0: not on this device. */
static size_t team_bytes()
{
    int device = 0, most = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return (size_t)most >= TEAM_BYTES + 1024 ? TEAM_BYTES : 0;
}

/* Partial rows written; 0: nothing was queued. */
template <typename T, int LANES>
static int norm_bwd_teams(cudaStream_t s, const struct norm_args *a)
{
    size_t bytes = team_bytes();
    if (bytes == 0 || cudaFuncSetAttribute(norm_bwd_teams_kernel<T, LANES>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           (int)bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    norm_bwd_teams_kernel<T, LANES><<<TEAM_BLOCKS, TEAM_THREADS, bytes, s>>>(*a);
    return TEAM_BLOCKS;
}

#endif
