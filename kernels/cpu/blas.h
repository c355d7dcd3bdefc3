/* The one place that includes oneDNN, of which Castor uses the matrix product alone. */
#ifndef CASTOR_KERNELS_CPU_BLAS_H
#define CASTOR_KERNELS_CPU_BLAS_H

#include <stdint.h>

enum blas_order { BLAS_AS_IS, BLAS_TRANSPOSED };

/* c (m, n) = alpha * op(a) op(b) + beta * c, row-major; op(a) is (m, k), op(b) (k, n). With beta 0
 * c is not read. Runs on the calling thread only, whose default number of OpenMP threads it sets
 * to one; any number of threads may call it at once. Takes a few MiB for copies of its operands
 * while it runs, and aborts where there are none. */
void blas_sgemm(enum blas_order ta, enum blas_order tb, int64_t m, int64_t n, int64_t k,
                float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                float *c, int64_t ldc);

#endif
