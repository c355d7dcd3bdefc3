/* Linear layers stored in bfloat16: a tile's operands are widened, a panel at a time, into the
 * thread's own buffers, and multiplied by one single-threaded oneDNN call a panel. */
#include <assert.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/fp8.h"
#include "kernels/cpu/quant.h"

enum { ROWS = 128, COLS = 256, DEPTH = 256, SUM_ROWS = 256 };

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ld_or(int64_t ld, int64_t dense)
{
    return ld ? ld : dense;
}

static float alpha_of(const struct linear_args *a)
{
    return a->alpha != 0 ? a->alpha : 1;
}

struct operand { /* of a product: element (i, k) at p[i * ld + k], transposed at p[k * ld + i] */
    const bf16 *p;
    int64_t ld;
    bool transposed;
};

/* Of elements (i0 .. i0 + n, k0 .. k0 + depth), in the operand's own order. */
static void load_panel(float *to, int64_t ld_to, const struct operand *x, int64_t i0, int64_t n,
                       int64_t k0, int64_t depth)
{
    int64_t rows = x->transposed ? depth : n, cols = x->transposed ? n : depth;
    const bf16 *from = x->p + (x->transposed ? k0 * x->ld + i0 : i0 * x->ld + k0);

    for (int64_t r = 0; r < rows; r++)
        bf16_load(to + r * ld_to, from + r * x->ld, cols);
}

struct tile {
    int64_t r0, c0, rows, cols;
};

static int64_t tile_count(int64_t rows, int64_t cols)
{
    return (rows + ROWS - 1) / ROWS * ((cols + COLS - 1) / COLS);
}

static struct tile tile_at(int64_t i, int64_t rows, int64_t cols)
{
    int64_t across = (cols + COLS - 1) / COLS;
    struct tile t = {i / across * ROWS, i % across * COLS, 0, 0};
    t.rows = min64(ROWS, rows - t.r0);
    t.cols = min64(COLS, cols - t.c0);
    return t;
}

/* c (t->rows, t->cols) = alpha x y^T over `depth`, or += it; c points at the tile. y's element
 * (column, k) as an operand's (i, k). */
static void product(const struct tile *t, int64_t depth, float alpha, const struct operand *x,
                    const struct operand *y, bool add, float *c, int64_t ldc)
{
    float a[ROWS * DEPTH], b[COLS * DEPTH];
    int64_t lda = x->transposed ? ROWS : DEPTH, ldb = y->transposed ? COLS : DEPTH;

    for (int64_t k0 = 0; k0 < depth; k0 += DEPTH) {
        int64_t k = min64(DEPTH, depth - k0);
        load_panel(a, lda, x, t->r0, t->rows, k0, k);
        load_panel(b, ldb, y, t->c0, t->cols, k0, k);
        blas_sgemm(x->transposed ? BLAS_TRANSPOSED : BLAS_AS_IS,
                   y->transposed ? BLAS_AS_IS : BLAS_TRANSPOSED, t->rows, t->cols, k, alpha, a, lda,
                   b, ldb, add || k0 > 0 ? 1 : 0, c, ldc);
    }
}

/* What follows the product of n elements from `at` on. y is made of what pre keeps, as backward
 * makes it again where it was not kept. */
static void finish_row(const struct linear_args *a, int64_t n, int64_t at, float *product,
                       const float *bias, const float *residual, float *y)
{
    bf16 *pre = a->pre ? (bf16 *)a->pre + at : NULL;

    if (pre) {
        fast_finish_row(ACT_NONE, n, product, bias, NULL, NULL, product);
        bf16_store(pre, product, n);
        bf16_load(product, pre, n);
    }
    fast_finish_row(a->act, n, product, pre ? NULL : bias, residual, NULL, y);
}

static void forward_tile(const struct linear_args *a, const struct tile *t)
{
    struct operand x = {a->x, ld_or(a->ldx, a->I), false}, w = {a->w, a->I, false};
    int64_t ldy = ld_or(a->ldy, a->O);
    float out[ROWS * COLS], bias[COLS], residual[COLS], y[COLS];

    product(t, a->I, alpha_of(a), &x, &w, false, out, COLS);
    if (a->bias)
        bf16_load(bias, (const bf16 *)a->bias + t->c0, t->cols);
    for (int64_t r = 0; r < t->rows; r++) {
        int64_t at = (t->r0 + r) * ldy + t->c0;
        if (a->residual)
            bf16_load(residual, (const bf16 *)a->residual + at, t->cols);
        finish_row(a, t->cols, at, out + r * COLS, a->bias ? bias : NULL,
                   a->residual ? residual : NULL, y);
        bf16_store((bf16 *)a->y + at, y, t->cols);
    }
}

int bf16_linear_fwd(struct stream *s, const struct linear_args *a)
{
    int64_t tiles = tile_count(a->N, a->O);

    if (a->quant.format != QUANT_NONE) {
        struct linear_args plain = cpu_quant_decoded(s, DT_BF16, true, a);
        return bf16_linear_fwd(s, &plain);
    }
    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_FWD, DT_BF16, bf16_linear_fwd, s, a);
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(dynamic, 1) if (a->N * a->O * a->I > FAST_SERIAL_PRODUCT)
    for (int64_t i = 0; i < tiles; i++) {
        struct tile t = tile_at(i, a->N, a->O);
        forward_tile(a, &t);
    }
    return 0;
}

