/*
 * Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011). A number is a pure function of (seed, stream, index), so
 * dropout masks, stochastic rounding, shuffles and samples are the same on every device, under
 * every placement, and after a resume, with no state to save.
 *
 * The functions are inline because device kernels evaluate the same ones; CASTOR_HD is the one
 * accommodation to that.
 */
#ifndef CASTOR_CORE_RNG_H
#define CASTOR_CORE_RNG_H

#include <stdint.h>

#ifdef __CUDACC__
#define CASTOR_HD __host__ __device__
#else
#define CASTOR_HD
#endif

/* What a stream of numbers is for; part of the counter so that no two uses share numbers. */
enum rng_use {
    RNG_USE_DROPOUT = 1,
    RNG_USE_ROUNDING = 2,
    RNG_USE_SHUFFLE = 3,
    RNG_USE_SAMPLE = 4,
    RNG_USE_INIT = 5,
    RNG_USE_GRADIENT = 6,
    RNG_USE_MOMENT = 7
};

struct rng_stream {
    uint64_t seed; /* the job's seed                                                       */
    uint32_t step; /* optimizer step, epoch or sample number: what changes between draws     */
    uint32_t site; /* which tensor or place; the caller's numbering, below 2^28               */
    uint32_t use;  /* enum rng_use, below 16                                                */
};

struct rng_block {
    uint32_t v[4];
};

/* a * b. nvcc, left to itself, takes all rounds to 64 bits where the key comes from 64: a seventh
 * of the instructions of what draws. */
CASTOR_HD static inline uint64_t rng_wide(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#else
    return (uint64_t)a * b;
#endif
}

/* Philox4x32-10 of a 128-bit counter and 64-bit key. */
CASTOR_HD static inline struct rng_block rng_philox(uint32_t c0, uint32_t c1, uint32_t c2,
                                                    uint32_t c3, uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = rng_wide(0xD2511F53u, c0), p1 = rng_wide(0xCD9E8D57u, c2);
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct rng_block b = {{c0, c1, c2, c3}};
    return b;
}

/* The four numbers of index group `group`: those with index 4*group .. 4*group+3. */
CASTOR_HD static inline struct rng_block rng_draw4(struct rng_stream s, uint64_t group)
{
    return rng_philox((uint32_t)group, (uint32_t)(group >> 32), s.step, s.site | s.use << 28,
                      (uint32_t)s.seed, (uint32_t)(s.seed >> 32));
}

/* Number `index` of the stream, uniform over all 32-bit values. */
CASTOR_HD static inline uint32_t rng_draw(struct rng_stream s, uint64_t index)
{
    return rng_draw4(s, index >> 2).v[index & 3];
}

/* A draw as a float in [0, 1): the upper 24 bits. */
CASTOR_HD static inline float rng_to_unit(uint32_t draw)
{
    return (float)(draw >> 8) * (1.0f / 16777216.0f);
}

/* Dropout keeps an element when its draw is at or above this threshold. p in [0, 1). */
CASTOR_HD static inline uint32_t rng_drop_threshold(float p)
{
    return (uint32_t)((double)p * 4294967296.0);
}

#endif
