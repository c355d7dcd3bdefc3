#include "kernels/cpu/blas.h"

#include <cblas.h>

void blas_init(void)
{
    openblas_set_num_threads(1);
}

void blas_sgemm(enum blas_order ta, enum blas_order tb, int64_t m, int64_t n, int64_t k,
                float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                float *c, int64_t ldc)
{
    cblas_sgemm(CblasRowMajor, ta == BLAS_TRANSPOSED ? CblasTrans : CblasNoTrans,
                tb == BLAS_TRANSPOSED ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
                (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}
