/* Linear layers whose operands are rounded to 8 bits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/ops/harness.h"

struct shape {
    int64_t N, I, O, pad; /* pad: elements between rows */
};

static struct linear_args args_of(const struct shape *s)
{
    return (struct linear_args){.N = s->N,
                                .I = s->I,
                                .O = s->O,
                                .fp8 = true,
                                .ldx = s->pad ? s->I + s->pad : 0,
                                .ldy = s->pad ? s->O + s->pad : 0};
}

static void bind_rows(struct op_case *c, const char *name, size_t slot, const struct shape *s,
                      enum role role, int64_t cols)
{
    case_bind(c, name, slot, EL_REAL, role, s->N, cols, cols + s->pad);
}

#define ROWS(field, role, cols)                                                                    \
    bind_rows(c, #field, offsetof(struct linear_args, field), s, role, cols)

static void forward_case(struct op_case *c, const struct shape *s, enum act_kind act, bool bias,
                         bool residual)
{
    struct linear_args a = args_of(s);

    a.act = act;
    a.alpha = bias ? 0 : 0.5f;
    case_init(c, OP_LINEAR_FWD, &a, sizeof a, "fp8 N=%ld I=%ld O=%ld pad=%ld act=%d%s%s",
              (long)s->N, (long)s->I, (long)s->O, (long)s->pad, (int)act, bias ? " bias" : "",
              residual ? " residual" : "");
    ROWS(x, ROLE_IN, s->I);
    BIND(c, linear_args, w, EL_REAL, ROLE_IN, s->O, s->I, 0);
    if (bias)
        BIND(c, linear_args, bias, EL_REAL, ROLE_IN, 1, s->O, 0);
    if (residual)
        ROWS(residual, ROLE_IN, s->O);
    if (act != ACT_NONE)
        ROWS(pre, ROLE_ASSIGN, s->O);
    ROWS(y, ROLE_ASSIGN, s->O);
}

static void data_case(struct op_case *c, const struct shape *s, enum act_kind act_x,
                      enum accum accum)
{
    struct linear_args a = args_of(s);

    a.act_x = act_x;
    a.dx_accum = accum;
    case_init(c, OP_LINEAR_BWD_DATA, &a, sizeof a, "fp8 N=%ld I=%ld O=%ld pad=%ld act_x=%d%s",
              (long)s->N, (long)s->I, (long)s->O, (long)s->pad, (int)act_x,
              accum == ACCUM_ADD ? " add" : "");
    ROWS(dy, ROLE_IN, s->O);
    BIND(c, linear_args, w, EL_REAL, ROLE_IN, s->O, s->I, 0);
    if (act_x != ACT_NONE)
        ROWS(pre_x, ROLE_IN, s->I);
    ROWS(dx, accum == ACCUM_ADD ? ROLE_ADD : ROLE_ASSIGN, s->I);
}

static void weight_case(struct op_case *c, const struct shape *s, enum accum accum, bool dw,
                        bool dbias)
{
    struct linear_args a = args_of(s);
    enum role role = accum == ACCUM_ADD ? ROLE_ADD : ROLE_ASSIGN;

    a.dw_accum = accum;
    case_init(c, OP_LINEAR_BWD_WEIGHT, &a, sizeof a, "fp8 N=%ld I=%ld O=%ld pad=%ld%s%s%s",
              (long)s->N, (long)s->I, (long)s->O, (long)s->pad, dw ? " dw" : "",
              dbias ? " dbias" : "", accum == ACCUM_ADD ? " add" : "");
    ROWS(x, ROLE_IN, s->I);
    ROWS(dy, ROLE_IN, s->O);
    if (dw)
        BIND(c, linear_args, dw, EL_GRAD, role, s->O, s->I, 0);
    if (dbias)
        BIND(c, linear_args, dbias, EL_GRAD, role, 1, s->O, 0);
}

static void check(struct op_case *c)
{
    check_tables(c);
    case_fini(c);
}

static void all_tables(const struct shape *s)
{
    struct op_case c;

    for (int o = 0; o < 4; o++) {
        forward_case(&c, s, ACT_NONE, o & 1, (o & 2) != 0);
        check(&c);
    }
    forward_case(&c, s, ACT_GELU_TANH, true, false);
    check(&c);
    forward_case(&c, s, ACT_RELU, true, true);
    check(&c);
    for (int accum = 0; accum < 2; accum++) {
        data_case(&c, s, ACT_NONE, (enum accum)accum);
        check(&c);
        for (int o = 1; o < 4; o++) {
            weight_case(&c, s, (enum accum)accum, o & 1, (o & 2) != 0);
            check(&c);
        }
    }
    data_case(&c, s, ACT_GELU_TANH, ACCUM_ASSIGN);
    check(&c);
    data_case(&c, s, ACT_SILU, ACCUM_ASSIGN);
    check(&c);
}

/* --- the meaning, told apart from the tables' own code: every value of a format, and a search ---
 */

struct format {
    double values[256];
    int count;
};

/* All finite values that are not negative, in ascending order of their bits and so of themselves.
 */
static void list_values(struct format *f, int mantissa_bits, int bias, int codes)
{
    int mantissas = 1 << mantissa_bits;

    f->count = codes;
    for (int code = 0; code < codes; code++) {
        int exponent = code / mantissas, fraction = code % mantissas;
        f->values[code] = exponent ? ldexp(1 + (double)fraction / mantissas, exponent - bias)
                                   : ldexp((double)fraction / mantissas, 1 - bias);
    }
}

static void list_formats(struct format *e4m3, struct format *e5m2)
{
    list_values(e4m3, 3, 7, 0x7f);  /* 0x7f is NaN              */
    list_values(e5m2, 2, 15, 0x7c); /* 0x7c and above: not finite */
}

/* The nearest value; of two as near, the one whose code is even. */
static double nearest(const struct format *f, double x)
{
    int best = 0;

    for (int i = 1; i < f->count; i++) {
        double closer = fabs(f->values[best] - fabs(x)) - fabs(f->values[i] - fabs(x));
        if (closer > 0 || (closer == 0 && i % 2 == 0))
            best = i;
    }
    return copysign(f->values[best], x);
}

static void round_all(const struct format *f, double *x, int64_t n)
{
    double top = 0, scale = 1;

    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(x[i]));
    while (top * scale > f->values[f->count - 1])
        scale /= 2;
    while (top > 0 && top * scale * 2 <= f->values[f->count - 1])
        scale *= 2;
    for (int64_t i = 0; i < n; i++)
        x[i] = nearest(f, x[i] * scale) / scale;
}

