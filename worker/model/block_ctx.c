#include <assert.h>
#include <inttypes.h>

#include "kernels/device.h"
#include "worker/model/block_impl.h"

void *region_take(struct region *g, int64_t elements, size_t element_bytes)
{
    size_t bytes = (size_t)elements * element_bytes;
    void *p = g->base != NULL ? g->base + g->used : NULL;

    g->used += (bytes + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
    if (g->used > g->peak)
        g->peak = g->used;
    return p;
}

void block_ctx_ready(struct block_ctx *c)
{
    c->workspace = c->scratch.base != NULL ? c->scratch.base + c->scratch.peak : NULL;
}

void *block_at(void *p, int64_t elements, size_t element_bytes)
{
    return p != NULL ? (char *)p + (size_t)elements * element_bytes : NULL;
}

const void *block_at_const(const void *p, int64_t elements, size_t element_bytes)
{
    return p != NULL ? (const char *)p + (size_t)elements * element_bytes : NULL;
}

const void *block_weight(const struct block_ctx *c, enum tensor_role role)
{
    int64_t i = block_find(c->r->model, c->desc, role);

    if (i < 0 || c->dry)
        return NULL;
    assert(c->r->weights != NULL);
    assert(c->r->weights[i] != NULL || c->desc->kind == BLOCK_EMBED);
    return c->r->weights[i];
}

void *block_grad(const struct block_ctx *c, enum tensor_role role)
{
    int64_t i = block_find(c->r->model, c->desc, role);

    if (i < 0 || c->dry || c->r->grads == NULL)
        return NULL;
    return c->r->grads[i];
}

void block_use_matrix(const struct block_ctx *c, enum tensor_role role, int64_t first,
                      struct linear_args *a)
{
    int64_t i = block_find(c->r->model, c->desc, role);
    enum quant_format format;

    assert(i >= 0);
    format = c->r->model->tensors[c->desc->tensors[i]].quant;
    if (format == QUANT_NONE) {
        a->w = block_at_const(block_weight(c, role), first, c->real);
        return;
    }
    a->w = block_weight(c, role);
    a->quant = (struct op_quant){
        .format = format, .first = first, .scales = c->dry ? NULL : c->r->scales[i]};
}

struct op_dropout block_dropout(const struct block_ctx *c, enum dropout_place place, double p,
                                int64_t elements_per_sequence)
{
    const struct block_run *r = c->r;

    return (struct op_dropout){
        .p = (float)p,
        .stream = {.seed = r->seed,
                   .step = r->step,
                   .site = (uint32_t)(r->block * DROPOUT_PLACES + place),
                   .use = RNG_USE_DROPOUT},
        .first = r->first_sequence * elements_per_sequence,
    };
}

/* False in a dry run, which only notes the workspace. Frozen weights are not known then, so the
 * sizes hold with and without them. */
static bool prepare(struct block_ctx *c, enum op op, const void *args, void **workspace)
{
    if (c->dry) {
        size_t bytes = c->ops->workspace(op, args);

        if (bytes > c->workspace_bytes)
            c->workspace_bytes = bytes;
        return false;
    }
    if (workspace != NULL)
        *workspace = c->workspace;
    if (c->r->watch)
        c->r->watch->before(c->r->watch->ud, op, args, c->r->stream);
    return true;
}

static int launched(struct block_ctx *c, enum op op, int code)
{
    if (c->r->watch)
        c->r->watch->after(c->r->watch->ud, c->r->stream);
    if (code == 0)
        return 0;
    return err_set(c->err, (enum err_code)code,
                   "block %" PRId64 ": %s of %s could not run (%s); choose another precision or "
                   "device",
                   c->r->block, op_name(op), c->ops->name, err_code_name((enum err_code)code));
}

/* The calls of a backward come in an order that only the model decides. */
static struct op_narrow next_narrow(struct block_ctx *c)
{
    const struct block_run *r = c->r;
    int64_t micro = r->first_sequence / r->shape.B, calls = 64; /* at most, of a block */

    if (c->cfg->qk_norm == QK_NORM_HEADS)
        calls += c->cfg->heads + c->cfg->kv_heads;
    if (!c->narrow)
        return (struct op_narrow){0};
    assert(c->narrow_calls < calls);
    int64_t call = (micro * r->model->n_blocks + r->block) * calls + c->narrow_calls++;
    return (struct op_narrow){.on = true,
                              .stream = {.seed = r->seed,
                                         .step = r->step,
                                         .site = (uint32_t)(call * NARROW_SITES),
                                         .use = RNG_USE_GRADIENT}};
}

int block_embed_fwd(struct block_ctx *c, struct embed_args *a)
{
    if (!prepare(c, OP_EMBED_FWD, a, &a->workspace))
        return 0;
    return launched(c, OP_EMBED_FWD, c->ops->embed_fwd(c->r->stream, a));
}

int block_embed_bwd(struct block_ctx *c, struct embed_args *a)
{
    if (!prepare(c, OP_EMBED_BWD, a, &a->workspace))
        return 0;
    if (a->dwte == NULL && a->dwpe == NULL)
        return 0;
    return launched(c, OP_EMBED_BWD, c->ops->embed_bwd(c->r->stream, a));
}

int block_norm_fwd(struct block_ctx *c, struct norm_args *a)
{
    if (!prepare(c, OP_NORM_FWD, a, &a->workspace))
        return 0;
    return launched(c, OP_NORM_FWD, c->ops->norm_fwd(c->r->stream, a));
}

int block_norm_bwd(struct block_ctx *c, struct norm_args *a)
{
    a->narrow = next_narrow(c);
    if (!prepare(c, OP_NORM_BWD, a, &a->workspace))
        return 0;
    return launched(c, OP_NORM_BWD, c->ops->norm_bwd(c->r->stream, a));
}

int block_linear_fwd(struct block_ctx *c, struct linear_args *a)
{
    if (!prepare(c, OP_LINEAR_FWD, a, &a->workspace))
        return 0;
    return launched(c, OP_LINEAR_FWD, c->ops->linear_fwd(c->r->stream, a));
}

int block_linear_bwd_data(struct block_ctx *c, struct linear_args *a)
{
    if (a->dbias_x)
        a->narrow = next_narrow(c);
    if (!prepare(c, OP_LINEAR_BWD_DATA, a, &a->workspace))
        return 0;
    return launched(c, OP_LINEAR_BWD_DATA, c->ops->linear_bwd_data(c->r->stream, a));
}

int block_linear_bwd_weight(struct block_ctx *c, struct linear_args *a)
{
    a->narrow = next_narrow(c);
    if (c->dry && c->narrow)
        a->dw_accum = ACCUM_ADD; /* needs more room than the first micro-batch */
    if (!prepare(c, OP_LINEAR_BWD_WEIGHT, a, &a->workspace))
        return 0;
    if (a->dw == NULL && a->dbias == NULL)
        return 0;
    return launched(c, OP_LINEAR_BWD_WEIGHT, c->ops->linear_bwd_weight(c->r->stream, a));
}

int block_act_fwd(struct block_ctx *c, struct act_args *a)
{
    if (!prepare(c, OP_ACT_FWD, a, NULL))
        return 0;
    return launched(c, OP_ACT_FWD, c->ops->act_fwd(c->r->stream, a));
}

int block_act_bwd(struct block_ctx *c, struct act_args *a)
{
    if (!prepare(c, OP_ACT_BWD, a, NULL))
        return 0;
    return launched(c, OP_ACT_BWD, c->ops->act_bwd(c->r->stream, a));
}

int block_rope(struct block_ctx *c, struct rope_args *a)
{
    if (!prepare(c, OP_ROPE, a, NULL))
        return 0;
    return launched(c, OP_ROPE, c->ops->rope(c->r->stream, a));
}

int block_attn_fwd(struct block_ctx *c, struct attn_args *a)
{
    if (!prepare(c, OP_ATTN_FWD, a, &a->workspace))
        return 0;
    return launched(c, OP_ATTN_FWD, c->ops->attn_fwd(c->r->stream, a));
}

int block_attn_bwd(struct block_ctx *c, struct attn_args *a)
{
    if (!prepare(c, OP_ATTN_BWD, a, &a->workspace))
        return 0;
    return launched(c, OP_ATTN_BWD, c->ops->attn_bwd(c->r->stream, a));
}

int block_dropout_fwd(struct block_ctx *c, struct dropout_args *a)
{
    if (!prepare(c, OP_DROPOUT_FWD, a, NULL))
        return 0;
    return launched(c, OP_DROPOUT_FWD, c->ops->dropout_fwd(c->r->stream, a));
}

int block_dropout_bwd(struct block_ctx *c, struct dropout_args *a)
{
    if (!prepare(c, OP_DROPOUT_BWD, a, NULL))
        return 0;
    return launched(c, OP_DROPOUT_BWD, c->ops->dropout_bwd(c->r->stream, a));
}

int block_loss(struct block_ctx *c, struct loss_args *a)
{
    if (!prepare(c, OP_LOSS, a, NULL))
        return 0;
    return launched(c, OP_LOSS, c->ops->loss(c->r->stream, a));
}

int block_round8(struct block_ctx *c, struct round8_args *a)
{
    if (!prepare(c, OP_ROUND8, a, &a->workspace))
        return 0;
    return launched(c, OP_ROUND8, c->ops->round8(c->r->stream, a));
}

int block_clear_norm_grads(struct block_ctx *c, enum tensor_role weight, enum tensor_role bias)
{
    const enum tensor_role roles[] = {weight, bias};
    int rc = 0;

    if (c->dry || c->r->grad_accum == ACCUM_ADD)
        return 0;
    for (int i = 0; i < 2; i++) {
        void *grad = block_grad(c, roles[i]);
        int64_t position = block_find(c->r->model, c->desc, roles[i]);

        if (grad == NULL)
            continue;
        assert(c->r->device != NULL);
        TRY(device_zero(c->r->device, c->r->stream, grad,
                        (size_t)tensor_elements(&c->r->model->tensors[c->desc->tensors[position]]) *
                            c->grad,
                        c->err));
    }
out:
    return rc;
}

struct norm_args block_norm_args(const struct block_ctx *c, enum tensor_role weight,
                                 enum tensor_role bias, int64_t rows, const void *x, void *mean,
                                 void *rstd)
{
    return (struct norm_args){
        .kind = c->cfg->norm,
        .N = rows,
        .C = c->cfg->hidden,
        .eps = (float)c->cfg->norm_eps,
        .x = x,
        .weight = block_weight(c, weight),
        .bias = block_weight(c, bias),
        .mean = c->cfg->norm == NORM_LAYER ? mean : NULL,
        .rstd = rstd,
    };
}
