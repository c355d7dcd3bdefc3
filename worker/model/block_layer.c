/*
 * A decoder layer: attention and MLP, each added to the residual stream.
 *
 *   pre-norm:   mid = x + attn(norm1 x);  y = mid + mlp(norm2 mid)
 *   post-norm:  mid = x + attn(x), a = norm1 mid;  last = a + mlp(a), y = norm2 last
 *
 * Both read: mid = x + attn(a norm or x itself), a norm of mid feeds the MLP, whose sum is y or
 * goes through one more norm. Kept for backward: qkv, attention's output and log-sums, mid, the
 * MLP's inner activation (ReLU: its output, which tells its own gradient; else its input) and last.
 * Norm outputs and the other activations are computed again, which costs one pass over memory each.
 */
#include <assert.h>
#include <math.h>

#include "worker/model/block_impl.h"

struct layer_kept {
    void *qkv;   /* (N, (H + 2 KV) D), rotated */
    void *o;     /* (N, H D)         */
    void *lse;   /* (B, H, T) stat   */
    void *mid;   /* (N, C)           */
    void *inner; /* (N, F or 2 F)    */
    void *last;  /* (N, C), post-norm only */
};

struct layer_norm_buf {
    void *out;         /* (N, C) */
    void *mean, *rstd; /* (N) stat */
};

static bool is_pre(const struct block_ctx *c)
{
    return c->cfg->norm_place == NORM_PLACE_PRE;
}

static int64_t q_width(const struct block_ctx *c)
{
    return c->cfg->heads * c->cfg->head_dim;
}