/* An fp8 case gives exactly what the same case without gives on operands that were rounded. */
static void same_as_rounded(struct op_case *c, const char *first, const struct format *f_first,
                            const char *second, const struct format *f_second, const char *out)
{
    const struct target *t = targets_get(0);
    struct op_case plain;
    struct result rounded, direct;
    const struct bind *of[2] = {&c->b[case_index(c, first)], &c->b[case_index(c, second)]};
    const struct format *formats[2] = {f_first, f_second};

    case_init(&plain, c->op, &c->args, sizeof c->args, "rounded by hand");
    plain.args.linear.fp8 = false;
    for (int i = 0; i < c->n; i++) {
        const struct bind *b = &c->b[i];
        double *to = case_bind(&plain, b->name, b->slot, b->elem, b->role, b->rows, b->cols, b->ld);
        memcpy(to, b->init, (size_t)(b->rows * b->cols) * sizeof *to);
        for (int k = 0; k < 2; k++)
            if (b == of[k])
                round_all(formats[k], to, b->rows * b->cols);
    }
    case_run(c, t, t->table, 1, &rounded);
    case_run(&plain, t, t->table, 1, &direct);
    int at = case_index(c, out);
    int64_t n = c->b[at].rows * c->b[at].cols;
    expect(memcmp(rounded.v[at], direct.v[at], (size_t)n * sizeof(double)) == 0,
           "%s: %s is not that of rounded operands", c->title, out);
    result_fini(&rounded);
    result_fini(&direct);
    case_fini(&plain);
    case_fini(c);
}

