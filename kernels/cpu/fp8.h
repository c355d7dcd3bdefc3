/* Linear layers whose operands are rounded to 8 bits, on the CPU: the operands are rounded into the
 * workspace, in the table's own type, and multiplied by its ordinary op. */
#ifndef CASTOR_KERNELS_CPU_FP8_H
#define CASTOR_KERNELS_CPU_FP8_H

#include "kernels/op_table.h"

typedef int (*linear_op)(struct stream *s, const struct linear_args *a);

/* `plain`: the table's op `op`, which stores `real`; called with args whose fp8 is off. */
int cpu_fp8_linear(enum op op, enum dtype real, linear_op plain, struct stream *s,
                   const struct linear_args *a);
/* Bytes of workspace; 0 for args that round nothing. */
size_t cpu_fp8_workspace(enum op op, enum dtype real, const struct linear_args *a);

#endif
