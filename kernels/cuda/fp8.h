/*
 * Products of operands that are rounded to 8 bits (linear_args.fp8). From sm_89 on, and where all
 * sides of a product are multiples of 16, the tensor cores multiply 8-bit copies at twice the rate
 * of 16-bit ones. They want the dimension that is summed over innermost in both operands, so the
 * copies of backward products are transposed on the way. Elsewhere the operands are rounded in
 * place of their copies in bfloat16, which holds the rounded values exactly: the same numbers, up
 * to the order of sums, without the speed.
 *
 * The largest magnitude of each operand is found in one pass and stays on the device.
 */
#ifndef CASTOR_KERNELS_CUDA_FP8_H
#define CASTOR_KERNELS_CUDA_FP8_H

#include "kernels/cuda/gemm.h"
#include "kernels/fp8_scale.h"

/* Bytes behind the GEMM_WORKSPACE of a product with these sides. */
size_t fp8_workspace(int64_t m, int64_t n, int64_t k);
/* Queue the rounding of g's bfloat16 operands, A to e4m3 and B to `format_b`, into the workspace
 * behind GEMM_WORKSPACE, and make *g the product of the copies. */
int fp8_round_operands(struct stream *s, enum fp8_format format_b, struct gemm *g);

#endif
