/* Whole steps through plan and executor: against PyTorch, against other cuts, against the plan. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/master.h"
#include "tests/unit/worker/train/rig.h"

/* Loss and gradient norm of ten steps against tests/golden/gen.py. */
static void check_golden_steps(enum dtype compute, int64_t micro_batch, double rtol)
{
    struct rig r;
    double worst = 0;

    rig_open(&r, &(struct rig_options){.compute = compute, .micro_batch = micro_batch});
    double *losses = rig_golden(&r, "adamw.losses", 10);
    double *norms = rig_golden(&r, "adamw.norms", 10);
    double *rates = rig_golden(&r, "adamw.lr", 10);
    for (int step = 0; step < 10; step++) {
        struct step_result res = rig_step(&r, step + 1, rates[step]);
        double loss = res.loss_sum * r.grad_scale;
        double e1 = fabs(loss - losses[step]) / losses[step];
        double e2 = fabs(res.grad_norm - norms[step]) / norms[step];
        cr_assert_leq(e1, rtol, "loss of step %d is %.12g, not %.12g", step, loss, losses[step]);
        cr_assert_leq(e2, rtol, "norm of step %d is %.12g, not %.12g", step, res.grad_norm,
                      norms[step]);
        cr_assert(res.finite && res.clipped == (norms[step] > 1.0));
        worst = fmax(worst, fmax(e1, e2) / rtol);
    }
    fprintf(stderr, "ten steps in %s: %.2g %% of the tolerance used\n", dtype_name(compute),
            100 * worst);
    free(losses);
    free(norms);
    free(rates);
    rig_close(&r);
}

/* Rates, bias corrections and the scale of losses are floats in every table: that bounds even
 * double to some 1e-8 a step. */
Test(executor, ten_steps_in_double)
{
    check_golden_steps(DT_F64, 2, 1e-6);
    check_golden_steps(DT_F64, 4, 1e-6);
}

Test(executor, ten_steps_in_float)
{
    check_golden_steps(DT_F32, 2, 1e-5);
}

Test(executor, cutting_a_step_into_micro_batches_changes_rounding_only)
{
    struct step_result whole[3];
    for (int64_t rows = RIG_ROWS; rows >= 1; rows /= 2) {
        struct rig r;
        rig_open(&r, &(struct rig_options){.compute = DT_F64, .micro_batch = rows, .dropout = 0.1});
        for (int step = 0; step < 3; step++) {
            struct step_result res = rig_step(&r, step + 1, 1e-2);
            if (rows == RIG_ROWS)
                whole[step] = res;
            cr_expect_float_eq(res.loss_sum, whole[step].loss_sum, 1e-12 * whole[step].loss_sum);
            cr_expect_float_eq(res.grad_norm, whole[step].grad_norm, 1e-6 * whole[step].grad_norm);
            cr_expect_eq(res.correct, whole[step].correct);
        }
        rig_close(&r);
    }
}

Test(executor, memory_is_claimed_once_and_exactly_as_planned)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){.compute = DT_F32, .micro_batch = 1});
    const struct device_counters *c = &r.device->counters;
    for (int step = 1; step <= 2; step++)
        rig_step(&r, step, 1e-2);
    struct step_result eval;
    cr_assert_eq(executor_eval(r.executor, &eval, NULL), 0);
    cr_expect_eq(c->device_peak, r.plan->claim[TIER_GPU]);
    cr_expect_eq(c->device_now, r.plan->claim[TIER_GPU]);
    cr_expect_eq(c->host_peak, r.plan->claim[TIER_HOST]);
    rig_close(&r);
}

Test(executor, a_step_moves_the_planned_bytes)
{
    struct rig r;
    struct plan_simulation sim;
    rig_open(&r, &(struct rig_options){.compute = DT_F32, .micro_batch = 2});
    uint64_t h2d = r.device->counters.h2d_bytes, d2h = r.device->counters.d2h_bytes;
    rig_step(&r, 1, 1e-2);
    cr_assert_eq(plan_simulate(r.plan, LIST_TRAIN, &sim, NULL), 0);
    cr_expect_eq(r.device->counters.h2d_bytes - h2d, (uint64_t)sim.link_bytes[LINK_H2D]);
    cr_expect_eq(r.device->counters.d2h_bytes - d2h, (uint64_t)sim.link_bytes[LINK_D2H]);
    rig_close(&r);
}

