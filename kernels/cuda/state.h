/* What the host files of kernels/cuda share: the device's state, and what a stream knows of it. */
#ifndef CASTOR_KERNELS_CUDA_STATE_H
#define CASTOR_KERNELS_CUDA_STATE_H

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "core/err.h"
#include "kernels/cuda/blaslt.h"
#include "kernels/device.h"

struct gemm_cache;
struct pinned_block;

enum { CUDA_MAX_PINNED = 4 }; /* large blocks at a time */

typedef CUresult (*stream_value_fn)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
typedef CUresult (*tensor_map_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                  const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                  const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

struct cuda_state {
    int index;
    int capability; /* 90 = compute capability 9.0 */
    struct blaslt lt;
    cublasLtHandle_t blas;
    struct gemm_cache *gemms;                              /* owned; see gemm.h */
    stream_value_fn stream_wait_value, stream_write_value; /* or NULL */
    tensor_map_fn tensor_map;                              /* or NULL */
    struct pinned_block *pinned[CUDA_MAX_PINNED];          /* owned; or NULL; see pinned.h */
};

struct stream {
    cudaStream_t handle;
    struct cuda_state *state; /* borrowed from the device */
};

#endif
