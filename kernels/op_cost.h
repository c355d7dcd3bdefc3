/*
 * What an op cannot do without: floating-point operations (a multiply-add is two) and bytes of
 * device memory, each input read once and each output written once. The larger of the two, over
 * what a device does a second, is the least time it can take: its floor.
 *
 * Causal attention counts the lower triangle, a window what it leaves of it; packed rows count as
 * whole ones, so theirs is no floor. Products of 8 bits count half their operations, since a device
 * does twice as many a second as of 16. An embedding's gradient counts rows as if each were another
 * token's.
 */
#ifndef CASTOR_KERNELS_OP_COST_H
#define CASTOR_KERNELS_OP_COST_H

#include "kernels/op_table.h"

struct op_cost {
    double flops, bytes;
};

struct op_cost op_cost(const struct op_table *t, enum op op, const void *args);
/* Multiprocessors take a product's output in tiles, each as many at a time as there are of them,
 * and of the last of these waves some have none: the share of them that works, (0, 1], on an output
 * of rows by cols, by the best of the tiles that there are kernels for (wave quantization: NVIDIA,
 * "Matrix Multiplication Background User's Guide", 2023). 1 where multiprocessors is 0. `op`: one
 * of the linear ones, forward's having a tile more (kernels/cuda/product.h). */
double op_busy_share(enum op op, int64_t rows, int64_t cols, int64_t multiprocessors);
/* The shape in a few words, such as "8192x2048x8192 bias", for people. */
void op_describe(enum op op, const void *args, char *out, size_t cap);

#endif
