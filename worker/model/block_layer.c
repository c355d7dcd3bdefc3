/*
 * A decoder layer: attention and MLP, each added to the residual stream.
 *
 *   pre-norm:   mid = x + attn(norm1 x);  y = mid + mlp(norm2 mid)
 *   post-norm:  mid = x + attn(x), a = norm1 mid;  last = a + mlp(a), y = norm2 last
 *   sandwich:   mid = x + norm(attn(norm1 x));  y = mid + norm(mlp(norm2 mid))
 *   stream:     a = norm1 x, mid = a + attn(a);  b = norm2 mid, y = b + mlp(b)
 *   parallel:   y = x + attn(norm1 x) + mlp(norm1 x or norm2 x)
 *
 * Kept for backward: qkv, attention's output and log-sums, mid (not in parallel layers), the MLP's
 * inner activation (ReLU: its output, which tells its own gradient; else its input), the adapters'
 * inner activations, and where more norms follow what these read. Norm outputs and the other
 * activations are kept where the shape says so, else computed again, which costs one pass over
 * memory each.
 */
#include <assert.h>

#include "worker/model/block_impl.h"

struct layer_norm_buf {
    void *out;         /* (N, C) */
    void *mean, *rstd; /* (N) stat */
};

struct layer_kept {
    struct attention_kept attn;
    struct layer_norm_buf norm[2]; /* of LAYER_NORM1 and 2, and */
    void *act;                     /* (N, F), with keep_cheap   */
    void *mid;                     /* (N, C); in parallel layers scratch, not kept */
    void *inner;                   /* (N, F or 2 F)    */
    void *up_inner, *down_inner;   /* of adapters */
    void *last;                    /* (N, C), post-norm only */
    void *attn_raw, *raw;          /* (N, C), sandwich only: what attention and MLP give */
};

enum layer_norm { LAYER_NORM1, LAYER_NORM2, LAYER_NORM_ATTN, LAYER_NORM_MLP };
static const enum tensor_role norm_roles[][2] = {
    [LAYER_NORM1] = {TENSOR_NORM1_W, TENSOR_NORM1_B},
    [LAYER_NORM2] = {TENSOR_NORM2_W, TENSOR_NORM2_B},
    [LAYER_NORM_ATTN] = {TENSOR_POST_ATTN_NORM_W, TENSOR_ROLE_COUNT},
    [LAYER_NORM_MLP] = {TENSOR_POST_MLP_NORM_W, TENSOR_ROLE_COUNT},
};

static bool is_post(const struct block_ctx *c)
{
    return c->cfg->norm_place == NORM_PLACE_POST;
}

static bool is_sandwich(const struct block_ctx *c)
{
    return c->cfg->norm_place == NORM_PLACE_SANDWICH;
}

static bool is_stream(const struct block_ctx *c)
{
    return c->cfg->norm_place == NORM_PLACE_STREAM;
}

static bool is_parallel(const struct block_ctx *c)
{
    return c->cfg->residual != RESIDUAL_SEQUENTIAL;
}

/* The norm that feeds the MLP: the second of a pre-norm layer, the first of a post-norm one. */
static enum layer_norm mlp_norm(const struct block_ctx *c)
{
    return is_post(c) || c->cfg->residual == RESIDUAL_PARALLEL_1NORM ? LAYER_NORM1 : LAYER_NORM2;
}

static int64_t inner_width(const struct block_ctx *c)
{
    return c->cfg->gated ? 2 * c->cfg->ffn : c->cfg->ffn;
}

/* The up projection's epilogue applies the activation, and its result alone serves backward. */
static bool keeps_output(const struct block_ctx *c)
{
    return !c->cfg->gated && (c->cfg->act == ACT_RELU || c->cfg->act == ACT_NONE);
}

static bool keeps_cheap(const struct block_ctx *c)
{
    return c->r->shape.train && c->r->shape.keep_cheap && c->cfg->norm_place == NORM_PLACE_PRE;
}

static void take_norm(struct block_ctx *c, struct region *g, struct layer_norm_buf *n)
{
    n->out = region_take(g, c->N * c->cfg->hidden, c->real);
    n->mean = region_take(g, c->N, c->stat);
    n->rstd = region_take(g, c->N, c->stat);
}

