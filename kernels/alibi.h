/*
 * ALiBi's bias as Falcon computes it, the same bits on every device: slope, position and their
 * product are each rounded to bfloat16, and the product is scaled along with the scores.
 */
#ifndef CASTOR_KERNELS_ALIBI_H
#define CASTOR_KERNELS_ALIBI_H

#include <stdint.h>
#include <string.h>

#include "core/rng.h" /* CASTOR_HD */

/* A finite float rounded to bfloat16, to nearest even. */
CASTOR_HD static inline float alibi_round(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* Of a key at `position`; slope is rounded already. */
CASTOR_HD static inline float alibi_rounded(float slope, float scale, int32_t position)
{
    return scale * alibi_round(slope * alibi_round((float)position));
}

#endif
