/* AdamW: in float, with 16-bit and 8-bit states, with split masters. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/adamw_math.h"
#include "kernels/moment_math.h"
#include "tests/ops/harness.h"

struct adamw_setup {
    int64_t n, n_decay;
    float lr, beta1, beta2, eps, weight_decay;
    int step;
    float coef;
    bool finite, param;
};

static struct adamw_step step_of(const struct adamw_setup *s)
{
    struct adamw_step step = {.lr = s->lr,
                              .bias1 = (float)(1 - pow((double)s->beta1, s->step)),
                              .bias2 = (float)(1 - pow((double)s->beta2, s->step)),
                              .step = (uint32_t)s->step};
    return step;
}

static void adamw_case(struct op_case *c, const struct adamw_setup *s)
{
    struct adamw_args a = {.n = s->n,
                           .n_decay = s->n_decay,
                           .beta1 = s->beta1,
                           .beta2 = s->beta2,
                           .eps = s->eps,
                           .weight_decay = s->weight_decay,
                           .seed = 0x123456789abcdefu,
                           .site = 12,
                           .first = 1 << 16};
    struct adamw_step step = step_of(s);
    struct clip_result clip_result = {.norm = 1, .coef = s->coef, .finite = s->finite};

    case_init(c, OP_ADAMW, &a, sizeof a, "n=%ld decay=%ld step=%d coef=%g%s%s", (long)s->n,
              (long)s->n_decay, s->step, (double)s->coef, s->finite ? "" : " not finite",
              s->param ? " param" : "");
    words_set(BIND(c, adamw_args, step, DT_I32, ROLE_IN, 1, sizeof step / 4, 0), &step,
              sizeof step);
    words_set(BIND(c, adamw_args, clip, DT_I32, ROLE_IN, 1, sizeof clip_result / 4, 0),
              &clip_result, sizeof clip_result);
    BIND(c, adamw_args, grad, EL_GRAD, ROLE_IN, 1, s->n, 0);
    BIND(c, adamw_args, master, EL_MASTER, ROLE_INOUT, 1, s->n, 0);
    double *m = BIND(c, adamw_args, m, EL_MASTER, ROLE_INOUT, 1, s->n, 0);
    double *v = BIND(c, adamw_args, v, EL_MASTER, ROLE_INOUT, 1, s->n, 0);
    if (s->param)
        BIND(c, adamw_args, param, EL_REAL, s->finite ? ROLE_ASSIGN : ROLE_INOUT, 1, s->n, 0);
    for (int64_t i = 0; i < s->n; i++) {
        m[i] *= 0.1;
        v[i] = 0.01 * v[i] * v[i];
    }
}

static const struct adamw_setup BASE = {.n = 5003,
                                        .n_decay = 2001,
                                        .lr = 3e-4f,
                                        .beta1 = 0.9f,
                                        .beta2 = 0.95f,
                                        .eps = 1e-8f,
                                        .weight_decay = 0.1f,
                                        .step = 7,
                                        .coef = 0.37f,
                                        .finite = true,
                                        .param = true};

/* Three steps of PyTorch's AdamW written out, for two elements of which the first decays. */
static void adamw_by_hand(void)
{
    static const double GRADS[3][2] = {{0.5, -0.25}, {-0.1, 0.3}, {0.2, 0.2}};
    double master[2] = {1, -2}, m[2] = {0}, v[2] = {0}, want_w[2] = {1, -2}, want_m[2] = {0},
           want_v[2] = {0};
    struct adamw_setup s = BASE;
    const struct target *t = targets_get(0);

    s.n = 2;
    s.n_decay = 1;
    s.lr = 0.125f;
    s.beta1 = 0.5f;
    s.beta2 = 0.75f;
    s.weight_decay = 0.25f;
    s.eps = 0x1p-20f;
    s.coef = 0.5f;
    s.param = false;
    for (s.step = 1; s.step <= 3; s.step++) {
        struct op_case c;
        struct result r;
        adamw_case(&c, &s);
        memcpy(case_data(&c, "grad"), GRADS[s.step - 1], sizeof master);
        memcpy(case_data(&c, "master"), master, sizeof master);
        memcpy(case_data(&c, "m"), m, sizeof m);
        memcpy(case_data(&c, "v"), v, sizeof v);
        case_run(&c, t, t->table, 1, &r);
        memcpy(master, r.v[case_index(&c, "master")], sizeof master);
        memcpy(m, r.v[case_index(&c, "m")], sizeof m);
        memcpy(v, r.v[case_index(&c, "v")], sizeof v);
        for (int i = 0; i < 2; i++) {
            double g = 0.5 * GRADS[s.step - 1][i];
            want_w[i] *= i == 0 ? 1 - 0.125 * 0.25 : 1;
            want_m[i] = 0.5 * want_m[i] + 0.5 * g;
            want_v[i] = 0.75 * want_v[i] + 0.25 * g * g;
            double mhat = want_m[i] / (1 - pow(0.5, s.step));
            double vhat = want_v[i] / (1 - pow(0.75, s.step));
            want_w[i] -= 0.125 * mhat / (sqrt(vhat) + 0x1p-20);
            expect(fabs(master[i] - want_w[i]) < 1e-7, "adamw step %d: weight %d is %.9g, not %.9g",
                   s.step, i, master[i], want_w[i]);
        }
        result_fini(&r);
        case_fini(&c);
    }
}

