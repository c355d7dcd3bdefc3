/*
 * Adapters in a block: what stands beside its frozen matrices, forward and backward. The inner
 * activations, dropout(x) A^T of all adapted parts side by side, are kept for backward: they are
 * small, and making them again would read x once more. dropout(x) is made again.
 *
 * With y = scale inner B^T beside the matrix's own product:
 *   dB += scale dy^T inner,  dinner = scale dy B,  dA += dinner^T dropout(x),
 *   dx += dropout'(dinner A)
 */
#include <assert.h>

#include "worker/model/adapter.h"
#include "worker/model/block_impl.h"

/* An adapter of this block. */
struct adapter {
    const struct adaptable *of;
    const struct tensor_desc *a, *b;
    int64_t inner; /* width of the inner activations */
    enum dropout_place place;
};

static bool find(const struct block_ctx *c, enum tensor_role matrix, struct adapter *out)
{
    static const enum dropout_place places[ADAPTABLE_MATRICES] = {
        DROPOUT_LORA_PROJECTION, DROPOUT_LORA_QKV,  DROPOUT_LORA_OUT,
        DROPOUT_LORA_UP,         DROPOUT_LORA_DOWN, DROPOUT_LORA_PROJECTION};
    const struct model *m = c->r->model;
    const struct adaptable *of = model_adaptable(m, matrix);
    int64_t at;

    if (m->adapters.rank == 0)
        return false;
    assert(of != NULL);
    at = block_find(m, c->desc, of->a);
    if (at < 0)
        return false;
    out->of = of;
    out->a = &m->tensors[c->desc->tensors[at]];
    out->b = &m->tensors[c->desc->tensors[block_find(m, c->desc, of->b)]];
    out->inner = out->a->rows;
    out->place = places[of - m->adapters.matrices];
    return true;
}

bool block_adapted(const struct block_ctx *c, enum tensor_role matrix)
{
    struct adapter ad;

    return find(c, matrix, &ad);
}

void *block_adapter_take(struct block_ctx *c, struct region *g, enum tensor_role matrix,
                         int64_t rows)
{
    struct adapter ad;

    return find(c, matrix, &ad) ? region_take(g, rows * ad.inner, c->real) : NULL;
}

void block_adapters_take_work(struct block_ctx *c, int64_t rows, bool backward)
{
    int64_t widest_x = 0, widest_inner = 0;

    c->adapters = (struct adapters_work){0};
    for (int i = 0; i < ADAPTABLE_MATRICES; i++) {
        struct adapter ad;

        if (!find(c, c->r->model->adapters.matrices[i].matrix, &ad))
            continue;
        widest_x = ad.a->cols > widest_x ? ad.a->cols : widest_x;
        widest_inner = ad.inner > widest_inner ? ad.inner : widest_inner;
    }
    if (widest_x == 0)
        return;
    if (c->r->shape.lora_dropout > 0)
        c->adapters.dropped = region_take(&c->scratch, rows * widest_x, c->real);
    if (backward)
        c->adapters.dinner = region_take(&c->scratch, rows * widest_inner, c->real);
}

/* dropout(x), or x itself. first_row counts from the micro-batch's first. */
static struct dropout_args dropout_of_input(const struct block_ctx *c, const struct adapter *ad,
                                            int64_t rows, int64_t first_row)
{
    double p = c->r->shape.lora_dropout;
    struct dropout_args d = {
        .n = rows * ad->a->cols,
        .dropout = block_dropout(c, ad->place, p, c->r->shape.T * ad->a->cols),
    };

    d.dropout.first += first_row * ad->a->cols;
    return d;
}

static int drop_input(struct block_ctx *c, const struct adapter *ad, int64_t rows,
                      int64_t first_row, const void *x, const void **dropped)
{
    struct dropout_args d = dropout_of_input(c, ad, rows, first_row);
    int rc = 0;

    *dropped = x;
    if (c->r->shape.lora_dropout == 0)
        return 0;
    d.x = x;
    d.y = c->adapters.dropped;
    TRY(block_dropout_fwd(c, &d));
    *dropped = c->adapters.dropped;
out:
    return rc;
}

int block_adapter_inner(struct block_ctx *c, enum tensor_role matrix, int64_t rows,
                        int64_t first_row, const void *x, void *inner)
{
    struct linear_args down = {.N = rows};
    struct adapter ad;
    int rc = 0;

    if (!find(c, matrix, &ad))
        return 0;
    TRY(drop_input(c, &ad, rows, first_row, x, &down.x));
    down.I = ad.a->cols;
    down.O = ad.inner;
    down.w = block_weight(c, ad.of->a);
    down.y = inner;
    TRY(block_linear_fwd(c, &down));
out:
    return rc;
}

