/*
 * The table that stores weights and activations in bfloat16 and computes in float: every value is
 * widened where it is read and rounded to nearest even where it is written; in between stand the
 * loops of the float table (kernels/cpu/fast.h). Gradients of weights (unless narrow), statistics
 * and masters are float, as on a GPU. It halves what a model takes, not the time of a step.
 *
 * As in the float table, how work is cut depends on shapes alone.
 */
#ifndef CASTOR_KERNELS_CPU_BF16_H
#define CASTOR_KERNELS_CPU_BF16_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/op_table.h"

typedef uint16_t bf16;

void bf16_load(float *to, const bf16 *from, int64_t n);
void bf16_store(bf16 *to, const float *from, int64_t n);
/* Rows that lie ld_to and ld_from elements apart, in parallel. */
void bf16_load_rows(struct stream *s, float *to, int64_t ld_to, const bf16 *from, int64_t ld_from,
                    int64_t rows, int64_t cols);
void bf16_store_rows(struct stream *s, bf16 *to, int64_t ld_to, const float *from, int64_t ld_from,
                     int64_t rows, int64_t cols);

/* Elements [at, at + n) of a gradient kept in bfloat16 take what a call contributes (struct
 * op_narrow): assigned, or added. */
void bf16_take_gradient(struct rng_stream stream, int64_t at, int64_t n, const float *from,
                        bool add, bf16 *to);
struct rng_stream bf16_bias_stream(const struct op_narrow *narrow);

int bf16_embed_fwd(struct stream *s, const struct embed_args *a);
int bf16_embed_bwd(struct stream *s, const struct embed_args *a);
int bf16_norm_fwd(struct stream *s, const struct norm_args *a);
int bf16_norm_bwd(struct stream *s, const struct norm_args *a);
int bf16_linear_fwd(struct stream *s, const struct linear_args *a);
int bf16_linear_bwd_data(struct stream *s, const struct linear_args *a);
int bf16_linear_bwd_weight(struct stream *s, const struct linear_args *a);
int bf16_act_fwd(struct stream *s, const struct act_args *a);
int bf16_act_bwd(struct stream *s, const struct act_args *a);
int bf16_rope(struct stream *s, const struct rope_args *a);
int bf16_attn_fwd(struct stream *s, const struct attn_args *a);
int bf16_attn_bwd(struct stream *s, const struct attn_args *a);
int bf16_dropout_fwd(struct stream *s, const struct dropout_args *a);
int bf16_dropout_bwd(struct stream *s, const struct dropout_args *a);
int bf16_loss(struct stream *s, const struct loss_args *a);
int bf16_sumsq(struct stream *s, const struct sumsq_args *a);

/* Bytes of workspace. */
size_t bf16_embed_bwd_workspace(const struct embed_args *a);
size_t bf16_norm_workspace(const struct norm_args *a);
size_t bf16_attn_fwd_workspace(const struct attn_args *a);
size_t bf16_attn_bwd_workspace(const struct attn_args *a);

#endif