static struct adamw_consts setup_consts(const struct adamw_setup *s, const struct adamw_step *step,
                                        int64_t i)
{
    struct adamw_consts k = {s->beta1,
                             1 - s->beta1,
                             s->beta2,
                             1 - s->beta2,
                             s->eps,
                             i < s->n_decay ? fmaf(-s->lr, s->weight_decay, 1) : 1,
                             s->lr / step->bias1,
                             1 / sqrtf(step->bias2),
                             s->coef};
    return k;
}

/* As it reads back from memory of type t, rounded once. */
static float rounded_to(enum dtype t, double x)
{
    float back;
    char narrow[8];
    dtype_convert(t, narrow, DT_F64, &x, 1);
    dtype_convert(DT_F32, &back, t, narrow, 1);
    return back;
}

/* The bits of kernels/adamw_math.h on every table of floats. */
static void adamw_bits(const struct adamw_setup *s)
{
    struct adamw_step step = step_of(s);
    struct op_case c;
    struct result r;

    adamw_case(&c, s);
    case_data(&c, "m")[0] = 0x1p-126; /* becomes subnormal: flushed */
    case_data(&c, "v")[0] = 0x1p-126;
    case_data(&c, "grad")[0] = 0;
    case_data(&c, "grad")[1] = 0x1p-80;
    for (int ti = 1; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        case_run(&c, t, t->table, 1, &r);
        for (int64_t i = 0; i < s->n; i++) {
            struct adamw_consts k = setup_consts(s, &step, i);
            float w = (float)case_data(&c, "master")[i], m = (float)case_data(&c, "m")[i],
                  v = (float)case_data(&c, "v")[i],
                  g = rounded_to(t->table->compute, case_data(&c, "grad")[i]);
            adamw_element(&k, g, &w, &m, &v);
            double want[3] = {(double)w, (double)m, (double)v};
            double got[3] = {r.v[case_index(&c, "master")][i], r.v[case_index(&c, "m")][i],
                             r.v[case_index(&c, "v")][i]};
            if (!expect(memcmp(want, got, sizeof want) == 0,
                        "%s on %s: element %ld is %a %a %a, not %a %a %a", c.title, t->table->name,
                        (long)i, got[0], got[1], got[2], want[0], want[1], want[2]))
                break;
        }
        result_fini(&r);
    }
    case_fini(&c);
}

/* --- bfloat16 states --- */

