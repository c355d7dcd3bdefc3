/*
 * Attention from its input to what the output projection reads, and back from the gradient of that
 * projection's output.
 *
 * One product makes q, k and v as (N, [q | k | v]). With norms on q and k the three are planes of
 * their own, (N, H D), (N, KV D) twice, because a norm wants its rows evenly apart: then the plain
 * q and k are kept, and the normed and rotated ones are made again for backward.
 */
#include "worker/model/block_impl.h"

static int64_t q_width(const struct block_ctx *c)
{
    return c->cfg->heads * c->cfg->head_dim;
}

static int64_t kv_width(const struct block_ctx *c)
{
    return c->cfg->kv_heads * c->cfg->head_dim;
}

static int64_t qkv_width(const struct block_ctx *c)
{
    return q_width(c) + 2 * kv_width(c);
}

void block_attention_take(struct block_ctx *c, struct region *g, struct attention_kept *k)
{
    k->qkv = region_take(g, c->N * qkv_width(c), c->real);
    k->o = region_take(g, c->N * q_width(c), c->real);
    k->lse = region_take(g, c->N * c->cfg->heads, c->stat);
    k->qkv_inner = block_adapter_take(c, g, TENSOR_QKV_W, c->N);
    k->out_inner = block_adapter_take(c, g, TENSOR_OUT_W, c->N);
}

void block_attention_take_work(struct block_ctx *c, struct attention_work *w)
{
    struct region *g = &c->scratch;

    *w = (struct attention_work){0};
    if (!c->cfg->qk_norm)
        return;
    w->normed = region_take(g, c->N * (q_width(c) + kv_width(c)), c->real);
    int64_t rows = c->N * (c->cfg->heads + c->cfg->kv_heads);
    if (c->cfg->norm == NORM_LAYER)
        w->mean = region_take(g, rows, c->stat);
    w->rstd = region_take(g, rows, c->stat);
}

void block_attention_take_back(struct block_ctx *c, struct attention_back *b)
{
    b->dout = region_take(&c->scratch, c->N * q_width(c), c->real);
    b->dqkv = region_take(&c->scratch, c->N * qkv_width(c), c->real);
    block_attention_take_work(c, &b->work);
}

/* Rows of the stacked weight that make one buffer. */
struct qkv_part {
    int64_t first, rows;
    void *y;        /* (N, rows) */
    const void *dy; /* backward  */
};

static int qkv_parts(const struct block_ctx *c, void *qkv, const struct attention_back *b,
                     struct qkv_part *parts)
{
    int64_t q = q_width(c), kv = kv_width(c);

    if (!c->cfg->qk_norm) {
        parts[0] = (struct qkv_part){.rows = q + 2 * kv, .y = qkv};
        if (b != NULL)
            parts[0].dy = b->dqkv;
        return 1;
    }
    for (int i = 0; i < 3; i++) {
        int64_t first = i == 0 ? 0 : q + (i - 1) * kv;

        parts[i] = (struct qkv_part){
            .first = first, .rows = i == 0 ? q : kv, .y = block_at(qkv, c->N * first, c->real)};
        if (b != NULL) /* q's and k's gradients went through their norms into work */
            parts[i].dy = block_at(i == 2 ? b->dqkv : b->work.normed, c->N * first, c->real);
    }
    return 3;
}

static int64_t window_of(const struct block_ctx *c)
{
    return c->cfg->window != NULL ? c->cfg->window[c->desc->layer] : 0;
}

static struct attn_args attn_args(const struct block_ctx *c, const struct attention_kept *k,
                                  const struct attention_work *w)
{
    const struct decoder_config *cfg = c->cfg;
    const struct block_shape *s = &c->r->shape;
    bool planes = cfg->qk_norm;
    int64_t q = q_width(c), kv = kv_width(c), rows = planes ? c->N : 1;
    void *qk = planes ? w->normed : k->qkv;

    return (struct attn_args){
        .B = s->B,
        .T = s->T,
        .S = s->T,
        .H = cfg->heads,
        .KV = cfg->kv_heads,
        .D = cfg->head_dim,
        .ldq = planes ? q : qkv_width(c),
        .ldk = planes ? kv : qkv_width(c),
        .ldv = planes ? kv : qkv_width(c),
        .ldo = q,
        .scale = (float)(cfg->attn_scale / (cfg->scale_by_layer ? c->desc->layer + 1 : 1)),
        .softcap = (float)cfg->score_softcap,
        .window = window_of(c),
        .first_key = c->r->first_key,
        .alibi_slopes = cfg->position == POSITION_ALIBI ? c->r->alibi_slopes : NULL,
        .alibi_scale = cfg->alibi_rounded ? (float)cfg->attn_scale : 0,
        .dropout = block_dropout(c, DROPOUT_ATTN_PROBS, s->attn_dropout, cfg->heads * s->T * s->T),
        .q = qk,
        .k = block_at(qk, rows * q, c->real),
        .v = block_at(k->qkv, rows * (q + kv), c->real),
        .o = k->o,
        .lse = k->lse,
    };
}

