#include "worker/model/block.h"

#include <assert.h>

#include "kernels/device.h"
#include "kernels/op_cost.h"
#include "worker/model/adapter.h"
#include "worker/model/block_layer.h"

/* Backward ends at the lowest block that trains. The gradient of its input is of no use unless it
 * goes through a norm of this block that trains: a vector. */
static bool backward_ends(const struct model *m, int64_t block)
{
    const struct block_desc *b = &m->blocks[block];

    for (int64_t i = 0; i < b->n_tensors; i++) {
        if (m->tensors[b->tensors[i]].trainable && m->tensors[b->tensors[i]].cols == 1)
            return false;
    }
    return model_first_trained(m) == block;
}

static void ctx_init(struct block_ctx *c, const struct block_run *r, bool dry, struct err *err)
{
    assert(r->block >= 0 && r->block < r->model->n_blocks);
    assert(r->shape.B > 0 && r->shape.T > 0);
    bool narrow = r->shape.narrow_grads && r->model->blocks[r->block].kind == BLOCK_LAYER;
    *c = (struct block_ctx){
        .r = r,
        .cfg = &r->model->config,
        .desc = &r->model->blocks[r->block],
        .ops = r->ops,
        .dry = dry,
        .bottom = backward_ends(r->model, r->block),
        .N = r->shape.B * r->shape.T,
        .real = dtype_size(r->ops->compute),
        .grad = dtype_size(narrow ? r->ops->compute : r->ops->grad),
        .narrow = narrow,
        .stat = dtype_size(r->ops->stat),
        .saved = {.base = dry ? NULL : r->saved},
        .scratch = {.base = dry ? NULL : r->scratch},
        .held = {.base = dry ? NULL : r->held},
        .err = err,
    };
}

static int forward(struct block_ctx *c)
{
    switch (c->desc->kind) {
    case BLOCK_EMBED:
        return block_embed_forward(c);
    case BLOCK_LAYER:
        return block_layer_forward(c);
    case BLOCK_HEAD:
        return block_head_forward(c);
    }
    return err_set(c->err, ERR_INTERNAL, "block of unknown kind %d", (int)c->desc->kind);
}

static int backward(struct block_ctx *c)
{
    switch (c->desc->kind) {
    case BLOCK_EMBED:
        return block_embed_backward(c);
    case BLOCK_LAYER:
        return block_layer_backward(c);
    case BLOCK_HEAD:
        return block_head_backward(c);
    }
    return err_set(c->err, ERR_INTERNAL, "block of unknown kind %d", (int)c->desc->kind);
}

