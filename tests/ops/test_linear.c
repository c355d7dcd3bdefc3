/* Linear layers with their fused bias, activation and residual, and activations alone. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/ops/harness.h"

struct linear_shape {
    int64_t N, I, O, pad_x, pad_y; /* pad: elements between rows */
    float alpha;                   /* 0 = 1 */
};

static const enum act_kind ACTS[] = {ACT_NONE, ACT_RELU, ACT_GELU_ERF, ACT_GELU_TANH, ACT_SILU};
static const char *const ACT_NAMES[] = {"none", "relu", "gelu-erf", "gelu-tanh", "silu"};
enum { NACTS = 5 };

static struct linear_args shape_args(const struct linear_shape *s)
{
    return (struct linear_args){.N = s->N,
                                .I = s->I,
                                .O = s->O,
                                .alpha = s->alpha,
                                .ldx = s->pad_x ? s->I + s->pad_x : 0,
                                .ldy = s->pad_y ? s->O + s->pad_y : 0};
}

struct forward_options {
    enum act_kind act;
    bool bias, residual, pre, alias;
};

static void forward_case(struct op_case *c, const struct linear_shape *s,
                         const struct forward_options *o)
{
    struct linear_args a = shape_args(s);
    int64_t ldx = s->I + s->pad_x, ldy = s->O + s->pad_y;

    a.act = o->act;
    case_init(c, OP_LINEAR_FWD, &a, sizeof a,
              "N=%ld I=%ld O=%ld pad=%ld,%ld alpha=%g act=%s%s%s%s%s", (long)s->N, (long)s->I,
              (long)s->O, (long)s->pad_x, (long)s->pad_y, (double)s->alpha, ACT_NAMES[o->act],
              o->bias ? " bias" : "", o->residual ? " residual" : "", o->pre ? " pre" : "",
              o->alias ? " in place" : "");
    BIND(c, linear_args, x, EL_REAL, ROLE_IN, s->N, s->I, ldx);
    BIND(c, linear_args, w, EL_REAL, ROLE_IN, s->O, s->I, 0);
    if (o->bias)
        BIND(c, linear_args, bias, EL_REAL, ROLE_IN, 1, s->O, 0);
    if (o->residual)
        BIND(c, linear_args, residual, EL_REAL, ROLE_IN, s->N, s->O, ldy);
    if (o->pre)
        BIND(c, linear_args, pre, EL_REAL, ROLE_ASSIGN, s->N, s->O, ldy);
    if (o->alias)
        ALIAS(c, linear_args, y, "residual");
    else
        BIND(c, linear_args, y, EL_REAL, ROLE_ASSIGN, s->N, s->O, ldy);
}

static const struct op_narrow NARROW = {
    true, {.seed = 5, .step = 2, .site = 12, .use = RNG_USE_GRADIENT}};

static void data_case(struct op_case *c, const struct linear_shape *s, enum act_kind act_x,
                      enum accum accum)
{
    struct linear_args a = shape_args(s);
    int64_t ldx = s->I + s->pad_x, ldy = s->O + s->pad_y;

    a.act_x = act_x;
    a.dx_accum = accum;
    case_init(c, OP_LINEAR_BWD_DATA, &a, sizeof a,
              "N=%ld I=%ld O=%ld pad=%ld,%ld alpha=%g act_x=%s%s", (long)s->N, (long)s->I,
              (long)s->O, (long)s->pad_x, (long)s->pad_y, (double)s->alpha, ACT_NAMES[act_x],
              accum == ACCUM_ADD ? " add" : "");
    BIND(c, linear_args, dy, EL_REAL, ROLE_IN, s->N, s->O, ldy);
    BIND(c, linear_args, w, EL_REAL, ROLE_IN, s->O, s->I, 0);
    if (act_x != ACT_NONE)
        BIND(c, linear_args, pre_x, EL_REAL, ROLE_IN, s->N, s->I, ldx);
    BIND(c, linear_args, dx, EL_REAL, accum == ACCUM_ADD ? ROLE_ADD : ROLE_ASSIGN, s->N, s->I, ldx);
}

