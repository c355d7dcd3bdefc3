/*
 * Linear layers. A product is cut into tiles by its shape alone; each tile is one single-threaded
 * oneDNN call followed, while the tile is in cache, by bias, activation and residual. So the bits
 * do not depend on the number of threads (but on the version of oneDNN and the processor, as with
 * any such library).
 */
#include <assert.h>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/fp8.h"
#include "kernels/cpu/quant.h"

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t ld_or(int64_t ld, int64_t dense)
{
    return ld ? ld : dense;
}

static float alpha_of(const struct linear_args *a)
{
    return a->alpha != 0 ? a->alpha : 1;
}

/* The library copies both operands of its tile, so a tile costs less by the product the larger it
 * is: 512 by 1024 runs 4 % faster than 128 by 256 (k 576, one thread). So a few threads get FEW
 * tiles, and those of larger machines MANY as long as tiles stay LARGE, which costs 1 % on two
 * threads, where 4 tiles would leave 12 of 16 idle; or are LONG in work. More tokens afford more
 * tiles, which share out more evenly. Powers of two: threads that are one get the same share. */
struct tiling {
    int64_t rows, cols, down, across;
};

/* The least power of two of parts that are at most `most` long. */
static int64_t parts(int64_t length, int64_t most)
{
    int64_t n = 1;
    while (divide_up(length, n) > most)
        n *= 2;
    return n;
}

static struct tiling tiling(int64_t rows, int64_t cols, int64_t depth, int64_t tokens)
{
    enum {
        SMALLEST = 64,   /* rows or columns                */
        LARGE = 1 << 15, /* elements                       */
        LONG = 1 << 27,  /* multiply-adds: 2 ms of a thread */
        MOST_ROWS = 512,
        MOST_COLS = 1024,
        STEP = 16, /* floats of a vector: an edge narrower than one takes as long */
        FEW = 4
    };
    int64_t many = tokens < 4096 ? 16 : 32;
    struct tiling t = {.down = parts(rows, MOST_ROWS), .across = parts(cols, MOST_COLS)};

    for (int64_t n = t.down * t.across; n < many; n *= 2) {
        int64_t height = divide_up(rows, t.down), width = divide_up(cols, t.across);
        int64_t half = height * width / 2;
        bool enough = n >= FEW && half < LARGE && half * depth < LONG;
        if (enough || (height <= SMALLEST && width <= SMALLEST))
            break;
        *(height > width ? &t.down : &t.across) *= 2;
    }
    t.rows = divide_up(divide_up(rows, t.down), STEP) * STEP;
    t.cols = divide_up(divide_up(cols, t.across), STEP) * STEP;
    t.down = divide_up(rows, t.rows);
    t.across = divide_up(cols, t.cols);
    return t;
}

struct tile {
    int64_t r0, c0, rows, cols;
};

static struct tile tile_at(const struct tiling *t, int64_t i, int64_t rows, int64_t cols)
{
    struct tile tile = {i / t->across * t->rows, i % t->across * t->cols, 0, 0};
    tile.rows = min64(t->rows, rows - tile.r0);
    tile.cols = min64(t->cols, cols - tile.c0);
    return tile;
}

/* One row of a tile after its product: pre holds x w^T. All pointers are at the tile's first
 * column; bias, residual and keep may be NULL. */
FAST_INLINE void finish_act_row(enum act_kind act, int64_t n, const float *product,
                                const float *bias, const float *residual, float *keep, float *y)
{
    if (keep) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float pre = product[i] + (bias ? bias[i] : 0.0f);
            keep[i] = pre;
            y[i] = fast_act(act, pre) + (residual ? residual[i] : 0.0f);
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = fast_act(act, product[i] + (bias ? bias[i] : 0.0f)) +
                   (residual ? residual[i] : 0.0f);
    }
}

FAST_CLONES void fast_finish_row(enum act_kind act, int64_t n, const float *product,
                                 const float *bias, const float *residual, float *keep, float *y)
{
    switch (act) {
    case ACT_NONE:
        finish_act_row(ACT_NONE, n, product, bias, residual, keep, y);
        break;
    case ACT_RELU:
        finish_act_row(ACT_RELU, n, product, bias, residual, keep, y);
        break;
    case ACT_GELU_ERF:
        finish_act_row(ACT_GELU_ERF, n, product, bias, residual, keep, y);
        break;
    case ACT_GELU_TANH:
        finish_act_row(ACT_GELU_TANH, n, product, bias, residual, keep, y);
        break;
    case ACT_SILU:
        finish_act_row(ACT_SILU, n, product, bias, residual, keep, y);
        break;
    }
}

/* The product of a tile in pieces small enough for the stack: the residual may lie where y goes,
 * and an activation stands between product and residual. */
