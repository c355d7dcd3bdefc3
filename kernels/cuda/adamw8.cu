/*
 * AdamW with moments in 8 bits (kernels/moment_math.h): a warp updates a block of MOMENT_BLOCK
 * elements, four a lane, finds the largest new moments among its lanes, and writes. So every byte
 * is read once and written once. Bits are those of the CPU tables.
 *
 * Measured on an H100 80GB, 2026-11-26: bf16 with split masters, 130M elements, 1,480 GB/s: half of
 * what memory carries, so arithmetic and not memory bounds it.
 */
#include "kernels/cuda/adamw.cuh"
#include "kernels/moment_math.h"

enum {
    THREADS = 256,
    LANES = 32,
    BLOCKS = 4, /* that a warp works on, all of them fetched before the first is used */
};
static_assert(MOMENT_BLOCK == 4 * LANES, "four elements a lane");

/* Of one lane: its four elements of a block. */
struct lane {
    float g[4], w[4];
    uint32_t m, v, m_exponent, v_exponent;
};

/* Four elements, those beyond the end 0. */
template <typename X>
__device__ __forceinline__ void load_some(const X *p, int64_t left, bool wide, float (&x)[4])
{
    if (wide) {
        load4(p, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        x[i] = i < left ? to_float(p[i]) : 0.0f;
}

static __device__ __forceinline__ uint32_t load_codes(const uint8_t *p, int64_t left, bool wide)
{
    uint32_t codes = 0;
    if (wide)
        return __ldcs((const unsigned int *)p);
#pragma unroll
    for (int i = 0; i < 4; i++)
        codes |= i < left ? (uint32_t)p[i] << 8 * i : 0u;
    return codes;
}

static __device__ __forceinline__ void store_codes(uint8_t *p, int64_t left, bool wide,
                                                   uint32_t codes)
{
    if (wide) {
        __stcs((unsigned int *)p, codes);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < left)
            p[i] = (uint8_t)(codes >> 8 * i);
}

template <typename T, typename G, typename M>
__device__ __forceinline__ void load_lane(const struct adamw_args &a, int64_t block, int64_t at,
                                          bool wide, struct lane &x)
{
    int64_t left = a.n - at;
    load_some((const G *)a.grad + at, left, wide, x.g);
    if constexpr (std::is_same_v<M, int16_t>) {
        if (wide)
            load_split4((const M *)a.master + at, (const T *)a.param + at, x.w);
        for (int i = 0; i < 4 && !wide; i++)
            x.w[i] = i < left ? adamw_join(((const uint16_t *)a.param)[at + i],
                                           ((const M *)a.master)[at + i])
                              : 0.0f;
    } else {
        load_some((const M *)a.master + at, left, wide, x.w);
    }
    x.m = load_codes((const uint8_t *)a.m + at, left, wide);
    x.v = load_codes((const uint8_t *)a.v + at, left, wide);
    x.m_exponent = a.m_exponent[block];
    x.v_exponent = a.v_exponent[block];
}

/* Master and parameter, which 8-bit moments do not change. */
template <typename T, typename M>
__device__ __forceinline__ void store_lane(const struct adamw_args &a, int64_t at, bool wide,
                                           float (&w)[4])
{
    struct rng_block draw = {};
    if constexpr (std::is_same_v<M, __nv_bfloat16>)
        draw = rng_draw4(adamw_stream(a.seed, a.step->step, a.site), (uint64_t)(a.first + at) / 4);
    if (wide) {
        store_state4<M, 16>((M *)a.master + at, w, draw);
        if (a.param)
            store_param4((T *)a.param + at, w);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (at + i >= a.n)
            return;
        M stored = state_of<M>(w[i], draw.v[i] >> 16);
        ((M *)a.master)[at + i] = stored;
        if constexpr (std::is_same_v<M, __nv_bfloat16>)
            w[i] = to_float(stored);
        if (a.param)
            ((T *)a.param)[at + i] = param_of<T>(w[i]);
    }
}

static __device__ __forceinline__ uint32_t warp_most(uint32_t x)
{
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        x = max(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

/* The exponent of a block, and the lane's codes in it. */
template <bool SECOND>
__device__ __forceinline__ uint32_t encode(const float (&x)[4], uint32_t start, uint32_t step,
                                           uint32_t *codes)
{
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        most = max(most, moment_bits(x[i]) & 0x7fffffffu);
    uint32_t exponent = moment_exponent(warp_most(most));
    uint32_t low = moment_low(exponent, SECOND ? MOMENT_V_BINADES : MOMENT_M_BINADES);
    *codes = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t random = start + (threadIdx.x % LANES * 4 + i) * step;
        uint8_t code = SECOND ? moment_v_code(x[i], low, random) : moment_m_code(x[i], low, random);
        *codes |= (uint32_t)code << 8 * i;
    }
    return exponent;
}

template <typename T, typename G, typename M>
__device__ __forceinline__ void update_block(const struct adamw_args &a, int64_t block, int64_t at,
                                             bool wide, struct lane &x, struct moment_random r)
{
    struct adamw_consts c = consts_of(a), plain = c;
    uint32_t m_low = moment_low(x.m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(x.v_exponent, MOMENT_V_BINADES);
    float m[4], v[4];
    plain.decay = 1.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        m[i] = moment_m((uint8_t)(x.m >> 8 * i), m_low);
        v[i] = moment_v((uint8_t)(x.v >> 8 * i), v_low);
        adamw_element(at + i < a.n_decay ? &c : &plain, rounded<T>(x.g[i]), &x.w[i], &m[i], &v[i]);
    }
    store_lane<T, M>(a, at, wide, x.w);
    uint32_t m_codes, v_codes, m_exponent = encode<false>(m, r.m, r.m_step, &m_codes),
                               v_exponent = encode<true>(v, r.v, r.v_step, &v_codes);
    store_codes((uint8_t *)a.m + at, a.n - at, wide, m_codes);
    store_codes((uint8_t *)a.v + at, a.n - at, wide, v_codes);
    if (threadIdx.x % LANES == 0) {
        a.m_exponent[block] = (uint8_t)m_exponent;
        a.v_exponent[block] = (uint8_t)v_exponent;
    }
}

/* T: parameter; G: gradient; M: master, int16_t: split. `wide`: all arrays are aligned. */
template <typename T, typename G, typename M>
__global__ void __launch_bounds__(THREADS, 3) /* 80 registers, as many as there were measured */
    adamw8_kernel(const __grid_constant__ struct adamw_args a, int64_t blocks, bool wide)
{
    int64_t warp = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / LANES;
    struct lane x[BLOCKS];
    if (!a.clip->finite)
        return;
#pragma unroll
    for (int k = 0; k < BLOCKS; k++) {
        int64_t block = warp * BLOCKS + k, at = block * MOMENT_BLOCK + threadIdx.x % LANES * 4;
        if (block < blocks)
            load_lane<T, G, M>(a, block, at, wide && at + 4 <= a.n, x[k]);
    }
    /* A lane draws for a block, the first ones for all of the warp's. */
    struct moment_random mine =
        moment_draw(a.seed, a.step->step, a.site,
                    (uint64_t)(a.first / MOMENT_BLOCK + warp * BLOCKS + threadIdx.x % BLOCKS));
#pragma unroll
    for (int k = 0; k < BLOCKS; k++) {
        int64_t block = warp * BLOCKS + k, at = block * MOMENT_BLOCK + threadIdx.x % LANES * 4;
        struct moment_random random = {
            __shfl_sync(FULL_WARP, mine.m, k), __shfl_sync(FULL_WARP, mine.m_step, k),
            __shfl_sync(FULL_WARP, mine.v, k), __shfl_sync(FULL_WARP, mine.v_step, k)};
        if (block < blocks)
            update_block<T, G, M>(a, block, at, wide && at + 4 <= a.n, x[k], random);
    }
}

template <typename T, typename G, typename M>
static int adamw8(cudaStream_t s, const struct adamw_args *a)
{
    bool wide = aligned16(a->grad) && aligned16(a->master) && aligned16(a->m) && aligned16(a->v) &&
                aligned16(a->param);
    int64_t blocks = ceil_div(a->n, MOMENT_BLOCK);
    if (blocks > 0)
        adamw8_kernel<T, G, M>
            <<<(unsigned)ceil_div(blocks, THREADS / LANES * BLOCKS), THREADS, 0, s>>>(*a, blocks,
                                                                                      wide);
    return launch_status();
}

template <typename T, typename G>
static int adamw8_masters(cudaStream_t s, const struct adamw_args *a)
{
    if (a->master_type == DT_F32)
        return adamw8<T, G, float>(s, a);
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        if (a->master_type == DT_BF16)
            return adamw8<T, G, __nv_bfloat16>(s, a);
        if (a->master_type == DT_I16 && a->param)
            return adamw8<T, G, int16_t>(s, a);
    }
    return ERR_UNSUPPORTED;
}

template <typename T> static int adamw8_grads(cudaStream_t s, const struct adamw_args *a)
{
    return a->grad_type == DT_F32 ? adamw8_masters<T, float>(s, a) : adamw8_masters<T, T>(s, a);
}

int adamw8_launch(cudaStream_t s, enum dtype real, const struct adamw_args *a)
{
    return DISPATCH_REAL(real, adamw8_grads, s, a);
}

KERNELS_OF(adamw8, adamw8_kernel<float, float, float>)
