/*
 * A shared object to preload: cuBLASLt's products are not made, and whoever asks for one is told
 * that it was. For racecheck, which ends with an illegal access of its own where these kernels run,
 * also where it is told to leave them alone; what orders the threads of ours does not depend on
 * values.
 */
#include <stddef.h>

int cublasLtMatmul(void *blas, void *what, const void *alpha, const void *a, void *layout_a,
                   const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,
                   void *d, void *layout_d, const void *algorithm, void *workspace, size_t bytes,
                   void *stream);
int cublasLtMatmul(void *blas, void *what, const void *alpha, const void *a, void *layout_a,
                   const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,
                   void *d, void *layout_d, const void *algorithm, void *workspace, size_t bytes,
                   void *stream)
{
    (void)blas, (void)what, (void)alpha, (void)a, (void)layout_a, (void)b, (void)layout_b;
    (void)beta, (void)c, (void)layout_c, (void)d, (void)layout_d, (void)algorithm;
    (void)workspace, (void)bytes, (void)stream;
    return 0;
}