static int64_t qkv_width(const struct block_ctx *c)
{
    return (c->cfg->heads + 2 * c->cfg->kv_heads) * c->cfg->head_dim;
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

/* In scratch (nothing is kept) attention's buffers make room for the MLP's. */
static void take_kept(struct block_ctx *c, struct region *g, bool overlay, struct layer_kept *k)
{
    size_t mark;

    k->mid = region_take(g, c->N * c->cfg->hidden, c->real);
    k->last = is_pre(c) ? NULL : region_take(g, c->N * c->cfg->hidden, c->real);
    mark = g->used;
    k->qkv = region_take(g, c->N * qkv_width(c), c->real);
    k->o = region_take(g, c->N * q_width(c), c->real);
    k->lse = region_take(g, c->N * c->cfg->heads, c->stat);
    if (overlay)
        g->used = mark;
    k->inner = region_take(g, c->N * inner_width(c), c->real);
}

static void take_norm(struct block_ctx *c, struct layer_norm_buf *n)
{
    n->out = region_take(&c->scratch, c->N * c->cfg->hidden, c->real);
    n->mean = region_take(&c->scratch, c->N, c->stat);
    n->rstd = region_take(&c->scratch, c->N, c->stat);
}

static int norm_to(struct block_ctx *c, int which, const void *x, const struct layer_norm_buf *n,
                   void *y)
{
    struct norm_args a =
        block_norm_args(c, which == 1 ? TENSOR_NORM1_W : TENSOR_NORM2_W,
                        which == 1 ? TENSOR_NORM1_B : TENSOR_NORM2_B, c->N, x, n->mean, n->rstd);

    a.y = y;
    return block_norm_fwd(c, &a);
}

/* The norm that feeds the MLP: the second of a pre-norm layer, the first of a post-norm one. */
static int mlp_norm(const struct block_ctx *c)
{
    return is_pre(c) ? 2 : 1;
}

static struct attn_args attn_args(const struct block_ctx *c, const struct layer_kept *k)
{
    const struct decoder_config *cfg = c->cfg;
    const struct block_shape *s = &c->r->shape;

    return (struct attn_args){
        .B = s->B,
        .T = s->T,
        .S = s->T,
        .H = cfg->heads,
        .KV = cfg->kv_heads,
        .D = cfg->head_dim,
        .ldq = qkv_width(c),
        .ldk = qkv_width(c),
        .ldv = qkv_width(c),
        .ldo = q_width(c),
        .scale = (float)cfg->attn_scale,
        .softcap = (float)cfg->score_softcap,
        .window = cfg->window != NULL ? cfg->window[c->desc->layer] : 0,
        .first_key = c->r->first_key,
        .dropout = block_dropout(c, DROPOUT_ATTN_PROBS, s->attn_dropout, cfg->heads * s->T * s->T),
        .q = k->qkv,
        .k = block_at(k->qkv, q_width(c), c->real),
        .v = block_at(k->qkv, q_width(c) + cfg->kv_heads * cfg->head_dim, c->real),
        .o = k->o,
        .lse = k->lse,
    };
}

/* Rotate q and k, which lie side by side, by the tokens' positions. */
static int rotate(struct block_ctx *c, void *qkv, bool inverse)
{
    const struct decoder_config *cfg = c->cfg;
    struct rope_args a = {
        .style = cfg->rope.style,
        .inverse = inverse,
        .N = c->N,
        .heads = cfg->heads + cfg->kv_heads,
        .head_dim = cfg->head_dim,
        .rope_dim = cfg->rope.dim,
        .ldx = qkv_width(c),
        .positions = c->r->positions,
        .cos_table = c->r->rope_cos,
        .sin_table = c->r->rope_sin,
        .x = qkv,
    };

    if (cfg->position != POSITION_ROPE)
        return 0;
    return block_rope(c, &a);
}

/* y = residual + dropout(x w^T + bias) */
static int linear_residual(struct block_ctx *c, struct linear_args *a, const void *residual,
                           enum dropout_place place)
{
    double p = c->r->shape.hidden_dropout;
    int rc = 0;

    if (p == 0)
        a->residual = residual;
    TRY(block_linear_fwd(c, a));
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

static int attention_forward(struct block_ctx *c, const void *in, const struct layer_kept *k)
{
    struct linear_args qkv = {
        .N = c->N,
        .I = c->cfg->hidden,
        .O = qkv_width(c),
        .x = in,
        .w = block_weight(c, TENSOR_QKV_W),
        .bias = block_weight(c, TENSOR_QKV_B),
        .y = k->qkv,
    };
    struct linear_args out_proj = {
        .N = c->N,
        .I = q_width(c),
        .O = c->cfg->hidden,
        .x = k->o,
        .w = block_weight(c, TENSOR_OUT_W),
        .bias = block_weight(c, TENSOR_OUT_B),
        .y = k->mid,
    };
    struct attn_args attn = attn_args(c, k);
    int rc = 0;

    TRY(block_linear_fwd(c, &qkv));
    TRY(rotate(c, k->qkv, false));
    TRY(block_attn_fwd(c, &attn));
    TRY(linear_residual(c, &out_proj, c->r->x, DROPOUT_ATTN_OUT));
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

static int mlp_forward(struct block_ctx *c, const void *in, const struct layer_kept *k, void *act,
                       const void *residual, void *y)
{
    bool keep = keeps_output(c);
    struct linear_args up = {
        .N = c->N,
        .I = c->cfg->hidden,
        .O = inner_width(c),
        .x = in,
        .w = block_weight(c, TENSOR_UP_W),
        .bias = block_weight(c, TENSOR_UP_B),
        .act = c->cfg->gated ? ACT_NONE : c->cfg->act,
        .pre = keep || c->cfg->gated ? NULL : k->inner,
        .y = keep || c->cfg->gated ? k->inner : act,
    };
    struct linear_args down = {
        .N = c->N,
        .I = c->cfg->ffn,
        .O = c->cfg->hidden,
        .x = keep ? k->inner : act,
        .w = block_weight(c, TENSOR_DOWN_W),
        .bias = block_weight(c, TENSOR_DOWN_B),
        .y = y,
    };
    int rc = 0;

    TRY(block_linear_fwd(c, &up));
    if (c->cfg->gated)
        TRY(inner_activation(c, k, act));
    if (y == NULL && !c->dry)
        goto out; /* recomputation: what backward needs is there */
    TRY(linear_residual(c, &down, residual, DROPOUT_MLP_OUT));
out:
    return rc;
}

int block_layer_forward(struct block_ctx *c)
{
    bool train = c->r->shape.train;
    struct layer_norm_buf norm;
    struct layer_kept k;
    void *act = NULL;
    int rc = 0;

    take_norm(c, &norm);
    take_kept(c, train ? &c->saved : &c->scratch, !train, &k);
    if (!keeps_output(c))
        act = region_take(&c->scratch, c->N * c->cfg->ffn, c->real);
    block_ctx_ready(c);

    if (is_pre(c))
        TRY(norm_to(c, 1, c->r->x, &norm, norm.out));
    TRY(attention_forward(c, is_pre(c) ? norm.out : c->r->x, &k));
    TRY(norm_to(c, mlp_norm(c), k.mid, &norm, norm.out));
    if (is_pre(c)) {
        TRY(mlp_forward(c, norm.out, &k, act, k.mid, c->r->y));
    } else {
        TRY(mlp_forward(c, norm.out, &k, act, norm.out, k.last));
        if (c->r->y != NULL || c->dry)
            TRY(norm_to(c, 2, k.last, &norm, c->r->y));
    }
out:
    return rc;
}

/* Buffers of backward: attention's and the MLP's share one place. */
struct layer_back {
    struct layer_norm_buf norm;
    void *dnorm;   /* (N, C): gradient of a norm's output            */
    void *dlast;   /* (N, C): of last, post-norm only                */
    void *dropped; /* (N, C): a gradient behind dropout, or NULL     */
    void *dinner;  /* (N, F or 2 F): of the up projection's output   */
    void *dact;    /* (N, F): gated only                             */
    void *act;     /* (N, F): the activation, where it was not kept  */
    void *dout;    /* (N, H D): of attention's output                */
    void *dqkv;    /* (N, (H + 2 KV) D)                              */
};

static void take_back(struct block_ctx *c, struct layer_back *b)
{
    struct region *g = &c->scratch;
    int64_t stream = c->N * c->cfg->hidden;
    size_t mark;

    take_norm(c, &b->norm);
    b->dnorm = region_take(g, stream, c->real);
    b->dlast = is_pre(c) ? NULL : region_take(g, stream, c->real);
    b->dropped = c->r->shape.hidden_dropout > 0 ? region_take(g, stream, c->real) : NULL;
    mark = g->used;
    b->dinner = region_take(g, c->N * inner_width(c), c->real);
    b->dact = c->cfg->gated ? region_take(g, c->N * c->cfg->ffn, c->real) : NULL;
    b->act = keeps_output(c) ? NULL : region_take(g, c->N * c->cfg->ffn, c->real);
    g->used = mark;
    b->dout = region_take(g, c->N * q_width(c), c->real);
    b->dqkv = region_take(g, c->N * qkv_width(c), c->real);
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

/* dlast: gradient of the MLP's sum. Leaves the gradient of the MLP's input in `din`, added to what
 * is there when din is the residual's own gradient (post-norm). */
static int mlp_backward(struct block_ctx *c, const struct layer_kept *k, const struct layer_back *b,
                        const void *dlast, void *din)
{
    const struct decoder_config *cfg = c->cfg;
    const void *act = keeps_output(c) ? k->inner : b->act;
    const void *dmlp = NULL;
    struct linear_args down = {.N = c->N, .I = cfg->ffn, .O = cfg->hidden};
    struct linear_args up = {.N = c->N, .I = cfg->hidden, .O = inner_width(c)};
    struct act_args gate = {.act = cfg->act, .gated = true, .N = c->N, .F = cfg->ffn};
    int rc = 0;

    TRY(behind_dropout(c, b, DROPOUT_MLP_OUT, dlast, &dmlp));
    TRY(inner_activation(c, k, b->act));
    TRY(weight_grad(c, TENSOR_DOWN_W, TENSOR_DOWN_B, cfg->ffn, cfg->hidden, act, dmlp));

    down.w = block_weight(c, TENSOR_DOWN_W);
    down.dy = dmlp;
    down.act_x = cfg->gated ? ACT_NONE : cfg->act;
    down.pre_x = down.act_x != ACT_NONE ? k->inner : NULL;
    down.dx = cfg->gated ? b->dact : b->dinner;
    TRY(block_linear_bwd_data(c, &down));
    if (cfg->gated) {
        gate.x = k->inner;
        gate.dy = b->dact;
        gate.dx = b->dinner;
        TRY(block_act_bwd(c, &gate));
    }

    TRY(norm_to(c, mlp_norm(c), k->mid, &b->norm, b->norm.out));
    TRY(weight_grad(c, TENSOR_UP_W, TENSOR_UP_B, cfg->hidden, inner_width(c), b->norm.out,
                    b->dinner));
    up.w = block_weight(c, TENSOR_UP_W);
    up.dy = b->dinner;
    up.dx_accum = is_pre(c) ? ACCUM_ASSIGN : ACCUM_ADD;
    up.dx = din;
    TRY(block_linear_bwd_data(c, &up));
out:
    return rc;
}

/* Through a norm whose output was computed again into b->norm: dx = norm'(dy) + dresidual. */
static int norm_backward(struct block_ctx *c, const struct layer_back *b, int which, const void *x,
                         const void *dy, const void *dresidual, void *dx)
{
    enum tensor_role weight = which == 1 ? TENSOR_NORM1_W : TENSOR_NORM2_W;
    enum tensor_role bias = which == 1 ? TENSOR_NORM1_B : TENSOR_NORM2_B;
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

/* From the gradient of mid, in dx, to that of x, in dx as well. */
static int attention_backward(struct block_ctx *c, const struct layer_kept *k,
                              const struct layer_back *b, void *dx)
{
    const struct decoder_config *cfg = c->cfg;
    const void *dattn = NULL;
    struct linear_args out_proj = {.N = c->N, .I = q_width(c), .O = cfg->hidden};
    struct linear_args qkv = {.N = c->N, .I = cfg->hidden, .O = qkv_width(c)};
    struct attn_args attn = attn_args(c, k);
    int rc = 0;

    TRY(behind_dropout(c, b, DROPOUT_ATTN_OUT, dx, &dattn));
    TRY(weight_grad(c, TENSOR_OUT_W, TENSOR_OUT_B, q_width(c), cfg->hidden, k->o, dattn));
    out_proj.w = block_weight(c, TENSOR_OUT_W);
    out_proj.dy = dattn;
    out_proj.dx = b->dout;
    TRY(block_linear_bwd_data(c, &out_proj));

    attn.dout = b->dout;
    attn.dq = b->dqkv;
    attn.dk = block_at(b->dqkv, q_width(c), c->real);
    attn.dv = block_at(b->dqkv, q_width(c) + cfg->kv_heads * cfg->head_dim, c->real);
    TRY(block_attn_bwd(c, &attn));
    TRY(rotate(c, b->dqkv, true));

    if (is_pre(c))
        TRY(norm_to(c, 1, c->r->x, &b->norm, b->norm.out));
    TRY(weight_grad(c, TENSOR_QKV_W, TENSOR_QKV_B, cfg->hidden, qkv_width(c),
                    is_pre(c) ? b->norm.out : c->r->x, b->dqkv));
    qkv.w = block_weight(c, TENSOR_QKV_W);
    qkv.dy = b->dqkv;
    qkv.dx_accum = is_pre(c) ? ACCUM_ASSIGN : ACCUM_ADD;
    qkv.dx = is_pre(c) ? b->dnorm : dx;
    TRY(block_linear_bwd_data(c, &qkv));
    if (is_pre(c))
        TRY(norm_backward(c, b, 1, c->r->x, b->dnorm, dx, dx));
out:
    return rc;
}

int block_layer_backward(struct block_ctx *c)
{
    const void *dy = c->r->dy;
    void *dx = c->r->dx;
    struct layer_kept k;
    struct layer_back b;
    int rc = 0;

    take_kept(c, &c->saved, false, &k);
    take_back(c, &b);
    block_ctx_ready(c);

    if (is_pre(c)) {
        TRY(mlp_backward(c, &k, &b, dy, b.dnorm));
        TRY(norm_backward(c, &b, 2, k.mid, b.dnorm, dy, dx));
    } else {
        TRY(norm_to(c, 2, k.last, &b.norm, b.norm.out));
        TRY(norm_backward(c, &b, 2, k.last, dy, NULL, b.dlast));
        TRY(mlp_backward(c, &k, &b, b.dlast, b.dlast));
        TRY(norm_backward(c, &b, 1, k.mid, b.dlast, NULL, dx));
    }
    TRY(attention_backward(c, &k, &b, dx));
out:
    return rc;
}
