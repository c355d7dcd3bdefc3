/* The fast CPU table's own promises: the accuracy of its elementary functions, and results that do
 * not depend on the number of threads. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cpu/fast_math.h"
#include "tests/ops/harness.h"

/* --- elementary functions --- */

struct worst {
    const char *name;
    double error, at;
};

static void note(struct worst *w, double got, double want, double x)
{
    double error = fabs(got - want) / fabs(want);
    if (got == want)
        return;
    if (!(error <= w->error)) { /* also NaN */
        w->error = error;
        w->at = x;
    }
}

static void report(const struct worst *w, double limit)
{
    printf("%-18s largest relative error %.2e at %g\n", w->name, w->error, w->at);
    expect(w->error <= limit, "%s: error %.3g at %.9g", w->name, w->error, w->at);
}

static void functions(void)
{
    struct worst e = {"exp", 0, 0}, t = {"tanh", 0, 0}, n = {"normal", 0, 0}, d = {"density", 0, 0},
                 s = {"sigmoid", 0, 0};

    for (int i = -2000000; i <= 2000000; i++) {
        float x = (float)i * 4.3e-5f, density; /* to +-86 */
        double X = (double)x;
        note(&e, (double)fast_exp(x), exp(X), X);
        note(&t, (double)fast_tanh(x / 8), tanh((double)(x / 8)), X / 8);
        note(&s, (double)fast_sigmoid(x), 1 / (1 + exp(-X)), X);
        float y = x / 20; /* to +-4.3; further out the rounding of the square shows */
        double normal = 0.5 * erfc(-(double)y / sqrt(2));
        note(&n, (double)fast_normal(y, &density), normal, (double)y);
        note(&d, (double)density, exp(-0.5 * (double)y * (double)y) / sqrt(2 * M_PI), (double)y);
    }
    report(&e, 4e-7);
    report(&t, 4e-7);
    report(&s, 4e-7);
    report(&n, 2e-6);
    report(&d, 2e-6);
    expect(fast_exp(-INFINITY) == 0 && fast_exp(-200) == 0 && fast_exp(0) == 1, "exp at its edges");
    expect(isnan(fast_exp(NAN)) && isnan(fast_tanh(NAN)) && isnan(fast_sigmoid(NAN)),
           "NaN is not kept");
    expect(fast_tanh(100) == 1 && fast_tanh(-100) == -1 && fast_sigmoid(-200) < 1e-37f,
           "saturation");
    float density;
    expect(fast_normal(40, &density) == 1 && fast_normal(-40, &density) == 0, "normal at its ends");
}

/* --- threads --- */

static void threads_agree(const struct op_case *c)
{
    static const int THREADS[] = {1, 2, 3, 7, 16};
    enum { COUNTS = sizeof THREADS / sizeof THREADS[0] };
    struct result first, r;

    for (int i = 0; i < COUNTS; i++) {
        struct device_options options = {.threads = THREADS[i]};
        struct target t = {0};
        struct err err = {0};
        bool opened = device_open(DEVICE_CPU, 0, &options, &t.device, &err) == 0 &&
                      device_stream_create(t.device, 0, &t.stream, &err) == 0;
        if (!expect(opened, "%s", err.msg))
            return;
        t.table = device_ops(t.device, DT_F32);
        case_run(c, &t, t.table, 1, i == 0 ? &first : &r);
        for (int b = 0; b < c->n && i > 0; b++)
            expect(memcmp(first.v[b], r.v[b],
                          (size_t)(c->b[b].rows * c->b[b].cols) * sizeof(double)) == 0,
                   "%s: %s differs with %d threads", c->title, c->b[b].name, THREADS[i]);
        if (i > 0)
            result_fini(&r);
        device_stream_destroy(t.device, t.stream);
        device_close(t.device);
    }
    result_fini(&first);
}

static void linear_shape_threads(int64_t N, int64_t wide_in, int64_t wide_out)
{
    struct linear_args a = {.N = N, .I = wide_in, .O = wide_out, .act = ACT_GELU_ERF};
    struct op_case c;

    case_init(&c, OP_LINEAR_FWD, &a, sizeof a, "threads");
    BIND(&c, linear_args, x, EL_REAL, ROLE_IN, N, wide_in, 0);
    BIND(&c, linear_args, w, EL_REAL, ROLE_IN, wide_out, wide_in, 0);
    BIND(&c, linear_args, bias, EL_REAL, ROLE_IN, 1, wide_out, 0);
    BIND(&c, linear_args, y, EL_REAL, ROLE_ASSIGN, N, wide_out, 0);
    threads_agree(&c);
    case_fini(&c);

    case_init(&c, OP_LINEAR_BWD_DATA, &a, sizeof a, "threads");
    BIND(&c, linear_args, dy, EL_REAL, ROLE_IN, N, wide_out, 0);
    BIND(&c, linear_args, w, EL_REAL, ROLE_IN, wide_out, wide_in, 0);
    BIND(&c, linear_args, dx, EL_REAL, ROLE_ASSIGN, N, wide_in, 0);
    threads_agree(&c);
    case_fini(&c);

    case_init(&c, OP_LINEAR_BWD_WEIGHT, &a, sizeof a, "threads");
    BIND(&c, linear_args, x, EL_REAL, ROLE_IN, N, wide_in, 0);
    BIND(&c, linear_args, dy, EL_REAL, ROLE_IN, N, wide_out, 0);
    BIND(&c, linear_args, dw, EL_GRAD, ROLE_ASSIGN, wide_out, wide_in, 0);
    BIND(&c, linear_args, dbias, EL_GRAD, ROLE_ASSIGN, 1, wide_out, 0);
    threads_agree(&c);
    case_fini(&c);
}

