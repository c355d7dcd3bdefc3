/*
 * The launchers that the .cu files of this folder export to C: each queues its kernels on the
 * stream and returns 0 or an enum err_code (the launch status). `real` is the table's compute type.
 * Contracts of the ops: kernels/op_table.h.
 */
#ifndef CASTOR_KERNELS_CUDA_LAUNCH_H
#define CASTOR_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "kernels/op_table.h"

#ifdef __cplusplus
extern "C" {
#endif

int launch_embed_fwd(cudaStream_t s, enum dtype real, const struct embed_args *a);
int launch_embed_bwd(cudaStream_t s, enum dtype real, const struct embed_args *a);
size_t workspace_embed_bwd(const struct embed_args *a);

int launch_norm_fwd(cudaStream_t s, enum dtype real, const struct norm_args *a);
int launch_norm_bwd(cudaStream_t s, enum dtype real, const struct norm_args *a);
size_t workspace_norm_bwd(const struct norm_args *a);

int launch_act_fwd(cudaStream_t s, enum dtype real, const struct act_args *a);
int launch_act_bwd(cudaStream_t s, enum dtype real, const struct act_args *a);
/* The parts of a linear op that no GEMM epilogue does, on rows ld apart:
 * y = act(pre) + residual (residual or NULL; y may alias pre), and dx = dx * act'(pre). */
int launch_act_rows(cudaStream_t s, enum dtype real, enum act_kind act, int64_t N, int64_t C,
                    int64_t ld, const void *pre, const void *residual, void *y);
int launch_act_grad_rows(cudaStream_t s, enum dtype real, enum act_kind act, int64_t N, int64_t C,
                         int64_t ld, const void *pre, void *dx);

/* out (C) grad (real where narrow) = or += column sums of x (N, C) real, rows ld apart. */
int launch_colsum(cudaStream_t s, enum dtype real, int64_t N, int64_t C, int64_t ld, const void *x,
                  enum accum accum, void *out, const struct op_narrow *narrow, void *workspace);
/* dw (n) bfloat16 += product (n) bfloat16, rounded as narrow gradients are. */
int launch_narrow_add(cudaStream_t s, int64_t n, const void *product, struct rng_stream stream,
                      void *dw);
size_t workspace_colsum(int64_t N, int64_t C);
/* out as launch_colsum's, from sums of parts of the rows, partial (parts, C), added in order. */
int launch_colsum_parts(cudaStream_t s, int64_t parts, int64_t C, const float *partial,
                        enum accum accum, void *out, const struct op_narrow *narrow);

/* Of bfloat16. */
int launch_round8(cudaStream_t s, const struct round8_args *a);
/* to (n) bfloat16 = what n bytes stand for. */
int launch_fp8_spread(cudaStream_t s, enum fp8_format format, int64_t n, const void *from,
                      const struct fp8_scale *scale, void *to);

/* to (n) real = elements [q->first, q->first + n) of a tensor with these codes. */
int launch_quant_decode(cudaStream_t s, enum dtype real, const struct op_quant *q,
                        const void *codes, int64_t n, void *to);

int launch_rope(cudaStream_t s, enum dtype real, const struct rope_args *a);

/* Attention: warp-a-row kernels for every case; tensor-core kernels for 16-bit types (sm_80 on);
 * and those of Hopper (sm_90a), where dropout needs S and dropout.first to be multiples of 8. */
int launch_attn_fwd_plain(cudaStream_t s, enum dtype real, const struct attn_args *a);
int launch_attn_bwd_plain(cudaStream_t s, enum dtype real, const struct attn_args *a);
size_t workspace_attn_bwd_plain(const struct attn_args *a);
int launch_attn_fwd_mma(cudaStream_t s, enum dtype real, const struct attn_args *a);
int launch_attn_fwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a);
int launch_attn_bwd_mma(cudaStream_t s, enum dtype real, const struct attn_args *a);
size_t workspace_attn_bwd_mma(const struct attn_args *a);
int launch_attn_bwd_hopper(cudaStream_t s, enum dtype real, const struct attn_args *a);
size_t workspace_attn_bwd_hopper(const struct attn_args *a);

int launch_dropout_fwd(cudaStream_t s, enum dtype real, const struct dropout_args *a);
int launch_dropout_bwd(cudaStream_t s, enum dtype real, const struct dropout_args *a);

int launch_loss(cudaStream_t s, enum dtype real, const struct loss_args *a);

int launch_add(cudaStream_t s, const struct add_args *a);
int launch_cast(cudaStream_t s, const struct cast_args *a);

int launch_sumsq(cudaStream_t s, enum dtype real, const struct sumsq_args *a);
int launch_clip(cudaStream_t s, const struct clip_args *a);
int launch_adamw(cudaStream_t s, enum dtype real, const struct adamw_args *a);

#ifdef __cplusplus
}
#endif

#endif
