/* Rounding to 8 bits, and linear layers of what was rounded. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/ops/harness.h"
#include "tests/ops/harness_fp8.h"

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

/* A scale as a row of floats: back, amax, unused. */
static void bind_scale(struct op_case *c, const char *name, size_t slot, double back)
{
    case_bind(c, name, slot, DT_F32, ROLE_IN, 1, 4, 0)[0] = back;
}

#define OPERAND8(field, type, rows, cols, by)                                                      \
    BIND(c, linear_args, field##8, type, ROLE_IN, rows, cols, 0);                                  \
    bind_scale(c, #field "_scale", offsetof(struct linear_args, field##_scale), by)

static void forward_case(struct op_case *c, const struct shape *s, enum act_kind act, bool bias,
                         bool residual)
{
    struct linear_args a = args_of(s);

    a.act = act;
    a.alpha = bias ? 0 : 0.5f;
    case_init(c, OP_LINEAR_FWD, &a, sizeof a, "fp8 N=%ld I=%ld O=%ld pad=%ld act=%d%s%s",
              (long)s->N, (long)s->I, (long)s->O, (long)s->pad, (int)act, bias ? " bias" : "",
              residual ? " residual" : "");
    OPERAND8(x, DT_E4M3, s->N, s->I, 0.25);
    OPERAND8(w, DT_E4M3, s->O, s->I, 2);
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
    OPERAND8(dy, DT_E5M2, s->N, s->O, 4);
    OPERAND8(w, DT_E4M3, s->I, s->O, 0.5);
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
    OPERAND8(x, DT_E4M3, s->I, s->N, 8);
    OPERAND8(dy, DT_E5M2, s->O, s->N, 0.125);
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

/* --- round8 --- */

struct round_shape {
    int64_t N, C, pad;
};

static double bf16(double x)
{
    uint16_t narrow;

    dtype_convert(DT_BF16, &narrow, DT_F64, &x, 1);
    dtype_convert(DT_F64, &x, DT_BF16, &narrow, 1);
    return x;
}

/* Magnitudes over thirty binades, so that subnormals and zeros of the formats are met. */
static void spread(struct op_case *c, const char *name, double by)
{
    const struct bind *b = &c->b[case_index(c, name)];

    for (int64_t i = 0; i < b->rows * b->cols; i++)
        b->init[i] = bf16(by * ldexp(b->init[i], (int)-random_below(30)));
}

enum { ROWS_ALONE = 1, COLS_ALONE = 2 };

static void bind_outputs(struct op_case *c, const struct round8_args *a, int alone)
{
    int type = a->format == FP8_E4M3 ? DT_E4M3 : DT_E5M2;
    double *scale = BIND(c, round8_args, scale, DT_F32, ROLE_INOUT, 1, 4, 0);

    memset(scale, 0, 4 * sizeof *scale);
    if (alone != COLS_ALONE)
        BIND(c, round8_args, rows, type, ROLE_ASSIGN, a->N, a->C, 0);
    if (alone != ROWS_ALONE)
        BIND(c, round8_args, cols, type, ROLE_ASSIGN, a->C, a->N, 0);
}

static void round_case(struct op_case *c, const struct round_shape *s, enum fp8_format format,
                       double by, int alone)
{
    struct round8_args a = {
        .N = s->N, .C = s->C, .ldx = s->pad ? s->C + s->pad : 0, .format = format};

    case_init(c, OP_ROUND8, &a, sizeof a, "N=%ld C=%ld pad=%ld format=%d times %g", (long)s->N,
              (long)s->C, (long)s->pad, (int)format, by);
    BIND(c, round8_args, x, EL_REAL, ROLE_IN, s->N, s->C, s->C + s->pad);
    spread(c, "x", by);
    bind_outputs(c, &a, alone);
}

/* The double table against rounding by hand; then the others against it. */
static void meaning(const struct round_shape *s, enum fp8_format format, double by)
{
    const struct target *t = targets_get(0);
    int64_t n = s->N * s->C;
    struct op_case c;
    struct result r;

    round_case(&c, s, format, by, 0);
    double *x = xcalloc((size_t)n, sizeof *x);
    memcpy(x, case_data(&c, "x"), (size_t)n * sizeof *x);
    fp8_round_by_hand(format, x, n);
    case_run(&c, t, t->table, 1, &r);
    const double *rows = r.v[case_index(&c, "rows")], *cols = r.v[case_index(&c, "cols")];
    double back = r.v[case_index(&c, "scale")][0];
    int wrong = 0;
    for (int64_t i = 0; i < n; i++)
        wrong += rows[i] * back != x[i] || cols[i % s->C * s->N + i / s->C] != rows[i];
    expect(wrong == 0, "%s: %d of %ld are not what they round to", c.title, wrong, (long)n);
    check_exact(&c);
    result_fini(&r);
    free(x);
    case_fini(&c);
    for (int alone = ROWS_ALONE; alone <= COLS_ALONE; alone++) {
        round_case(&c, s, format, by, alone);
        check_exact(&c);
        case_fini(&c);
    }
}

static bool same_bytes(const struct op_case *a, const struct result *x, const struct op_case *b,
                       const struct result *y)
{
    static const char *const NAMES[] = {"rows", "cols", "scale"};
    bool same = true;

    for (int k = 0; k < 3; k++) {
        int i = case_index(a, NAMES[k]), j = case_index(b, NAMES[k]);
        size_t bytes = (size_t)(a->b[i].rows * a->b[i].cols) * sizeof(double);
        same = same && memcmp(x->v[i], y->v[j], bytes) == 0;
    }
    return same;
}

/* A magnitude that is known is taken as it is: found beforehand, it changes nothing; half of it
 * rounds to twice as fine steps. */
static void known_magnitude(const struct round_shape *s)
{
    struct op_case found, known;

    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct result r, again;

        round_case(&found, s, FP8_E4M3, 1, 0);
        case_run(&found, t, t->table, 1, &r);
        if (r.rc == 0) {
            double amax = r.v[case_index(&found, "scale")][1], back[2];
            round_case(&known, s, FP8_E4M3, 1, 0);
            memcpy(case_data(&known, "x"), case_data(&found, "x"),
                   (size_t)(s->N * s->C) * sizeof(double));
            known.args.round8.known = true;
            case_data(&known, "scale")[1] = amax;
            case_run(&known, t, t->table, 1, &again);
            expect(same_bytes(&found, &r, &known, &again), "%s on %s: differs where it is known",
                   found.title, t->table->name);
            back[0] = again.v[case_index(&known, "scale")][0];
            result_fini(&again);
            case_data(&known, "scale")[1] = amax / 2;
            case_run(&known, t, t->table, 1, &again);
            back[1] = again.v[case_index(&known, "scale")][0];
            expect(back[1] == back[0] / 2, "%s on %s: found again", found.title, t->table->name);
            result_fini(&again);
            case_fini(&known);
        }
        result_fini(&r);
        case_fini(&found);
    }
}

static void act_tensors(struct op_case *c, const struct act_args *a, bool gradient, size_t x,
                        size_t dy)
{
    int64_t width = a->gated ? 2 * a->F : a->F;
    double *v = case_bind(c, "x", x, EL_REAL, ROLE_IN, a->N, width, 0);

    for (int64_t i = 0; i < a->N * width; i++)
        v[i] = bf16(v[i] * 5);
    if (gradient) {
        case_bind(c, "dy", dy, EL_REAL, ROLE_IN, a->N, a->F, 0);
        spread(c, "dy", 1);
    }
}

static void copy_inputs(struct op_case *to, const struct op_case *from)
{
    for (int i = 0; i < from->n; i++)
        if (from->b[i].role == ROLE_IN)
            memcpy(case_data(to, from->b[i].name), from->b[i].init,
                   (size_t)(from->b[i].rows * from->b[i].cols) * sizeof(double));
}

/* On each table: rounding what is made on the way is rounding what the activation's op stores. */
static void made_on_the_way(enum act_kind act, bool gated, bool gradient, int64_t N, int64_t F)
{
    struct act_args act_a = {.act = act, .gated = gated, .N = N, .F = F};
    int64_t C = gradient && gated ? 2 * F : F;
    struct round8_args a = {.of = gradient ? ROUND8_ACT_GRAD : ROUND8_ACT,
                            .format = gradient ? FP8_E5M2 : FP8_E4M3,
                            .act = act,
                            .gated = gated,
                            .N = N,
                            .C = C};
    struct round_shape plain = {N, C, 0};
    struct op_case stored, rounded, made;

    case_init(&stored, gradient ? OP_ACT_BWD : OP_ACT_FWD, &act_a, sizeof act_a, "stored");
    act_tensors(&stored, &act_a, gradient, offsetof(struct act_args, x),
                offsetof(struct act_args, dy));
    case_bind(&stored, "out",
              gradient ? offsetof(struct act_args, dx) : offsetof(struct act_args, y), EL_REAL,
              ROLE_ASSIGN, N, C, 0);
    case_init(&made, OP_ROUND8, &a, sizeof a, "act=%d%s%s N=%ld F=%ld", (int)act,
              gated ? " gated" : "", gradient ? " gradient" : "", (long)N, (long)F);
    act_tensors(&made, &act_a, gradient, offsetof(struct round8_args, x),
                offsetof(struct round8_args, dy));
    bind_outputs(&made, &a, 0);
    copy_inputs(&made, &stored);
    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct result first, then, direct;

        case_run(&stored, t, t->table, 1, &first);
        round_case(&rounded, &plain, a.format, 1, 0);
        memcpy(case_data(&rounded, "x"), first.v[case_index(&stored, "out")],
               (size_t)(N * C) * sizeof(double));
        case_run(&rounded, t, t->table, 1, &then);
        case_run(&made, t, t->table, 1, &direct);
        expect(then.rc == direct.rc && (then.rc == 0 || then.rc == ERR_UNSUPPORTED),
               "%s on %s: error %d", made.title, t->table->name, direct.rc);
        if (then.rc == 0)
            expect(same_bytes(&rounded, &then, &made, &direct), "%s on %s: is not what is stored",
                   made.title, t->table->name);
        case_fini(&rounded);
        result_fini(&first);
        result_fini(&then);
        result_fini(&direct);
    }
    case_fini(&stored);
    case_fini(&made);
}

/* --- what an activation is made of, in 8 bits --- */

static void input_case(struct op_case *c, const struct round8_args *a, const char *title)
{
    int64_t F = a->of == ROUND8_ACT_GRAD && a->gated ? a->C / 2 : a->C;
    struct act_args act = {.gated = a->gated, .N = a->N, .F = F};

    case_init(c, OP_ROUND8, a, sizeof *a, "%s act=%d%s N=%ld F=%ld", title, (int)a->act,
              a->gated ? " gated" : "", (long)a->N, (long)F);
    act_tensors(c, &act, a->of == ROUND8_ACT_GRAD, offsetof(struct round8_args, x),
                offsetof(struct round8_args, dy));
    bind_outputs(c, a, 0);
}

static void same(const struct op_case *c, const struct target *t, const double *x, const double *y,
                 int64_t n)
{
    expect(memcmp(x, y, (size_t)n * sizeof *x) == 0, "%s on %s: differs", c->title, t->table->name);
}

/* Rounded beside the activation's output it is what rounding alone makes of it, and the output is
 * what it was; also where both magnitudes are known. */
static void rounded_beside(const struct target *t, const struct round8_args *a,
                           struct op_case *alone, const struct result *x8)
{
    int64_t width = a->gated ? 2 * a->C : a->C;
    struct op_case plain, both;
    struct result r, p;

    input_case(&plain, a, "alone");
    input_case(&both, a, "beside");
    BIND(&both, round8_args, x8, DT_E4M3, ROLE_ASSIGN, a->N, width, 0);
    memset(BIND(&both, round8_args, x_scale, DT_F32, ROLE_INOUT, 1, 4, 0), 0, 4 * sizeof(double));
    memcpy(case_data(&plain, "x"), case_data(alone, "x"), (size_t)(a->N * width) * sizeof(double));
    copy_inputs(&both, &plain);
    case_run(&plain, t, t->table, 1, &p);
    for (int known = 0; known < 2 && p.rc == 0; known++) {
        case_run(&both, t, t->table, 1, &r);
        expect(r.rc == 0 && same_bytes(&plain, &p, &both, &r), "%s on %s: another output",
               both.title, t->table->name);
        same(&both, t, r.v[case_index(&both, "x8")], x8->v[case_index(alone, "rows")],
             a->N * width);
        same(&both, t, r.v[case_index(&both, "x_scale")], x8->v[case_index(alone, "scale")], 2);
        both.args.round8.known = true;
        case_data(&both, "scale")[1] = r.v[case_index(&both, "scale")][1];
        case_data(&both, "x_scale")[1] = r.v[case_index(&both, "x_scale")][1];
        result_fini(&r);
    }
    result_fini(&p);
    case_fini(&plain);
    case_fini(&both);
}

/* The gradient of what lies in 8 bits is that of its values. */
static void gradient_of(const struct target *t, const struct round8_args *a,
                        const struct op_case *alone, const struct result *x8)
{
    const double *rows = x8->v[case_index(alone, "rows")],
                 *scale = x8->v[case_index(alone, "scale")];
    int64_t n = a->N * a->C;
    struct op_case wide, narrow;
    struct result w, r;

    input_case(&wide, a, "of 16 bits");
    for (int64_t i = 0; i < n; i++)
        case_data(&wide, "x")[i] = rows[i] * scale[0];
    input_case(&narrow, a, "of 8 bits");
    copy_inputs(&narrow, &wide);
    for (int64_t i = 0; i < n; i++) /* which is not looked at */
        case_data(&narrow, "x")[i] = NAN;
    memcpy(BIND(&narrow, round8_args, x8, DT_E4M3, ROLE_IN, a->N, a->C, 0), rows,
           (size_t)n * sizeof *rows);
    memcpy(BIND(&narrow, round8_args, x_scale, DT_F32, ROLE_IN, 1, 4, 0), scale, 4 * sizeof *scale);
    case_run(&wide, t, t->table, 1, &w);
    case_run(&narrow, t, t->table, 1, &r);
    expect(r.rc == w.rc && (r.rc != 0 || same_bytes(&wide, &w, &narrow, &r)),
           "%s on %s: is not that of its values", narrow.title, t->table->name);
    result_fini(&w);
    result_fini(&r);
    case_fini(&wide);
    case_fini(&narrow);
}

static void input_in_8_bits(enum act_kind act, bool gated, int64_t N, int64_t F)
{
    struct round_shape x = {N, gated ? 2 * F : F, 0};
    struct round8_args out = {.of = ROUND8_ACT, .act = act, .gated = gated, .N = N, .C = F};
    struct round8_args gradient = out;
    struct op_case alone;

    gradient.of = ROUND8_ACT_GRAD;
    gradient.format = FP8_E5M2;
    gradient.C = x.C;
    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct result x8;

        round_case(&alone, &x, FP8_E4M3, 5, 0);
        case_run(&alone, t, t->table, 1, &x8);
        if (x8.rc == 0) {
            rounded_beside(t, &out, &alone, &x8);
            gradient_of(t, &gradient, &alone, &x8);
        }
        result_fini(&x8);
        case_fini(&alone);
    }
}

