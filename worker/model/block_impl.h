/*
 * What the three kinds of block share. Each block's code runs in two modes: for real, and "dry",
 * where every buffer is NULL and ops only report their workspace. block_sizes is a dry run, so the
 * sizes that a plan is made with and the addresses that a run uses come from the same lines.
 *
 * Layout rule: a call takes all its buffers first and calls block_ctx_ready before its first op;
 * the ops' shared workspace lies behind the buffers in scratch.
 */
#ifndef CASTOR_WORKER_MODEL_BLOCK_IMPL_H
#define CASTOR_WORKER_MODEL_BLOCK_IMPL_H

#include "worker/model/block.h"

/* The tensors and places of a block that draw random numbers: site = block * 8 + place. */
enum dropout_place {
    DROPOUT_EMBED,
    DROPOUT_ATTN_PROBS,
    DROPOUT_ATTN_OUT,
    DROPOUT_MLP_OUT,
    DROPOUT_LORA_QKV, /* what adapters read */
    DROPOUT_LORA_OUT,
    DROPOUT_LORA_UP,
    DROPOUT_LORA_DOWN,
    DROPOUT_LORA_PROJECTION = DROPOUT_LORA_QKV, /* of embedding and head, which have no other */
    DROPOUT_PLACES = 8
};

struct region { /* a stack of buffers in memory that the caller gave; base NULL in a dry run */
    char *base;
    size_t used, peak;
};

struct adapters_work { /* scratch; NULL without adapters */
    void *dropped; /* (rows, widest input): dropout of an adapter's input; NULL without dropout */
    void *dinner;  /* (rows, widest inner); backward */
};

/* A layer's own products, and what they are multiplied as with shape.fp8 (block_product.c). */
enum product { PRODUCT_QKV, PRODUCT_OUT, PRODUCT_UP, PRODUCT_DOWN, PRODUCTS };
enum { PRODUCT_PARTS = PRODUCTS + 2 }; /* the first may come in three */
struct products {
    struct fp8_scale *x;  /* (PRODUCTS), and behind them from8's: kept from forward to backward */
    struct fp8_scale *w;  /* (PRODUCT_PARTS): kept through the step       */
    struct fp8_scale *dy; /* (PRODUCT_PARTS): backward                    */
    void *kept[PRODUCTS]; /* x8, transposed: kept as x is; or NULL        */
    bool keeps[PRODUCTS];
    void *from8; /* (N, F or 2 F): what the MLP's activation is made of; kept as x is; or NULL */
    void *w_kept[PRODUCTS];           /* w8 of forward, kept as w is; or scratch   */
    void *x8, *w8, *dy8, *dy8_turned; /* of the product at hand */
};

struct block_ctx {
    const struct block_run *r;
    const struct decoder_config *cfg;
    const struct block_desc *desc;
    const struct op_table *ops;
    bool dry;
    bool narrow;           /* weight gradients are of the compute type */
    uint32_t narrow_calls; /* ops that have rounded such gradients: each draws numbers of its own */
    bool bottom;           /* nothing that trains needs the gradient of this block's input */
    int64_t N;             /* B * T */
    size_t real, grad, stat; /* bytes an element */
    struct region saved, scratch, held;
    struct adapters_work adapters;
    struct products products;
    void *workspace;
    size_t workspace_bytes; /* dry: the largest any op asked for */
    size_t held_least;      /* dry: of `held`, without what need not be kept there */
    struct err *err;
};

void *region_take(struct region *g, int64_t elements, size_t element_bytes);
/* Everything is taken; the workspace starts behind the highest use of scratch. */
void block_ctx_ready(struct block_ctx *c);

/* Pointer `elements` further on, NULL staying NULL. */
void *block_at(void *p, int64_t elements, size_t element_bytes);
const void *block_at_const(const void *p, int64_t elements, size_t element_bytes);

/* The block's weight or gradient of a role; NULL where the block has none, where it is frozen, and
 * in a dry run. TENSOR_ROLE_COUNT is a role that no block has. */
const void *block_weight(const struct block_ctx *c, enum tensor_role role);
void *block_grad(const struct block_ctx *c, enum tensor_role role);
/* Have a product read the block's matrix of that role from its element `first` on, which may lie
 * quantised as matrices of layers may. */
void block_use_matrix(const struct block_ctx *c, enum tensor_role role, int64_t first,
                      struct linear_args *a);

/* Dropout at a place of this block; `elements_per_sequence` counts the tensor it acts on. */
struct op_dropout block_dropout(const struct block_ctx *c, enum dropout_place place, double p,
                                int64_t elements_per_sequence);

/* The ops, with the workspace filled in and failures put into words. */
int block_embed_fwd(struct block_ctx *c, struct embed_args *a);
int block_embed_bwd(struct block_ctx *c, struct embed_args *a);
int block_norm_fwd(struct block_ctx *c, struct norm_args *a);
int block_norm_bwd(struct block_ctx *c, struct norm_args *a);
int block_linear_fwd(struct block_ctx *c, struct linear_args *a);
int block_linear_bwd_data(struct block_ctx *c, struct linear_args *a);
/* Does nothing when dw and dbias are both NULL (frozen). */
int block_linear_bwd_weight(struct block_ctx *c, struct linear_args *a);
int block_act_fwd(struct block_ctx *c, struct act_args *a);
int block_act_bwd(struct block_ctx *c, struct act_args *a);
int block_rope(struct block_ctx *c, struct rope_args *a);
int block_attn_fwd(struct block_ctx *c, struct attn_args *a);
int block_attn_bwd(struct block_ctx *c, struct attn_args *a);
int block_dropout_fwd(struct block_ctx *c, struct dropout_args *a);
int block_dropout_bwd(struct block_ctx *c, struct dropout_args *a);
int block_loss(struct block_ctx *c, struct loss_args *a);
int block_round8(struct block_ctx *c, struct round8_args *a);