/* Of the 65,536 sets of random bits, as many round up as the cut-off part is large. */
static void rounding_is_unbiased(void)
{
    static const uint32_t X[] = {0x3f800000, 0x3f800001, 0x3fff8000,
                                 0xbf81fff0, 0x00001234, 0xc2f7ffff};
    for (size_t i = 0; i < sizeof X / sizeof X[0]; i++) {
        uint32_t ups = 0, others = 0;
        float x;
        memcpy(&x, &X[i], sizeof x);
        for (uint32_t r = 0; r < 65536; r++) {
            uint16_t got = adamw_round_bf16(x, r | 0xabcd0000);
            ups += got == (uint16_t)((X[i] >> 16) + 1);
            others += got != (uint16_t)((X[i] >> 16) + 1) && got != (uint16_t)(X[i] >> 16);
        }
        expect(ups == (X[i] & 0xffff) && others == 0, "%a rounds up %u times, not %u", (double)x,
               ups, X[i] & 0xffff);
    }
    expect(adamw_round_bf16(INFINITY, 0xffff) == 0x7f80, "infinity stays");
    expect(adamw_round_bf16(FLT_MAX, 0xffff) == 0x7f7f, "the largest float stays finite");
}

static double state_value(enum dtype t, float x, uint32_t random)
{
    if (t == DT_I16)
        return (double)adamw_remainder(x);
    uint32_t bits = (uint32_t)adamw_round_bf16(x, random) << 16;
    if (t == DT_BF16)
        memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* Random codes under random exponents, one block never written. */
static void code_case(struct op_case *c, int64_t n)
{
    int64_t blocks = (n + MOMENT_BLOCK - 1) / MOMENT_BLOCK;
    double *m = case_data(c, "m"), *v = case_data(c, "v");
    double *exponents[2] = {BIND(c, adamw_args, m_exponent, DT_U8, ROLE_INOUT, 1, blocks, 0),
                            BIND(c, adamw_args, v_exponent, DT_U8, ROLE_INOUT, 1, blocks, 0)};
    for (int64_t b = 0; b < blocks; b++)
        for (int k = 0; k < 2; k++)
            exponents[k][b] = b == 1 ? 0 : 40 + (double)random_below(90);
    for (int64_t i = 0; i < n; i++) {
        m[i] = i / MOMENT_BLOCK == 1 ? 0 : (double)random_below(256);
        v[i] = i / MOMENT_BLOCK == 1 ? 0 : (double)random_below(256);
    }
}

/* The types that an update reads and writes. */
struct mix {
    enum dtype grad, master, moment, param;
    bool in_place; /* the master is the parameter */
};

static void mixed_case(struct op_case *c, const struct adamw_setup *s, const struct mix *mix)
{
    struct adamw_args *a = &c->args.adamw;

    adamw_case(c, s);
    a->grad_type = mix->grad;
    a->master_type = mix->master;
    a->moment_type = mix->moment;
    a->param_type = mix->param;
    c->b[case_index(c, "grad")].elem = (int)mix->grad;
    c->b[case_index(c, "master")].elem = (int)mix->master;
    c->b[case_index(c, "m")].elem = c->b[case_index(c, "v")].elem = (int)mix->moment;
    if (s->param)
        c->b[case_index(c, "param")].elem = (int)mix->param;
    if (mix->master == DT_I16) {
        c->b[case_index(c, "param")].role = ROLE_INOUT;
        for (int64_t i = 0; i < s->n; i++)
            case_data(c, "master")[i] = (double)(random_below(65536) - 32768);
    }
    if (mix->moment == DT_U8)
        code_case(c, s->n);
    snprintf(c->title + strlen(c->title), sizeof c->title - strlen(c->title), " %s %s %s %s",
             dtype_name(mix->grad), dtype_name(mix->master), dtype_name(mix->moment),
             dtype_name(mix->param));
}

static float mixed_master(struct op_case *c, int64_t i)
{
    const struct adamw_args *a = &c->args.adamw;
    double x = case_data(c, "master")[i];
    if (a->master_type != DT_I16)
        return rounded_to(a->master_type, x);
    return adamw_join(adamw_param_bf16(rounded_to(DT_BF16, case_data(c, "param")[i])), (int16_t)x);
}

static float mixed_moment(struct op_case *c, int64_t i, bool second)
{
    double x = case_data(c, second ? "v" : "m")[i];
    if (c->args.adamw.moment_type != DT_U8)
        return rounded_to(c->args.adamw.moment_type, x);
    uint32_t e = (uint32_t)case_data(c, second ? "v_exponent" : "m_exponent")[i / MOMENT_BLOCK];
    return second ? moment_v((uint8_t)x, moment_low(e, MOMENT_V_BINADES))
                  : moment_m((uint8_t)x, moment_low(e, MOMENT_M_BINADES));
}

/* Master and moments of element i as the arithmetic of kernels/adamw_math.h leaves them, not yet
 * rounded. */
static void mixed_raw(struct op_case *c, const struct adamw_setup *s, int64_t i, float x[3])
{
    const struct adamw_args *a = &c->args.adamw;
    struct adamw_step step = step_of(s);
    struct adamw_consts k = setup_consts(s, &step, i);
    float g = rounded_to(a->grad_type, case_data(c, "grad")[i]);

    x[0] = mixed_master(c, i);
    x[1] = mixed_moment(c, i, false);
    x[2] = mixed_moment(c, i, true);
    adamw_element(&k, rounded_to(a->param_type, (double)g), &x[0], &x[1], &x[2]);
}

static double mixed_param(const struct adamw_args *a, float master, double stored)
{
    if (a->param_type != DT_BF16)
        return (double)rounded_to(a->param_type, stored);
    return (double)adamw_join(adamw_param_bf16(a->master_type == DT_BF16 ? (float)stored : master),
                              0);
}

enum { MIXED_ARRAYS = 6 };
static const char *const MIXED_NAMES[MIXED_ARRAYS] = {"master",     "m",          "v",
                                                      "m_exponent", "v_exponent", "param"};

/* The codes of a block whose new moments are x. */
static void coded_want(const struct adamw_args *a, const struct adamw_setup *s, int64_t block,
                       float (*x)[3], double *const want[MIXED_ARRAYS])
{
    int64_t i0 = block * MOMENT_BLOCK, end = i0 + MOMENT_BLOCK < s->n ? i0 + MOMENT_BLOCK : s->n;
    struct rng_stream stream = {a->seed, (uint32_t)s->step, a->site, RNG_USE_MOMENT};
    struct rng_block draw = rng_draw4(stream, (uint64_t)(a->first + i0) / MOMENT_BLOCK);

    for (int k = 1; k <= 2; k++) {
        float most = 0;
        for (int64_t i = i0; i < end; i++)
            most = fmaxf(most, fabsf(x[i][k]));
        uint32_t e = moment_exponent(moment_bits(most));
        uint32_t low = moment_low(e, k == 1 ? MOMENT_M_BINADES : MOMENT_V_BINADES);
        want[k + 2][block] = e;
        for (int64_t i = i0; i < end; i++) {
            uint32_t r = draw.v[2 * k - 2] + (uint32_t)(i - i0) * draw.v[2 * k - 1];
            want[k][i] = k == 1 ? moment_m_code(x[i][k], low, r) : moment_v_code(x[i][k], low, r);
        }
    }
}

/* What every array holds after an update. */
static void mixed_want(struct op_case *c, const struct adamw_setup *s,
                       double *const want[MIXED_ARRAYS])
{
    const struct adamw_args *a = &c->args.adamw;
    struct rng_stream stream = {a->seed, (uint32_t)s->step, a->site, RNG_USE_ROUNDING};
    float(*x)[3] = malloc((size_t)s->n * sizeof *x);

    for (int64_t i = 0; i < s->n; i++) {
        uint32_t draw = rng_draw(stream, (uint64_t)(a->first + i));
        mixed_raw(c, s, i, x[i]);
        want[0][i] = state_value(a->master_type, x[i][0], draw >> 16);
        want[5][i] = mixed_param(a, x[i][0], want[0][i]);
        if (a->moment_type == DT_U8)
            continue;
        want[1][i] = state_value(a->moment_type, x[i][1], draw >> 8);
        want[2][i] = state_value(a->moment_type, x[i][2], draw);
    }
    for (int64_t b = 0; a->moment_type == DT_U8 && b * MOMENT_BLOCK < s->n; b++)
        coded_want(a, s, b, x, want);
    free(x);
}

static bool has_array(const struct op_case *c, const char *name)
{
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->b[i].name, name) == 0)
            return true;
    return false;
}

