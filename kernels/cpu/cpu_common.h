/* Ops and pieces that every CPU table shares. */
#ifndef CASTOR_KERNELS_CPU_CPU_COMMON_H
#define CASTOR_KERNELS_CPU_CPU_COMMON_H

#include <stdbool.h>

#include "kernels/adamw_math.h"
#include "kernels/moment_math.h"
#include "kernels/op_table.h"

int cpu_clip(struct stream *s, const struct clip_args *a);
/* What the gradient of a row's loss is multiplied by. */
float cpu_loss_factor(const struct loss_args *a);
int cpu_cast(struct stream *s, const struct cast_args *a);

/* The constants of an update, in the arithmetic that every device uses: decay is one fused
 * multiply-add, every other constant one correctly rounded operation (or two, in this order). */
struct adamw_consts cpu_adamw_consts(const struct adamw_args *a, bool decay);

/* Updates whose arrays are not all float: the reference, MOMENT_BLOCK elements from i0 on, or as
 * many as there are. */
bool cpu_adamw_types_known(const struct adamw_args *a);
void cpu_adamw_block(const struct adamw_args *a, const struct adamw_consts *decayed,
                     const struct adamw_consts *plain, int64_t i0);

#endif
