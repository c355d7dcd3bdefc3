/*
 * A layer's own products: qkv, out, up and down. In the compute type they are the linear ops.
 *
 * With shape.fp8 the operands are rounded to 8 bits first (op_table.h: round8), each tensor as a
 * whole, and each once for all that multiplies it: x for the parts of qkv, dy for both gradients,
 * in one pass. The largest magnitude of x, found in forward, is kept for backward, which rounds the
 * same tensor again, transposed; that copy itself may be kept. Weights do not change in a step:
 * their magnitudes, and where there is room their copies for forward, are made once. An
 * activation's output or gradient is rounded as it is made and not stored; a gated one's input is
 * kept for its gradient in 8 bits, too, as in DeepSeek-V3 ("DeepSeek-V3 technical report", 2024,
 * section 3.3.3): forward multiplies the output of the input as it was, and so the output is kept
 * as well, for that is what the weight's gradient is a product of.
 */
#include "worker/model/block_impl.h"

#include "kernels/device.h"

enum { FROM_SCALE = PRODUCTS, X_SCALES };

static bool rounds(const struct block_ctx *c)
{
    return c->r->shape.fp8;
}

struct sides {
    int64_t in, out;
};

static struct sides sides_of(const struct block_ctx *c, enum product which)
{
    const struct decoder_config *cfg = c->cfg;
    int64_t q = cfg->heads * cfg->head_dim, kv = cfg->kv_heads * cfg->head_dim;

    switch (which) {
    case PRODUCT_QKV:
        return (struct sides){cfg->hidden, q + 2 * kv};
    case PRODUCT_OUT:
        return (struct sides){q, cfg->hidden};
    case PRODUCT_UP:
        return (struct sides){cfg->hidden, cfg->gated ? 2 * cfg->ffn : cfg->ffn};
    default:
        return (struct sides){cfg->ffn, cfg->hidden};
    }
}

static int64_t matrix_elements(const struct block_ctx *c, enum product which)
{
    return sides_of(c, which).in * sides_of(c, which).out;
}

void block_products_take(struct block_ctx *c, struct region *g, const bool keeps[PRODUCTS],
                         bool keeps_from)
{
    bool train = c->r->shape.train;
    struct products *p = &c->products;

    if (!rounds(c))
        return;
    p->x = region_take(g, X_SCALES, sizeof *p->x);
    if (keeps_from)
        p->from8 = region_take(g, c->N * sides_of(c, PRODUCT_UP).out, 1);
    p->w = region_take(train ? &c->held : g, PRODUCT_PARTS, sizeof *p->w);
    c->held_least = c->held.used;
    for (int i = 0; i < PRODUCTS && train && (c->dry || c->r->held_copies); i++)
        p->w_kept[i] = region_take(&c->held, matrix_elements(c, (enum product)i), 1);
    for (int i = 0; i < PRODUCTS; i++) {
        p->keeps[i] = keeps[i];
        if (keeps[i])
            p->kept[i] = region_take(g, c->N * sides_of(c, (enum product)i).in, 1);
    }
}

void block_products_take_work(struct block_ctx *c, bool backward)
{
    struct region *g = &c->scratch;
    struct products *p = &c->products;
    struct sides most = {0};
    int64_t matrix = 0;

    if (!rounds(c))
        return;
    for (int i = 0; i < PRODUCTS; i++) {
        struct sides s = sides_of(c, (enum product)i);
        bool made = !backward || !p->keeps[i];

        most.in = made && s.in > most.in ? s.in : most.in;
        most.out = s.out > most.out ? s.out : most.out;
        if (matrix_elements(c, (enum product)i) > matrix)
            matrix = matrix_elements(c, (enum product)i);
    }
    p->x8 = region_take(g, c->N * most.in, 1);
    p->w8 = region_take(g, matrix, 1);
    if (!backward)
        return;
    p->dy = region_take(g, PRODUCT_PARTS, sizeof *p->dy);
    p->dy8 = region_take(g, c->N * most.out, 1);
    p->dy8_turned = region_take(g, c->N * most.out, 1);
}

static int zero_scales(struct block_ctx *c, struct fp8_scale *scales, size_t n)
{
    return device_zero(c->r->device, c->r->stream, scales, n * sizeof *scales, c->err);
}

/* Whether this forward is the one that finds the magnitudes of weights. */
static bool finds_weights(const struct block_ctx *c)
{
    return c->r->first_forward || !c->r->shape.train;
}

int block_products_start(struct block_ctx *c, bool backward)
{
    const struct products *p = &c->products;
    int rc = 0;

    if (!rounds(c) || c->dry)
        return 0;
    if (backward)
        return zero_scales(c, p->dy, PRODUCT_PARTS);
    TRY(zero_scales(c, p->x, X_SCALES));
    if (finds_weights(c))
        TRY(zero_scales(c, p->w, PRODUCT_PARTS));
out:
    return rc;
}

static struct fp8_scale *part_scale(struct fp8_scale *of, enum product which, int part)
{
    return block_at(of, which == PRODUCT_QKV ? part : (int)which + 2, sizeof *of);
}

/* A matrix of the product as round8 takes it: where it lies, or what it is made of. */
static struct round8_args matrix(int64_t rows, int64_t cols, int64_t ld, const void *x,
                                 struct fp8_scale *scale)
{
    return (struct round8_args){.N = rows, .C = cols, .ldx = ld, .x = x, .scale = scale};
}

static void made_from(const struct block_ctx *c, struct round8_args *m, enum round8_of of,
                      const struct act_args *from)
{
    if (from == NULL)
        return;
    m->of = of;
    m->act = from->act;
    m->gated = from->gated;
    m->ldx = 0;
    m->x = from->x;
    m->dy = from->dy;
    m->x8 = c->products.from8;
    m->x_scale = block_at(c->products.x, FROM_SCALE, sizeof *m->x_scale);
}