/* --- the edges --- */

/* An activation in e5m2 and its gradient in e4m3 are refused. */
static void other_formats(void)
{
    for (int gradient = 0; gradient < 2; gradient++) {
        struct act_args act = {.act = ACT_SILU, .N = 16, .F = 16};
        struct round8_args a = {.of = gradient ? ROUND8_ACT_GRAD : ROUND8_ACT,
                                .format = gradient ? FP8_E4M3 : FP8_E5M2,
                                .act = ACT_SILU,
                                .N = 16,
                                .C = 16};
        struct op_case c;
        struct result r;

        case_init(&c, OP_ROUND8, &a, sizeof a, "other format, gradient=%d", gradient);
        act_tensors(&c, &act, gradient, offsetof(struct round8_args, x),
                    offsetof(struct round8_args, dy));
        bind_outputs(&c, &a, 0);
        for (int ti = 0; ti < targets_count(); ti++) {
            const struct target *t = targets_get(ti);
            case_run(&c, t, t->table, 1, &r);
            expect(r.rc == ERR_UNSUPPORTED, "%s on %s: error %d", c.title, t->table->name, r.rc);
            result_fini(&r);
        }
        case_fini(&c);
    }
}

/* Powers of two are exact whatever the scale: from tensors near bfloat16's smallest and largest
 * values, too, and next to zeros. */
