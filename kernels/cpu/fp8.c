#include "kernels/cpu/fp8.h"

#include <math.h>
#include <string.h>

#include "kernels/fp8_scale.h"

enum { SPAN = 256 };

struct matrix {
    const void *p;
    int64_t rows, cols, ld;
};

static void load_span(enum dtype real, const struct matrix *m, int64_t row, int64_t first,
                      int64_t n, double *out)
{
    const char *from = (const char *)m->p + (size_t)(row * m->ld + first) * dtype_size(real);
    dtype_convert(DT_F64, out, real, from, n);
}

static int64_t span_at(const struct matrix *m, int64_t first)
{
    return m->cols - first < SPAN ? m->cols - first : SPAN;
}

/* The bits of the largest magnitude as a float; NaN's are the largest of all. */
static uint32_t largest(enum dtype real, const struct matrix *m)
{
    double x[SPAN];
    uint32_t top = 0;

    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t c = 0; c < m->cols; c += SPAN) {
            int64_t n = span_at(m, c);
            load_span(real, m, r, c, n, x);
            for (int64_t i = 0; i < n; i++) {
                float f = (float)fabs(x[i]);
                uint32_t bits;
                memcpy(&bits, &f, sizeof bits);
                top = bits > top ? bits : top;
            }
        }
    return top;
}

static void round_span(enum fp8_format format, int e, double *x, int64_t n)
{
    enum dtype t = format == FP8_E4M3 ? DT_E4M3 : DT_E5M2;
    uint8_t narrow[SPAN];

    for (int64_t i = 0; i < n; i++)
        x[i] = ldexp(x[i], e);
    dtype_convert(t, narrow, DT_F64, x, n);
    dtype_convert(DT_F64, x, t, narrow, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = ldexp(x[i], -e);
}

/* A dense copy of m, rounded. */
static void round_matrix(enum dtype real, enum fp8_format format, const struct matrix *m, void *to)
{
    uint32_t amax = largest(real, m);
    double x[SPAN];

    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t c = 0; c < m->cols; c += SPAN) {
            int64_t n = span_at(m, c);
            load_span(real, m, r, c, n, x);
            if (fp8_finite(amax))
                round_span(format, fp8_exponent(format, amax), x, n);
            for (int64_t i = 0; i < n && !fp8_finite(amax); i++)
                x[i] = NAN;
            dtype_convert(real, (char *)to + (size_t)(r * m->cols + c) * dtype_size(real), DT_F64,
                          x, n);
        }
}

static struct matrix x_of(const struct linear_args *a)
{
    return (struct matrix){a->x, a->N, a->I, a->ldx ? a->ldx : a->I};
}

static struct matrix w_of(const struct linear_args *a)
{
    return (struct matrix){a->w, a->O, a->I, a->I};
}

static struct matrix dy_of(const struct linear_args *a)
{
    return (struct matrix){a->dy, a->N, a->O, a->ldy ? a->ldy : a->O};
}

/* The operands in the order of their copies: e4m3 first. */
static void operands(enum op op, const struct linear_args *a, struct matrix m[2])
{
    m[0] = op == OP_LINEAR_BWD_WEIGHT ? x_of(a) : w_of(a);
    m[1] = op == OP_LINEAR_FWD ? x_of(a) : dy_of(a);
}

size_t cpu_fp8_workspace(enum op op, enum dtype real, const struct linear_args *a)
{
    struct matrix m[2];

    if (!a->fp8)
        return 0;
    operands(op, a, m);
    return (size_t)(m[0].rows * m[0].cols + m[1].rows * m[1].cols) * dtype_size(real);
}

int cpu_fp8_linear(enum op op, enum dtype real, linear_op plain, struct stream *s,
                   const struct linear_args *a)
{
    struct linear_args rounded = *a;
    struct matrix m[2];
    int rc = 0;

    operands(op, a, m);
    void *first = a->workspace,
         *second = (char *)a->workspace + (size_t)(m[0].rows * m[0].cols) * dtype_size(real);
    round_matrix(real, FP8_E4M3, &m[0], first);
    round_matrix(real, op == OP_LINEAR_FWD ? FP8_E4M3 : FP8_E5M2, &m[1], second);
    rounded.fp8 = false;
    if (op == OP_LINEAR_FWD) {
        rounded.w = first;
        rounded.x = second;
        rounded.ldx = a->I;
    } else if (op == OP_LINEAR_BWD_DATA) {
        rounded.w = first;
        rounded.dy = second;
        rounded.ldy = a->O;
    } else {
        struct linear_args bias = *a; /* whose gradient adds up what was not rounded */
        bias.fp8 = false;
        bias.dw = NULL;
        rc = a->dbias ? plain(s, &bias) : 0;
        rounded.x = first;
        rounded.dy = second;
        rounded.ldx = a->I;
        rounded.ldy = a->O;
        rounded.dbias = NULL;
    }
    return rc ? rc : plain(s, &rounded);
}
