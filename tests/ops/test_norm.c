/* LayerNorm and RMSNorm: all kinds, with and without residual, weight, bias and aliasing. */
#include "tests/ops/harness.h"

struct norm_variant {
    enum norm_kind kind;
    bool residual, weight, bias;
    int64_t gap; /* elements between rows */
};

static const struct norm_variant VARIANTS[] = {
    {NORM_LAYER, false, true, true},        {NORM_LAYER, true, true, true},
    {NORM_LAYER, true, true, false},        {NORM_LAYER, false, false, false},
    {NORM_RMS, false, true, false},         {NORM_RMS, true, true, false},
    {NORM_RMS, true, false, false},         {NORM_RMS_PLUS_ONE, false, true, false},
    {NORM_RMS_PLUS_ONE, true, true, false}, {NORM_RMS_PLUS_ONE, false, false, false},
    {NORM_LAYER, false, true, false, 8},    {NORM_LAYER, true, true, true, 40},
    {NORM_RMS, true, true, false, 3},
};
static const char *const KINDS[] = {"layer", "rms", "rms+1"};

static void forward_case(struct op_case *c, const struct norm_variant *v, int64_t N, int64_t C,
                         const char *alias)
{
    int64_t ld = v->gap ? C + v->gap : 0;
    struct norm_args a = {.kind = v->kind, .N = N, .C = C, .ld = ld, .eps = 1e-5f};

    case_init(c, OP_NORM_FWD, &a, sizeof a, "%s N=%ld C=%ld+%ld%s%s%s %s", KINDS[v->kind], (long)N,
              (long)C, (long)v->gap, v->residual ? " residual" : "", v->weight ? " weight" : "",
              v->bias ? " bias" : "", alias ? alias : "");
    BIND(c, norm_args, x, EL_REAL, ROLE_IN, N, C, ld);
    if (v->residual) {
        BIND(c, norm_args, residual, EL_REAL, ROLE_IN, N, C, ld);
        if (alias)
            ALIAS(c, norm_args, sum, alias);
        else
            BIND(c, norm_args, sum, EL_REAL, ROLE_ASSIGN, N, C, ld);
    }
    if (v->weight)
        BIND(c, norm_args, weight, EL_REAL, ROLE_IN, 1, C, 0);
    if (v->bias)
        BIND(c, norm_args, bias, EL_REAL, ROLE_IN, 1, C, 0);
    BIND(c, norm_args, y, EL_REAL, ROLE_ASSIGN, N, C, ld);
    if (v->kind == NORM_LAYER)
        BIND(c, norm_args, mean, EL_STAT, ROLE_ASSIGN, 1, N, 0);
    BIND(c, norm_args, rstd, EL_STAT, ROLE_ASSIGN, 1, N, 0);
}

static void backward_case(struct op_case *c, const struct norm_variant *v, int64_t N, int64_t C,
                          bool alias, bool narrow)
{
    int64_t ld = v->gap ? C + v->gap : 0;
    struct norm_args a = {.kind = v->kind, .N = N, .C = C, .ld = ld, .eps = 1e-5f};
    int grad = narrow ? EL_REAL : EL_GRAD;

    a.narrow.on = narrow;
    a.narrow.stream = (struct rng_stream){.seed = 3, .step = 1, .use = RNG_USE_GRADIENT};
    case_init(c, OP_NORM_BWD, &a, sizeof a, "%s N=%ld C=%ld+%ld%s%s%s%s%s", KINDS[v->kind], (long)N,
              (long)C, (long)v->gap, v->residual ? " residual" : "", v->weight ? " weight" : "",
              v->bias ? " bias" : "", alias ? " in place" : "", narrow ? " narrow" : "");
    BIND(c, norm_args, x, EL_REAL, ROLE_IN, N, C, ld);
    if (v->weight) {
        BIND(c, norm_args, weight, EL_REAL, ROLE_IN, 1, C, 0);
        BIND(c, norm_args, dweight, grad, ROLE_ADD, 1, C, 0);
    }
    if (v->bias)
        BIND(c, norm_args, dbias, grad, ROLE_ADD, 1, C, 0);
    if (v->kind == NORM_LAYER)
        BIND(c, norm_args, mean, EL_STAT, ROLE_IN, 1, N, 0);
    double *rstd = BIND(c, norm_args, rstd, EL_STAT, ROLE_IN, 1, N, 0);
    for (int64_t n = 0; n < N; n++)
        rstd[n] += 1.5;
    BIND(c, norm_args, dy, EL_REAL, ROLE_IN, N, C, ld);
    if (v->residual)
        BIND(c, norm_args, dresidual, EL_REAL, ROLE_IN, N, C, ld);
    if (alias)
        ALIAS(c, norm_args, dx, "dresidual");
    else
        BIND(c, norm_args, dx, EL_REAL, ROLE_ASSIGN, N, C, ld);
}

static void gradients(const struct norm_variant *v)
{
    static const struct flow WITH_RESIDUAL[] = {{FLOW_SAVE, "sum", "x", 0},
                                                {FLOW_SEED, "sum", "dresidual", 0},
                                                {FLOW_GRAD, "residual", "dx", 0}};
    static const struct flow PLAIN[] = {{FLOW_SAVE, "x", "x", 0}};
    struct op_case forward, backward;
    struct flow flow[12];
    int n = 0;

    forward_case(&forward, v, 3, 7, NULL);
    backward_case(&backward, v, 3, 7, false, false);
    for (int i = 0; i < (v->residual ? 3 : 1); i++)
        flow[n++] = v->residual ? WITH_RESIDUAL[i] : PLAIN[i];
    if (v->kind == NORM_LAYER)
        flow[n++] = (struct flow){FLOW_SAVE, "mean", "mean", 0};
    flow[n++] = (struct flow){FLOW_SAVE, "rstd", "rstd", 0};
    flow[n++] = (struct flow){FLOW_SEED, "y", "dy", 0};
    flow[n++] = (struct flow){FLOW_GRAD, "x", "dx", 0};
    if (v->weight) {
        flow[n++] = (struct flow){FLOW_SAVE, "weight", "weight", 0};
        flow[n++] = (struct flow){FLOW_GRAD, "weight", "dweight", 0};
    }
    if (v->bias)
        flow[n++] = (struct flow){FLOW_GRAD, "bias", "dbias", 0};
    check_gradients(&forward, &backward, flow, n);
    case_fini(&forward);
    case_fini(&backward);
}

static void tables(const struct norm_variant *v, int64_t N, int64_t C)
{
    struct op_case c;

    for (int i = 0; i < (v->residual ? 3 : 1); i++) {
        forward_case(&c, v, N, C, i == 0 ? NULL : i == 1 ? "x" : "residual");
        check_tables(&c);
        case_fini(&c);
    }
    for (int i = 0; i < (v->residual ? 4 : 2); i++) {
        backward_case(&c, v, N, C, i / 2 == 1, i % 2 == 1);
        check_tables(&c);
        case_fini(&c);
    }
}

int main(int argc, char **argv)
{
    static const int64_t SHAPES[][2] = {{1, 1},    {3, 7},   {5, 33},   {17, 192}, {9, 576},
                                        {7, 1800}, {9, 800}, {300, 65}, {6, 500}};

    harness_open(argc, argv);
    for (size_t i = 0; i < sizeof VARIANTS / sizeof VARIANTS[0]; i++) {
        gradients(&VARIANTS[i]);
        for (size_t k = 0; k < sizeof SHAPES / sizeof SHAPES[0]; k++)
            tables(&VARIANTS[i], SHAPES[k][0], SHAPES[k][1]);
    }
    return harness_close();
}
