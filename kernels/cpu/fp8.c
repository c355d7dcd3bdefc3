#include "kernels/cpu/fp8.h"

#include <math.h>
#include <string.h>

#include "core/err.h"

enum { SPAN = 256 };

static enum dtype dtype_of(enum fp8_format format)
{
    return format == FP8_E4M3 ? DT_E4M3 : DT_E5M2;
}

static int64_t span_at(int64_t cols, int64_t first)
{
    return cols - first < SPAN ? cols - first : SPAN;
}

/* A matrix (rows, cols) of 8 bits, or its transpose, which is what lies there. */
struct operand {
    enum fp8_format format;
    int64_t rows, cols;
    bool turned;
    const void *from;
    const struct fp8_scale *scale;
};

static void spread(enum dtype real, const struct operand *o, void *to)
{
    const uint8_t *from = o->from;
    double x[SPAN];
    uint8_t narrow[SPAN];

    for (int64_t r = 0; r < o->rows; r++)
        for (int64_t c = 0; c < o->cols; c += SPAN) {
            int64_t n = span_at(o->cols, c);
            for (int64_t i = 0; i < n; i++)
                narrow[i] = from[o->turned ? (c + i) * o->rows + r : r * o->cols + c + i];
            dtype_convert(DT_F64, x, dtype_of(o->format), narrow, n);
            for (int64_t i = 0; i < n; i++)
                x[i] *= (double)o->scale->back;
            dtype_convert(real, (char *)to + (size_t)(r * o->cols + c) * dtype_size(real), DT_F64,
                          x, n);
        }
}

/* --- rounding --- */

struct maker {
    const struct round8_args *a;
    enum dtype real;
    act_op fwd, bwd;
    struct stream *s;
};

static const void *row_at(const void *p, int64_t row, int64_t width, enum dtype t)
{
    return p ? (const char *)p + (size_t)(row * width) * dtype_size(t) : NULL;
}

/* A row of what an activation is made of, C wide: where it lies, or spread out in the workspace
 * behind that of the matrix. */
static const void *act_input(const struct maker *m, int64_t row)
{
    const struct round8_args *a = m->a;

    if (!a->x8)
        return row_at(a->x, row, a->C, m->real);
    void *wide = (char *)a->workspace + (size_t)a->C * dtype_size(m->real);
    struct operand x8 = {FP8_E4M3, 1, a->C, false, (const uint8_t *)a->x8 + row * a->C, a->x_scale};
    spread(m->real, &x8, wide);
    return wide;
}

/* A row of the matrix: where it lies, or made in the workspace. */
static int make_row(const struct maker *m, int64_t row, const void **out)
{
    const struct round8_args *a = m->a;
    struct act_args act = {.act = a->act, .gated = a->gated, .N = 1, .F = a->C};

    if (a->of == ROUND8_X) {
        *out = row_at(a->x, row, a->ldx ? a->ldx : a->C, m->real);
        return 0;
    }
    *out = a->workspace;
    if (a->of == ROUND8_ACT) {
        act.x = row_at(a->x, row, a->gated ? 2 * a->C : a->C, m->real);
        act.y = a->workspace;
        return m->fwd(m->s, &act);
    }
    act.F = a->gated ? a->C / 2 : a->C;
    act.x = act_input(m, row);
    act.dy = row_at(a->dy, row, act.F, m->real);
    act.dx = a->workspace;
    return m->bwd(m->s, &act);
}

static void load_span(const struct maker *m, const void *row, int64_t first, int64_t n, double *out)
{
    dtype_convert(DT_F64, out, m->real, row_at(row, 1, first, m->real), n);
}

/* The bits of the largest magnitude as a float; NaN's are the largest of all. */
static int find_largest(const struct maker *m, uint32_t *top)
{
    double x[SPAN];
    const void *row;
    int rc = 0;

    *top = 0;
    for (int64_t r = 0; r < m->a->N && rc == 0; r++) {
        rc = make_row(m, r, &row);
        for (int64_t c = 0; c < m->a->C && rc == 0; c += SPAN) {
            int64_t n = span_at(m->a->C, c);
            load_span(m, row, c, n, x);
            for (int64_t i = 0; i < n; i++) {
                float f = (float)fabs(x[i]);
                uint32_t bits;
                memcpy(&bits, &f, sizeof bits);
                *top = bits > *top ? bits : *top;
            }
        }
    }
    return rc;
}

static void store_span(const struct round8_args *a, int64_t row, int64_t first, int64_t n,
                       const uint8_t *narrow)
{
    uint8_t *rows = a->rows, *cols = a->cols;

    if (rows)
        memcpy(rows + row * a->C + first, narrow, (size_t)n);
    for (int64_t i = 0; i < n && cols; i++)
        cols[(first + i) * a->N + row] = narrow[i];
}