/* Where one adapted part and rows [first, first + n) of the matrix meet. */
struct meeting {
    int64_t part;  /* number of the part among the adapted ones */
    int64_t b_row; /* of B   */
    int64_t y_col; /* of y   */
    int64_t n;     /* > 0    */
    bool first;    /* nothing of the part lies in front of it */
};

static int find_meetings(const struct adapter *ad, int64_t first, int64_t n,
                         struct meeting out[MATRIX_MAX_PARTS])
{
    int64_t part = 0, b_row = 0;
    int count = 0;

    for (int64_t p = 0; p < ad->of->n_parts; p++) {
        const struct matrix_part *m = &ad->of->parts[p];
        int64_t from = m->first_row > first ? m->first_row : first;
        int64_t part_end = m->first_row + m->rows;
        int64_t to = part_end < first + n ? part_end : first + n;

        if (!(ad->a->parts >> p & 1))
            continue;
        if (from < to)
            out[count++] = (struct meeting){.part = part,
                                            .b_row = b_row + from - m->first_row,
                                            .y_col = from - first,
                                            .n = to - from,
                                            .first = from == m->first_row};
        part++;
        b_row += m->rows;
    }
    return count;
}

/* The product by B of a part's inner values, whose columns of y are n apart from row to row. */
static struct linear_args up_product(const struct block_ctx *c, const struct adapter *ad,
                                     const struct meeting *at, int64_t rows, int64_t n,
                                     const void *inner)
{
    int64_t rank = ad->b->cols;

    return (struct linear_args){
        .N = rows,
        .I = rank,
        .O = at->n,
        .alpha = c->r->model->adapters.scale,
        .ldx = ad->inner,
        .ldy = n,
        .x = block_at_const(inner, at->part * rank, c->real),
        .w = block_at_const(block_weight(c, ad->of->b), at->b_row * rank, c->real),
    };
}

int block_adapter_add(struct block_ctx *c, enum tensor_role matrix, int64_t rows, int64_t first,
                      int64_t n, const void *inner, void *y)
{
    struct meeting at[MATRIX_MAX_PARTS];
    struct adapter ad;
    int rc = 0, count;

    if (!find(c, matrix, &ad))
        return 0;
    count = find_meetings(&ad, first, n, at);
    for (int i = 0; i < count; i++) {
        struct linear_args up = up_product(c, &ad, &at[i], rows, n, inner);

        up.y = block_at(y, at[i].y_col, c->real);
        up.residual = up.y;
        TRY(block_linear_fwd(c, &up));
    }
out:
    return rc;
}

int block_adapter_add_backward(struct block_ctx *c, enum tensor_role matrix, int64_t rows,
                               int64_t first, int64_t n, const void *inner, const void *dy,
                               enum accum accum)
{
    struct meeting at[MATRIX_MAX_PARTS];
    struct adapter ad;
    int rc = 0, count;

    if (!find(c, matrix, &ad))
        return 0;
    count = find_meetings(&ad, first, n, at);
    for (int i = 0; i < count; i++) {
        struct linear_args up = up_product(c, &ad, &at[i], rows, n, inner);

        up.dy = block_at_const(dy, at[i].y_col, c->real);
        up.dw_accum = accum;
        up.dw = block_at(block_grad(c, ad.of->b), at[i].b_row * ad.b->cols, c->grad);
        TRY(block_linear_bwd_weight(c, &up));
        up.dx_accum = at[i].first ? ACCUM_ASSIGN : ACCUM_ADD;
        up.dx = block_at(c->adapters.dinner, at[i].part * ad.b->cols, c->real);
        TRY(block_linear_bwd_data(c, &up));
    }
out:
    return rc;
}

int block_adapter_inner_backward(struct block_ctx *c, enum tensor_role matrix, int64_t rows,
                                 int64_t first_row, const void *x, void *dx, enum accum accum)
{
    bool drops = c->r->shape.lora_dropout > 0;
    struct linear_args down = {.N = rows, .dw_accum = accum};
    struct dropout_args d;
    struct adapter ad;
    int rc = 0;

    if (!find(c, matrix, &ad))
        return 0;
    down.I = ad.a->cols;
    down.O = ad.inner;
    down.w = block_weight(c, ad.of->a);
    down.dy = c->adapters.dinner;
    down.dw = block_grad(c, ad.of->a);
    TRY(drop_input(c, &ad, rows, first_row, x, &down.x));
    TRY(block_linear_bwd_weight(c, &down));
    if (dx == NULL && !c->dry)
        return 0;
    down.dx_accum = drops ? ACCUM_ASSIGN : ACCUM_ADD;
    down.dx = drops ? c->adapters.dropped : dx; /* the input is used up */
    TRY(block_linear_bwd_data(c, &down));
    if (drops) { /* the mask once more, added to what is there */
        d = dropout_of_input(c, &ad, rows, first_row);
        d.x = c->adapters.dropped;
        d.residual = d.y = dx;
        TRY(block_dropout_fwd(c, &d));
    }
out:
    return rc;
}