/* One tile and many, and sums long enough for a library to cut them. */
static void linear_threads(void)
{
    linear_shape_threads(5, 2000, 40);
    linear_shape_threads(200, 192, 768);
    linear_shape_threads(1100, 700, 1030);
    linear_shape_threads(64, 1, 3000);
}

static void attention_threads(void)
{
    enum { B = 1, T = 300, H = 6, KV = 2, D = 48 };
    struct attn_args a = {.B = B, .T = T, .S = T, .H = H, .KV = KV, .D = D, .scale = 0.3f};
    struct op_case c;

    case_init(&c, OP_ATTN_FWD, &a, sizeof a, "threads");
    BIND(&c, attn_args, q, EL_REAL, ROLE_IN, B * T, H * D, 0);
    BIND(&c, attn_args, k, EL_REAL, ROLE_IN, B * T, KV * D, 0);
    BIND(&c, attn_args, v, EL_REAL, ROLE_IN, B * T, KV * D, 0);
    BIND(&c, attn_args, o, EL_REAL, ROLE_ASSIGN, B * T, H * D, 0);
    BIND(&c, attn_args, lse, EL_STAT, ROLE_ASSIGN, B * H, T, 0);
    threads_agree(&c);
    case_fini(&c);

    case_init(&c, OP_ATTN_BWD, &a, sizeof a, "threads");
    BIND(&c, attn_args, q, EL_REAL, ROLE_IN, B * T, H * D, 0);
    BIND(&c, attn_args, k, EL_REAL, ROLE_IN, B * T, KV * D, 0);
    BIND(&c, attn_args, v, EL_REAL, ROLE_IN, B * T, KV * D, 0);
    BIND(&c, attn_args, o, EL_REAL, ROLE_IN, B * T, H * D, 0);
    BIND(&c, attn_args, dout, EL_REAL, ROLE_IN, B * T, H * D, 0);
    double *lse = BIND(&c, attn_args, lse, EL_STAT, ROLE_IN, B * H, T, 0);
    for (int64_t i = 0; i < B * H * T; i++)
        lse[i] += 5;
    BIND(&c, attn_args, dq, EL_REAL, ROLE_ASSIGN, B * T, H * D, 0);
    BIND(&c, attn_args, dk, EL_REAL, ROLE_ASSIGN, B * T, KV * D, 0);
    BIND(&c, attn_args, dv, EL_REAL, ROLE_ASSIGN, B * T, KV * D, 0);
    threads_agree(&c);
    case_fini(&c);
}

static void row_threads(void)
{
    enum { N = 301, C = 200, V = 90 };
    struct norm_args norm = {.kind = NORM_LAYER, .N = N, .C = C, .eps = 1e-5f};
    struct embed_args embed = {.N = N, .C = C, .V = V, .scale = 1};
    struct sumsq_args sumsq = {.n = 5 * SUMSQ_BLOCK + 3};
    struct op_case c;

    case_init(&c, OP_NORM_BWD, &norm, sizeof norm, "threads");
    BIND(&c, norm_args, x, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, norm_args, weight, EL_REAL, ROLE_IN, 1, C, 0);
    BIND(&c, norm_args, mean, EL_STAT, ROLE_IN, 1, N, 0);
    BIND(&c, norm_args, rstd, EL_STAT, ROLE_IN, 1, N, 0);
    BIND(&c, norm_args, dy, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, norm_args, dx, EL_REAL, ROLE_ASSIGN, N, C, 0);
    BIND(&c, norm_args, dweight, EL_GRAD, ROLE_ADD, 1, C, 0);
    BIND(&c, norm_args, dbias, EL_GRAD, ROLE_ADD, 1, C, 0);
    threads_agree(&c);
    case_fini(&c);

    case_init(&c, OP_EMBED_BWD, &embed, sizeof embed, "threads");
    double *tokens = BIND(&c, embed_args, tokens, DT_I32, ROLE_IN, 1, N, 0);
    for (int64_t n = 0; n < N; n++)
        tokens[n] = (double)random_below(V);
    BIND(&c, embed_args, dout, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, embed_args, dwte, EL_GRAD, ROLE_ADD, V, C, 0);
    threads_agree(&c);
    case_fini(&c);

    case_init(&c, OP_SUMSQ, &sumsq, sizeof sumsq, "threads");
    BIND(&c, sumsq_args, x, EL_GRAD, ROLE_IN, 1, sumsq.n, 0);
    BIND(&c, sumsq_args, partial, DT_F64, ROLE_ASSIGN, 1, 6, 0);
    threads_agree(&c);
    case_fini(&c);
}

int main(int argc, char **argv)
{
    harness_open(argc, argv);
    functions();
    linear_threads();
    attention_threads();
    row_threads();
    return harness_close();
}
