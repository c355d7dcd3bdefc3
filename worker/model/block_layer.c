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
 * inner activation (ReLU: its output, which tells its own gradient; else its input, with fp8 a
 * gated one's in 8 bits beside its output in 8 bits), the adapters' inner activations, and where
 * more norms follow what these read. Norm outputs and the other activations are kept where the
 * shape says so, else computed again, which costs one pass over memory each.
 */
#include "worker/model/block_layer.h"

const enum tensor_role layer_norm_roles[][2] = {
    [LAYER_NORM1] = {TENSOR_NORM1_W, TENSOR_NORM1_B},
    [LAYER_NORM2] = {TENSOR_NORM2_W, TENSOR_NORM2_B},
    [LAYER_NORM_ATTN] = {TENSOR_POST_ATTN_NORM_W, TENSOR_ROLE_COUNT},
    [LAYER_NORM_MLP] = {TENSOR_POST_MLP_NORM_W, TENSOR_ROLE_COUNT},
};

static void take_statistics(struct block_ctx *c, struct region *g, struct layer_norm_buf *n)
{
    n->mean = region_take(g, c->N, c->stat);
    n->rstd = region_take(g, c->N, c->stat);
}

void layer_take_norm(struct block_ctx *c, struct region *g, struct layer_norm_buf *n)
{
    n->out = region_take(g, c->N * c->cfg->hidden, c->real);
    take_statistics(c, g, n);
}

static void take_kept_norm(struct block_ctx *c, struct region *g, enum layer_norm which,
                           struct layer_kept *k)
{
    if (layer_keeps_norm(c, which))
        layer_take_norm(c, g, &k->norm[which]);
    else
        take_statistics(c, g, &k->norm[which]);
}

void layer_place_norms(const struct block_ctx *c, void *scratch, struct layer_kept *k)
{
    for (enum layer_norm i = LAYER_NORM1; i <= LAYER_NORM2; i++)
        if (!layer_keeps_norm(c, i))
            k->norm[i].out = scratch;
}

void layer_take_kept(struct block_ctx *c, struct region *g, bool overlay, struct layer_kept *k)
{
    int64_t stream = c->N * c->cfg->hidden;
    bool keeps[PRODUCTS];
    size_t mark;

    *k = (struct layer_kept){0};
    for (int i = 0; i < PRODUCTS; i++)
        keeps[i] = layer_keeps_8(c, (enum product)i);
    block_products_take(c, g, keeps, layer_keeps_inner8(c));
    if (!layer_is_parallel(c))
        k->mid = region_take(g, stream, c->real);
    if (layer_is_post(c))
        k->last = region_take(g, stream, c->real);
    if (layer_is_sandwich(c)) {
        k->attn_raw = region_take(g, stream, c->real);
        k->raw = region_take(g, stream, c->real);
    }
    mark = g->used;
    block_attention_take(c, g, &k->attn);
    if (overlay)
        g->used = mark;
    if (!layer_keeps_inner8(c))
        k->inner = region_take(g, c->N * layer_inner_width(c), c->real);
    if (layer_keeps_cheap(c)) {
        take_kept_norm(c, g, LAYER_NORM1, k);
        if (layer_mlp_norm(c) == LAYER_NORM2)
            take_kept_norm(c, g, LAYER_NORM2, k);
        if (layer_keeps_act(c))
            k->act = region_take(g, c->N * c->cfg->ffn, c->real);
    }
    k->up_inner = block_adapter_take(c, g, TENSOR_UP_W, c->N);
    k->down_inner = block_adapter_take(c, g, TENSOR_DOWN_W, c->N);
}

int layer_norm_to(struct block_ctx *c, enum layer_norm which, const void *x,
                  const struct layer_norm_buf *n, void *y)
{
    struct norm_args a = block_norm_args(c, layer_norm_roles[which][0], layer_norm_roles[which][1],
                                         c->N, x, n->mean, n->rstd);

    a.y = y;
    return block_norm_fwd(c, &a);
}

/* y = x + residual: a dropout that drops nothing. */
int layer_add_streams(struct block_ctx *c, const void *x, const void *residual, void *y)
{
    struct dropout_args a = {.n = c->N * c->cfg->hidden, .x = x, .residual = residual, .y = y};

    return block_dropout_fwd(c, &a);
}

static const enum tensor_role PRODUCT_MATRIX[] = {
    [PRODUCT_OUT] = TENSOR_OUT_W, [PRODUCT_DOWN] = TENSOR_DOWN_W};

/* y = residual + dropout(x w^T + bias + what an adapter of the matrix gives) */
static int linear_residual(struct block_ctx *c, enum product which, struct linear_args *a,
                           const struct act_args *x_from, const void *inner, const void *residual,
                           enum dropout_place place)
{
    double p = c->r->shape.hidden_dropout;
    int rc = 0;

    if (p == 0)
        a->residual = residual;
    TRY(block_product_fwd(c, which, 0, a, x_from));
    TRY(block_adapter_add(c, PRODUCT_MATRIX[which], a->N, 0, a->O, inner, a->y));
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

/* y = residual + what attention gives; NULL: recomputation that needs it no more */
static int project_out(struct block_ctx *c, const struct layer_kept *k, const void *residual,
                       void *y)
{
    struct linear_args out_proj = {
        .N = c->N,
        .I = c->cfg->heads * c->cfg->head_dim,
        .O = c->cfg->hidden,
        .x = k->attn.o,
        .bias = block_weight(c, TENSOR_OUT_B),
        .y = y,
    };
    int rc = 0;

    block_use_matrix(c, TENSOR_OUT_W, 0, &out_proj);
    TRY(block_adapter_inner(c, TENSOR_OUT_W, c->N, 0, k->attn.o, k->attn.out_inner));
    if (y == NULL && !c->dry)
        TRY(block_product_recall(c, PRODUCT_OUT, &out_proj, NULL));
    else
        TRY(linear_residual(c, PRODUCT_OUT, &out_proj, NULL, k->attn.out_inner, residual,
                            DROPOUT_ATTN_OUT));
out:
    return rc;
}

struct act_args layer_act_args(const struct block_ctx *c, const struct layer_kept *k)
{
    return (struct act_args){
        .act = c->cfg->act, .gated = c->cfg->gated, .N = c->N, .F = c->cfg->ffn, .x = k->inner};
}

/* The MLP's inner activation from what was kept: into `act` unless the kept buffer is it. */
int layer_inner_activation(struct block_ctx *c, const struct layer_kept *k, void *act)
{
    struct act_args a = layer_act_args(c, k);

    if (layer_keeps_output(c))
        return 0;
    a.y = act;
    return block_act_fwd(c, &a);
}

/* From the MLP's input to its activation, in k->inner where that is kept, else in `act`, else to
 * what it is made of on the way. The up projection applies it itself unless it is, or a gate or an
 * adapter comes in between. */
static int mlp_up(struct block_ctx *c, const void *in, const struct layer_kept *k, void *act)
{
    bool keep = layer_keeps_output(c), adapted = block_adapted(c, TENSOR_UP_W);
    bool apart = c->cfg->gated || adapted || layer_rounds_act(c);
    struct linear_args up = {
        .N = c->N,
        .I = c->cfg->hidden,
        .O = layer_inner_width(c),
        .x = in,
        .bias = block_weight(c, TENSOR_UP_B),
        .act = apart ? ACT_NONE : c->cfg->act,
        .pre = keep || apart ? NULL : k->inner,
        .y = keep || apart ? k->inner : act,
    };
    struct act_args in_place = {
        .act = c->cfg->act, .N = c->N, .F = c->cfg->ffn, .x = k->inner, .y = k->inner};
    int rc = 0;

    block_use_matrix(c, TENSOR_UP_W, 0, &up);
    TRY(block_adapter_inner(c, TENSOR_UP_W, c->N, 0, in, k->up_inner));
    TRY(block_product_fwd(c, PRODUCT_UP, 0, &up, NULL));
    TRY(block_adapter_add(c, TENSOR_UP_W, c->N, 0, up.O, k->up_inner, k->inner));
    if (keep && adapted)
        TRY(block_act_fwd(c, &in_place));
    else if (apart && !layer_rounds_act(c))
        TRY(layer_inner_activation(c, k, act));
out:
    return rc;
}

static int mlp_forward(struct block_ctx *c, const void *in, const struct layer_kept *k, void *act,
                       const void *residual, void *y)
{
    bool keep = layer_keeps_output(c);
    struct act_args from = layer_act_args(c, k);
    const struct act_args *x_from = layer_rounds_act(c) ? &from : NULL;
    struct linear_args down = {
        .N = c->N,
        .I = c->cfg->ffn,
        .O = c->cfg->hidden,
        .x = keep ? k->inner : act,
        .bias = block_weight(c, TENSOR_DOWN_B),
        .y = y,
    };
    int rc = 0;

    block_use_matrix(c, TENSOR_DOWN_W, 0, &down);
    TRY(mlp_up(c, in, k, act));
    TRY(block_adapter_inner(c, TENSOR_DOWN_W, c->N, 0, down.x, k->down_inner));
    if (y == NULL && !c->dry) /* recomputation */
        TRY(block_product_recall(c, PRODUCT_DOWN, &down, x_from));
    else
        TRY(linear_residual(c, PRODUCT_DOWN, &down, x_from, k->down_inner, residual,
                            DROPOUT_MLP_OUT));
out:
    return rc;
}

/* Where the norm in front of the MLP goes. */
static const struct layer_norm_buf *mlp_norm_buf(const struct block_ctx *c,
                                                 const struct layer_kept *k,
                                                 const struct layer_norm_buf *shared)
{
    return layer_keeps_cheap(c) ? &k->norm[layer_mlp_norm(c)] : shared;
}

/* Behind attention: each kind of layer its own way to y. */
static int rest_sequential(struct block_ctx *c, const struct layer_kept *k,
                           const struct layer_norm_buf *shared, void *act)
{
    const struct layer_norm_buf *norm = mlp_norm_buf(c, k, shared);
    bool post = layer_is_post(c), normed = post || layer_is_stream(c);
    int rc = 0;

    TRY(project_out(c, k, layer_is_stream(c) ? shared->out : c->r->x, k->mid));
    TRY(layer_norm_to(c, layer_mlp_norm(c), k->mid, norm, norm->out));
    TRY(mlp_forward(c, norm->out, k, act, normed ? norm->out : k->mid, post ? k->last : c->r->y));
    if (post && (c->r->y != NULL || c->dry))
        TRY(layer_norm_to(c, LAYER_NORM2, k->last, norm, c->r->y));
out:
    return rc;
}

static int rest_sandwich(struct block_ctx *c, const struct layer_kept *k,
                         const struct layer_norm_buf *norm, void *act)
{
    int rc = 0;

    TRY(project_out(c, k, NULL, k->attn_raw));
    TRY(layer_norm_to(c, LAYER_NORM_ATTN, k->attn_raw, norm, norm->out));
    TRY(layer_add_streams(c, norm->out, c->r->x, k->mid));
    TRY(layer_norm_to(c, LAYER_NORM2, k->mid, norm, norm->out));
    TRY(mlp_forward(c, norm->out, k, act, NULL, k->raw));
    if (c->r->y != NULL || c->dry) {
        TRY(layer_norm_to(c, LAYER_NORM_MLP, k->raw, norm, norm->out));
        TRY(layer_add_streams(c, norm->out, k->mid, c->r->y));
    }
out:
    return rc;
}

static int rest_parallel(struct block_ctx *c, const struct layer_kept *k,
                         const struct layer_norm_buf *shared, void *act)
{
    const struct layer_norm_buf *norm = mlp_norm_buf(c, k, shared);
    int rc = 0;

    TRY(project_out(c, k, c->r->x, c->r->y != NULL || c->dry ? k->mid : NULL));
    if (layer_mlp_norm(c) == LAYER_NORM2)
        TRY(layer_norm_to(c, LAYER_NORM2, c->r->x, norm, norm->out));
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
    layer_take_norm(c, &c->scratch, &norm);
    block_adapters_take_work(c, c->N, false);
    if (layer_is_parallel(c))
        mid = region_take(&c->scratch, c->N * c->cfg->hidden, c->real);
    block_attention_take_work(c, &work);
    layer_take_kept(c, train ? &c->saved : &c->scratch, !train, &k);
    if (layer_is_parallel(c))
        k.mid = mid;
    if (layer_keeps_cheap(c)) {
        layer_place_norms(c, norm.out, &k);
        first = &k.norm[LAYER_NORM1];
    }
    if (layer_keeps_act(c))
        act = k.act;
    else if (!layer_keeps_output(c) && !layer_rounds_act(c))
        act = region_take(&c->scratch, c->N * c->cfg->ffn, c->real);
    if (layer_keeps_inner8(c))
        k.inner = region_take(&c->scratch, c->N * layer_inner_width(c), c->real);
    block_products_take_work(c, false);
    block_ctx_ready(c);

    TRY(block_products_start(c, false));
    if (!layer_is_post(c))
        TRY(layer_norm_to(c, LAYER_NORM1, c->r->x, first, first->out));
    TRY(block_attention_forward(c, layer_is_post(c) ? c->r->x : first->out, &k.attn, &work));
    if (layer_is_parallel(c))
        TRY(rest_parallel(c, &k, &norm, act));
    else if (layer_is_sandwich(c))
        TRY(rest_sandwich(c, &k, &norm, act));
    else
        TRY(rest_sequential(c, &k, &norm, act));
out:
    return rc;
}