static struct round8_args x_matrix(struct block_ctx *c, enum product which,
                                   const struct linear_args *a, const struct act_args *from)
{
    struct round8_args m =
        matrix(a->N, a->I, a->ldx, a->x, block_at(c->products.x, which, sizeof *c->products.x));

    made_from(c, &m, ROUND8_ACT, from);
    return m;
}

static struct round8_args w_matrix(struct block_ctx *c, enum product which, int part,
                                   const struct linear_args *a)
{
    struct round8_args m = matrix(a->O, a->I, 0, a->w, part_scale(c->products.w, which, part));

    m.quant = a->quant;
    return m;
}

/* The product is that of 8-bit operands, whatever they lay in before. */
static void narrow(struct linear_args *a)
{
    a->fp8 = true;
    a->quant = (struct op_quant){0};
}

/* The row of qkv's matrix that a part begins at. */
static int64_t part_row(const struct block_ctx *c, int part)
{
    const struct decoder_config *cfg = c->cfg;

    return part == 0 ? 0 : (cfg->heads + (part - 1) * cfg->kv_heads) * cfg->head_dim;
}

/* Forward's copy of w: to where it is kept, at the first forward of the step, or to scratch. */
static int narrow_weight(struct block_ctx *c, enum product which, int part, struct linear_args *a)
{
    struct products *p = &c->products;
    struct round8_args w = w_matrix(c, which, part, a);
    bool keeps = c->r->shape.train && c->r->held_copies;
    int rc = 0;

    w.known = !finds_weights(c);
    w.rows = keeps ? block_at(p->w_kept[which], part_row(c, part) * a->I, 1) : p->w8;
    if (!keeps || !w.known)
        TRY(block_round8(c, &w));
    a->w8 = w.rows;
    a->w_scale = w.scale;
out:
    return rc;
}

int block_product_fwd(struct block_ctx *c, enum product which, int part, struct linear_args *a,
                      const struct act_args *x_from)
{
    struct products *p = &c->products;
    struct round8_args x = x_matrix(c, which, a, x_from);
    int rc = 0;

    if (!rounds(c))
        return block_linear_fwd(c, a);
    x.rows = p->x8;
    x.cols = p->kept[which];
    if (part == 0)
        TRY(block_round8(c, &x));
    TRY(narrow_weight(c, which, part, a));
    narrow(a);
    a->x8 = p->x8;
    a->x_scale = x.scale;
    TRY(block_linear_fwd(c, a));
out:
    return rc;
}

int block_product_recall(struct block_ctx *c, enum product which, const struct linear_args *a,
                         const struct act_args *x_from)
{
    struct round8_args x = x_matrix(c, which, a, x_from);

    if (!rounds(c))
        return 0;
    x.cols = c->products.kept[which];
    return block_round8(c, &x);
}

/* dw in 8 bits, of x and dy transposed. dy's other copy, where it is wanted, is made with it. */
static int weight_of_8(struct block_ctx *c, enum product which, int part, struct linear_args *a,
                       const struct act_args *x_from)
{
    struct products *p = &c->products;
    struct round8_args x = x_matrix(c, which, a, x_from);
    int rc = 0;

    x.known = true;
    x.cols = p->x8;
    if (part == 0 && !p->keeps[which])
        TRY(block_round8(c, &x));
    a->x8 = p->keeps[which] ? p->kept[which] : p->x8;
    a->dy8 = p->dy8_turned;
    a->x_scale = x.scale;
    TRY(block_linear_bwd_weight(c, a));
out:
    return rc;
}

static int data_of_8(struct block_ctx *c, const struct round8_args *of, struct linear_args *a)
{
    struct products *p = &c->products;
    struct round8_args w = *of;
    int rc = 0;

    w.known = true;
    w.cols = p->w8;
    TRY(block_round8(c, &w));
    a->w8 = p->w8;
    a->dy8 = p->dy8;
    a->w_scale = w.scale;
    TRY(block_linear_bwd_data(c, a));
out:
    return rc;
}

static int backward_of_8(struct block_ctx *c, enum product which, int part, struct linear_args *a,
                         const struct act_args *x_from, const struct act_args *dy_from, bool data)
{
    struct products *p = &c->products;
    struct round8_args dy = matrix(a->N, a->O, a->ldy, a->dy, part_scale(p->dy, which, part));
    struct round8_args w = w_matrix(c, which, part, a);
    bool weight = a->dw != NULL || c->dry;
    int rc = 0;

    made_from(c, &dy, ROUND8_ACT_GRAD, dy_from);
    dy.format = FP8_E5M2;
    dy.rows = data ? p->dy8 : NULL;
    dy.cols = weight ? p->dy8_turned : NULL;
    if (data || weight)
        TRY(block_round8(c, &dy));
    narrow(a);
    a->dy_scale = dy.scale;
    if (weight)
        TRY(weight_of_8(c, which, part, a, x_from));
    else
        TRY(block_linear_bwd_weight(c, a)); /* a bias alone, or nothing */
    if (data)
        TRY(data_of_8(c, &w, a));
out:
    return rc;
}

int block_product_bwd(struct block_ctx *c, enum product which, int part, struct linear_args *a,
                      const struct act_args *x_from, const struct act_args *dy_from, bool data)
{
    int rc = 0;

    data = data || c->dry;
    if (rounds(c))
        return backward_of_8(c, which, part, a, x_from, dy_from, data);
    TRY(block_linear_bwd_weight(c, a));
    if (data)
        TRY(block_linear_bwd_data(c, a));
out:
    return rc;
}
