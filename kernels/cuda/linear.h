/* The linear ops: cuBLASLt products, with what their epilogues cannot do in kernels of ours. */
#ifndef CASTOR_KERNELS_CUDA_LINEAR_H
#define CASTOR_KERNELS_CUDA_LINEAR_H

#include "kernels/op_table.h"

int linear_fwd(struct stream *s, enum dtype real, const struct linear_args *a);
int linear_bwd_data(struct stream *s, enum dtype real, const struct linear_args *a);
int linear_bwd_weight(struct stream *s, enum dtype real, const struct linear_args *a);
size_t linear_workspace(enum op op, enum dtype real, const struct linear_args *a);

#endif
