/* Rounding to 8 bits, and linear layers of what was rounded, on the CPU: 8-bit operands are spread
 * out in the workspace, in the table's own type, and multiplied by its ordinary op. */
#ifndef CASTOR_KERNELS_CPU_FP8_H
#define CASTOR_KERNELS_CPU_FP8_H

#include "kernels/op_table.h"

typedef int (*linear_op)(struct stream *s, const struct linear_args *a);
typedef int (*act_op)(struct stream *s, const struct act_args *a);

/* `plain`: the table's op `op`, which stores `real`; called with args whose fp8 is off. */
int cpu_fp8_linear(enum op op, enum dtype real, linear_op plain, struct stream *s,
                   const struct linear_args *a);
/* Bytes of workspace; 0 without fp8. */
size_t cpu_fp8_workspace(enum op op, enum dtype real, const struct linear_args *a);

/* fwd, bwd: the table's activations. */
int cpu_round8(enum dtype real, act_op fwd, act_op bwd, struct stream *s,
               const struct round8_args *a);
size_t cpu_round8_workspace(enum dtype real, const struct round8_args *a);

#endif
