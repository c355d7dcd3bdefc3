/*
 * The head: final norm, an optional narrowing projection, logits and loss, over slices of head_rows
 * rows so that the logits of a whole micro-batch never exist. Backward runs a slice's forward, loss
 * and gradient while its logits are there; the logit buffer turns into their gradient in place.
 */
#include <assert.h>

#include "worker/model/block_impl.h"

struct head_bufs {
    int64_t rows;      /* of a slice */
    void *norm;        /* (rows, C), or NULL without a final norm     */
    void *mean, *rstd; /* (rows) stat                                 */
    void *narrow;      /* (rows, E), or NULL without a projection     */
    void *inner;       /* of an adapter of the projection             */
    void *logits;      /* (rows, V), rows logits_stride() apart       */
    void *dnarrow;     /* (rows, E), likewise; backward               */
    void *dnorm;       /* (rows, C), or NULL; backward                */
};

struct head_slice {
    int64_t first, rows;
    const void *x;      /* (rows, C) input of the block */
    const void *normed; /* (rows, C) */
    const void *top;    /* (rows, E) what the logits are made from */
};

static bool projects(const struct block_ctx *c)
{
    return c->cfg->embed_dim != c->cfg->hidden;
}

/* Rows of logits start at a multiple of 16 bytes whatever the vocabulary: products with others run
 * at a sixth of the speed on a GPU. */
static int64_t logits_stride(const struct block_ctx *c)
{
    enum { ALIGN = 64 };
    return (c->cfg->vocab + ALIGN - 1) / ALIGN * ALIGN;
}

static void take_head(struct block_ctx *c, bool logits, bool backward, struct head_bufs *b)
{
    struct region *g = &c->scratch;
    int64_t rows = c->r->shape.head_rows < c->N ? c->r->shape.head_rows : c->N;

    assert(rows > 0);
    *b = (struct head_bufs){.rows = rows};
    if (c->cfg->final_norm) {
        b->norm = region_take(g, rows * c->cfg->hidden, c->real);
        b->mean = region_take(g, rows, c->stat);
        b->rstd = region_take(g, rows, c->stat);
    }
    if (projects(c)) {
        b->narrow = region_take(g, rows * c->cfg->embed_dim, c->real);
        b->inner = block_adapter_take(c, g, TENSOR_PROJECT_OUT, rows);
        block_adapters_take_work(c, rows, backward);
    }
    if (logits)
        b->logits = region_take(g, rows * logits_stride(c), c->real);
    if (backward && projects(c))
        b->dnarrow = region_take(g, rows * c->cfg->embed_dim, c->real);
    if (backward && c->cfg->final_norm)
        b->dnorm = region_take(g, rows * c->cfg->hidden, c->real);
}

static struct norm_args final_norm_args(const struct block_ctx *c, const struct head_bufs *b,
                                        const struct head_slice *s)
{
    return block_norm_args(c, TENSOR_FINAL_NORM_W, TENSOR_FINAL_NORM_B, s->rows, s->x, b->mean,
                           b->rstd);
}

static struct linear_args project_args(const struct block_ctx *c, const struct head_slice *s)
{
    return (struct linear_args){
        .N = s->rows,
        .I = c->cfg->hidden,
        .O = c->cfg->embed_dim,
        .x = s->normed,
        .w = block_weight(c, TENSOR_PROJECT_OUT),
    };
}

static enum tensor_role table_role(const struct block_ctx *c)
{
    return c->cfg->tied ? TENSOR_EMBED : TENSOR_HEAD_W;
}

static struct linear_args logits_args(const struct block_ctx *c, const struct head_slice *s)
{
    return (struct linear_args){
        .N = s->rows,
        .I = c->cfg->embed_dim,
        .O = c->cfg->vocab,
        .ldy = c->r->logits != NULL ? 0 : logits_stride(c), /* the caller's logits are dense */
        .x = s->top,
        .w = block_weight(c, table_role(c)),
        .bias = block_weight(c, TENSOR_HEAD_B),
    };
}

/* Rows [first, first + rows) up to their logits. */
static int slice_forward(struct block_ctx *c, const struct head_bufs *b, int64_t first,
                         int64_t rows, void *logits, struct head_slice *s)
{
    struct norm_args norm;
    struct linear_args project, table;
    int rc = 0;

    s->first = first;
    s->rows = rows;
    s->x = block_at_const(c->r->x, first * c->cfg->hidden, c->real);
    s->normed = c->cfg->final_norm ? b->norm : s->x;
    s->top = projects(c) ? b->narrow : s->normed;
    if (c->cfg->final_norm) {
        norm = final_norm_args(c, b, s);
        norm.y = b->norm;
        TRY(block_norm_fwd(c, &norm));
    }
    if (projects(c)) {
        project = project_args(c, s);
        project.y = b->narrow;
        TRY(block_linear_fwd(c, &project));
        TRY(block_adapter_inner(c, TENSOR_PROJECT_OUT, rows, first, s->normed, b->inner));
        TRY(block_adapter_add(c, TENSOR_PROJECT_OUT, rows, 0, project.O, b->inner, b->narrow));
    }
    table = logits_args(c, s);
    table.y = logits;
    TRY(block_linear_fwd(c, &table));
out:
    return rc;
}