/* Magnitudes over thirty binades, so that subnormals and zeros of the formats are met. */
static void spread(struct op_case *c, const char *name, double by)
{
    const struct bind *b = &c->b[case_index(c, name)];

    for (int64_t i = 0; i < b->rows * b->cols; i++)
        b->init[i] = (double)(float)(by * ldexp(b->init[i], (int)-random_below(30)));
}

static void meaning(double by)
{
    static const struct shape SHAPE = {9, 33, 14, 0};
    struct format e4m3, e5m2;
    struct op_case c;

    list_formats(&e4m3, &e5m2);
    forward_case(&c, &SHAPE, ACT_NONE, true, true);
    spread(&c, "x", by);
    spread(&c, "w", 3 / by);
    same_as_rounded(&c, "x", &e4m3, "w", &e4m3, "y");
    data_case(&c, &SHAPE, ACT_SILU, ACCUM_ASSIGN);
    spread(&c, "dy", by);
    spread(&c, "w", by);
    same_as_rounded(&c, "dy", &e5m2, "w", &e4m3, "dx");
    weight_case(&c, &SHAPE, ACCUM_ADD, true, false);
    spread(&c, "dy", by);
    spread(&c, "x", 5 * by);
    same_as_rounded(&c, "dy", &e5m2, "x", &e4m3, "dw");
}

/* --- the edges --- */

static void fill(struct op_case *c, const char *name, double value)
{
    const struct bind *b = &c->b[case_index(c, name)];

    for (int64_t i = 0; i < b->rows * b->cols; i++)
        b->init[i] = value;
}

/* Powers of two are exact whatever the scale: from tensors near bfloat16's smallest and largest
 * values, too, and next to zeros. */
static void powers(const struct shape *s, double x, double w)
{
    struct op_case c;

    forward_case(&c, s, ACT_NONE, true, false);
    fill(&c, "x", x);
    fill(&c, "w", w);
    fill(&c, "bias", 0);
    case_data(&c, "x")[0] = 0;
    check_exact(&c);
    case_fini(&c);
}

/* One value that is not finite makes every element of the product NaN. */
static void not_finite(const struct shape *s, double value)
{
    struct op_case c;

    for (int which = 0; which < 2; which++) {
        data_case(&c, s, ACT_NONE, ACCUM_ASSIGN);
        case_data(&c, which ? "w" : "dy")[7] = value;
        for (int ti = 0; ti < targets_count(); ti++) {
            const struct target *t = targets_get(ti);
            struct result r;
            int nans = 0;
            case_run(&c, t, t->table, 1, &r);
            for (int64_t i = 0; i < s->N * s->I && r.rc == 0; i++)
                nans += isnan(r.v[case_index(&c, "dx")][i]) != 0;
            expect(r.rc == ERR_UNSUPPORTED || nans == s->N * s->I,
                   "%s on %s: %d of %ld elements are NaN", c.title, t->table->name, nans,
                   (long)(s->N * s->I));
            result_fini(&r);
        }
        case_fini(&c);
    }
}

int main(void)
{
    /* sides in multiples of 16 are multiplied in 8 bits on a GPU, others are not */
    static const struct shape SHAPES[] = {{16, 16, 16, 0},   {64, 192, 48, 0}, {32, 144, 80, 0},
                                          {144, 80, 176, 0}, {64, 48, 32, 16}, {5, 7, 3, 0},
                                          {33, 64, 17, 3},   {70, 48, 64, 0}};

    harness_open();
    for (size_t i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++) {
        all_tables(&SHAPES[i]);
        powers(&SHAPES[i], 0x1p-20, 0x1p10);
        powers(&SHAPES[i], 0x1p-100, 0x1p110);
        powers(&SHAPES[i], 0x1p110, 0x1p-115);
        not_finite(&SHAPES[i], NAN);
        not_finite(&SHAPES[i], INFINITY);
    }
    meaning(1);
    meaning(448);
    meaning(0x1.c1p-60);
    return harness_close();
}