static void powers(const struct round_shape *s, double x)
{
    struct op_case c;
    struct result r;

    round_case(&c, s, FP8_E4M3, 1, 0);
    double *v = case_data(&c, "x");
    for (int64_t i = 1; i < s->N * s->C; i++)
        v[i] = x;
    v[0] = 0;
    check_exact(&c);
    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        bool same = true;
        case_run(&c, t, targets_get(0)->table, 1, &r);
        for (int64_t i = 0; i < s->N * s->C && r.rc == 0; i++)
            same = same && r.v[case_index(&c, "rows")][i] * r.v[case_index(&c, "scale")][0] == v[i];
        expect(same, "%s on %s: %g is not kept", c.title, t->table->name, x);
        result_fini(&r);
    }
    case_fini(&c);
}

/* More elements than a GPU's threads look at in one go, the largest of them the last. */
static void largest_last(void)
{
    const struct round_shape s = {1104, 2064, 0};
    struct op_case c;

    round_case(&c, &s, FP8_E4M3, 1, 0);
    case_data(&c, "x")[s.N * s.C - 1] = 3;
    check_exact(&c);
    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct result r;

        case_run(&c, t, t->table, 1, &r);
        expect(r.rc == ERR_UNSUPPORTED || r.v[case_index(&c, "scale")][1] == 3,
               "%s on %s: the last is not seen", c.title, t->table->name);
        result_fini(&r);
    }
    case_fini(&c);
}