/* In scratch (nothing is kept) attention's buffers make room for the MLP's. */
static void take_kept(struct block_ctx *c, struct region *g, bool overlay, struct layer_kept *k)
{
    int64_t stream = c->N * c->cfg->hidden;
    size_t mark;

    *k = (struct layer_kept){0};
    if (!is_parallel(c))
        k->mid = region_take(g, stream, c->real);
    if (is_post(c))
        k->last = region_take(g, stream, c->real);
    if (is_sandwich(c)) {
        k->attn_raw = region_take(g, stream, c->real);
        k->raw = region_take(g, stream, c->real);
    }
    mark = g->used;
    block_attention_take(c, g, &k->attn);
    if (overlay)
        g->used = mark;
    k->inner = region_take(g, c->N * inner_width(c), c->real);
    if (keeps_cheap(c)) {
        take_norm(c, g, &k->norm[LAYER_NORM1]);
        if (mlp_norm(c) == LAYER_NORM2)
            take_norm(c, g, &k->norm[LAYER_NORM2]);
        k->act = keeps_output(c) ? NULL : region_take(g, c->N * c->cfg->ffn, c->real);
    }
    k->up_inner = block_adapter_take(c, g, TENSOR_UP_W, c->N);
    k->down_inner = block_adapter_take(c, g, TENSOR_DOWN_W, c->N);
}

static int norm_to(struct block_ctx *c, enum layer_norm which, const void *x,
                   const struct layer_norm_buf *n, void *y)
{
    struct norm_args a =
        block_norm_args(c, norm_roles[which][0], norm_roles[which][1], c->N, x, n->mean, n->rstd);

    a.y = y;
    return block_norm_fwd(c, &a);
}

/* y = x + residual: a dropout that drops nothing. */
static int add_streams(struct block_ctx *c, const void *x, const void *residual, void *y)
{
    struct dropout_args a = {.n = c->N * c->cfg->hidden, .x = x, .residual = residual, .y = y};

    return block_dropout_fwd(c, &a);
}

/* y = residual + dropout(x w^T + bias + what an adapter of the matrix gives) */
static int linear_residual(struct block_ctx *c, enum tensor_role matrix, struct linear_args *a,
                           const void *inner, const void *residual, enum dropout_place place)
{
    double p = c->r->shape.hidden_dropout;
    int rc = 0;

    if (p == 0)
        a->residual = residual;
    TRY(block_linear_fwd(c, a));
    TRY(block_adapter_add(c, matrix, a->N, 0, a->O, inner, a->y));
    if (p > 0) {
        struct dropout_args d = {
            .n = a->N * a->O,
            .dropout = block_dropout(c, place, p, c->r->shape.T * a->O),
            .x = a->y,
            .residual = residual,
            .y = a->y,
        };

        TRY(block_dropout_fwd(c, &d));
    }
out:
    return rc;
}

static int project_out_inner(struct block_ctx *c, const struct layer_kept *k)
{
    return block_adapter_inner(c, TENSOR_OUT_W, c->N, 0, k->attn.o, k->attn.out_inner);
}

/* y = residual + what attention gives */
static int project_out(struct block_ctx *c, const struct layer_kept *k, const void *residual,
                       void *y)
{
    struct linear_args out_proj = {
        .fp8 = c->r->shape.fp8,
        .N = c->N,
        .I = c->cfg->heads * c->cfg->head_dim,
        .O = c->cfg->hidden,
        .x = k->attn.o,
        .w = block_weight(c, TENSOR_OUT_W),
        .bias = block_weight(c, TENSOR_OUT_B),
        .y = y,
    };
    int rc = 0;

    TRY(project_out_inner(c, k));
    TRY(linear_residual(c, TENSOR_OUT_W, &out_proj, k->attn.out_inner, residual, DROPOUT_ATTN_OUT));
out:
    return rc;
}

/* The MLP's inner activation from what was kept: into `act` unless the kept buffer is it. */
static int inner_activation(struct block_ctx *c, const struct layer_kept *k, void *act)
{
    struct act_args a = {.act = c->cfg->act, .gated = c->cfg->gated, .N = c->N, .F = c->cfg->ffn};

    if (keeps_output(c))
        return 0;
    a.x = k->inner;
    a.y = act;
    return block_act_fwd(c, &a);
}

/* From the MLP's input to its activation, in k->inner where that is kept, else in `act`. The up
 * projection applies it itself unless a gate or an adapter comes in between. */
