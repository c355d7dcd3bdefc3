/*
 * Loading the kernels of this folder. CUDA loads a kernel when it is first launched: that takes
 * device memory, and it may wait for all that is queued. So all of them are loaded when a device is
 * opened, before anyone asks how much memory is free, and none in a step.
 *
 * A .cu file is a module, which any kernel of it leads to: each file names one at its end
 * (common.cuh, KERNELS_OF). Kernels of cuBLASLt are no part of this: it has hundreds of MiB of
 * them, of which a job uses a few, and those are loaded as its products are planned, in its first
 * step.
 */
#ifndef CASTOR_KERNELS_CUDA_KERNELS_H
#define CASTOR_KERNELS_CUDA_KERNELS_H

#define CUDA_FILES(X)                                                                              \
    X(act)                                                                                         \
    X(adamw)                                                                                       \
    X(adamw8)                                                                                      \
    X(attn_bwd)                                                                                    \
    X(attn_bwd_hopper)                                                                             \
    X(attn_dkv_hopper)                                                                             \
    X(attn_fwd)                                                                                    \
    X(attn_fwd_hopper)                                                                             \
    X(attn_plain)                                                                                  \
    X(cast)                                                                                        \
    X(colsum)                                                                                      \
    X(dropout)                                                                                     \
    X(embed)                                                                                       \
    X(fp8)                                                                                         \
    X(gradnorm)                                                                                    \
    X(loss)                                                                                        \
    X(norm_bwd)                                                                                    \
    X(norm_fwd)                                                                                    \
    X(product_data)                                                                                \
    X(product_forward)                                                                             \
    X(quant)                                                                                       \
    X(rope)

#define DECLARE_KERNELS_OF(file) const void *kernels_of_##file(void);
CUDA_FILES(DECLARE_KERNELS_OF)
#undef DECLARE_KERNELS_OF

/* Into the current device. Needs a driver of CUDA 12.4; with an older one kernels are loaded as
 * they are launched. */
void kernels_load(void);

#endif
