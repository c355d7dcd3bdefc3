/* Which devices this build has. The one place in host code where a backend is left out or in. */
#include <assert.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/device.h"
#include "kernels/device_impl.h"
#include "kernels/registry.h"
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

enum dtype device_half_type(enum device_kind kind, int index)
{
#ifdef CASTOR_CUDA
    if (kind == DEVICE_CUDA && !device_cuda_has_bf16(index))
        return DT_F16;
#endif
    return DT_BF16;
}

const struct op_table *device_kind_ops(enum device_kind kind, enum dtype compute)
{
    bool cpu = kind == DEVICE_CPU;
    switch (compute) {
    case DT_F64:
        return cpu ? &cpu_ref_f64 : NULL;
#ifdef CASTOR_CUDA
    case DT_F32:
        return cpu ? &cpu_fast_f32 : &cuda_f32;
    case DT_BF16:
        return cpu ? &cpu_fast_bf16 : &cuda_bf16;
    case DT_F16:
        return cpu ? NULL : &cuda_f16;
#else
    case DT_F32:
        return cpu ? &cpu_fast_f32 : NULL;
    case DT_BF16:
        return cpu ? &cpu_fast_bf16 : NULL;
#endif
    default:
        return NULL;
    }
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
