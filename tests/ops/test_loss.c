/* Cross entropy with its gradient: scales, caps, ignored rows, strides and extreme logits. */
#include <math.h>
#include <stdio.h>

#include "tests/ops/harness.h"

struct variant {
    int64_t N, V, pad;
    float logit_scale, softcap, spread; /* spread: the logits' range */
};

static void loss_case(struct op_case *c, const struct variant *v, bool gradient, double grad_scale)
{
    struct loss_args a = {.N = v->N,
                          .V = v->V,
                          .ldl = v->pad ? v->V + v->pad : 0,
                          .logit_scale = v->logit_scale,
                          .softcap = v->softcap};

    case_init(c, OP_LOSS, &a, sizeof a, "N=%ld V=%ld pad=%ld scale=%g cap=%g spread=%g%s",
              (long)v->N, (long)v->V, (long)v->pad, (double)v->logit_scale, (double)v->softcap,
              (double)v->spread, gradient ? " gradient" : "");
    double *targets = BIND(c, loss_args, targets, DT_I32, ROLE_IN, 1, v->N, 0);
    for (int64_t n = 0; n < v->N; n++)
        targets[n] = n % 4 == 2 ? -100 : (double)((5 * n + 1) % v->V);
    double *logits =
        BIND(c, loss_args, logits, EL_REAL, gradient ? ROLE_INOUT : ROLE_IN, v->N, v->V, a.ldl);
    for (int64_t i = 0; i < v->N * v->V; i++)
        logits[i] *= (double)v->spread;
    bool scaled = gradient && v->N % 2 == 1; /* part of the factor comes by way of the loss scale */
    if (gradient)
        *BIND(c, loss_args, grad_scale, DT_F32, ROLE_IN, 1, 1, 0) =
            scaled ? grad_scale / 8 : grad_scale;
    if (scaled) { /* four words, of which the others are integers: 0 */
        double *scale = BIND(c, loss_args, loss_scale, DT_F32, ROLE_IN, 1, 4, 0);
        scale[0] = 8;
        scale[1] = scale[2] = scale[3] = 0;
    }
    BIND(c, loss_args, row_loss, EL_STAT, ROLE_ASSIGN, 1, v->N, 0);
    BIND(c, loss_args, row_correct, DT_I32, ROLE_ASSIGN, 1, v->N, 0);
}

static void gradients(const struct variant *v)
{
    static const struct flow FLOW[] = {{FLOW_SAVE, "targets", "targets", 0},
                                       {FLOW_SAVE, "logits", "logits", 0},
                                       {FLOW_ONES, "row_loss", NULL, 0.375},
                                       {FLOW_GRAD, "logits", "logits", 0}};
    struct op_case f, b;

    loss_case(&f, v, false, 0);
    loss_case(&b, v, true, 0.375);
    check_gradients(&f, &b, FLOW, 4);
    case_fini(&f);
    case_fini(&b);
}

static void tables(const struct variant *v)
{
    struct op_case c;

    for (int gradient = 0; gradient < 2; gradient++) {
        loss_case(&c, v, gradient, 0.25);
        check_tables(&c);
        case_fini(&c);
    }
}

/* Uniform logits cost log V, and the lowest index wins a tie. Six rows; the last targets are V - 1
 * and none. */
static void by_hand(const struct variant *v)
{
    double most = log((double)v->V), tolerance = 1e-6 * fmax(most, 1);
    struct op_case c;
    struct result r;

    loss_case(&c, v, false, 0);
    for (int64_t i = 0; i < 6 * v->V; i++)
        case_data(&c, "logits")[i] = 2;
    for (int64_t n = 0; n < 6; n++)
        case_data(&c, "targets")[n] = n == 5 ? -1 : n == 4 ? (double)(v->V - 1) : (double)n;
    for (int t = 0; t < targets_count(); t++) {
        case_run(&c, targets_get(t), targets_get(t)->table, 1, &r);
        for (int64_t n = 0; n < 6 && r.rc == 0; n++) {
            double loss = r.v[case_index(&c, "row_loss")][n];
            double correct = r.v[case_index(&c, "row_correct")][n];
            expect(fabs(loss - (n == 5 ? 0 : most)) < tolerance, "%s: row %ld has loss %g", c.title,
                   (long)n, loss);
            expect(correct == (n == 0), "%s: row %ld correct is %g", c.title, (long)n, correct);
        }
        result_fini(&r);
    }
    case_fini(&c);
}

int main(int argc, char **argv)
{
    static const struct variant VARIANTS[] = {
        {5, 7, 0, 1, 0, 1},
        {4, 6, 3, 0.25f, 0, 3},
        {5, 7, 0, 1, 2.5f, 3},
        {3, 9, 0, 2, 1.5f, 1},
        {1, 1, 0, 1, 0, 1},
        {37, 1000, 0, 1, 0, 4},
        {19, 4096, 0, 1, 0, 10},
        {9, 513, 7, 0.5f, 30, 60},
        {6, 300, 0, 1, 0, 300},
        /* rows that do not fit in one multiprocessor, of 16-bit types and of float */
        {3, 40011, 5, 1, 0, 8},
        {3, 75008, 0, 0.5f, 0, 20},
        {2, 152064, 0, 1, 30, 40},
        {2, 250001, 0, 1, 0, 5},
        {2, 480000, 0, 1, 0, 5},
    };
    static const struct variant UNIFORM[] = {
        {6, 5, 0, 1, 0, 1}, {6, 1003, 0, 1, 0, 1}, {6, 130001, 0, 1, 0, 1}};

    harness_open(argc, argv);
    for (size_t i = 0; i < sizeof VARIANTS / sizeof VARIANTS[0]; i++) {
        if (i < 4)
            gradients(&VARIANTS[i]);
        tables(&VARIANTS[i]);
    }
    for (size_t i = 0; i < sizeof UNIFORM / sizeof UNIFORM[0]; i++)
        by_hand(&UNIFORM[i]);
    return harness_close();
}