/* One value that is not finite makes the scale NaN, and that every element of a product. */
static void not_finite(const struct round_shape *s, double value)
{
    struct shape product = {s->N, s->C, s->N, 0};

    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct op_case c;
        struct result r;
        int nans = 0;

        round_case(&c, s, FP8_E5M2, 1, 0);
        case_data(&c, "x")[7] = value;
        case_run(&c, t, t->table, 1, &r);
        expect(r.rc == ERR_UNSUPPORTED || isnan(r.v[case_index(&c, "scale")][0]),
               "%s on %s: %g is lost", c.title, t->table->name, value);
        result_fini(&r);
        case_fini(&c);
        data_case(&c, &product, ACT_NONE, ACCUM_ASSIGN);
        case_data(&c, value > 0 ? "dy_scale" : "w_scale")[0] = NAN;
        case_run(&c, t, t->table, 1, &r);
        for (int64_t i = 0; i < s->N * s->C && r.rc == 0; i++)
            nans += isnan(r.v[case_index(&c, "dx")][i]) != 0;
        expect(r.rc == ERR_UNSUPPORTED || nans == s->N * s->C,
               "%s on %s: %d of %ld elements are NaN", c.title, t->table->name, nans,
               (long)(s->N * s->C));
        result_fini(&r);
        case_fini(&c);
    }
}