static void backward_tile(const struct linear_args *a, const struct tile *t)
{
    struct operand dy = {a->dy, ld_or(a->ldy, a->O), false}, w = {a->w, a->I, true};
    int64_t ldx = ld_or(a->ldx, a->I);
    float out[ROWS * COLS], pre[COLS];

    if (a->dx_accum == ACCUM_ADD)
        for (int64_t r = 0; r < t->rows; r++)
            bf16_load(out + r * COLS, (const bf16 *)a->dx + (t->r0 + r) * ldx + t->c0, t->cols);
    product(t, a->O, alpha_of(a), &dy, &w, a->dx_accum == ACCUM_ADD, out, COLS);
    for (int64_t r = 0; r < t->rows; r++) {
        int64_t at = (t->r0 + r) * ldx + t->c0;
        if (a->act_x != ACT_NONE) {
            bf16_load(pre, (const bf16 *)a->pre_x + at, t->cols);
            fast_slope_row(a->act_x, t->cols, pre, out + r * COLS);
        }
        bf16_store((bf16 *)a->dx + at, out + r * COLS, t->cols);
    }
}

int bf16_linear_bwd_data(struct stream *s, const struct linear_args *a)
{
    int64_t tiles = tile_count(a->N, a->I);

    if (a->quant.format != QUANT_NONE) {
        struct linear_args plain = cpu_quant_decoded(s, DT_BF16, true, a);
        return bf16_linear_bwd_data(s, &plain);
    }
    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_BWD_DATA, DT_BF16, bf16_linear_bwd_data, s, a);
    assert(a->act_x == ACT_NONE || a->dx_accum == ACCUM_ASSIGN);
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(dynamic, 1) if (a->N * a->O * a->I > FAST_SERIAL_PRODUCT)
    for (int64_t i = 0; i < tiles; i++) {
        struct tile t = tile_at(i, a->N, a->I);
        backward_tile(a, &t);
    }
    if (!a->dbias_x)
        return 0;
    struct linear_args below = linear_bias_below(a);
    return bf16_linear_bwd_weight(s, &below);
}

/* dbias of columns [c0, c0 + n). */
static void bias_strip(const struct linear_args *a, int64_t c0, int64_t n)
{
    int64_t ldy = ld_or(a->ldy, a->O);
    const bf16 *dy = (const bf16 *)a->dy + c0;
    bool add = a->dw_accum == ACCUM_ADD;
    float rows[SUM_ROWS * FAST_COLUMNS], sums[FAST_COLUMNS];
    float *out = a->narrow.on ? sums : (float *)a->dbias + c0;

    if (a->narrow.on || !add)
        memset(out, 0, (size_t)n * sizeof *out);
    for (int64_t n0 = 0; n0 < a->N; n0 += SUM_ROWS) {
        int64_t count = min64(SUM_ROWS, a->N - n0);
        for (int64_t r = 0; r < count; r++)
            bf16_load(rows + r * FAST_COLUMNS, dy + (n0 + r) * ldy, n);
        fast_column_sums(rows, FAST_COLUMNS, count, 0, n, true, out);
    }
    if (a->narrow.on)
        bf16_take_gradient(bf16_bias_stream(&a->narrow), c0, n, sums, add, (bf16 *)a->dbias + c0);
}

static void weight_tile(const struct linear_args *a, const struct tile *t, const struct operand *dy,
                        const struct operand *x)
{
    bool add = a->dw_accum == ACCUM_ADD;
    float out[ROWS * COLS];

    if (!a->narrow.on) {
        product(t, a->N, alpha_of(a), dy, x, add, (float *)a->dw + t->r0 * a->I + t->c0, a->I);
        return;
    }
    product(t, a->N, alpha_of(a), dy, x, false, out, COLS);
    for (int64_t r = 0; r < t->rows; r++) {
        int64_t at = (t->r0 + r) * a->I + t->c0;
        bf16_take_gradient(a->narrow.stream, at, t->cols, out + r * COLS, add, (bf16 *)a->dw + at);
    }
}

int bf16_linear_bwd_weight(struct stream *s, const struct linear_args *a)
{
    struct operand dy = {a->dy, ld_or(a->ldy, a->O), true}, x = {a->x, ld_or(a->ldx, a->I), true};
    int64_t tiles = a->dw ? tile_count(a->O, a->I) : 0;
    int64_t strips = a->dbias ? (a->O + FAST_COLUMNS - 1) / FAST_COLUMNS : 0;

    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_BWD_WEIGHT, DT_BF16, bf16_linear_bwd_weight, s, a);
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(dynamic, 1) if (a->N * a->O * a->I > FAST_SERIAL_PRODUCT)
    for (int64_t i = 0; i < tiles + strips; i++) {
        if (i < tiles) {
            struct tile t = tile_at(i, a->O, a->I);
            weight_tile(a, &t, &dy, &x);
        } else {
            int64_t c0 = (i - tiles) * FAST_COLUMNS;
            bias_strip(a, c0, min64(FAST_COLUMNS, a->O - c0));
        }
    }
    return 0;
}
