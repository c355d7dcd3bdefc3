/*
 * The embedding: token rows, and learned positions where the model has them. An embedding narrower
 * than the model goes through a projection, to which the positions are added. A norm may follow
 * (BLOOM). What either reads is saved for backward: rows of a few tokens, and the table they are of
 * need not be there again.
 */
#include "worker/model/block_impl.h"

static bool projects(const struct block_ctx *c)
{
    return c->cfg->embed_dim != c->cfg->hidden;
}

static struct embed_args token_args(const struct block_ctx *c)
{
    return (struct embed_args){
        .N = c->N,
        .C = c->cfg->embed_dim,
        .V = c->cfg->vocab,
        .tokens = c->r->tokens,
        .wte = block_weight(c, TENSOR_EMBED),
        .scale = (float)c->cfg->embed_scale,
    };
}

static void add_positions(const struct block_ctx *c, struct embed_args *a)
{
    if (c->cfg->position != POSITION_LEARNED)
        return;
    a->P = c->cfg->max_positions + c->cfg->position_offset;
    a->positions = c->r->positions;
    a->wpe = block_weight(c, TENSOR_POSITIONS);
    a->wpe_offset = c->cfg->position_offset;
}

/* The position rows alone, looked up as if they were tokens. */
static struct embed_args position_args(const struct block_ctx *c)
{
    int64_t skipped = c->cfg->position_offset * c->cfg->hidden;

    return (struct embed_args){
        .N = c->N,
        .C = c->cfg->hidden,
        .V = c->cfg->max_positions,
        .tokens = c->r->positions,
        .wte = block_at_const(block_weight(c, TENSOR_POSITIONS), skipped, c->real),
        .scale = 1,
    };
}

static struct linear_args project_args(const struct block_ctx *c)
{
    return (struct linear_args){
        .N = c->N,
        .I = c->cfg->embed_dim,
        .O = c->cfg->hidden,
        .w = block_weight(c, TENSOR_PROJECT_IN),
    };
}

struct embed_narrow { /* all NULL without a projection */
    void *rows;       /* (N, E) */
    void *drows;      /* (N, E), backward */
    void *inner;      /* of an adapter of the projection; made again for backward */
};

static struct region *kept(struct block_ctx *c)
{
    return c->r->shape.train ? &c->saved : &c->scratch;
}

static void take_narrow(struct block_ctx *c, bool backward, struct embed_narrow *n)
{
    int64_t rows = c->N * c->cfg->embed_dim;

    *n = (struct embed_narrow){0};
    if (!projects(c))
        return;
    n->rows = region_take(kept(c), rows, c->real);
    if (backward)
        n->drows = region_take(&c->scratch, rows, c->real);
    n->inner = block_adapter_take(c, &c->scratch, TENSOR_PROJECT_IN, c->N);
    block_adapters_take_work(c, c->N, backward);
}

static int projected_forward(struct block_ctx *c, const struct embed_narrow *narrow)
{
    struct embed_args tokens = token_args(c), positions = position_args(c);
    struct linear_args project = project_args(c);
    int rc = 0;

    tokens.out = narrow->rows;
    TRY(block_embed_fwd(c, &tokens));
    TRY(block_adapter_inner(c, TENSOR_PROJECT_IN, c->N, 0, narrow->rows, narrow->inner));
    if (c->cfg->position == POSITION_LEARNED) {
        positions.out = c->r->y;
        TRY(block_embed_fwd(c, &positions));
        project.residual = c->r->y;
    }
    project.x = narrow->rows;
    project.y = c->r->y;
    TRY(block_linear_fwd(c, &project));
    TRY(block_adapter_add(c, TENSOR_PROJECT_IN, c->N, 0, project.O, narrow->inner, project.y));
out:
    return rc;
}

struct embed_norm_buf { /* all NULL without a norm */
    void *raw;          /* (N, C) */
    void *draw;         /* (N, C), backward */
    void *mean, *rstd;  /* (N) stat */
};

static void take_norm(struct block_ctx *c, bool backward, struct embed_norm_buf *n)
{
    int64_t stream = c->N * c->cfg->hidden;

    *n = (struct embed_norm_buf){0};
    if (!c->cfg->embed_norm)
        return;
    n->raw = region_take(kept(c), stream, c->real);
    n->mean = region_take(kept(c), c->N, c->stat);
    n->rstd = region_take(kept(c), c->N, c->stat);
    if (backward)
        n->draw = region_take(&c->scratch, stream, c->real);
}

/* Rows of tokens and positions into n->raw, their norm into the block's output. */
static int normed_forward(struct block_ctx *c, const struct embed_norm_buf *n)
{
    struct embed_args tokens = token_args(c);
    struct norm_args norm = block_norm_args(c, TENSOR_EMBED_NORM_W, TENSOR_EMBED_NORM_B, c->N,
                                            n->raw, n->mean, n->rstd);
    int rc = 0;

    add_positions(c, &tokens);
    tokens.out = n->raw;
    TRY(block_embed_fwd(c, &tokens));
    norm.y = c->r->y;
    TRY(block_norm_fwd(c, &norm));
out:
    return rc;
}

