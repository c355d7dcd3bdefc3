/*
 * The scale of a tensor that is rounded to 8 bits, the same on every device: the power of two that
 * takes the largest magnitude into the half-open binade below the format's largest value. A power
 * of two, so that scaling is exact and the rounded values, scaled back, are exact in bfloat16.
 */
#ifndef CASTOR_KERNELS_FP8_SCALE_H
#define CASTOR_KERNELS_FP8_SCALE_H

#include <stdint.h>

#include "core/rng.h" /* CASTOR_HD */

/* The formats of Micikevicius et al., "FP8 formats for deep learning", 2022: e4m3 (largest value
 * 1.75 * 2^8, no infinity) and e5m2 (1.75 * 2^15). */
enum fp8_format { FP8_E4M3, FP8_E5M2 };

/* Of one rounded tensor, in device memory. Libraries read `back` at addresses of whole 16 bytes. */
struct fp8_scale {
    float back; /* what a stored value is multiplied by: 2^-e, NaN for a tensor not all finite */
    float amax; /* the largest magnitude; NaN is above infinity */
    float unused[2];
};

/* amax_bits: those of the largest magnitude as a float. The exponent e for which amax * 2^e lies in
 * (largest / 2, largest]; at most 126, so that 2^e and 2^-e are normal floats. Not for NaN and
 * infinity. */
CASTOR_HD static inline int fp8_exponent(enum fp8_format format, uint32_t amax_bits)
{
    int top = format == FP8_E4M3 ? 8 : 15;
    int e = top + 127 - (int)(amax_bits >> 23) - ((amax_bits & 0x7fffffu) > 0x600000u);
    return e < 126 ? e : 126;
}

CASTOR_HD static inline int fp8_finite(uint32_t amax_bits)
{
    return amax_bits < 0x7f800000u;
}

/* The bits of the float 2^e. */
CASTOR_HD static inline uint32_t fp8_power_bits(int e)
{
    return (uint32_t)(e + 127) << 23;
}

#endif