/* The layer's products. x_from, dy_from: the activation whose output x is, or whose input's
 * gradient dy is, where that need not be stored because the product is of 8 bits; else NULL and x
 * or dy is there. Of several parts of one product the first comes first: they share x.
 *
 * Buffers: scales and what is kept in 8 bits from `g`, the x of those products whose `keeps` is set
 * and, with keeps_from, what x_from and dy_from are made of, which forward then rounds on the way
 * and backward reads; what is kept through the step; and scratch. */
void block_products_take(struct block_ctx *c, struct region *g, const bool keeps[PRODUCTS],
                         bool keeps_from);
void block_products_take_work(struct block_ctx *c, bool backward);
/* Before the first product of a forward or a backward. */
int block_products_start(struct block_ctx *c, bool backward);
int block_product_fwd(struct block_ctx *c, enum product which, int part, struct linear_args *a,
                      const struct act_args *x_from);
/* What backward wants to know of a product that recomputation leaves out. */
int block_product_recall(struct block_ctx *c, enum product which, const struct linear_args *a,
                         const struct act_args *x_from);
/* dw and dbias, unless they are NULL; and dx, if `data`. */
int block_product_bwd(struct block_ctx *c, enum product which, int part, struct linear_args *a,
                      const struct act_args *x_from, const struct act_args *dy_from, bool data);

/* Adapters (block_adapter.c), beside the block's matrix of that role; all of them do nothing when
 * it has none. `inner`: dropout(x) A^T, from block_adapter_take. Rows are those of x, the first of
 * them being row first_row of the micro-batch. */
bool block_adapted(const struct block_ctx *c, enum tensor_role matrix);
void *block_adapter_take(struct block_ctx *c, struct region *g, enum tensor_role matrix,
                         int64_t rows);
void block_adapters_take_work(struct block_ctx *c, int64_t rows, bool backward);
int block_adapter_inner(struct block_ctx *c, enum tensor_role matrix, int64_t rows,
                        int64_t first_row, const void *x, void *inner);
/* y (rows, n) += what the adapters give in the matrix's rows [first, first + n). */
int block_adapter_add(struct block_ctx *c, enum tensor_role matrix, int64_t rows, int64_t first,
                      int64_t n, const void *inner, void *y);
/* Gradients of B and of the inner activations, then of A and x (added to dx; NULL: not needed),
 * which has to come after the matrix's own. `accum`: of A and B. */
int block_adapter_add_backward(struct block_ctx *c, enum tensor_role matrix, int64_t rows,
                               int64_t first, int64_t n, const void *inner, const void *dy,
                               enum accum accum);
int block_adapter_inner_backward(struct block_ctx *c, enum tensor_role matrix, int64_t rows,
                                 int64_t first_row, const void *x, void *dx, enum accum accum);

/* The norm ops always add to weight gradients; at a step's first micro-batch this clears them. */
int block_clear_norm_grads(struct block_ctx *c, enum tensor_role weight, enum tensor_role bias);

/* Norm of x over the hidden dimension with this block's weights; statistics for backward. */
struct norm_args block_norm_args(const struct block_ctx *c, enum tensor_role weight,
                                 enum tensor_role bias, int64_t rows, const void *x, void *mean,
                                 void *rstd);

/* Attention (block_attention.c), without the norm in front and the output projection. */
struct attention_kept {
    void *qkv; /* (N, (H + 2 KV) D): rotated, or with norms on q and k three planes, plain */
    void *o;   /* (N, H D)       */
    void *lse; /* (B, H, T) stat */
    void *qkv_inner, *out_inner; /* of adapters */
};
struct attention_work { /* scratch; NULL without norms on q and k */
    void *normed;       /* (N, H D) and (N, KV D): normed, rotated q and k */
    void *mean, *rstd;  /* (N H + N KV) stat; no mean for RMS */
};
struct attention_back {
    void *dout; /* (N, H D): of attention's output */
    void *dqkv; /* as qkv                          */
    struct attention_work work;
};
void block_attention_take(struct block_ctx *c, struct region *g, struct attention_kept *k);
void block_attention_take_work(struct block_ctx *c, struct attention_work *w);
void block_attention_take_back(struct block_ctx *c, struct attention_back *b);
int block_attention_forward(struct block_ctx *c, const void *in, const struct attention_kept *k,
                            const struct attention_work *w);
/* dattn: gradient of the output projection's result. din: of `in`, assigned or added to; NULL: not
 * needed. */
int block_attention_backward(struct block_ctx *c, const void *in, const struct attention_kept *k,
                             const struct attention_back *b, const void *dattn, void *din,
                             enum accum accum);

int block_embed_forward(struct block_ctx *c);
int block_embed_backward(struct block_ctx *c);
int block_layer_forward(struct block_ctx *c);
int block_layer_backward(struct block_ctx *c);
int block_head_forward(struct block_ctx *c);
int block_head_backward(struct block_ctx *c);

#endif