/* All state behind three steps with dropout; free(). */
static char *state_behind_steps(uint64_t *n)
{
    struct rig r;
    size_t bytes;
    rig_open(&r, &(struct rig_options){.compute = DT_F32, .micro_batch = 2, .dropout = 0.2});
    for (int step = 1; step <= 3; step++)
        rig_step(&r, step, 1e-2);
    char *state = rig_payloads(&r, &bytes);
    rig_close(&r);
    *n = bytes;
    return state;
}

Test(executor, the_same_steps_give_the_same_bits)
{
    uint64_t n, m;
    char *a = state_behind_steps(&n), *b = state_behind_steps(&m);
    cr_expect_eq(n, m);
    cr_expect_eq(memcmp(a, b, n), 0);
    free(a);
    free(b);
}

Test(executor, keeping_cheap_tensors_changes_no_bit)
{
    struct rig_options keep = {.compute = DT_F32, .micro_batch = 2, .dropout = 0.1}, remake = keep;
    struct rig a, b;
    remake.remake = true;
    rig_open(&a, &keep);
    rig_open(&b, &remake);
    cr_expect_lt(b.plan->claim[TIER_GPU], a.plan->claim[TIER_GPU]);
    rig_expect_same(&a, &b, 1, 3);
    rig_close(&a);
    rig_close(&b);
}

Test(executor, dropout_differs_from_step_to_step_and_is_off_in_evaluation)
{
    struct rig with, without;
    struct step_result a, b;
    rig_open(&with, &(struct rig_options){.compute = DT_F64, .micro_batch = 4, .dropout = 0.2});
    rig_open(&without, &(struct rig_options){.compute = DT_F64, .micro_batch = 4});
    double first = rig_step(&with, 1, 0).loss_sum; /* a rate of 0: only the masks change */
    cr_expect_neq(first, rig_step(&with, 2, 0).loss_sum);
    cr_expect_eq(first, rig_step(&with, 1, 0).loss_sum);
    cr_expect_neq(first, rig_step(&without, 1, 0).loss_sum);
    rig_fill(&with, 0);
    rig_fill(&without, 0);
    cr_assert_eq(executor_eval(with.executor, &a, NULL), 0);
    cr_assert_eq(executor_eval(without.executor, &b, NULL), 0);
    cr_expect_eq(a.loss_sum, b.loss_sum);
    rig_close(&with);
    rig_close(&without);
}

Test(executor, logits_are_those_of_pytorch)
{
    struct rig r;
    enum { VOCAB = 97 };
    float logits[VOCAB];
    struct err err = {0};
    rig_open(&r, &(struct rig_options){.compute = DT_F64, .micro_batch = 2});
    double *want = rig_golden(&r, "logits", RIG_ROWS * RIG_LENGTH * VOCAB);
    for (int64_t at = 0; at < RIG_LENGTH; at += 5) {
        rig_fill(&r, 0);
        cr_assert_eq(executor_logits(r.executor, at, logits, &err), 0, "%s", err.msg);
        for (int64_t v = 0; v < VOCAB; v++)
            cr_assert_float_eq(logits[v], want[at * VOCAB + v], 1e-5, "position %d, token %d",
                               (int)at, (int)v);
    }
    free(want);
    rig_close(&r);
}

Test(executor, a_step_with_a_gradient_that_is_not_finite_changes_nothing)
{
    struct rig r;
    size_t n;
    rig_open(&r, &(struct rig_options){.compute = DT_F32, .micro_batch = 2});
    rig_step(&r, 1, 1e-2);
    char *before = rig_payloads(&r, &n);
    r.grad_scale = NAN;
    cr_expect(!rig_step(&r, 2, 1e-2).finite);
    char *after = rig_payloads(&r, &n);
    cr_expect_eq(memcmp(before, after, n), 0);
    free(before);
    free(after);
    rig_close(&r);
}

/* --- gradients in bfloat16 --- */

static void train_narrow(int64_t micro_batch, bool narrow, double norms[4], char **payloads,
                         size_t *n)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){.compute = DT_BF16,
                                       .micro_batch = micro_batch,
                                       .moments = MOMENTS_BF16,
                                       .master = MASTER_BF16,
                                       .bf16_grads = narrow});
    for (int step = 0; step < 4; step++)
        norms[step] = rig_step(&r, step + 1, 1e-2).grad_norm;
    *payloads = rig_payloads(&r, n);
    rig_close(&r);
}

/* A gradient is rounded where it is consumed: of one micro-batch it may as well lie rounded. */
Test(executor, bf16_gradients_of_one_micro_batch_change_no_bit)
{
    double wide[4], narrow[4];
    char *a, *b;
    size_t n, m;

    train_narrow(RIG_ROWS, false, wide, &a, &n);
    train_narrow(RIG_ROWS, true, narrow, &b, &m);
    cr_expect_arr_eq(wide, narrow, sizeof wide);
    cr_assert_eq(n, m);
    cr_expect_eq(memcmp(a, b, n), 0);
    free(a);
    free(b);
}