/* With the gradient of the bias in front of the activation. Operands are positive: a sum of three
 * rows of either sign may cancel to less than the rounding of what it sums. */
static void data_bias_case(struct op_case *c, const struct linear_shape *s, enum act_kind act_x,
                           enum accum accum, bool narrow)
{
    data_case(c, s, act_x, ACCUM_ASSIGN);
    double *dy = case_data(c, "dy"), *w = case_data(c, "w");

    for (int64_t i = 0; i < s->N * s->O; i++)
        dy[i] = fabs(dy[i]);
    for (int64_t i = 0; i < s->O * s->I; i++)
        w[i] = fabs(w[i]);
    c->args.linear.dw_accum = accum;
    c->args.linear.narrow = narrow ? NARROW : (struct op_narrow){0};
    size_t used = strlen(c->title);
    snprintf(c->title + used, sizeof c->title - used, " dbias_x%s%s",
             accum == ACCUM_ADD ? " add" : "", narrow ? " narrow" : "");
    BIND(c, linear_args, dbias_x, narrow ? EL_REAL : EL_GRAD,
         accum == ACCUM_ADD ? ROLE_ADD : ROLE_ASSIGN, 1, s->I, 0);
}

static void weight_case(struct op_case *c, const struct linear_shape *s, enum accum accum, bool dw,
                        bool dbias, bool narrow)
{
    struct linear_args a = shape_args(s);
    enum role role = accum == ACCUM_ADD ? ROLE_ADD : ROLE_ASSIGN;
    int grad = narrow ? EL_REAL : EL_GRAD;

    a.dw_accum = accum;
    a.narrow = narrow ? NARROW : (struct op_narrow){0};
    case_init(c, OP_LINEAR_BWD_WEIGHT, &a, sizeof a,
              "N=%ld I=%ld O=%ld pad=%ld,%ld alpha=%g%s%s%s%s", (long)s->N, (long)s->I, (long)s->O,
              (long)s->pad_x, (long)s->pad_y, (double)s->alpha, dw ? " dw" : "",
              dbias ? " dbias" : "", accum == ACCUM_ADD ? " add" : "", narrow ? " narrow" : "");
    BIND(c, linear_args, x, EL_REAL, ROLE_IN, s->N, s->I, s->I + s->pad_x);
    BIND(c, linear_args, dy, EL_REAL, ROLE_IN, s->N, s->O, s->O + s->pad_y);
    if (dw)
        BIND(c, linear_args, dw, grad, role, s->O, s->I, 0);
    if (dbias)
        BIND(c, linear_args, dbias, grad, role, 1, s->O, 0);
}

static void act_case(struct op_case *c, bool backward, enum act_kind act, bool gated, int64_t N,
                     int64_t F, bool alias)
{
    struct act_args a = {.act = act, .gated = gated, .N = N, .F = F};
    int64_t width = gated ? 2 * F : F;

    case_init(c, backward ? OP_ACT_BWD : OP_ACT_FWD, &a, sizeof a, "%s%s N=%ld F=%ld%s",
              ACT_NAMES[act], gated ? " gated" : "", (long)N, (long)F, alias ? " in place" : "");
    double *x = BIND(c, act_args, x, EL_REAL, ROLE_IN, N, width, 0);
    for (int64_t i = 0; i < N * width; i++)
        x[i] *= 5;
    if (backward)
        BIND(c, act_args, dy, EL_REAL, ROLE_IN, N, F, 0);
    if (alias && backward)
        ALIAS(c, act_args, dx, "dy");
    else if (alias)
        ALIAS(c, act_args, y, "x");
    else if (backward)
        BIND(c, act_args, dx, EL_REAL, ROLE_ASSIGN, N, width, 0);
    else
        BIND(c, act_args, y, EL_REAL, ROLE_ASSIGN, N, F, 0);
}