static int rotate(struct block_ctx *c, void *x, int64_t heads, int64_t ldx, bool inverse)
{
    const struct decoder_config *cfg = c->cfg;
    int64_t table = c->r->rope_positions * cfg->rope.dim / 2;
    bool local = cfg->rope.local_base != 0 && window_of(c) > 0;
    const float *tables = c->dry ? NULL : c->r->rope + (local ? 2 * table : 0);
    struct rope_args a = {
        .style = cfg->rope.style,
        .inverse = inverse,
        .N = c->N,
        .heads = heads,
        .head_dim = cfg->head_dim,
        .rope_dim = cfg->rope.dim,
        .ldx = ldx,
        .positions = c->r->positions,
        .cos_table = tables,
        .sin_table = c->dry ? NULL : tables + table,
        .x = x,
    };

    return block_rope(c, &a);
}

/* Rotate q and k by the tokens' positions, in planes or side by side. */
static int rotate_both(struct block_ctx *c, void *qk, bool inverse)
{
    const struct decoder_config *cfg = c->cfg;
    int rc = 0;

    if (cfg->position != POSITION_ROPE)
        return 0;
    if (!cfg->qk_norm)
        return rotate(c, qk, cfg->heads + cfg->kv_heads, qkv_width(c), inverse);
    TRY(rotate(c, qk, cfg->heads, q_width(c), inverse));
    TRY(rotate(c, block_at(qk, c->N * q_width(c), c->real), cfg->kv_heads, kv_width(c), inverse));
out:
    return rc;
}

/* A call of the norm op on q or k. */
struct head_norm {
    enum tensor_role weight;
    int64_t at;     /* elements from q's first to its own      */
    int64_t rows;   /* a head of a token is a row              */
    int64_t ld;     /* from row to row                         */
    int64_t before; /* rows of the calls before it             */
    int64_t column; /* of the weight, where its own one begins */
};

static int64_t head_norms(const struct block_ctx *c)
{
    if (c->cfg->qk_norm == QK_NORM_HEADS)
        return c->cfg->heads + c->cfg->kv_heads;
    return c->cfg->qk_norm == QK_NORM_SHARED ? 2 : 0;
}

/* Call i: q or k as a whole where heads share a weight, else a head of q or k. */
static struct head_norm head_norm(const struct block_ctx *c, int64_t i)
{
    int64_t H = c->cfg->heads, D = c->cfg->head_dim, N = c->N;
    bool shared = c->cfg->qk_norm == QK_NORM_SHARED, key = i >= (shared ? 1 : H);
    int64_t heads = key ? c->cfg->kv_heads : H, head = key && !shared ? i - H : i;
    struct head_norm n = {.weight = key ? TENSOR_K_NORM_W : TENSOR_Q_NORM_W,
                          .at = key ? N * q_width(c) : 0,
                          .rows = N * heads,
                          .ld = D,
                          .before = key ? N * H : 0};

    if (!shared) {
        n.at += head * D;
        n.rows = N;
        n.ld = heads * D;
        n.before += head * N;
        n.column = head * D;
    }
    return n;
}

static struct norm_args head_norm_args(const struct block_ctx *c, const struct head_norm *n,
                                       void *qkv, const struct attention_work *w)
{
    struct norm_args a = block_norm_args(
        c, n->weight, TENSOR_ROLE_COUNT, n->rows, block_at(qkv, n->at, c->real),
        block_at(w->mean, n->before, c->stat), block_at(w->rstd, n->before, c->stat));

    a.C = c->cfg->head_dim;
    a.ld = n->ld;
    a.weight = block_at_const(a.weight, n->column, c->real);
    return a;
}

/* What attention reads: with norms, normed and rotated copies of q and k. */
static int prepare_heads(struct block_ctx *c, const struct attention_kept *k,
                         const struct attention_work *w)
{
    int rc = 0;

    for (int64_t i = 0; i < head_norms(c); i++) {
        struct head_norm n = head_norm(c, i);
        struct norm_args a = head_norm_args(c, &n, k->qkv, w);

        a.y = block_at(w->normed, n.at, c->real);
        TRY(block_norm_fwd(c, &a));
    }
    TRY(rotate_both(c, c->cfg->qk_norm ? w->normed : k->qkv, false));
out:
    return rc;
}

