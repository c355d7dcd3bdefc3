/* A decoder layer's backward: block_layer.c, back to front. */
#include "worker/model/block_layer.h"

/* Buffers of backward: attention's and the MLP's share one place. */
struct layer_back {
    struct layer_norm_buf shared; /* for norms that are made again           */
    struct layer_norm_buf norm;   /* what the step at hand reads: shared or kept */
    void *dnorm;                  /* (N, C): gradient of a norm's output            */
    void *dlast;   /* (N, C): of last, and of sums on the way; not in sequential pre-norm */
    void *dropped; /* (N, C): a gradient behind dropout, or NULL     */
    void *dinner;  /* (N, F or 2 F): of the up projection's output   */
    void *dact;    /* (N, F): gated only                             */
    void *act;     /* (N, F): the activation, where it was not kept  */
    struct attention_back attn;
};

static bool makes_act_again(const struct block_ctx *c)
{
    return !layer_keeps_output(c) && !layer_keeps_act(c) && !layer_rounds_act(c);
}

static void take_back(struct block_ctx *c, struct layer_back *b)
{
    struct region *g = &c->scratch;
    int64_t stream = c->N * c->cfg->hidden;
    bool plain = c->cfg->norm_place == NORM_PLACE_PRE && !layer_is_parallel(c);
    size_t mark;

    layer_take_norm(c, g, &b->shared);
    b->norm = b->shared;
    block_adapters_take_work(c, c->N, true);
    b->dnorm = region_take(g, stream, c->real);
    b->dlast = plain ? NULL : region_take(g, stream, c->real);
    b->dropped = c->r->shape.hidden_dropout > 0 ? region_take(g, stream, c->real) : NULL;
    mark = g->used;
    if (!layer_rounds_slope(c))
        b->dinner = region_take(g, c->N * layer_inner_width(c), c->real);
    b->dact = c->cfg->gated ? region_take(g, c->N * c->cfg->ffn, c->real) : NULL;
    if (makes_act_again(c))
        b->act = region_take(g, c->N * c->cfg->ffn, c->real);
    g->used = mark;
    block_attention_take_back(c, &b->attn);
    g->used = g->peak; /* products' buffers lie over neither */
    block_products_take_work(c, true);
}

/* The gradient in front of a dropout: *in = dy itself without dropout. */
static int behind_dropout(struct block_ctx *c, const struct layer_back *b, enum dropout_place place,
                          const void *dy, const void **in)
{
    double p = c->r->shape.hidden_dropout;
    struct dropout_args d = {
        .n = c->N * c->cfg->hidden,
        .dropout = block_dropout(c, place, p, c->r->shape.T * c->cfg->hidden),
        .dy = dy,
        .dx = b->dropped,
    };
    int rc = 0;

    if (p > 0)
        TRY(block_dropout_bwd(c, &d));
    *in = p > 0 ? b->dropped : dy;
out:
    return rc;
}

/* From the gradient of the activation to that of its input. */
static struct act_args layer_slope_args(const struct block_ctx *c, const struct layer_kept *k,
                                        const struct layer_back *b)
{
    struct act_args a = layer_act_args(c, k);

    a.dy = c->cfg->gated ? b->dact : b->dinner;
    a.dx = b->dinner;
    return a;
}

/* Whether the product behind the activation applies its slope and adds up the bias in front of it:
 * unless a gate or an adapter comes in between. */
static bool slope_in_product(const struct block_ctx *c)
{
    return !c->cfg->gated && !block_adapted(c, TENSOR_DOWN_W) && c->cfg->act != ACT_NONE;
}

/* From the gradient of the down projection's result to that of the up projection's, in b->dinner,
 * or to what that is made of on the way.
 */
static int mlp_down_backward(struct block_ctx *c, const struct layer_kept *k,
                             const struct layer_back *b, const void *dmlp)
{
    const struct decoder_config *cfg = c->cfg;
    const void *act = layer_keeps_output(c) ? k->inner : layer_keeps_act(c) ? k->act : b->act;
    bool adapted = block_adapted(c, TENSOR_DOWN_W), together = slope_in_product(c);
    struct act_args from = layer_act_args(c, k);
    struct linear_args down = {
        .N = c->N,
        .I = cfg->ffn,
        .O = cfg->hidden,
        .x = act,
        .dy = dmlp,
        .dw_accum = c->r->grad_accum,
        .dw = block_grad(c, TENSOR_DOWN_W),
        .dbias = block_grad(c, TENSOR_DOWN_B),
        .act_x = together ? cfg->act : ACT_NONE,
        .pre_x = together ? k->inner : NULL,
        .dx = cfg->gated ? b->dact : b->dinner,
        .dbias_x = together ? block_grad(c, TENSOR_UP_B) : NULL,
    };
    struct act_args slope = layer_slope_args(c, k, b);
    int rc = 0;

    block_use_matrix(c, TENSOR_DOWN_W, 0, &down);
    if (makes_act_again(c) && (c->dry || adapted || block_grad(c, TENSOR_DOWN_W) != NULL))
        TRY(layer_inner_activation(c, k, b->act));
    TRY(block_product_bwd(c, PRODUCT_DOWN, 0, &down, layer_rounds_act(c) ? &from : NULL, NULL,
                          true));
    TRY(block_adapter_add_backward(c, TENSOR_DOWN_W, c->N, 0, cfg->hidden, k->down_inner, dmlp,
                                   c->r->grad_accum));
    TRY(block_adapter_inner_backward(c, TENSOR_DOWN_W, c->N, 0, act, down.dx, c->r->grad_accum));
    if (!together && !layer_rounds_slope(c))
        TRY(block_act_bwd(c, &slope));
out:
    return rc;
}

