/* Linear layers whose weight lies quantised, on the CPU: the matrix is decoded into the workspace,
 * in the table's own type, and multiplied by its ordinary op. */
#ifndef CASTOR_KERNELS_CPU_QUANT_H
#define CASTOR_KERNELS_CPU_QUANT_H

#include "kernels/op_table.h"

/* kernels/quant.h, on the stream's threads: the same bits as quant_decode. `to`: DT_F32, DT_BF16.
 */
void fast_quant_decode(struct stream *s, const struct op_quant *q, const void *codes, int64_t n,
                       enum dtype to, void *out);

/* The args of the same product with the matrix decoded: `real` at the front of a's workspace, what
 * is left of that behind it. `fast`: by fast_quant_decode. */
struct linear_args cpu_quant_decoded(struct stream *s, enum dtype real, bool fast,
                                     const struct linear_args *a);
/* Bytes that the matrix takes of a workspace; 0 where nothing is decoded. */
size_t cpu_quant_workspace(enum op op, enum dtype real, const struct linear_args *a);

#endif