/* Sums of four micro-batches: a rounding of 2^-8 each, the same bits every time. Behind the first
 * step the weights differ, too: they are bfloat16, and the rate is large. */
Test(executor, bf16_gradients_add_up_over_micro_batches)
{
    double wide[4], narrow[4], again[4];
    char *a, *b, *c;
    size_t n, m;

    train_narrow(1, false, wide, &a, &n);
    train_narrow(1, true, narrow, &b, &m);
    train_narrow(1, true, again, &c, &m);
    for (int step = 0; step < 4; step++)
        cr_expect_leq(fabs(narrow[step] - wide[step]), (step == 0 ? 2e-3 : 5e-2) * wide[step],
                      "norm of step %d is %.6g, not %.6g", step, narrow[step], wide[step]);
    cr_expect_neq(memcmp(a, b, n), 0); /* they were narrow indeed */
    cr_expect_eq(memcmp(b, c, n), 0);
    free(a);
    free(b);
    free(c);
}

/* --- split masters --- */

/* Checks what was saved of a run with split masters against a run with whole ones. */
struct halves {
    const struct plan *whole;
    const char *saved; /* its payloads, one behind the other */
    char *param;       /* of the split run's chunk */
    int64_t n_params;
};

static int join_halves(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                       struct err *err)
{
    struct halves *h = ud;
    size_t n = (size_t)h->whole->chunks.chunks[chunk].n;
    size_t moments = payload == PAYLOAD_STATE ? bytes - n * sizeof(int16_t) : 0;

    if (payload == PAYLOAD_PARAM) {
        free(h->param);
        h->param = xmalloc(bytes);
        memcpy(h->param, host, bytes);
        cr_expect_eq(memcmp(h->saved, host, bytes), 0);
        h->saved += bytes;
        return 0;
    }
    float *master = xmalloc(n * sizeof *master);
    master_join(master, (const uint16_t *)h->param, host, (int64_t)n);
    cr_expect_eq(memcmp(h->saved, master, n * sizeof *master), 0);
    cr_expect_eq(memcmp(h->saved + n * sizeof *master, (char *)host + n * sizeof(int16_t), moments),
                 0);
    h->saved += n * sizeof *master + moments;
    h->n_params += (int64_t)n;
    free(master);
    return 0;
}

/* The published weights are float: the first step begins with them to the bit, too. */
Test(executor, split_masters_train_as_whole_ones_to_the_bit)
{
    struct rig_options o = {.compute = DT_BF16, .micro_batch = 2, .dropout = 0.1}, small = o;
    struct rig whole, split;
    struct err err = {0};
    size_t n;

    small.master = MASTER_SPLIT;
    rig_open(&whole, &o);
    rig_open(&split, &small);
    for (int step = 1; step <= 6; step++) {
        struct step_result a = rig_step(&whole, step, 1e-2), b = rig_step(&split, step, 1e-2);
        cr_expect(a.loss_sum == b.loss_sum && a.grad_norm == b.grad_norm, "step %d: %.17g, %.17g",
                  step, a.loss_sum, b.loss_sum);
    }
    char *saved = rig_payloads(&whole, &n);
    struct halves h = {.whole = whole.plan, .saved = saved};
    cr_assert_eq(executor_transfer(split.executor, LIST_SAVE, join_halves, &h, &err), 0, "%s",
                 err.msg);
    cr_expect_eq((size_t)(h.saved - saved), n);
    cr_expect_eq(14 * (size_t)h.n_params, n);
    cr_expect_eq(split.plan->claim[TIER_GPU], whole.plan->claim[TIER_GPU] - 2 * (size_t)h.n_params);
    free(h.param);
    free(saved);
    rig_close(&whole);
    rig_close(&split);
}

/* --- loss scaling --- */

static void set_scale(struct rig *r, struct loss_scale scale)
{
    struct err err = {0};
    cr_assert_eq(executor_set_loss_scale(r->executor, scale, &err), 0, "%s", err.msg);
}