static void linear_gradients(const struct linear_shape *s)
{
    static const struct flow DATA[] = {
        {FLOW_SAVE, "w", "w", 0}, {FLOW_SEED, "y", "dy", 0}, {FLOW_GRAD, "x", "dx", 0}};
    static const struct flow WEIGHT[] = {{FLOW_SAVE, "x", "x", 0},
                                         {FLOW_SEED, "y", "dy", 0},
                                         {FLOW_GRAD, "w", "dw", 0},
                                         {FLOW_GRAD, "bias", "dbias", 0}};
    static const struct forward_options PLAIN = {.bias = true, .residual = true};
    struct op_case f, b;

    forward_case(&f, s, &PLAIN);
    for (int accum = 0; accum < 2; accum++) {
        data_case(&b, s, ACT_NONE, (enum accum)accum);
        check_gradients(&f, &b, DATA, 3);
        case_fini(&b);
        weight_case(&b, s, (enum accum)accum, true, true, false);
        check_gradients(&f, &b, WEIGHT, 4);
        case_fini(&b);
    }
    case_fini(&f);
}

static void act_gradients(enum act_kind act, bool gated)
{
    static const struct flow FLOW[] = {
        {FLOW_SAVE, "x", "x", 0}, {FLOW_SEED, "y", "dy", 0}, {FLOW_GRAD, "x", "dx", 0}};
    struct op_case f, b;

    act_case(&f, false, act, gated, 4, 9, false);
    act_case(&b, true, act, gated, 4, 9, false);
    check_gradients(&f, &b, FLOW, 3);
    case_fini(&f);
    case_fini(&b);
}

/* In double, the fused forms equal the plain op followed by the activation's op. */
static void fused_is_composed(enum act_kind act)
{
    static const struct linear_shape SHAPE = {5, 6, 7, 0, 0, 1.5f};
    struct forward_options options = {.act = act, .bias = true, .pre = true};
    const struct target *t = targets_get(0);
    struct op_case fused, plain, activation;
    struct result rf, rp, ra;

    forward_case(&fused, &SHAPE, &options);
    act_case(&activation, false, act, false, 5, 7, false);
    case_run(&fused, t, t->table, 1, &rf);
    memcpy(case_data(&activation, "x"), rf.v[case_index(&fused, "pre")], 35 * sizeof(double));
    case_run(&activation, t, t->table, 1, &ra);
    check_same(&fused, "y against act(pre)", rf.v[case_index(&fused, "y")],
               ra.v[case_index(&activation, "y")], 35);
    result_fini(&rf);
    result_fini(&ra);
    case_fini(&fused);
    case_fini(&activation);

    data_case(&fused, &SHAPE, act, ACCUM_ASSIGN);
    data_case(&plain, &SHAPE, ACT_NONE, ACCUM_ASSIGN);
    act_case(&activation, true, act, false, 5, 6, false);
    memcpy(case_data(&plain, "dy"), case_data(&fused, "dy"), 35 * sizeof(double));
    memcpy(case_data(&plain, "w"), case_data(&fused, "w"), 42 * sizeof(double));
    if (act != ACT_NONE)
        memcpy(case_data(&activation, "x"), case_data(&fused, "pre_x"), 30 * sizeof(double));
    case_run(&fused, t, t->table, 1, &rf);
    case_run(&plain, t, t->table, 1, &rp);
    memcpy(case_data(&activation, "dy"), rp.v[case_index(&plain, "dx")], 30 * sizeof(double));
    case_run(&activation, t, t->table, 1, &ra);
    check_same(&fused, "dx against act's backward", rf.v[case_index(&fused, "dx")],
               ra.v[case_index(&activation, "dx")], 30);
    result_fini(&rf);
    result_fini(&rp);
    result_fini(&ra);
    case_fini(&fused);
    case_fini(&plain);
    case_fini(&activation);
}

