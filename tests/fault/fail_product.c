/*
 * A shared object to preload: while the file that FAULT_FILE names is there, matrix products on a
 * GPU read where nothing is, so that the device faults some time after the call.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

typedef int matmul(void *blas, void *what, const void *alpha, const void *a, void *layout_a,
                   const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,
                   void *d, void *layout_d, const void *algorithm, void *workspace, size_t bytes,
                   void *stream);

matmul cublasLtMatmul;
int cublasLtMatmul(void *blas, void *what, const void *alpha, const void *a, void *layout_a,
                   const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,
                   void *d, void *layout_d, const void *algorithm, void *workspace, size_t bytes,
                   void *stream)
{
    static matmul *real;
    const char *file = getenv("FAULT_FILE");

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "cublasLtMatmul");
    if (file && access(file, F_OK) == 0)
        a = (const void *)(uintptr_t)4096;
    return real(blas, what, alpha, a, layout_a, b, layout_b, beta, c, layout_c, d, layout_d,
                algorithm, workspace, bytes, stream);
}
