/*
 * Products of operands of 8 bits (linear_args.fp8). From sm_89 on, and where all sides of a product
 * are multiples of 16, the tensor cores multiply them at twice the rate of 16-bit ones. Elsewhere
 * they are spread out in bfloat16, which holds the rounded values exactly, and multiplied as those:
 * the same numbers, up to the order of sums, without the speed.
 */
#ifndef CASTOR_KERNELS_CUDA_FP8_H
#define CASTOR_KERNELS_CUDA_FP8_H

#include "kernels/cuda/gemm.h"
#include "kernels/fp8_scale.h"

struct fp8_operand {
    const void *p;
    const struct fp8_scale *scale;
};

/* Bytes behind the GEMM_WORKSPACE of a product with these sides. */
size_t fp8_workspace(int64_t m, int64_t n, int64_t k);
/* Make *g, a product of bfloat16 with all but its operands filled in, that of a (m, k) in e4m3 and
 * b (n, k) in `format_b`; queues their spreading into the workspace where that is needed. */
int fp8_operands(struct stream *s, struct fp8_operand a, enum fp8_format format_b,
                 struct fp8_operand b, struct gemm *g);

#endif