static void mixed_bits(const struct adamw_setup *s, const struct mix *mix)
{
    double *want[MIXED_ARRAYS];
    struct op_case c;
    struct result r;

    mixed_case(&c, s, mix);
    for (int k = 0; k < MIXED_ARRAYS; k++)
        want[k] = malloc((size_t)s->n * sizeof *want[k]);
    mixed_want(&c, s, want);
    for (int ti = 1; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        if (t->device->kind == DEVICE_CUDA && t->table->compute != mix->param)
            continue; /* a GPU updates for its own table */
        case_run(&c, t, t->table, 1, &r);
        expect(r.rc == 0, "%s on %s: refused", c.title, t->table->name);
        for (int k = 0; k < MIXED_ARRAYS; k++) {
            if (!has_array(&c, MIXED_NAMES[k]))
                continue;
            int at = case_index(&c, MIXED_NAMES[k]);
            int64_t n = c.b[at].cols, i = 0;
            while (i < n && memcmp(&want[k][i], &r.v[at][i], sizeof(double)) == 0)
                i++;
            expect(i == n, "%s on %s: %s of element %ld is %a, not %a", c.title, t->table->name,
                   MIXED_NAMES[k], (long)i, i < n ? r.v[at][i] : 0, i < n ? want[k][i] : 0);
        }
        result_fini(&r);
    }
    for (int k = 0; k < MIXED_ARRAYS; k++)
        free(want[k]);
    case_fini(&c);
}