/* A power of two that float can hold changes nothing but exponents. */
Test(executor, a_loss_scale_changes_no_bit_of_a_step)
{
    struct step_result plain[3];
    char *want = NULL;
    size_t n;

    for (int scaled = 0; scaled < 2; scaled++) {
        struct rig r;
        rig_open(&r, &(struct rig_options){.compute = DT_F32, .micro_batch = 2});
        if (scaled)
            set_scale(&r, (struct loss_scale){.scale = 1024, .interval = 2});
        for (int step = 0; step < 3; step++) {
            struct step_result res = rig_step(&r, step + 1, 1e-2);
            if (!scaled)
                plain[step] = res;
            cr_expect(res.loss_sum == plain[step].loss_sum && res.finite &&
                      res.grad_norm == plain[step].grad_norm);
            if (scaled)
                cr_expect_eq(res.loss_scale.scale, step == 0 ? 1024 : 2048);
        }
        char *got = rig_payloads(&r, &n);
        if (scaled)
            cr_expect_eq(memcmp(got, want, n), 0);
        free(want);
        want = got;
        rig_close(&r);
    }
    free(want);
}

Test(executor, a_step_that_overflows_is_skipped_and_halves_the_scale)
{
    struct rig r;
    size_t n;

    rig_open(&r, &(struct rig_options){.compute = DT_F32, .micro_batch = 2});
    set_scale(&r, (struct loss_scale){.scale = 4096, .good = 7, .interval = 2000});
    char *before = rig_payloads(&r, &n);
    double scale = r.grad_scale;
    r.grad_scale = 1e38; /* times 4096: infinity */
    struct step_result res = rig_step(&r, 1, 1e-2);
    cr_expect(!res.finite && isfinite(res.loss_sum));
    cr_expect(res.loss_scale.scale == 2048 && res.loss_scale.good == 0 &&
              res.loss_scale.skipped == 1);
    char *after = rig_payloads(&r, &n);
    cr_expect_eq(memcmp(before, after, n), 0);
    r.grad_scale = scale;
    res = rig_step(&r, 2, 1e-2);
    cr_expect(res.finite && res.loss_scale.scale == 2048 && res.loss_scale.good == 1);
    free(before);
    free(after);
    rig_close(&r);
}

static int64_t count_confirms(const struct plan *p)
{
    int64_t n = 0;
    for (int64_t k = 0; k < p->lists[LIST_TRAIN].n; k++)
        n += p->lists[LIST_TRAIN].items[k].op == INSTR_CONFIRM;
    return n;
}

/* The same steps, two of which overflow, resident and with speculative updates of some chunks, but
 * in some steps: behind those that speculate an odd number of times, the states are in the second
 * places. */
static void compare_speculation(double max_norm, int64_t early, enum dtype compute,
                                enum master_kind master, enum moment_kind moments, bool clips)
{
    struct rig_options here = {.compute = compute,
                               .micro_batch = 2,
                               .master = master,
                               .moments = moments,
                               .max_norm = max_norm},
                       there = here;
    struct rig a, b;
    there.on_host = true;
    there.early = early;
    rig_open(&a, &here);
    rig_open(&b, &there);
    cr_assert_gt(count_confirms(b.plan), 0);
    double scale = a.grad_scale;
    for (int step = 1; step <= 7; step++) {
        size_t n, m;
        bool overflows = step == 3 || step == 6;
        a.grad_scale = b.grad_scale = overflows ? INFINITY : scale;
        b.wait_for_norm = step == 2 || step == 5 || step == 6;
        struct step_result x = rig_step(&a, step, 1e-2), y = rig_step(&b, step, 1e-2);
        cr_expect(x.clipped == (clips && !overflows) && x.finite == !overflows);
        cr_expect(x.loss_sum == y.loss_sum && x.clipped == y.clipped && x.finite == y.finite);
        char *want = rig_payloads(&a, &n), *got = rig_payloads(&b, &m);
        cr_expect(n == m && memcmp(want, got, n) == 0, "behind step %d, norm %g", step, max_norm);
        free(want);
        free(got);
    }
    rig_close(&a);
    rig_close(&b);
}

Test(executor, speculative_updates_change_no_bit)
{
    for (int64_t early = 1; early <= 100; early += 99) {
        compare_speculation(1e9, early, DT_BF16, MASTER_FP32, MOMENTS_FP32, false);
        compare_speculation(1e-2, early, DT_BF16, MASTER_FP32, MOMENTS_FP32, true);
        compare_speculation(1e9, early, DT_F32, MASTER_FP32, MOMENTS_FP32, false);
        compare_speculation(1e-2, early, DT_F32, MASTER_FP32, MOMENTS_FP32, true);
    }
    for (int master = MASTER_FP32; master <= MASTER_SPLIT; master++) {
        for (int moments = MOMENTS_FP32; moments <= MOMENTS_FP8; moments++) {
            compare_speculation(1e9, 100, DT_BF16, master, moments, false);
            compare_speculation(1e-2, 100, DT_BF16, master, moments, true);
        }
    }
}
