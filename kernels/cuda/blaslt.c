#include "kernels/cuda/blaslt.h"

#include <dlfcn.h>

#define TEXT_OF(number) #number
#define FILE_OF(major)  "libcublasLt.so." TEXT_OF(major)
#define LIBRARY         FILE_OF(CUBLAS_VER_MAJOR)

/* ISO C knows no conversion of an object's address into a function's. */
#define FIND(name)                                                                                 \
    if (!(*(void **)&lt.name = dlsym(RTLD_DEFAULT, "cublasLt" #name)))                             \
        missing = "cublasLt" #name;

int blaslt_load(struct blaslt *out, struct err *err)
{
    struct blaslt lt = {0};
    const char *missing = NULL;

    /* For all of the process and found through it, so that an object that was preloaded comes
     * first. */
    if (!dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL))
        return err_set(
            err, ERR_DEVICE,
            "cuBLASLt, which multiplies matrices on the GPU, cannot be loaded (%s): install "
            "NVIDIA's cuBLAS %d (Debian package libcublas-%d-*), or name its folder in "
            "LD_LIBRARY_PATH",
            dlerror(), CUBLAS_VER_MAJOR, CUBLAS_VER_MAJOR);
    BLASLT_FUNCTIONS(FIND)
    if (missing)
        return err_set(err, ERR_DEVICE,
                       "%s has no function %s: install the cuBLAS %d that NVIDIA supplies", LIBRARY,
                       missing, CUBLAS_VER_MAJOR);
    *out = lt;
    return 0;
}