/* --- split masters --- */

/* A run with a whole master and one with the same master split: every bit of every array. */
static void split_is_whole(const struct target *t, const struct adamw_setup *s, enum dtype grad,
                           enum dtype moment)
{
    struct mix mix = {grad, DT_F32, moment, DT_BF16, false};
    struct op_case whole, split;
    struct result a, b;
    bool same = true;

    mixed_case(&whole, s, &mix);
    mix.master = DT_I16;
    mixed_case(&split, s, &mix);
    for (int64_t i = 0; i < s->n; i++) {
        float w = (float)case_data(&whole, "master")[i];
        if (i % 3 == 0) /* half way between two parameters */
            w = adamw_join(adamw_param_bf16(w), -32768);
        case_data(&whole, "master")[i] = (double)w;
        case_data(&split, "param")[i] = (double)adamw_join(adamw_param_bf16(w), 0);
        case_data(&split, "master")[i] = (double)adamw_remainder(w);
    }
    for (int k = 0; k < 5; k++) {
        static const char *const SHARED[] = {"grad", "m", "v", "m_exponent", "v_exponent"};
        if (has_array(&whole, SHARED[k]))
            memcpy(case_data(&split, SHARED[k]), case_data(&whole, SHARED[k]),
                   (size_t)whole.b[case_index(&whole, SHARED[k])].cols * sizeof(double));
    }
    case_run(&whole, t, t->table, 3, &a);
    case_run(&split, t, t->table, 3, &b);
    for (int64_t i = 0; i < s->n && same; i++) {
        double param = b.v[case_index(&split, "param")][i];
        double joined = (double)adamw_join(adamw_param_bf16((float)param),
                                           (int16_t)b.v[case_index(&split, "master")][i]);
        same = joined == a.v[case_index(&whole, "master")][i] &&
               param == a.v[case_index(&whole, "param")][i];
    }
    for (int k = 0; k < 2; k++)
        same = same &&
               memcmp(a.v[case_index(&whole, k ? "m" : "v")],
                      b.v[case_index(&split, k ? "m" : "v")], (size_t)s->n * sizeof(double)) == 0;
    expect(same && a.rc == 0 && b.rc == 0, "%s on %s: a split master is not the whole one",
           split.title, t->table->name);
    result_fini(&a);
    result_fini(&b);
    case_fini(&whole);
    case_fini(&split);
}

static void split(void)
{
    struct adamw_setup moving = BASE, still = BASE;

    still.lr = 0; /* then ties stay ties */
    still.n_decay = moving.n_decay = 15 * MOMENT_BLOCK;
    for (int ti = 1; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        if (t->device->kind == DEVICE_CUDA && t->table->compute != DT_BF16)
            continue;
        static const enum dtype MOMENTS[] = {DT_F32, DT_BF16, DT_U8};
        for (int k = 0; k < 6; k++)
            split_is_whole(t, k % 2 ? &still : &moving, k / 2 == 1 ? DT_F32 : DT_BF16,
                           MOMENTS[k / 2]);
    }
}

