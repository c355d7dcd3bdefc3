/* Which devices this build has. The one place in host code where a backend is left out or in. */
#include <assert.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/device.h"
#include "kernels/device_impl.h"
#ifdef CASTOR_CUDA
#include "kernels/cuda/device_cuda.h"
#endif

int device_count(enum device_kind kind)
{
    if (kind == DEVICE_CPU)
        return 1;
#ifdef CASTOR_CUDA
    return device_cuda_count();
#else
    return 0;
#endif
}

int device_open_kind(enum device_kind kind, int index, const struct device_options *options,
                     struct device *d, struct err *err)
{
    if (kind == DEVICE_CPU)
        return device_cpu_open(index, options, d, err);
    assert(kind == DEVICE_CUDA);
#ifdef CASTOR_CUDA
    return device_cuda_open(index, options, d, err);
#else
    return err_set(err, ERR_UNSUPPORTED,
                   "this build has no CUDA support; build it where nvcc is installed");
#endif
}