/* dlast: gradient of the MLP's sum, whose input is b->norm.out. Leaves the gradient of that input
 * in `din`, added to what is there when din is the residual's own gradient (post-norm). NULL: not
 * needed. */
static int mlp_backward(struct block_ctx *c, const struct layer_kept *k, const struct layer_back *b,
                        const void *dlast, void *din)
{
    const void *dmlp = NULL;
    struct act_args slope = layer_slope_args(c, k, b);
    struct linear_args up = {
        .N = c->N,
        .I = c->cfg->hidden,
        .O = layer_inner_width(c),
        .x = b->norm.out,
        .dy = b->dinner,
        .dw_accum = c->r->grad_accum,
        .dw = block_grad(c, TENSOR_UP_W),
        .dbias = slope_in_product(c) ? NULL : block_grad(c, TENSOR_UP_B),
        .dx_accum = layer_is_post(c) ? ACCUM_ADD : ACCUM_ASSIGN,
        .dx = din,
    };
    int rc = 0;

    block_use_matrix(c, TENSOR_UP_W, 0, &up);
    TRY(behind_dropout(c, b, DROPOUT_MLP_OUT, dlast, &dmlp));
    TRY(mlp_down_backward(c, k, b, dmlp));
    TRY(block_product_bwd(c, PRODUCT_UP, 0, &up, NULL, layer_rounds_slope(c) ? &slope : NULL,
                          din != NULL));
    TRY(block_adapter_add_backward(c, TENSOR_UP_W, c->N, 0, up.O, k->up_inner, b->dinner,
                                   c->r->grad_accum));
    TRY(block_adapter_inner_backward(c, TENSOR_UP_W, c->N, 0, b->norm.out, din, c->r->grad_accum));
out:
    return rc;
}

/* The output and statistics of a norm of x, kept or made again, for what comes next: b->norm. */
static int recall_norm(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                       enum layer_norm which, const void *x)
{
    b->norm = layer_keeps_cheap(c) ? k->norm[which] : b->shared;
    return layer_keeps_cheap(c) ? 0 : layer_norm_to(c, which, x, &b->norm, b->norm.out);
}

/* Through a norm whose output and statistics are in b->norm: dx = norm'(dy) + dresidual. */
static int norm_backward(struct block_ctx *c, const struct layer_back *b, enum layer_norm which,
                         const void *x, const void *dy, const void *dresidual, void *dx)
{
    enum tensor_role weight = layer_norm_roles[which][0], bias = layer_norm_roles[which][1];
    struct norm_args a = block_norm_args(c, weight, bias, c->N, x, b->norm.mean, b->norm.rstd);
    int rc = 0;

    TRY(block_clear_norm_grads(c, weight, bias));
    a.dy = dy;
    a.dresidual = dresidual;
    a.dx = dx;
    a.dweight = block_grad(c, weight);
    a.dbias = block_grad(c, bias);
    TRY(block_norm_bwd(c, &a));
out:
    return rc;
}

/* dsum: gradient of attention's sum; its input is `in`. */
static int attention_backward(struct block_ctx *c, const struct layer_kept *k,
                              const struct layer_back *b, const void *in, const void *dsum,
                              void *din, enum accum accum)
{
    const void *dattn = NULL;
    int rc = 0;

    TRY(behind_dropout(c, b, DROPOUT_ATTN_OUT, dsum, &dattn));
    TRY(block_attention_backward(c, in, &k->attn, &b->attn, dattn, din, accum));
out:
    return rc;
}

/* Attention behind its norm: dx = norm1'(...) + dresidual. At the bottom dx is not needed. */
static int normed_attention_backward(struct block_ctx *c, const struct layer_kept *k,
                                     struct layer_back *b, const void *dsum, const void *dresidual,
                                     void *dx)
{
    int rc = 0;

    TRY(recall_norm(c, k, b, LAYER_NORM1, c->r->x));
    TRY(attention_backward(c, k, b, b->norm.out, dsum, c->bottom ? NULL : b->dnorm, ACCUM_ASSIGN));
    if (!c->bottom || c->dry)
        TRY(norm_backward(c, b, LAYER_NORM1, c->r->x, b->dnorm, dresidual, dx));
out:
    return rc;
}