/* The gradient of n->raw into n->draw. */
static int norm_backward(struct block_ctx *c, const struct embed_norm_buf *n, const void *dy)
{
    struct norm_args norm = block_norm_args(c, TENSOR_EMBED_NORM_W, TENSOR_EMBED_NORM_B, c->N,
                                            n->raw, n->mean, n->rstd);
    int rc = 0;

    TRY(block_clear_norm_grads(c, TENSOR_EMBED_NORM_W, TENSOR_EMBED_NORM_B));
    norm.dy = dy;
    norm.dx = n->draw;
    norm.dweight = block_grad(c, TENSOR_EMBED_NORM_W);
    norm.dbias = block_grad(c, TENSOR_EMBED_NORM_B);
    TRY(block_norm_bwd(c, &norm));
out:
    return rc;
}

int block_embed_forward(struct block_ctx *c)
{
    double p = c->r->shape.embed_dropout;
    struct embed_args tokens = token_args(c);
    struct dropout_args drop = {
        .n = c->N * c->cfg->hidden,
        .dropout = block_dropout(c, DROPOUT_EMBED, p, c->r->shape.T * c->cfg->hidden),
        .x = c->r->y,
        .y = c->r->y,
    };
    struct embed_narrow narrow;
    struct embed_norm_buf norm;
    int rc = 0;

    take_narrow(c, false, &narrow);
    take_norm(c, false, &norm);
    block_ctx_ready(c);
    if (projects(c)) {
        TRY(projected_forward(c, &narrow));
    } else if (c->cfg->embed_norm) {
        TRY(normed_forward(c, &norm));
    } else {
        add_positions(c, &tokens);
        tokens.out = c->r->y;
        TRY(block_embed_fwd(c, &tokens));
    }
    if (p > 0)
        TRY(block_dropout_fwd(c, &drop));
out:
    return rc;
}

static int projected_backward(struct block_ctx *c, const void *dy,
                              const struct embed_narrow *narrow)
{
    struct embed_args tokens = token_args(c), positions = position_args(c);
    struct linear_args project = project_args(c);
    enum accum accum = c->r->grad_accum;
    int rc = 0;

    if (c->cfg->position == POSITION_LEARNED) {
        positions.dout = dy;
        positions.dwte = block_at(block_grad(c, TENSOR_POSITIONS),
                                  c->cfg->position_offset * c->cfg->hidden, c->grad);
        TRY(block_embed_bwd(c, &positions));
    }
    project.x = narrow->rows;
    project.dy = dy;
    project.dw_accum = accum;
    project.dw = block_grad(c, TENSOR_PROJECT_IN);
    TRY(block_linear_bwd_weight(c, &project));
    TRY(block_adapter_inner(c, TENSOR_PROJECT_IN, c->N, 0, narrow->rows, narrow->inner));
    TRY(block_adapter_add_backward(c, TENSOR_PROJECT_IN, c->N, 0, project.O, narrow->inner, dy,
                                   accum));
    /* Adapters stand beside frozen weights only, so the table wants no gradient. */
    TRY(block_adapter_inner_backward(c, TENSOR_PROJECT_IN, c->N, 0, narrow->rows, NULL, accum));
    if (!c->dry && block_grad(c, TENSOR_EMBED) == NULL)
        goto out;

    project.dx = narrow->drows;
    TRY(block_linear_bwd_data(c, &project));
    tokens.dout = narrow->drows;
    tokens.dwte = block_grad(c, TENSOR_EMBED);
    TRY(block_embed_bwd(c, &tokens));
out:
    return rc;
}

int block_embed_backward(struct block_ctx *c)
{
    double p = c->r->shape.embed_dropout;
    int64_t stream = c->N * c->cfg->hidden;
    const void *dy = c->r->dy;
    struct embed_args tokens = token_args(c);
    struct dropout_args drop = {
        .n = stream,
        .dropout = block_dropout(c, DROPOUT_EMBED, p, c->r->shape.T * c->cfg->hidden),
        .dy = dy,
    };
    struct embed_narrow narrow;
    struct embed_norm_buf norm;
    int rc = 0;

    take_narrow(c, true, &narrow);
    take_norm(c, true, &norm);
    drop.dx = p > 0 ? region_take(&c->scratch, stream, c->real) : NULL;
    block_ctx_ready(c);
    if (p > 0) {
        TRY(block_dropout_bwd(c, &drop));
        dy = drop.dx;
    }
    if (projects(c)) {
        TRY(projected_backward(c, dy, &narrow));
    } else {
        if (c->cfg->embed_norm) {
            TRY(norm_backward(c, &norm, dy));
            dy = norm.draw;
        }
        add_positions(c, &tokens);
        tokens.dout = dy;
        tokens.dwte = block_grad(c, TENSOR_EMBED);
        tokens.dwpe = block_grad(c, TENSOR_POSITIONS);
        TRY(block_embed_bwd(c, &tokens));
    }
out:
    return rc;
}