static void forward_by_pieces(const struct linear_args *a, const struct tile *t)
{
    enum { ROWS = 32, COLS = 256 };
    int64_t ldx = ld_or(a->ldx, a->I), ldy = ld_or(a->ldy, a->O);
    const float *x = a->x, *w = a->w, *bias = a->bias, *residual = a->residual;
    float product[ROWS * COLS];

    for (int64_t r = t->r0; r < t->r0 + t->rows; r += ROWS)
        for (int64_t c = t->c0; c < t->c0 + t->cols; c += COLS) {
            int64_t rows = min64(ROWS, t->r0 + t->rows - r),
                    cols = min64(COLS, t->c0 + t->cols - c);
            blas_sgemm(BLAS_AS_IS, BLAS_TRANSPOSED, rows, cols, a->I, alpha_of(a), x + r * ldx, ldx,
                       w + c * a->I, a->I, 0, product, COLS);
            for (int64_t i = 0; i < rows; i++) {
                int64_t at = (r + i) * ldy + c;
                fast_finish_row(a->act, cols, product + i * COLS, bias ? bias + c : NULL,
                                residual + at, NULL, (float *)a->y + at);
            }
        }
}

static void forward_tile(const struct linear_args *a, const struct tile *t)
{
    int64_t ldx = ld_or(a->ldx, a->I), ldy = ld_or(a->ldy, a->O);
    const float *bias = a->bias, *residual = a->residual;
    int64_t at = t->r0 * ldy + t->c0;
    bool in_place = residual == a->y && residual && !a->pre;

    if (in_place && a->act != ACT_NONE) {
        forward_by_pieces(a, t);
        return;
    }
    float *product = a->pre ? a->pre : a->y;
    blas_sgemm(BLAS_AS_IS, BLAS_TRANSPOSED, t->rows, t->cols, a->I, alpha_of(a),
               (const float *)a->x + t->r0 * ldx, ldx, (const float *)a->w + t->c0 * a->I, a->I,
               in_place ? 1 : 0, product + at, ldy);
    if (in_place)
        residual = NULL; /* it is in the sum */
    if (a->act == ACT_NONE && !bias && !residual && !a->pre)
        return;
    for (int64_t i = 0; i < t->rows; i++, at += ldy)
        fast_finish_row(a->act, t->cols, product + at, bias ? bias + t->c0 : NULL,
                        residual ? residual + at : NULL, a->pre ? product + at : NULL,
                        (float *)a->y + at);
}

int fast_linear_fwd(struct stream *s, const struct linear_args *a)
{
    struct tiling t = tiling(a->N, a->O, a->I, a->N);

    if (a->quant.format != QUANT_NONE) {
        struct linear_args plain = cpu_quant_decoded(s, DT_F32, true, a);
        return fast_linear_fwd(s, &plain);
    }
    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_FWD, DT_F32, fast_linear_fwd, s, a);
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(dynamic, 1) if (a->N * a->O * a->I > FAST_SERIAL_PRODUCT)
    for (int64_t i = 0; i < t.down * t.across; i++) {
        struct tile tile = tile_at(&t, i, a->N, a->O);
        forward_tile(a, &tile);
    }
    return 0;
}

#define SLOPE_ROW(kind)                                                                            \
    case kind:                                                                                     \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) dx[i] *= fast_act_slope(kind, pre[i]); \
        break

FAST_CLONES void fast_slope_row(enum act_kind act, int64_t n, const float *pre, float *dx)
{
    switch (act) {
    case ACT_NONE:
        break;
        SLOPE_ROW(ACT_RELU);
        SLOPE_ROW(ACT_GELU_ERF);
        SLOPE_ROW(ACT_GELU_TANH);
        SLOPE_ROW(ACT_SILU);
    }
}

int fast_linear_bwd_data(struct stream *s, const struct linear_args *a)
{
    int64_t ldx = ld_or(a->ldx, a->I), ldy = ld_or(a->ldy, a->O);
    struct tiling t = tiling(a->N, a->I, a->O, a->N);

    if (a->quant.format != QUANT_NONE) {
        struct linear_args plain = cpu_quant_decoded(s, DT_F32, true, a);
        return fast_linear_bwd_data(s, &plain);
    }
    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_BWD_DATA, DT_F32, fast_linear_bwd_data, s, a);
    assert(a->act_x == ACT_NONE || a->dx_accum == ACCUM_ASSIGN);
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(dynamic, 1) if (a->N * a->O * a->I > FAST_SERIAL_PRODUCT)
    for (int64_t i = 0; i < t.down * t.across; i++) {
        struct tile tile = tile_at(&t, i, a->N, a->I);
        int64_t at = tile.r0 * ldx + tile.c0;
        float *dx = (float *)a->dx + at;
        blas_sgemm(BLAS_AS_IS, BLAS_AS_IS, tile.rows, tile.cols, a->O, alpha_of(a),
                   (const float *)a->dy + tile.r0 * ldy, ldy, (const float *)a->w + tile.c0, a->I,
                   a->dx_accum == ACCUM_ADD ? 1 : 0, dx, ldx);
        if (a->act_x != ACT_NONE)
            for (int64_t r = 0; r < tile.rows; r++)
                fast_slope_row(a->act_x, tile.cols, (const float *)a->pre_x + at + r * ldx,
                               dx + r * ldx);
    }
    if (!a->dbias_x)
        return 0;
    struct linear_args below = linear_bias_below(a);
    return fast_linear_bwd_weight(s, &below);
}