static size_t scratch_bytes(const struct block_ctx *c)
{
    return c->scratch.peak + (c->workspace_bytes + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
}

struct block_bytes block_sizes(const struct model *m, int64_t block,
                               const struct block_shape *shape, const struct op_table *ops)
{
    struct block_run r = {.model = m, .block = block, .shape = *shape, .ops = ops};
    struct block_bytes bytes = {0};
    struct block_ctx c;
    int rc;

    ctx_init(&c, &r, true, NULL);
    rc = forward(&c);
    assert(rc == 0);
    bytes.saved = c.saved.peak;
    bytes.forward_scratch = scratch_bytes(&c);
    bytes.held = c.held_least;
    bytes.held_copies = c.held.peak;

    ctx_init(&c, &r, true, NULL);
    rc = backward(&c);
    assert(rc == 0);
    (void)rc;
    bytes.backward_scratch = scratch_bytes(&c);
    return bytes;
}

int block_forward(const struct block_run *r, struct err *err)
{
    struct block_ctx c;

    ctx_init(&c, r, false, err);
    return forward(&c);
}

int block_backward(const struct block_run *r, struct err *err)
{
    struct block_ctx c;

    ctx_init(&c, r, false, err);
    return backward(&c);
}

/* Products with a block's matrices on N rows: forward each once; backward each once for the
 * gradient of its input, and where it trains once for its own. */
static double matrix_flops(const struct model *m, const struct block_desc *b, double N,
                           bool backward)
{
    double flops = 0;

    for (int64_t i = 0; i < b->n_tensors; i++) {
        const struct tensor_desc *t = &m->tensors[b->tensors[i]];
        bool table =
            b->kind == BLOCK_EMBED && (t->role == TENSOR_EMBED || t->role == TENSOR_POSITIONS);
        double product = 2 * N * (double)tensor_elements(t);

        if (!table && (t->cols > 1 || tensor_is_adapter(t)))
            flops += backward && t->trainable ? 2 * product : product;
    }
    return flops;
}

static double idle_flops(double flops, double busy_share)
{
    return flops / busy_share - flops;
}

double block_idle_flops(const struct model *m, int64_t block, const struct block_shape *shape,
                        bool backward, int64_t multiprocessors)
{
    const struct block_desc *b = &m->blocks[block];
    int64_t N = shape->B * shape->T, n = multiprocessors;
    double idle = 0;

    for (int64_t i = 0; b->kind == BLOCK_LAYER && i < b->n_tensors; i++) {
        const struct tensor_desc *t = &m->tensors[b->tensors[i]];
        double product = 2 * (double)N * (double)tensor_elements(t);

        if (t->cols <= 1 || tensor_is_adapter(t))
            continue;
        if (!backward)
            idle += idle_flops(product, op_busy_share(OP_LINEAR_FWD, N, t->rows, n));
        else
            idle += idle_flops(product, op_busy_share(OP_LINEAR_BWD_DATA, N, t->cols, n));
        if (backward && t->trainable)
            idle += idle_flops(product, op_busy_share(OP_LINEAR_BWD_WEIGHT, t->rows, t->cols, n));
    }
    return idle;
}

/* In 8 bits: 16 bits of an element read for the magnitude; 16 read and 8 written for a copy, 8 more
 * for a second one. A gated activation is made of two values of 16 bits, its gradient of three.
 * `inner8`: both values are written in 8 bits with a second copy of the activation, and read so for
 * the gradient. */
static double rounding_bytes(const struct model *m, const struct block_desc *b, double N,
                             bool inner8, const struct block_passes *p)
{
    const struct decoder_config *c = &m->config;
    double C = (double)c->hidden, F = (double)c->ffn, q = (double)(c->heads * c->head_dim),
           qkv = q + 2 * (double)(c->kv_heads * c->head_dim), weights = 0;

    for (int64_t i = 0; i < b->n_tensors; i++) {
        const struct tensor_desc *t = &m->tensors[b->tensors[i]];
        if (t->cols > 1 && !tensor_is_adapter(t))
            weights += (double)tensor_elements(t);
    }
    if (p->backward) {
        double act = inner8 ? 12 : c->gated ? 16 : 6;
        return N * (6 * (2 * C + qkv) + act * F + 3 * q) + 3 * weights;
    }
    double act = inner8 ? 12 : c->gated ? 9 : 5;
    weights *= (p->first_forward ? 2 : 0) + (p->first_forward || !p->held_copies ? 3 : 0);
    return N * (5 * (2 * C + q) + act * F) + weights;
}

double block_pass_bytes(const struct model *m, int64_t block, const struct block_shape *shape,
                        const struct block_passes *p)
{
    const struct decoder_config *c = &m->config;
    double N = (double)shape->B * (double)shape->T, bytes = 0;
    double C = (double)c->hidden, F = (double)c->ffn;
    const struct block_run r = {.model = m, .block = block, .shape = *shape};
    struct block_ctx x = {.r = &r, .cfg = c, .desc = &m->blocks[block]};

    if (x.desc->kind != BLOCK_LAYER)
        return 0;
    bool inner8 = layer_keeps_inner8(&x);
    if (shape->fp8)
        bytes += rounding_bytes(m, x.desc, N, inner8, p);
    if (p->backward && !shape->keep_cheap) /* norms and the activation again, in 8 bits rounded */
        bytes += N * (8 * C + (inner8 ? 0 : c->gated ? 6 : 4) * F + (shape->fp8 ? 6 * C : 0));
    return bytes;
}

struct block_flops block_flops(const struct model *m, int64_t block,
                               const struct block_shape *shape, bool backward)
{
    const struct decoder_config *c = &m->config;
    const struct block_desc *b = &m->blocks[block];
    double N = (double)shape->B * (double)shape->T;
    struct block_flops flops = {.products = matrix_flops(m, b, N, backward)};
    /* q k^T and p v, the lower triangle of each; backward computes five such products */
    double attention = 2 * 2 * N * ((double)shape->T + 1) / 2 * (double)(c->heads * c->head_dim);

    if (b->kind == BLOCK_LAYER)
        flops.attention = backward ? 2.5 * attention : attention;
    else if (b->kind == BLOCK_HEAD && backward) /* runs the forward too */
        flops.products += matrix_flops(m, b, N, false);
    return flops;
}
