/* What tests/ops/harness.c needs to know of single ops, and how it measures errors. */
#ifndef CASTOR_TESTS_OPS_HARNESS_OP_H
#define CASTOR_TESTS_OPS_HARNESS_OP_H

#include "kernels/op_table.h"

enum { NO_SLOT = -1 };

int op_call(const struct op_table *t, struct stream *s, enum op op, const void *args);
/* Element types that an op's args name, where the case left them all open: those of the table. */
void op_fill_types(enum op op, void *args, const struct op_table *t);
/* Where the op's args hold their workspace, or NO_SLOT. */
int op_workspace_slot(enum op op);
double tensor_rms(const double *x, int64_t n);
/* The largest |a - b| / (relative * (|b| + rms(b))); infinity where there is a NaN. */
double tensor_error(const double *a, const double *b, int64_t n, double relative);

#endif
