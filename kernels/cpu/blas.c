#include "kernels/cpu/blas.h"

#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>

/* Of the OpenMP runtime that the library shares with the ops. Not from omp.h, which a compiler
 * without OpenMP (make fuzz) does not have. */
int omp_get_max_threads(void);
void omp_set_num_threads(int n);

/* Outside parallel regions of several threads the library would take as many as OpenMP's default
 * for the calling thread says, and cut sums by their number. */
static void stay_on_calling_thread(void)
{
    if (omp_get_max_threads() != 1)
        omp_set_num_threads(1);
}

void blas_sgemm(enum blas_order ta, enum blas_order tb, int64_t m, int64_t n, int64_t k,
                float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                float *c, int64_t ldc)
{
    stay_on_calling_thread();
    dnnl_status_t status =
        dnnl_sgemm(ta == BLAS_TRANSPOSED ? 'T' : 'N', tb == BLAS_TRANSPOSED ? 'T' : 'N', m, n, k,
                   alpha, a, lda, b, ldb, beta, c, ldc);
    if (status != dnnl_success) { /* as in core/alloc.h: no memory for copies of a few MiB */
        fprintf(stderr, "a matrix product of %lld by %lld by %lld failed: %s\n", (long long)m,
                (long long)n, (long long)k,
                status == dnnl_out_of_memory ? "out of memory" : "wrong arguments");
        abort();
    }
}