static int backward_pre(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                        const void *dy, void *dx)
{
    int rc = 0;

    TRY(recall_norm(c, k, b, LAYER_NORM2, k->mid));
    TRY(mlp_backward(c, k, b, dy, b->dnorm));
    TRY(norm_backward(c, b, LAYER_NORM2, k->mid, b->dnorm, dy, dx));
    TRY(normed_attention_backward(c, k, b, dx, dx, dx));
out:
    return rc;
}

static int backward_post(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                         const void *dy, void *dx)
{
    int rc = 0;

    TRY(recall_norm(c, k, b, LAYER_NORM2, k->last));
    TRY(norm_backward(c, b, LAYER_NORM2, k->last, dy, NULL, b->dlast));
    TRY(recall_norm(c, k, b, LAYER_NORM1, k->mid));
    TRY(mlp_backward(c, k, b, b->dlast, b->dlast));
    TRY(norm_backward(c, b, LAYER_NORM1, k->mid, b->dlast, NULL, dx));
    TRY(attention_backward(c, k, b, c->r->x, dx, c->bottom ? NULL : dx, ACCUM_ADD));
out:
    return rc;
}

static int backward_sandwich(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                             const void *dy, void *dx)
{
    int rc = 0;

    TRY(recall_norm(c, k, b, LAYER_NORM_MLP, k->raw));
    TRY(norm_backward(c, b, LAYER_NORM_MLP, k->raw, dy, NULL, b->dlast));
    TRY(recall_norm(c, k, b, LAYER_NORM2, k->mid));
    TRY(mlp_backward(c, k, b, b->dlast, b->dnorm));
    TRY(norm_backward(c, b, LAYER_NORM2, k->mid, b->dnorm, dy, dx));
    TRY(recall_norm(c, k, b, LAYER_NORM_ATTN, k->attn_raw));
    TRY(norm_backward(c, b, LAYER_NORM_ATTN, k->attn_raw, dx, NULL, b->dlast));
    TRY(normed_attention_backward(c, k, b, b->dlast, dx, dx));
out:
    return rc;
}

/* What comes out of a norm is both the stream and what reads it: their gradients add up. */
static int backward_stream(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                           const void *dy, void *dx)
{
    int rc = 0;

    TRY(recall_norm(c, k, b, LAYER_NORM2, k->mid));
    TRY(mlp_backward(c, k, b, dy, b->dnorm));
    TRY(layer_add_streams(c, b->dnorm, dy, b->dnorm));
    TRY(norm_backward(c, b, LAYER_NORM2, k->mid, b->dnorm, NULL, b->dlast));
    TRY(recall_norm(c, k, b, LAYER_NORM1, c->r->x));
    TRY(attention_backward(c, k, b, b->norm.out, b->dlast, c->bottom ? NULL : b->dnorm,
                           ACCUM_ASSIGN));
    if (c->bottom && !c->dry)
        goto out;
    TRY(layer_add_streams(c, b->dnorm, b->dlast, b->dnorm));
    TRY(norm_backward(c, b, LAYER_NORM1, c->r->x, b->dnorm, NULL, dx));
out:
    return rc;
}

/* dx may be dy, so dy is read for the last time where dx is written. */
static int backward_parallel(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                             const void *dy, void *dx)
{
    enum layer_norm feeds_mlp = layer_mlp_norm(c);
    void *dnorm = c->bottom ? NULL : b->dnorm;
    int rc = 0;

    TRY(recall_norm(c, k, b, feeds_mlp, c->r->x));
    TRY(mlp_backward(c, k, b, dy, dnorm));
    if (feeds_mlp == LAYER_NORM1) { /* both read the same norm: their gradients add up */
        TRY(attention_backward(c, k, b, b->norm.out, dy, dnorm, ACCUM_ADD));
        if (!c->bottom || c->dry)
            TRY(norm_backward(c, b, LAYER_NORM1, c->r->x, b->dnorm, dy, dx));
        goto out;
    }
    if (!c->bottom || c->dry)
        TRY(norm_backward(c, b, LAYER_NORM2, c->r->x, b->dnorm, dy, b->dlast));
    TRY(normed_attention_backward(c, k, b, dy, b->dlast, dx));
out:
    return rc;
}

int block_layer_backward(struct block_ctx *c)
{
    struct layer_kept k;
    struct layer_back b = {0};

    layer_take_kept(c, &c->saved, false, &k);
    take_back(c, &b);
    layer_place_norms(c, b.shared.out, &k);
    block_ctx_ready(c);
    if (block_products_start(c, true) != 0)
        return ERR_DEVICE;
    if (layer_is_parallel(c))
        return backward_parallel(c, &k, &b, c->r->dy, c->r->dx);
    if (layer_is_sandwich(c))
        return backward_sandwich(c, &k, &b, c->r->dy, c->r->dx);
    if (layer_is_post(c))
        return backward_post(c, &k, &b, c->r->dy, c->r->dx);
    if (layer_is_stream(c))
        return backward_stream(c, &k, &b, c->r->dy, c->r->dx);
    return backward_pre(c, &k, &b, c->r->dy, c->r->dx);
}