/* What is kept for backward makes y again, to the bit: a plan may make it again or keep it. */
static void kept_makes_again(enum act_kind act)
{
    static const struct linear_shape SHAPE = {139, 48, 304, 0, 0, 0};
    struct forward_options options = {.act = act, .bias = true, .pre = true};
    size_t bytes = (size_t)(SHAPE.N * SHAPE.O) * sizeof(double);
    struct op_case fused, activation;

    forward_case(&fused, &SHAPE, &options);
    act_case(&activation, false, act, false, SHAPE.N, SHAPE.O, false);
    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct result r, again;
        case_run(&fused, t, t->table, 1, &r);
        memcpy(case_data(&activation, "x"), r.v[case_index(&fused, "pre")], bytes);
        case_run(&activation, t, t->table, 1, &again);
        expect(memcmp(r.v[case_index(&fused, "y")], again.v[case_index(&activation, "y")], bytes) ==
                   0,
               "%s on %s: y is not what act makes of pre", fused.title, t->table->name);
        result_fini(&r);
        result_fini(&again);
    }
    case_fini(&fused);
    case_fini(&activation);
}

static void linear_tables(const struct linear_shape *s)
{
    struct op_case c;

    for (int act = 0; act < NACTS; act++)
        for (int o = 0; o < 8; o++) {
            struct forward_options options = {.act = ACTS[act],
                                              .bias = o & 1,
                                              .residual = (o & 2) != 0,
                                              .pre = (o & 4) != 0,
                                              .alias = act % 2 == 1 && (o & 2)};
            forward_case(&c, s, &options);
            check_tables(&c);
            case_fini(&c);
        }
    for (int act = 0; act < NACTS; act++) {
        data_case(&c, s, ACTS[act], ACCUM_ASSIGN);
        check_tables(&c);
        case_fini(&c);
    }
    for (int o = 0; o < 4; o++)
        for (int act = 1; act < NACTS; act++) {
            data_bias_case(&c, s, ACTS[act], (enum accum)(o % 2), o / 2);
            check_tables(&c);
            case_fini(&c);
        }
    data_case(&c, s, ACT_NONE, ACCUM_ADD);
    check_tables(&c);
    case_fini(&c);
    for (int o = 1; o < 8; o++)
        for (int accum = 0; accum < 2 && o != 4; accum++) {
            weight_case(&c, s, (enum accum)accum, o & 1, o & 2, o & 4);
            check_tables(&c);
            case_fini(&c);
        }
}

static void make_integers(struct op_case *c)
{
    for (int i = 0; i < c->n; i++)
        for (int64_t k = 0; k < c->b[i].rows * c->b[i].cols; k++)
            c->b[i].init[k] = (double)(random_below(3) - 1);
}

/* Small integers add up exactly in any order and any type: every table gives the same bits. */
static void integers(const struct linear_shape *s)
{
    static const struct forward_options BIAS = {.bias = true, .residual = true};
    struct op_case c;

    forward_case(&c, s, &BIAS);
    make_integers(&c);
    check_exact(&c);
    case_fini(&c);
    for (int accum = 0; accum < 2; accum++) {
        data_case(&c, s, ACT_NONE, (enum accum)accum);
        make_integers(&c);
        check_exact(&c);
        case_fini(&c);
        for (int narrow = 0; narrow < 2; narrow++) {
            weight_case(&c, s, (enum accum)accum, true, true, narrow);
            make_integers(&c);
            check_exact(&c);
            case_fini(&c);
            data_bias_case(&c, s, ACT_RELU, (enum accum)accum, narrow);
            make_integers(&c);
            check_exact(&c);
            case_fini(&c);
        }
    }
}

/* A contribution of an eighth of a step of bfloat16 moves one element in eight by a step, the same
 * ones every time; what is added to zero stays exact. */
