/*
 * What a decoder layer's forward (block_layer.c, which says what the kinds of layer compute) and
 * backward (block_layer_back.c) share: what is kept between them, and what both compute.
 */
#ifndef CASTOR_WORKER_MODEL_BLOCK_LAYER_H
#define CASTOR_WORKER_MODEL_BLOCK_LAYER_H

#include "worker/model/block_impl.h"

enum layer_norm { LAYER_NORM1, LAYER_NORM2, LAYER_NORM_ATTN, LAYER_NORM_MLP, LAYER_NORMS };

struct layer_norm_buf {
    void *out;         /* (N, C) */
    void *mean, *rstd; /* (N) stat */
};

struct layer_kept {
    struct attention_kept attn;
    struct layer_norm_buf norm[LAYER_NORMS]; /* of LAYER_NORM1 and 2, and          */
    void *act;                               /* (N, F), with keep_cheap; or else and
                                                the norms' out, scratch               */
    void *mid;                               /* (N, C); in parallel layers scratch, not kept */
    void *inner;                 /* (N, F or 2 F); scratch of forward where it is kept in 8 bits */
    void *up_inner, *down_inner; /* of adapters */
    void *last;                  /* (N, C), post-norm only */
    void *attn_raw, *raw;        /* (N, C), sandwich only: what attention and MLP give */
};

extern const enum tensor_role layer_norm_roles[][2]; /* weight, bias */

static inline bool layer_is_post(const struct block_ctx *c)
{
    return c->cfg->norm_place == NORM_PLACE_POST;
}

static inline bool layer_is_sandwich(const struct block_ctx *c)
{
    return c->cfg->norm_place == NORM_PLACE_SANDWICH;
}

static inline bool layer_is_stream(const struct block_ctx *c)
{
    return c->cfg->norm_place == NORM_PLACE_STREAM;
}

static inline bool layer_is_parallel(const struct block_ctx *c)
{
    return c->cfg->residual != RESIDUAL_SEQUENTIAL;
}

/* The norm that feeds the MLP: the second of a pre-norm layer, the first of a post-norm one. */
static inline enum layer_norm layer_mlp_norm(const struct block_ctx *c)
{
    return layer_is_post(c) || c->cfg->residual == RESIDUAL_PARALLEL_1NORM ? LAYER_NORM1
                                                                           : LAYER_NORM2;
}

static inline int64_t layer_inner_width(const struct block_ctx *c)
{
    return c->cfg->gated ? 2 * c->cfg->ffn : c->cfg->ffn;
}

/* The up projection's epilogue applies the activation, and its result alone serves backward. */
static inline bool layer_keeps_output(const struct block_ctx *c)
{
    return !c->cfg->gated && (c->cfg->act == ACT_RELU || c->cfg->act == ACT_NONE);
}

static inline bool layer_keeps_cheap(const struct block_ctx *c)
{
    return c->r->shape.train && c->r->shape.keep_cheap && c->cfg->norm_place == NORM_PLACE_PRE;
}

/* In 8 bits the MLP's activation is rounded as it is made, where nothing but its product reads it,
 * and so is the gradient of a gated one's input. */
static inline bool layer_rounds_act(const struct block_ctx *c)
{
    return c->r->shape.fp8 && !layer_keeps_output(c) && !block_adapted(c, TENSOR_DOWN_W);
}

static inline bool layer_rounds_slope(const struct block_ctx *c)
{
    return c->r->shape.fp8 && c->cfg->gated && !block_adapted(c, TENSOR_UP_W) &&
           block_find(c->r->model, c->desc, TENSOR_UP_B) < 0;
}

/* Gate and up are kept for backward in 8 bits alone, and with them what down reads: where both are
 * rounded on the way. No matter what memory there is, for it shows in the numbers. */
static inline bool layer_keeps_inner8(const struct block_ctx *c)
{
    return c->r->shape.train && layer_rounds_act(c) && layer_rounds_slope(c);
}

/* Whether what the product reads is kept in 8 bits; but for that, with keep_cheap. */
static inline bool layer_keeps_8(const struct block_ctx *c, enum product which)
{
    static const enum tensor_role READERS[] = {[PRODUCT_QKV] = TENSOR_QKV_W,
                                               [PRODUCT_OUT] = TENSOR_OUT_W,
                                               [PRODUCT_UP] = TENSOR_UP_W,
                                               [PRODUCT_DOWN] = TENSOR_DOWN_W};

    if (which == PRODUCT_DOWN && layer_keeps_inner8(c))
        return true;
    return c->r->shape.fp8 && layer_keeps_cheap(c) && which != PRODUCT_OUT &&
           (which != PRODUCT_DOWN || !layer_keeps_output(c)) && !block_adapted(c, READERS[which]);
}

static inline bool layer_keeps_act(const struct block_ctx *c)
{
    return layer_keeps_cheap(c) && !layer_keeps_output(c) && !layer_rounds_act(c);
}

static inline bool layer_keeps_norm(const struct block_ctx *c, enum layer_norm which)
{
    bool qkv = which == LAYER_NORM1 && !layer_keeps_8(c, PRODUCT_QKV);
    bool up = which == layer_mlp_norm(c) && !layer_keeps_8(c, PRODUCT_UP);

    return layer_keeps_cheap(c) && (qkv || up);
}

void layer_take_norm(struct block_ctx *c, struct region *g, struct layer_norm_buf *n);
/* `overlay`: nothing is kept, so attention's buffers make room for the MLP's. */
void layer_take_kept(struct block_ctx *c, struct region *g, bool overlay, struct layer_kept *k);

/* y = the norm of x, its statistics to n. */
/* The norms' outputs that are not kept come to lie in scratch. */
void layer_place_norms(const struct block_ctx *c, void *scratch, struct layer_kept *k);
int layer_norm_to(struct block_ctx *c, enum layer_norm which, const void *x,
                  const struct layer_norm_buf *n, void *y);
/* y = x + residual */
int layer_add_streams(struct block_ctx *c, const void *x, const void *residual, void *y);
/* The MLP's activation from its kept input, as an op or for one that makes it on the way. */
struct act_args layer_act_args(const struct block_ctx *c, const struct layer_kept *k);
/* The MLP's activation, from its kept input; nothing where it was kept itself. */
int layer_inner_activation(struct block_ctx *c, const struct layer_kept *k, void *act);

#endif
