/*
 * Quantised weights: QUANT_BLOCK neighbouring elements of a tensor, in row-major order, share one
 * float32 scale, and an element is its code's level times the scale, one product in float32.
 *
 *   nf4   4 bits: the sixteen levels of NormalFloat (Dettmers et al., "QLoRA: efficient finetuning
 *         of quantized LLMs", NeurIPS 2023, section 3 and appendix E); the scale is the block's
 *         largest magnitude. Two codes a byte, the first in the high half, as in bitsandbytes.
 *   int8  8 bits: the integers -127 .. 127; the scale is the largest magnitude / 127 (absmax
 *         quantisation: Dettmers et al., "LLM.int8()", NeurIPS 2022, equation 1, of weights alone,
 *         and over nf4's blocks instead of whole rows, which loses less).
 *
 * A code is that of the nearest level, of two as near the lower one in nf4 and the even one in
 * int8. A block of zeros has scale 0, one that holds a NaN or an infinity is NaN throughout.
 *
 * Memory of n elements: the codes of all, then from quant_scales_at the scales of all blocks, the
 * last of which may be shorter. 4.5 and 8.5 bits an element.
 */
#ifndef CASTOR_KERNELS_QUANT_H
#define CASTOR_KERNELS_QUANT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"

enum quant_format { QUANT_NONE, QUANT_NF4, QUANT_INT8 };
enum { QUANT_BLOCK = 64 };

#define QUANT_NF4_LEVELS                                                                           \
    {                                                                                              \
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,                  \
            -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,             \
            0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,                      \
            0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f,  \
            1.0f                                                                                   \
    }

/* Blocks of n elements: how many scales they have. */
int64_t quant_blocks(int64_t n);
/* Byte offset of the scales, a multiple of their size, and bytes in all. */
size_t quant_scales_at(enum quant_format format, int64_t n);
size_t quant_bytes(enum quant_format format, int64_t n);

/* Host memory; codes (n) and scales (quant_blocks(n)) are assigned. The same bits wherever it
 * runs, on all cores. */
void quant_encode(enum quant_format format, int64_t n, const float *x, void *codes, float *scales);
/* out (n) = elements [first, first + n) of a tensor, rounded to nearest as `to`. The reference. */
void quant_decode(enum quant_format format, const void *codes, const float *scales, int64_t first,
                  int64_t n, enum dtype to, void *out);

#endif