int block_attention_forward(struct block_ctx *c, const void *in, const struct attention_kept *k,
                            const struct attention_work *w)
{
    struct attn_args attn = attn_args(c, k, w);
    struct qkv_part parts[3];
    int n = qkv_parts(c, k->qkv, NULL, parts), rc = 0;

    TRY(block_adapter_inner(c, TENSOR_QKV_W, c->N, 0, in, k->qkv_inner));
    for (int i = 0; i < n; i++) {
        struct linear_args a = {
            .N = c->N,
            .I = c->cfg->hidden,
            .O = parts[i].rows,
            .x = in,
            .bias = block_at_const(block_weight(c, TENSOR_QKV_B), parts[i].first, c->real),
            .y = parts[i].y,
        };

        block_use_matrix(c, TENSOR_QKV_W, parts[i].first * a.I, &a);
        TRY(block_product_fwd(c, PRODUCT_QKV, i, &a, NULL));
        TRY(block_adapter_add(c, TENSOR_QKV_W, c->N, parts[i].first, parts[i].rows, k->qkv_inner,
                              parts[i].y));
    }
    TRY(prepare_heads(c, k, w));
    TRY(block_attn_fwd(c, &attn));
out:
    return rc;
}

/* From the gradients of normed q and k, in dqkv, to those of plain ones, in work. */
static int head_norms_backward(struct block_ctx *c, const struct attention_kept *k,
                               const struct attention_back *b)
{
    int rc = 0;

    if (!c->cfg->qk_norm)
        return 0;
    TRY(block_clear_norm_grads(c, TENSOR_Q_NORM_W, TENSOR_K_NORM_W));
    for (int64_t i = 0; i < head_norms(c); i++) {
        struct head_norm n = head_norm(c, i);
        struct norm_args a = head_norm_args(c, &n, k->qkv, &b->work);

        a.dy = block_at(b->dqkv, n.at, c->real);
        a.dx = block_at(b->work.normed, n.at, c->real);
        a.dweight = block_at(block_grad(c, n.weight), n.column, c->grad);
        TRY(block_norm_bwd(c, &a));
    }
out:
    return rc;
}

/* Gradients of the stacked weight and of the input, part by part. */
static int qkv_backward(struct block_ctx *c, const void *in, const struct attention_kept *k,
                        const struct attention_back *b, void *din, enum accum accum)
{
    struct qkv_part parts[3];
    int64_t C = c->cfg->hidden;
    int n = qkv_parts(c, k->qkv, b, parts), rc = 0;

    for (int i = 0; i < n; i++) {
        struct linear_args a = {
            .N = c->N,
            .I = C,
            .O = parts[i].rows,
            .x = in,
            .dy = parts[i].dy,
            .dw_accum = c->r->grad_accum,
            .dw = block_at(block_grad(c, TENSOR_QKV_W), parts[i].first * C, c->grad),
            .dbias = block_at(block_grad(c, TENSOR_QKV_B), parts[i].first, c->grad),
            .dx_accum = i == 0 ? accum : ACCUM_ADD,
            .dx = din,
        };

        block_use_matrix(c, TENSOR_QKV_W, parts[i].first * C, &a);
        TRY(block_product_bwd(c, PRODUCT_QKV, i, &a, NULL, NULL, din != NULL));
        TRY(block_adapter_add_backward(c, TENSOR_QKV_W, c->N, parts[i].first, parts[i].rows,
                                       k->qkv_inner, parts[i].dy, c->r->grad_accum));
    }
    TRY(block_adapter_inner_backward(c, TENSOR_QKV_W, c->N, 0, in, din, c->r->grad_accum));
out:
    return rc;
}

int block_attention_backward(struct block_ctx *c, const void *in, const struct attention_kept *k,
                             const struct attention_back *b, const void *dattn, void *din,
                             enum accum accum)
{
    const struct decoder_config *cfg = c->cfg;
    bool planes = cfg->qk_norm;
    int64_t rows = planes ? c->N : 1;
    struct attn_args attn = attn_args(c, k, &b->work);
    struct linear_args out_proj = {
        .N = c->N,
        .I = q_width(c),
        .O = cfg->hidden,
        .x = k->o,
        .dy = dattn,
        .dw_accum = c->r->grad_accum,
        .dw = block_grad(c, TENSOR_OUT_W),
        .dbias = block_grad(c, TENSOR_OUT_B),
        .dx = b->dout,
    };
    int rc = 0;

    block_use_matrix(c, TENSOR_OUT_W, 0, &out_proj);
    TRY(block_product_bwd(c, PRODUCT_OUT, 0, &out_proj, NULL, NULL, true));
    TRY(block_adapter_add_backward(c, TENSOR_OUT_W, c->N, 0, cfg->hidden, k->out_inner, dattn,
                                   c->r->grad_accum));
    TRY(block_adapter_inner_backward(c, TENSOR_OUT_W, c->N, 0, k->o, b->dout, c->r->grad_accum));
    if (planes)
        TRY(prepare_heads(c, k, &b->work));
    attn.dout = b->dout;
    attn.dq = b->dqkv;
    attn.dk = block_at(b->dqkv, rows * q_width(c), c->real);
    attn.dv = block_at(b->dqkv, rows * (q_width(c) + kv_width(c)), c->real);
    TRY(block_attn_bwd(c, &attn));
    TRY(rotate_both(c, b->dqkv, true));
    TRY(head_norms_backward(c, k, b));
    TRY(qkv_backward(c, in, k, b, din, accum));
out:
    return rc;
}
