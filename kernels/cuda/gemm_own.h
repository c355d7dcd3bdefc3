/* Products of struct gemm by the kernels of product.h, on Hopper alone. */
#ifndef CASTOR_KERNELS_CUDA_GEMM_OWN_H
#define CASTOR_KERNELS_CUDA_GEMM_OWN_H

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/product.h"

/* Whether the kernels can do this product. */
bool gemm_own_can(const struct cuda_state *state, const struct gemm *g);
int gemm_own_run(const struct cuda_state *state, cudaStream_t stream, const struct gemm *g);

#endif