static int round_made(enum dtype real, act_op fwd, act_op bwd, struct stream *s,
                      const struct round8_args *a)
{
    struct maker m = {a, real, fwd, bwd, s};
    uint8_t narrow[SPAN];
    double x[SPAN];
    const void *row;
    uint32_t top;
    int rc = 0;

    if (a->known)
        memcpy(&top, &a->scale->amax, sizeof top);
    else
        rc = find_largest(&m, &top);
    int e = fp8_finite(top) ? fp8_exponent(a->format, top) : 0;
    for (int64_t r = 0; r < a->N && rc == 0; r++) {
        rc = make_row(&m, r, &row);
        for (int64_t c = 0; c < a->C && rc == 0; c += SPAN) {
            int64_t n = span_at(a->C, c);
            load_span(&m, row, c, n, x);
            for (int64_t i = 0; i < n; i++)
                x[i] = ldexp(x[i], e);
            dtype_convert(dtype_of(a->format), narrow, DT_F64, x, n);
            store_span(a, r, c, n, narrow);
        }
    }
    if (rc != 0)
        return rc;
    memcpy(&a->scale->amax, &top, sizeof top);
    a->scale->back = fp8_finite(top) ? ldexpf(1, -e) : NAN;
    return 0;
}

int cpu_round8(enum dtype real, act_op fwd, act_op bwd, struct stream *s,
               const struct round8_args *a)
{
    const struct op_quant *q = &a->quant;
    struct round8_args plain = *a;

    if (a->of != ROUND8_X && a->format != (a->of == ROUND8_ACT ? FP8_E4M3 : FP8_E5M2))
        return ERR_UNSUPPORTED;
    if (q->format != QUANT_NONE) {
        quant_decode(q->format, a->x, q->scales, q->first, a->N * a->C, real, a->workspace);
        plain.x = a->workspace;
    }
    int rc = round_made(real, fwd, bwd, s, &plain);
    if (rc != 0 || a->of != ROUND8_ACT || !a->x8)
        return rc;
    struct round8_args from = {.N = a->N,
                               .C = a->gated ? 2 * a->C : a->C,
                               .x = a->x,
                               .known = a->known,
                               .scale = a->x_scale,
                               .rows = a->x8};
    return round_made(real, fwd, bwd, s, &from);
}

size_t cpu_round8_workspace(enum dtype real, const struct round8_args *a)
{
    if (a->quant.format != QUANT_NONE)
        return (size_t)(a->N * a->C) * dtype_size(real);
    int rows = a->of == ROUND8_X ? 0 : a->of == ROUND8_ACT ? 1 : 2;
    return (size_t)(rows * a->C) * dtype_size(real);
}

/* --- products --- */

static void operands(enum op op, const struct linear_args *a, struct operand o[2])
{
    bool weight = op == OP_LINEAR_BWD_WEIGHT;
    struct operand x = {FP8_E4M3, a->N, a->I, weight, a->x8, a->x_scale};
    struct operand w = {FP8_E4M3, a->O, a->I, op == OP_LINEAR_BWD_DATA, a->w8, a->w_scale};
    struct operand dy = {FP8_E5M2, a->N, a->O, weight, a->dy8, a->dy_scale};

    o[0] = weight ? x : w;
    o[1] = op == OP_LINEAR_FWD ? x : dy;
}

size_t cpu_fp8_workspace(enum op op, enum dtype real, const struct linear_args *a)
{
    struct operand o[2];

    if (!a->fp8)
        return 0;
    operands(op, a, o);
    return (size_t)(o[0].rows * o[0].cols + o[1].rows * o[1].cols) * dtype_size(real);
}

int cpu_fp8_linear(enum op op, enum dtype real, linear_op plain, struct stream *s,
                   const struct linear_args *a)
{
    struct linear_args wide = *a;
    struct operand o[2];
    int rc = 0;

    wide.fp8 = false;
    operands(op, a, o);
    void *first = a->workspace,
         *second = (char *)a->workspace + (size_t)(o[0].rows * o[0].cols) * dtype_size(real);
    if (op == OP_LINEAR_BWD_WEIGHT) {
        struct linear_args bias = wide; /* whose gradient adds up dy itself */
        bias.dw = NULL;
        rc = a->dbias ? plain(s, &bias) : 0;
        if (rc != 0 || !a->dw)
            return rc;
        wide.dbias = NULL;
    }
    spread(real, &o[0], first);
    spread(real, &o[1], second);
    if (op == OP_LINEAR_FWD) {
        wide.w = first;
        wide.x = second;
        wide.ldx = a->I;
    } else {
        *(op == OP_LINEAR_BWD_DATA ? &wide.w : &wide.x) = first;
        wide.dy = second;
        wide.ldy = a->O;
        wide.ldx = op == OP_LINEAR_BWD_DATA ? a->ldx : a->I;
    }
    return plain(s, &wide);
}
