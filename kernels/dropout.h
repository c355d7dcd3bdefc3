/*
 * Which elements dropout drops, the same on every device: element i of a stream has a random number
 * of 16 bits, the i % 8-th of the eight in the stream's block i / 8 (core/rng.h), and is dropped
 * when that lies under 65,536 p, rounded. Half the draws that 32 bits an element would take, which
 * is what dropout costs inside attention; p is met to within 2^-17.
 */
#ifndef CASTOR_KERNELS_DROPOUT_H
#define CASTOR_KERNELS_DROPOUT_H

#include "core/rng.h"

enum { DROPOUT_GROUP = 8 }; /* elements a block */

/* At most 65,536, which drops everything. */
CASTOR_HD static inline uint32_t dropout_threshold(float p)
{
    uint32_t fine = rng_drop_threshold(p);
    return (fine >> 16) + (fine >> 15 & 1);
}

/* Element `at` (0 .. 7) of a block. */
CASTOR_HD static inline uint32_t dropout_number(const struct rng_block *b, int at)
{
    return b->v[at / 2] >> at % 2 * 16 & 0xffff;
}

CASTOR_HD static inline int dropout_drops(struct rng_stream s, uint32_t threshold, uint64_t index)
{
    struct rng_block b = rng_draw4(s, index / DROPOUT_GROUP);
    uint32_t two = b.v[index % DROPOUT_GROUP / 2];
    return (two >> index % 2 * 16 & 0xffff) < threshold;
}

#endif