static int mlp_up(struct block_ctx *c, const void *in, const struct layer_kept *k, void *act)
{
    bool keep = keeps_output(c), adapted = block_adapted(c, TENSOR_UP_W);
    bool apart = c->cfg->gated || adapted;
    struct linear_args up = {
        .fp8 = c->r->shape.fp8,
        .N = c->N,
        .I = c->cfg->hidden,
        .O = inner_width(c),
        .x = in,
        .w = block_weight(c, TENSOR_UP_W),
        .bias = block_weight(c, TENSOR_UP_B),
        .act = apart ? ACT_NONE : c->cfg->act,
        .pre = keep || apart ? NULL : k->inner,
        .y = keep || apart ? k->inner : act,
    };
    struct act_args in_place = {
        .act = c->cfg->act, .N = c->N, .F = c->cfg->ffn, .x = k->inner, .y = k->inner};
    int rc = 0;

    TRY(block_adapter_inner(c, TENSOR_UP_W, c->N, 0, in, k->up_inner));
    TRY(block_linear_fwd(c, &up));
    TRY(block_adapter_add(c, TENSOR_UP_W, c->N, 0, up.O, k->up_inner, k->inner));
    if (keep && adapted)
        TRY(block_act_fwd(c, &in_place));
    else if (apart)
        TRY(inner_activation(c, k, act));
out:
    return rc;
}

static int mlp_forward(struct block_ctx *c, const void *in, const struct layer_kept *k, void *act,
                       const void *residual, void *y)
{
    bool keep = keeps_output(c);
    struct linear_args down = {
        .fp8 = c->r->shape.fp8,
        .N = c->N,
        .I = c->cfg->ffn,
        .O = c->cfg->hidden,
        .x = keep ? k->inner : act,
        .w = block_weight(c, TENSOR_DOWN_W),
        .bias = block_weight(c, TENSOR_DOWN_B),
        .y = y,
    };
    int rc = 0;

    TRY(mlp_up(c, in, k, act));
    TRY(block_adapter_inner(c, TENSOR_DOWN_W, c->N, 0, down.x, k->down_inner));
    if (y == NULL && !c->dry)
        goto out; /* recomputation: what backward needs is there */
    TRY(linear_residual(c, TENSOR_DOWN_W, &down, k->down_inner, residual, DROPOUT_MLP_OUT));
out:
    return rc;
}

/* Where the norm in front of the MLP goes. */
static const struct layer_norm_buf *mlp_norm_buf(const struct block_ctx *c,
                                                 const struct layer_kept *k,
                                                 const struct layer_norm_buf *shared)
{
    return keeps_cheap(c) ? &k->norm[mlp_norm(c)] : shared;
}

/* Behind attention: each kind of layer its own way to y. */
static int rest_sequential(struct block_ctx *c, const struct layer_kept *k,
                           const struct layer_norm_buf *shared, void *act)
{
    const struct layer_norm_buf *norm = mlp_norm_buf(c, k, shared);
    bool post = is_post(c), normed = post || is_stream(c);
    int rc = 0;

    TRY(project_out(c, k, is_stream(c) ? shared->out : c->r->x, k->mid));
    TRY(norm_to(c, mlp_norm(c), k->mid, norm, norm->out));
    TRY(mlp_forward(c, norm->out, k, act, normed ? norm->out : k->mid, post ? k->last : c->r->y));
    if (post && (c->r->y != NULL || c->dry))
        TRY(norm_to(c, LAYER_NORM2, k->last, norm, c->r->y));
out:
    return rc;
}

static int rest_sandwich(struct block_ctx *c, const struct layer_kept *k,
                         const struct layer_norm_buf *norm, void *act)
{
    int rc = 0;

    TRY(project_out(c, k, NULL, k->attn_raw));
    TRY(norm_to(c, LAYER_NORM_ATTN, k->attn_raw, norm, norm->out));
    TRY(add_streams(c, norm->out, c->r->x, k->mid));
    TRY(norm_to(c, LAYER_NORM2, k->mid, norm, norm->out));
    TRY(mlp_forward(c, norm->out, k, act, NULL, k->raw));
    if (c->r->y != NULL || c->dry) {
        TRY(norm_to(c, LAYER_NORM_MLP, k->raw, norm, norm->out));
        TRY(add_streams(c, norm->out, k->mid, c->r->y));
    }
out:
    return rc;
}

static int rest_parallel(struct block_ctx *c, const struct layer_kept *k,
                         const struct layer_norm_buf *shared, void *act)
{
    const struct layer_norm_buf *norm = mlp_norm_buf(c, k, shared);
    int rc = 0;

    if (c->r->y != NULL || c->dry)
        TRY(project_out(c, k, c->r->x, k->mid));
    else
        TRY(project_out_inner(c, k));
    if (mlp_norm(c) == LAYER_NORM2)
        TRY(norm_to(c, LAYER_NORM2, c->r->x, norm, norm->out));
    TRY(mlp_forward(c, norm->out, k, act, k->mid, c->r->y));
out:
    return rc;
}