static int slice_loss(struct block_ctx *c, const struct head_slice *s, void *logits,
                      const float *grad_scale)
{
    struct loss_args a = {
        .N = s->rows,
        .V = c->cfg->vocab,
        .ldl = logits_stride(c),
        .logit_scale = (float)c->cfg->logit_scale,
        .softcap = (float)c->cfg->final_softcap,
        .targets = block_at_const(c->r->targets, s->first, sizeof(int32_t)),
        .logits = logits,
        .grad_scale = grad_scale,
        .loss_scale = c->r->loss_scale,
        .row_loss = block_at(c->r->row_loss, s->first, c->stat),
        .row_correct = block_at(c->r->row_correct, s->first, sizeof(int32_t)),
    };

    return block_loss(c, &a);
}

static int64_t slice_rows(const struct head_bufs *b, int64_t done, int64_t all)
{
    return all - done < b->rows ? all - done : b->rows;
}

int block_head_forward(struct block_ctx *c)
{
    bool sampling = c->r->logits != NULL;
    int64_t first = sampling ? c->r->logit_first : 0;
    int64_t all = sampling ? c->r->logit_rows : c->N;
    struct head_bufs b;
    struct head_slice s;
    int rc = 0;

    assert(first >= 0 && first + all <= c->N);
    take_head(c, !sampling, false, &b);
    block_ctx_ready(c);
    for (int64_t done = 0; done < all; done += b.rows) {
        void *logits = sampling ? block_at(c->r->logits, done * c->cfg->vocab, c->real) : b.logits;

        TRY(slice_forward(c, &b, first + done, slice_rows(&b, done, all), logits, &s));
        if (!sampling)
            TRY(slice_loss(c, &s, logits, NULL));
    }
out:
    return rc;
}

/* From the gradient of a slice's logits (in b->logits) to that of its input. */
static int slice_backward(struct block_ctx *c, const struct head_bufs *b,
                          const struct head_slice *s)
{
    enum accum accum = s->first == 0 ? c->r->grad_accum : ACCUM_ADD;
    void *dx = block_at(c->r->dx, s->first * c->cfg->hidden, c->real);
    void *dnormed = c->cfg->final_norm ? b->dnorm : dx;
    struct linear_args table = logits_args(c, s), project = project_args(c, s);
    struct norm_args norm;
    int rc = 0;

    table.dy = b->logits;
    table.dw_accum = accum;
    table.dw = block_grad(c, table_role(c));
    table.dbias = block_grad(c, TENSOR_HEAD_B);
    TRY(block_linear_bwd_weight(c, &table));
    table.dx = projects(c) ? b->dnarrow : dnormed;
    TRY(block_linear_bwd_data(c, &table));
    if (projects(c)) {
        project.dy = b->dnarrow;
        project.dw_accum = accum;
        project.dw = block_grad(c, TENSOR_PROJECT_OUT);
        TRY(block_linear_bwd_weight(c, &project));
        TRY(block_adapter_add_backward(c, TENSOR_PROJECT_OUT, s->rows, 0, project.O, b->inner,
                                       b->dnarrow, accum));
        project.dx = dnormed;
        TRY(block_linear_bwd_data(c, &project));
        TRY(block_adapter_inner_backward(c, TENSOR_PROJECT_OUT, s->rows, s->first, s->normed,
                                         dnormed, accum));
    }
    if (c->cfg->final_norm) {
        norm = final_norm_args(c, b, s);
        norm.dy = b->dnorm;
        norm.dx = dx;
        norm.dweight = block_grad(c, TENSOR_FINAL_NORM_W);
        norm.dbias = block_grad(c, TENSOR_FINAL_NORM_B);
        TRY(block_norm_bwd(c, &norm));
    }
out:
    return rc;
}

int block_head_backward(struct block_ctx *c)
{
    struct head_bufs b;
    struct head_slice s;
    int rc = 0;

    assert(c->dry || c->r->grad_scale != NULL);
    take_head(c, true, true, &b);
    block_ctx_ready(c);
    TRY(block_clear_norm_grads(c, TENSOR_FINAL_NORM_W, TENSOR_FINAL_NORM_B));
    for (int64_t done = 0; done < c->N; done += b.rows) {
        TRY(slice_forward(c, &b, done, slice_rows(&b, done, c->N), b.logits, &s));
        TRY(slice_loss(c, &s, b.logits, c->r->grad_scale));
        TRY(slice_backward(c, &b, &s));
    }
out:
    return rc;
}
