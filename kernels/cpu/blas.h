/* The one place that includes OpenBLAS, whose header defines a macro named I. */
#ifndef CASTOR_KERNELS_CPU_BLAS_H
#define CASTOR_KERNELS_CPU_BLAS_H

#include <stdint.h>

enum blas_order { BLAS_AS_IS, BLAS_TRANSPOSED };

/* From now on products run on the calling thread only, in the whole process. */
void blas_init(void);

/* c (m, n) = alpha * op(a) op(b) + beta * c, row-major; op(a) is (m, k), op(b) (k, n). With beta 0
 * c is not read. Any number of threads may call it at once. */
void blas_sgemm(enum blas_order ta, enum blas_order tb, int64_t m, int64_t n, int64_t k,
                float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                float *c, int64_t ldc);

#endif