static void all_of_round8(const struct round_shape *s)
{
    for (int format = FP8_E4M3; format <= FP8_E5M2; format++) {
        meaning(s, (enum fp8_format)format, 1);
        meaning(s, (enum fp8_format)format, 448);
        meaning(s, (enum fp8_format)format, 0x1.c1p-60);
    }
    known_magnitude(s);
    powers(s, 0x1p-20);
    powers(s, 0x1p-100);
    powers(s, 0x1p110);
    not_finite(s, NAN);
    not_finite(s, INFINITY);
}

int main(int argc, char **argv)
{
    /* sides in multiples of 16 are multiplied in 8 bits on a GPU, others are not */
    static const struct shape SHAPES[] = {{16, 16, 16, 0},   {64, 192, 48, 0}, {32, 144, 80, 0},
                                          {144, 80, 176, 0}, {64, 48, 32, 16}, {5, 7, 3, 0},
                                          {33, 64, 17, 3},   {70, 48, 64, 0}};
    static const struct round_shape MATRICES[] = {{16, 16, 0}, {9, 33, 0},    {144, 272, 0},
                                                  {64, 48, 8}, {300, 128, 5}, {128, 400, 16}};
    static const int64_t ACTS[][2] = {{16, 32}, {9, 33}, {144, 272}, {300, 48}};

    harness_open(argc, argv);
    for (size_t i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++)
        all_tables(&SHAPES[i]);
    for (size_t i = 0; i < sizeof MATRICES / sizeof MATRICES[0]; i++)
        all_of_round8(&MATRICES[i]);
    largest_last();
    for (size_t i = 0; i < sizeof ACTS / sizeof ACTS[0]; i++)
        for (enum act_kind act = ACT_RELU; act <= ACT_SILU; act++) {
            for (int o = 0; o < 4; o++)
                made_on_the_way(act, o & 1, (o & 2) != 0, ACTS[i][0], ACTS[i][1]);
            input_in_8_bits(act, false, ACTS[i][0], ACTS[i][1]);
            input_in_8_bits(act, true, ACTS[i][0], ACTS[i][1]);
        }
    other_formats();
    return harness_close();
}