int block_layer_forward(struct block_ctx *c)
{
    bool train = c->r->shape.train;
    struct layer_norm_buf norm;
    const struct layer_norm_buf *first = &norm;
    struct attention_work work;
    struct layer_kept k;
    void *act = NULL, *mid = NULL;
    int rc = 0;

    /* what attention's buffers must not lie over comes in front of them */
    take_norm(c, &c->scratch, &norm);
    block_adapters_take_work(c, c->N, false);
    if (is_parallel(c))
        mid = region_take(&c->scratch, c->N * c->cfg->hidden, c->real);
    block_attention_take_work(c, &work);
    take_kept(c, train ? &c->saved : &c->scratch, !train, &k);
    if (is_parallel(c))
        k.mid = mid;
    if (keeps_cheap(c)) {
        first = &k.norm[LAYER_NORM1];
        act = k.act;
    } else if (!keeps_output(c)) {
        act = region_take(&c->scratch, c->N * c->cfg->ffn, c->real);
    }
    block_ctx_ready(c);

    if (!is_post(c))
        TRY(norm_to(c, LAYER_NORM1, c->r->x, first, first->out));
    TRY(block_attention_forward(c, is_post(c) ? c->r->x : first->out, &k.attn, &work));
    if (is_parallel(c))
        TRY(rest_parallel(c, &k, &norm, act));
    else if (is_sandwich(c))
        TRY(rest_sandwich(c, &k, &norm, act));
    else
        TRY(rest_sequential(c, &k, &norm, act));
out:
    return rc;
}

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