static const struct mix MIXES[] = {
    {DT_F32, DT_F32, DT_F32, DT_BF16, false},   {DT_BF16, DT_F32, DT_F32, DT_BF16, false},
    {DT_F32, DT_F32, DT_BF16, DT_BF16, false},  {DT_BF16, DT_F32, DT_BF16, DT_BF16, false},
    {DT_F32, DT_I16, DT_F32, DT_BF16, false},   {DT_BF16, DT_I16, DT_F32, DT_BF16, false},
    {DT_BF16, DT_I16, DT_BF16, DT_BF16, false}, {DT_BF16, DT_I16, DT_U8, DT_BF16, false},
    {DT_BF16, DT_F32, DT_U8, DT_BF16, false},   {DT_F32, DT_I16, DT_U8, DT_BF16, false},
    {DT_F16, DT_F32, DT_U8, DT_F16, false},     {DT_F16, DT_F32, DT_F32, DT_F16, false},
    {DT_F32, DT_F32, DT_BF16, DT_F16, false},   {DT_F32, DT_BF16, DT_U8, DT_BF16, true},
    {DT_F32, DT_F32, DT_U8, DT_F32, true},      {DT_F32, DT_BF16, DT_BF16, DT_BF16, true},
    {DT_BF16, DT_BF16, DT_BF16, DT_BF16, true}, {DT_BF16, DT_BF16, DT_F32, DT_BF16, true},
    {DT_F32, DT_F32, DT_BF16, DT_F32, true},    {DT_F16, DT_F32, DT_BF16, DT_F16, false},
    {DT_F32, DT_BF16, DT_F32, DT_BF16, true},   {DT_F32, DT_F32, DT_U8, DT_F16, false},
    {DT_BF16, DT_BF16, DT_U8, DT_BF16, true},   {DT_F32, DT_F32, DT_U8, DT_BF16, false},
};

static void mixed(void)
{
    struct adamw_setup s = BASE;

    for (s.n = 5003; s.n > 0; s.n /= 71)
        for (size_t k = 0; k < sizeof MIXES / sizeof MIXES[0]; k++) {
            int64_t blocks = 15 * MOMENT_BLOCK; /* a moment's block decays as a whole */
            s.n_decay = MIXES[k].moment != DT_U8 ? BASE.n_decay : s.n < blocks ? s.n : blocks;
            s.param = !MIXES[k].in_place;
            mixed_bits(&s, &MIXES[k]);
        }
}

/* With a gradient that is not finite. */
static void nothing_changes(const struct adamw_setup *s)
{
    static const char *const NAMES[] = {"master", "m", "v", "param"};
    const struct target *t = targets_get(0);
    struct op_case c;
    struct result r;

    adamw_case(&c, s);
    check_tables(&c);
    case_run(&c, t, t->table, 1, &r);
    for (int k = 0; k < 4; k++)
        expect(memcmp(r.v[case_index(&c, NAMES[k])], case_data(&c, NAMES[k]),
                      (size_t)s->n * sizeof(double)) == 0,
               "%s: %s changed", c.title, NAMES[k]);
    result_fini(&r);
    case_fini(&c);
}

static void adamw(void)
{
    struct adamw_setup s = BASE;
    struct op_case c;

    adamw_by_hand();
    adamw_bits(&BASE);
    adamw_case(&c, &BASE);
    check_tables(&c);
    case_fini(&c);
    s.n_decay = 0;
    s.step = 1000;
    adamw_bits(&s);
    s.n = s.n_decay = 37;
    s.param = false;
    s.coef = 1;
    adamw_bits(&s);
    s.param = true;
    s.finite = false;
    nothing_changes(&s);
}

int main(int argc, char **argv)
{
    harness_open(argc, argv);
    adamw();
    rounding_is_unbiased();
    mixed();
    split();
    return harness_close();
}