/* In front of its first use: clang builds no clones of what was called before. */
FAST_CLONES void fast_column_sums(const float *x, int64_t ld, int64_t N, int64_t c0, int64_t c1,
                                  bool add, float *out)
{
    enum { BLOCK = 64 };
    float total[FAST_COLUMNS] = {0}, part[FAST_COLUMNS];
    int64_t width = c1 - c0;

    for (int64_t n0 = 0; n0 < N; n0 += BLOCK) {
        int64_t end = min64(n0 + BLOCK, N);
        memset(part, 0, sizeof part);
        for (int64_t n = n0; n < end; n++)
            for (int64_t c = 0; c < width; c++)
                part[c] += x[n * ld + c0 + c];
        for (int64_t c = 0; c < width; c++)
            total[c] += part[c];
    }
    for (int64_t c = 0; c < width; c++)
        out[c0 + c] = add ? out[c0 + c] + total[c] : total[c];
}

int fast_linear_bwd_weight(struct stream *s, const struct linear_args *a)
{
    int64_t ldx = ld_or(a->ldx, a->I), ldy = ld_or(a->ldy, a->O);
    struct tiling t = tiling(a->O, a->I, a->N, a->N);
    int64_t tiles = a->dw ? t.down * t.across : 0;
    int64_t strips = a->dbias ? divide_up(a->O, FAST_COLUMNS) : 0;
    bool add = a->dw_accum == ACCUM_ADD;

    if (a->fp8)
        return cpu_fp8_linear(OP_LINEAR_BWD_WEIGHT, DT_F32, fast_linear_bwd_weight, s, a);
#pragma omp parallel for num_threads(s->threads)                                                   \
    schedule(dynamic, 1) if (a->N * a->O * a->I > FAST_SERIAL_PRODUCT)
    for (int64_t i = 0; i < tiles + strips; i++) {
        if (i < tiles) {
            struct tile tile = tile_at(&t, i, a->O, a->I);
            blas_sgemm(BLAS_TRANSPOSED, BLAS_AS_IS, tile.rows, tile.cols, a->N, alpha_of(a),
                       (const float *)a->dy + tile.r0, ldy, (const float *)a->x + tile.c0, ldx,
                       add ? 1 : 0, (float *)a->dw + tile.r0 * a->I + tile.c0, a->I);
        } else {
            int64_t c0 = (i - tiles) * FAST_COLUMNS;
            fast_column_sums(a->dy, ldy, a->N, c0, min64(c0 + FAST_COLUMNS, a->O), add, a->dbias);
        }
    }
    return 0;
}

/* --- activations alone --- */

#define ACT_ROW(kind)                                                                              \
    case kind:                                                                                     \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) y[i] =                                 \
            fast_act(kind, x[i]) * (up ? up[i] : 1.0f);                                            \
        break

FAST_CLONES void fast_act_row(enum act_kind act, int64_t n, const float *x, const float *up,
                              float *y)
{
    switch (act) {
        ACT_ROW(ACT_NONE);
        ACT_ROW(ACT_RELU);
        ACT_ROW(ACT_GELU_ERF);
        ACT_ROW(ACT_GELU_TANH);
        ACT_ROW(ACT_SILU);
    }
}

int fast_act_fwd(struct stream *s, const struct act_args *a)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->F > FAST_SERIAL)
    for (int64_t n = 0; n < a->N; n++) {
        const float *x = (const float *)a->x + n * a->F * (a->gated ? 2 : 1);
        fast_act_row(a->act, a->F, x, a->gated ? x + a->F : NULL, (float *)a->y + n * a->F);
    }
    return 0;
}

#define ACT_GRAD_ROW(kind)                                                                         \
    case kind:                                                                                     \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                        \
        {                                                                                          \
            float d = dy[i];                                                                       \
            if (up)                                                                                \
                dup[i] = d * fast_act(kind, x[i]);                                                 \
            dx[i] = d * (up ? up[i] : 1.0f) * fast_act_slope(kind, x[i]);                          \
        }                                                                                          \
        break

FAST_CLONES void fast_act_grad_row(enum act_kind act, int64_t n, const float *x, const float *up,
                                   const float *dy, float *dx, float *dup)
{
    switch (act) {
        ACT_GRAD_ROW(ACT_NONE);
        ACT_GRAD_ROW(ACT_RELU);
        ACT_GRAD_ROW(ACT_GELU_ERF);
        ACT_GRAD_ROW(ACT_GELU_TANH);
        ACT_GRAD_ROW(ACT_SILU);
    }
}

int fast_act_bwd(struct stream *s, const struct act_args *a)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->F > FAST_SERIAL)
    for (int64_t n = 0; n < a->N; n++) {
        int64_t at = n * a->F * (a->gated ? 2 : 1);
        const float *x = (const float *)a->x + at;
        float *dx = (float *)a->dx + at;
        fast_act_grad_row(a->act, a->F, x, a->gated ? x + a->F : NULL,
                          (const float *)a->dy + n * a->F, dx, a->gated ? dx + a->F : NULL);
    }
    return 0;
}
