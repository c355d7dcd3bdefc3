/*
 * How far attention of 16-bit types may be off. Tensor cores take operands of 16 bits, so such a
 * table rounds the probabilities p and the scores' gradients ds before it sums, in float,
 * o = p v, dv = p^T dout, dq = scale ds k and dk = scale ds^T q, as FlashAttention does (Dao, 2023,
 * algorithms 1 and 2). The error of such a sum goes with the size of its summands: where they
 * cancel, and at the first keys of a text, which many queries give much weight, it is no small part
 * of |sum| + rms(sums).
 *
 * In the model of Higham and Mary ("A new approach to probabilistic rounding error analysis", SIAM
 * J. Sci. Comput. 41, 2019) the errors are independent. That of rounding a to nearest is uniform in
 * an interval that lies in +-u max(|a|, least), u being the unit roundoff and `least` the least
 * normal number; a uniform number is strictly sub-Gaussian, here with a variance of a third of the
 * bound's square. So a sum of a_k b_k, the a_k rounded, is off by more than z u S,
 * S^2 = sum (max(|a_k|, least) b_k)^2, with a probability below 2 exp(-3 z^2 / 2). To that come the
 * rounding of the result, u max(|sum|, least), and what a table of floats is allowed.
 */
#ifndef CASTOR_TESTS_OPS_HARNESS_ATTENTION_H
#define CASTOR_TESTS_OPS_HARNESS_ATTENTION_H

#include "tests/ops/harness.h"

/* s[i] = S of each element of tensor i for outputs of attention that the table sums, to be freed;
 * NULL for all else, and for all tensors of other ops. */
void attention_summands(const struct op_case *c, const struct op_table *table,
                        double *s[CASE_BINDS]);

/* The largest |a - b| / allowance over n elements, the z of which is such that all n together
 * exceed theirs by chance with a probability below one in a million; floats: what a table of floats
 * is allowed, relative to |b| + rms(b). Infinity where there is a NaN. */
double attention_error(const double *a, const double *b, const double *s, int64_t n,
                       enum dtype narrow, double floats);

#endif
