/*
 * The fast float table: SIMD loops, OpenMP over independent pieces, and oneDNN on one thread for
 * each tile of a matrix product. How work is cut depends on shapes alone, never on the number of
 * threads, so results do not depend on it either.
 */
#ifndef CASTOR_KERNELS_CPU_FAST_H
#define CASTOR_KERNELS_CPU_FAST_H

#include <stdbool.h>

#include "kernels/op_table.h"

int fast_embed_fwd(struct stream *s, const struct embed_args *a);
int fast_embed_bwd(struct stream *s, const struct embed_args *a);
int fast_norm_fwd(struct stream *s, const struct norm_args *a);
int fast_norm_bwd(struct stream *s, const struct norm_args *a);
int fast_linear_fwd(struct stream *s, const struct linear_args *a);
int fast_linear_bwd_data(struct stream *s, const struct linear_args *a);
int fast_linear_bwd_weight(struct stream *s, const struct linear_args *a);
int fast_act_fwd(struct stream *s, const struct act_args *a);
int fast_act_bwd(struct stream *s, const struct act_args *a);
int fast_rope(struct stream *s, const struct rope_args *a);
int fast_attn_fwd(struct stream *s, const struct attn_args *a);
int fast_attn_bwd(struct stream *s, const struct attn_args *a);
size_t fast_attn_bwd_workspace(const struct attn_args *a);
int fast_dropout_fwd(struct stream *s, const struct dropout_args *a);
int fast_dropout_bwd(struct stream *s, const struct dropout_args *a);
int fast_loss(struct stream *s, const struct loss_args *a);
int fast_add(struct stream *s, const struct add_args *a);
int fast_sumsq(struct stream *s, const struct sumsq_args *a);
int fast_adamw(struct stream *s, const struct adamw_args *a);
int fast_cast(struct stream *s, const struct cast_args *a);

/* out[c] += (or =) sum over n of x[n * ld + c]; columns [c0, c1). Rows are added in blocks whose
 * sums are then added, which keeps the error of long columns small. */
void fast_column_sums(const float *x, int64_t ld, int64_t N, int64_t c0, int64_t c1, bool add,
                      float *out);

/* Pieces of the ops above on dense float rows, which the table of another storage type uses too.
 * Optional pointers may be NULL as in the args of their ops. */
void fast_finish_row(enum act_kind act, int64_t n, const float *product, const float *bias,
                     const float *residual, float *keep, float *y); /* what follows a product */
void fast_slope_row(enum act_kind act, int64_t n, const float *pre, float *dx); /* dx *= act' */
void fast_act_row(enum act_kind act, int64_t n, const float *x, const float *up, float *y);
void fast_act_grad_row(enum act_kind act, int64_t n, const float *x, const float *up,
                       const float *dy, float *dx, float *dup);
void fast_embed_row(const float *wte, const float *wpe, float scale, int64_t C, float *out);
void fast_rope_row(const struct rope_args *a, int64_t n);
void fast_dropout_span(const float *x, const float *mask, const float *residual, int64_t n,
                       float *y);
float fast_loss_z(float logit, float scale, float cap);
void fast_range(const float *x, int64_t n, float *low, float *high); /* widened to hold x */
/* Sum of exp(z - z_max). */
float fast_loss_sum(const float *x, int64_t V, float scale, float cap, float z_max);
int32_t fast_first_of(const float *x, int32_t V, float top); /* the first index that holds `top` */
/* x = by * exp(z - z_max) * dz / dx. Not from the log of the sum, which large logits round. */
void fast_loss_gradient(float *x, int64_t V, float scale, float cap, float z_max, float by);
double fast_sumsq_block(const float *x, int64_t n);

/* Columns that one task sums. */
enum { FAST_COLUMNS = 64 };
/* Elements below which a loop is not worth waking threads for. */
enum { FAST_SERIAL = 1 << 13 };
/* Products of two numbers below which matrix products and attention are not. */
enum { FAST_SERIAL_PRODUCT = 1 << 19 };

/* mask[i - i0] = what element i, counted from d->first, is multiplied by, for i in [i0, i1). */
void fast_dropout_mask(const struct op_dropout *d, int64_t i0, int64_t i1, float *mask);

#endif