static void narrow_sums(int64_t I, int64_t O)
{
    const struct linear_shape shape = {1, I, O, 0, 0, 0};
    const double small = 0x1p-10, step = 0x1p-7;
    double n = (double)(I * O);
    struct op_case c;

    weight_case(&c, &shape, ACCUM_ADD, true, true, true);
    for (int64_t i = 0; i < I; i++)
        case_data(&c, "x")[i] = 0x1p-5;
    for (int64_t o = 0; o < O; o++)
        case_data(&c, "dy")[o] = 0x1p-5;
    for (int64_t k = 0; k < I * O; k++)
        case_data(&c, "dw")[k] = k % 9 == 8 ? 0 : 1;
    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct result r, again;
        int64_t up = 0, ones = 0;
        if (t->table->compute != DT_BF16)
            continue;
        case_run(&c, t, t->table, 1, &r);
        case_run(&c, t, t->table, 1, &again);
        const double *dw = r.v[case_index(&c, "dw")];
        for (int64_t k = 0; k < I * O; k++) {
            bool zero = k % 9 == 8;
            ones += !zero;
            up += !zero && dw[k] == 1 + step;
            expect(zero ? dw[k] == small : dw[k] == 1 || dw[k] == 1 + step,
                   "%s on %s: dw[%ld] = %g", c.title, t->table->name, (long)k, dw[k]);
        }
        double share = (double)up / (double)ones, sigma = sqrt(0.125 * 0.875 / (double)ones);
        expect(fabs(share - 0.125) < 5 * sigma, "%s on %s: %.4f of the sums were rounded up",
               c.title, t->table->name, share);
        expect(memcmp(dw, again.v[case_index(&c, "dw")], (size_t)n * sizeof *dw) == 0,
               "%s on %s: other bits the second time", c.title, t->table->name);
        result_fini(&r);
        result_fini(&again);
    }
    case_fini(&c);
}

/* The slopes of the activations far from zero, where exponentials overflow. */
static void far_values(bool gated)
{
    struct op_case c;

    for (int act = 0; act < NACTS; act++)
        for (int backward = 0; backward < 2; backward++) {
            act_case(&c, backward, ACTS[act], gated, 3, 101, false);
            double *x = case_data(&c, "x");
            for (int64_t i = 0; i < 3 * 101 * (gated ? 2 : 1); i++)
                x[i] *= 40;
            check_tables(&c);
            case_fini(&c);
        }
}

int main(int argc, char **argv)
{
    static const struct linear_shape SMALL = {4, 5, 3, 0, 0, 0}, PADDED = {3, 4, 5, 2, 3, 0.75f};
    static const struct linear_shape SHAPES[] = {
        {3, 1, 2, 0, 0, 0},       {5, 7, 3, 1, 2, -1},     {33, 65, 17, 0, 0, 0.5f},
        {64, 192, 96, 0, 0, 0},   {130, 48, 64, 16, 8, 2}, {1, 192, 300, 0, 0, 0},
        {96, 16, 128, 32, 64, 2}, /* an adapter's slice of a wider sum */
        {20, 32, 1029, 0, 3, 0},  /* a vocabulary that is no multiple of 8 */
    };
    static const int64_t ACT_SHAPES[][2] = {{1, 1}, {7, 13}, {31, 192}, {64, 257}};
    struct op_case c;

    harness_open(argc, argv);
    linear_gradients(&SMALL);
    linear_gradients(&PADDED);
    for (int act = 0; act < NACTS; act++) {
        act_gradients(ACTS[act], false);
        act_gradients(ACTS[act], true);
        fused_is_composed(ACTS[act]);
        kept_makes_again(ACTS[act]);
    }
    for (size_t i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++) {
        linear_tables(&SHAPES[i]);
        integers(&SHAPES[i]);
    }
    for (size_t i = 0; i < sizeof ACT_SHAPES / sizeof ACT_SHAPES[0]; i++)
        for (int act = 0; act < NACTS; act++)
            for (int o = 0; o < 6; o++) { /* plain, gated, plain in place; forward and backward */
                act_case(&c, o & 1, ACTS[act], o / 2 == 1, ACT_SHAPES[i][0], ACT_SHAPES[i][1],
                         o / 2 == 2);
                check_tables(&c);
                case_fini(&c);
            }
    narrow_sums(192, 320);
    narrow_sums(328, 264);
    narrow_sums(63, 41);
    far_values(false);
    far_values(true);
    return harness_close();
}