static void take_back(struct block_ctx *c, struct layer_back *b)
{
    struct region *g = &c->scratch;
    int64_t stream = c->N * c->cfg->hidden;
    bool plain = c->cfg->norm_place == NORM_PLACE_PRE && !is_parallel(c);
    size_t mark;

    take_norm(c, g, &b->shared);
    b->norm = b->shared;
    block_adapters_take_work(c, c->N, true);
    b->dnorm = region_take(g, stream, c->real);
    b->dlast = plain ? NULL : region_take(g, stream, c->real);
    b->dropped = c->r->shape.hidden_dropout > 0 ? region_take(g, stream, c->real) : NULL;
    mark = g->used;
    b->dinner = region_take(g, c->N * inner_width(c), c->real);
    b->dact = c->cfg->gated ? region_take(g, c->N * c->cfg->ffn, c->real) : NULL;
    if (!keeps_output(c) && !keeps_cheap(c))
        b->act = region_take(g, c->N * c->cfg->ffn, c->real);
    g->used = mark;
    block_attention_take_back(c, &b->attn);
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

/* dw and dbias of y = x w^T + bias from dy; nothing when the weight is frozen. */
static int weight_grad(struct block_ctx *c, enum tensor_role weight, enum tensor_role bias,
                       int64_t in, int64_t out_rows, const void *x, const void *dy)
{
    struct linear_args a = {
        .fp8 = c->r->shape.fp8,
        .N = c->N,
        .I = in,
        .O = out_rows,
        .x = x,
        .dy = dy,
        .dw_accum = c->r->grad_accum,
        .dw = block_grad(c, weight),
        .dbias = block_grad(c, bias),
    };

    return block_linear_bwd_weight(c, &a);
}

/* From the gradient of the down projection's result to that of the up projection's, in b->dinner.
 * The product applies the activation's slope itself unless a gate or an adapter comes in between.
 */
static int mlp_down_backward(struct block_ctx *c, const struct layer_kept *k,
                             const struct layer_back *b, const void *dmlp)
{
    const struct decoder_config *cfg = c->cfg;
    const void *act = keeps_output(c) ? k->inner : keeps_cheap(c) ? k->act : b->act;
    bool adapted = block_adapted(c, TENSOR_DOWN_W), apart = cfg->gated || adapted;
    struct linear_args down = {
        .fp8 = c->r->shape.fp8,
        .N = c->N,
        .I = cfg->ffn,
        .O = cfg->hidden,
        .w = block_weight(c, TENSOR_DOWN_W),
        .dy = dmlp,
        .act_x = apart ? ACT_NONE : cfg->act,
        .pre_x = apart || cfg->act == ACT_NONE ? NULL : k->inner,
        .dx = cfg->gated ? b->dact : b->dinner,
    };
    struct act_args slope = {
        .act = cfg->act,
        .gated = cfg->gated,
        .N = c->N,
        .F = cfg->ffn,
        .x = k->inner,
        .dy = down.dx,
        .dx = b->dinner,
    };
    int rc = 0;

    if (!keeps_cheap(c) && (c->dry || adapted || block_grad(c, TENSOR_DOWN_W) != NULL))
        TRY(inner_activation(c, k, b->act));
    TRY(weight_grad(c, TENSOR_DOWN_W, TENSOR_DOWN_B, cfg->ffn, cfg->hidden, act, dmlp));
    TRY(block_adapter_add_backward(c, TENSOR_DOWN_W, c->N, 0, cfg->hidden, k->down_inner, dmlp,
                                   c->r->grad_accum));
    TRY(block_linear_bwd_data(c, &down));
    TRY(block_adapter_inner_backward(c, TENSOR_DOWN_W, c->N, 0, act, down.dx, c->r->grad_accum));
    if (apart)
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
    struct linear_args up = {
        .fp8 = c->r->shape.fp8,
        .N = c->N,
        .I = c->cfg->hidden,
        .O = inner_width(c),
        .w = block_weight(c, TENSOR_UP_W),
        .dy = b->dinner,
        .dx_accum = is_post(c) ? ACCUM_ADD : ACCUM_ASSIGN,
        .dx = din,
    };
    int rc = 0;

    TRY(behind_dropout(c, b, DROPOUT_MLP_OUT, dlast, &dmlp));
    TRY(mlp_down_backward(c, k, b, dmlp));
    TRY(weight_grad(c, TENSOR_UP_W, TENSOR_UP_B, up.I, up.O, b->norm.out, b->dinner));
    TRY(block_adapter_add_backward(c, TENSOR_UP_W, c->N, 0, up.O, k->up_inner, b->dinner,
                                   c->r->grad_accum));
    if (din != NULL || c->dry)
        TRY(block_linear_bwd_data(c, &up));
    TRY(block_adapter_inner_backward(c, TENSOR_UP_W, c->N, 0, b->norm.out, din, c->r->grad_accum));
out:
    return rc;
}

/* The output and statistics of a norm of x, kept or made again, for what comes next: b->norm. */
static int recall_norm(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                       enum layer_norm which, const void *x)
{
    b->norm = keeps_cheap(c) ? k->norm[which] : b->shared;
    return keeps_cheap(c) ? 0 : norm_to(c, which, x, &b->norm, b->norm.out);
}

/* Through a norm whose output and statistics are in b->norm: dx = norm'(dy) + dresidual. */
static int norm_backward(struct block_ctx *c, const struct layer_back *b, enum layer_norm which,
                         const void *x, const void *dy, const void *dresidual, void *dx)
{
    enum tensor_role weight = norm_roles[which][0], bias = norm_roles[which][1];
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
    TRY(add_streams(c, b->dnorm, dy, b->dnorm));
    TRY(norm_backward(c, b, LAYER_NORM2, k->mid, b->dnorm, NULL, b->dlast));
    TRY(recall_norm(c, k, b, LAYER_NORM1, c->r->x));
    TRY(attention_backward(c, k, b, b->norm.out, b->dlast, c->bottom ? NULL : b->dnorm,
                           ACCUM_ASSIGN));
    if (c->bottom && !c->dry)
        goto out;
    TRY(add_streams(c, b->dnorm, b->dlast, b->dnorm));
    TRY(norm_backward(c, b, LAYER_NORM1, c->r->x, b->dnorm, NULL, dx));
out:
    return rc;
}

/* dx may be dy, so dy is read for the last time where dx is written. */
static int backward_parallel(struct block_ctx *c, const struct layer_kept *k, struct layer_back *b,
                             const void *dy, void *dx)
{
    enum layer_norm feeds_mlp = mlp_norm(c);
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

    take_kept(c, &c->saved, false, &k);
    take_back(c, &b);
    block_ctx_ready(c);
    if (is_parallel(c))
        return backward_parallel(c, &k, &b, c->r->dy, c->r->dx);
    if (is_sandwich(c))
        return backward_sandwich(c, &k, &b, c->r->dy, c->r->dx);
    if (is_post(c))
        return backward_post(c, &k, &b, c->r->dy, c->r->dx);
    if (is_stream(c))
        return backward_stream(c, &k, &b, c->r->dy, c->r->dx);
    return backward_pre(c, &k, &b, c->r->dy, c->r->dx);
}
